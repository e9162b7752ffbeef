"""Narrower layers: fewer hidden dimensions, heads and feed-forward neurons.

The weights are computed from the source's, so that the narrow network starts close to what the
source computes. This room knows Hugging Face networks, no tokenizer and no path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from kd.budget import NARROWABLE, Shape, resized, shape_of
from kd.errors import ConfigError
from kd.types import Inputs

__all__ = ["narrow"]

_Weights = dict[str, Tensor]


class _Layer(NamedTuple):
    """Names of the linear layers of a transformer layer."""

    queries: str
    keys: str
    values: str
    out: str
    up: str
    down: str


_BERT = _Layer(
    "encoder.layer.{}.attention.self.query",
    "encoder.layer.{}.attention.self.key",
    "encoder.layer.{}.attention.self.value",
    "encoder.layer.{}.attention.output.dense",
    "encoder.layer.{}.intermediate.dense",
    "encoder.layer.{}.output.dense",
)
_DISTILBERT = _Layer(
    "transformer.layer.{}.attention.q_lin",
    "transformer.layer.{}.attention.k_lin",
    "transformer.layer.{}.attention.v_lin",
    "transformer.layer.{}.attention.out_lin",
    "transformer.layer.{}.ffn.lin1",
    "transformer.layer.{}.ffn.lin2",
)
_HEADS = {
    "bert": ("bert.pooler.dense", "classifier"),
    "distilbert": ("pre_classifier", "classifier"),
}
_HEAD = ("classifier.dense", "classifier.out_proj")


def narrow(network: PreTrainedModel, shape: Shape, seen: Sequence[Inputs] = ()) -> PreTrainedModel:
    """Copy a classifier with narrower layers.

    With inputs, hidden states are projected on the leading right singular vectors of the states of
    all layers, stacked (compare SliceGPT, arXiv:2401.15024, which has directions for each layer);
    heads and neurons are kept by how much they write on those inputs; the query-key and
    value-output products of a head that becomes narrower are cut by SVD. Without inputs, what is
    kept are the numbers of largest norm, unchanged.

    Args:
        network: Left as it is.
        shape: The new sizes; its layers are the network's.
        seen: ``input_ids`` and ``attention_mask`` `[B, L]` to look at.

    Returns:
        A new model.

    Raises:
        ConfigError: If the family cannot be narrowed, or not to these sizes.
    """
    source = shape_of(network.config)
    _check(network.config, source, shape)
    base = network.base_model_prefix
    names = _DISTILBERT if network.config.model_type == "distilbert" else _BERT
    layers = [
        _Layer(*(f"{base}.{name.format(number)}" for name in names))
        for number in range(source.layers)
    ]
    head = _HEADS.get(network.config.model_type, _HEAD)
    watched = [head[1], *(layer.out for layer in layers), *(layer.down for layer in layers)]
    moments, strengths = _look(network, watched, seen)
    weights = dict(network.state_dict())
    writers = {f"{base}.embeddings_project"} | set(watched[1:])
    _project_stream(network, weights, shape.width, moments, writers, head[1])
    for layer in layers:
        _narrow_attention(weights, layer, source, shape, strengths.get(layer.out))
        _keep_units(weights, layer.up, layer.down, shape.intermediate, strengths)
    _keep_units(weights, *head, shape.width, strengths)
    copy: PreTrainedModel = type(network)(resized(network.config, shape))
    copy.load_state_dict(weights)
    return copy


def _check(config: PretrainedConfig, source: Shape, shape: Shape) -> None:
    if config.model_type not in NARROWABLE:
        raise ConfigError(
            f"Shrink cannot make a {config.model_type} narrower, only {', '.join(NARROWABLE)}: "
            "use keep_layers, which works for all."
        )
    for name in ("width", "heads", "intermediate"):
        if getattr(shape, name) > getattr(source, name):
            raise ConfigError(
                f"Shrink.{name} is {getattr(shape, name)}, but the source has "
                f"{getattr(source, name)}: give at most that."
            )
    if shape.width % shape.heads or shape.width // shape.heads > source.width // source.heads:
        raise ConfigError(
            f"Shrink makes {shape.heads} heads of a width of {shape.width}: a head's width must be "
            f"whole and at most the source's, {source.width // source.heads}."
        )
    if shape.width == getattr(config, "embedding_size", None) != source.width:
        raise ConfigError(
            f"Shrink.width is {shape.width}, the width of this ELECTRA's embeddings, which would "
            "then have no projection behind them: give another width."
        )


def _look(
    network: PreTrainedModel, watched: Sequence[str], seen: Sequence[Inputs]
) -> tuple[Tensor | None, _Weights]:
    """Return second moments of the hidden states, and the size of what reaches linear layers."""
    if not seen:
        return None, {}
    squares: _Weights = {}
    moments = torch.zeros(network.config.hidden_size, network.config.hidden_size)
    mask = torch.empty(0)

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            states = inputs[0][mask] if inputs[0].dim() == mask.dim() + 1 else inputs[0]
            squares[name] = squares.get(name, torch.zeros(())) + states.square().sum(dim=0)

        return hook

    handles = [
        network.get_submodule(name).register_forward_pre_hook(watch(name)) for name in watched
    ]
    training = network.training
    network.eval()
    try:
        for inputs in seen:
            mask = inputs["attention_mask"].bool()
            with torch.no_grad():
                answer = network(**inputs, output_hidden_states=True)
            for states in answer.hidden_states:
                moments += states[mask].T @ states[mask]
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return moments, {name: total.sqrt() for name, total in squares.items()}


def _project_stream(
    network: PreTrainedModel,
    weights: _Weights,
    width: int,
    moments: Tensor | None,
    writers: set[str],
    last: str,
) -> None:
    """Write hidden states in fewer dimensions, wherever weights read or write them."""
    apart = hasattr(network.base_model, "embeddings_project")  # ELECTRA's own embedding width
    modules = {
        name: module
        for name, module in network.named_modules()
        if name != last and not (apart and ".embeddings." in name)
    }
    norms = [name for name, module in modules.items() if isinstance(module, nn.LayerNorm)]
    stream, gain = _directions(weights, norms, width, moments)
    for name, module in modules.items():
        weight, bias = f"{name}.weight", f"{name}.bias"
        if isinstance(module, nn.LayerNorm):
            weights[weight] = gain * (weights[weight] @ stream.square())
            weights[bias] = weights[bias] @ stream
        elif name in writers:
            weights[weight] = stream.T @ weights[weight]
            weights[bias] = weights[bias] @ stream
        elif isinstance(module, (nn.Embedding, nn.Linear)):
            weights[weight] = weights[weight] @ stream


def _directions(
    weights: Mapping[str, Tensor], norms: Sequence[str], width: int, moments: Tensor | None
) -> tuple[Tensor, float]:
    """Return orthonormal columns, old by new width, and by how much normalisation shrinks."""
    size = len(weights[f"{norms[0]}.weight"])
    if width == size:
        return torch.eye(size), 1.0
    if moments is None:  # what a layer norm puts out has the square of its gain and bias
        parts = [weights[f"{name}.{part}"] for name in norms for part in ("weight", "bias")]
        energy = torch.stack(parts).square().sum(dim=0)
        return torch.eye(size)[:, _largest(energy, width)], 1.0
    directions = torch.linalg.eigh(moments.double())[1][:, -width:].flip(1).float()
    # any rotation spans the same space: near to old dimensions suits best, as layer norms have a
    # gain per dimension; pivots are dimensions that stand for the directions, the leading first
    nearest = torch.linalg.lu(directions)[0][:, :width].argmax(dim=0)
    left, _, right = torch.linalg.svd(directions[nearest].T)
    directions = directions @ left @ right
    share = (directions * (moments @ directions)).sum() / moments.trace()
    return directions, math.sqrt(share.item() * size / width)


def _narrow_attention(
    weights: _Weights, layer: _Layer, source: Shape, shape: Shape, strength: Tensor | None
) -> None:
    """Keep the heads that write most, and reduce each to the new width of a head."""
    old, new = source.width // source.heads, shape.width // shape.heads
    linears = [_with_bias(weights, name) for name in (layer.queries, layer.keys, layer.values)]
    linears.append(weights[f"{layer.out}.weight"].T)
    # [H, width of a head, width of the stream; its bias too, but for the last]
    queries, keys, values, out = (rows.reshape(source.heads, old, -1) for rows in linears)
    reach = values.norm(dim=-1) if strength is None else strength.view(source.heads, old)
    written = reach * out.norm(dim=-1)
    kept = _largest(written.square().sum(dim=-1), shape.heads)
    queries, keys, values, out = queries[kept], keys[kept], values[kept], out[kept]
    if new < old:
        reduce = _slice if strength is None else _cut
        queries, keys = reduce(queries, keys, new)
        values, out = reduce(values, out, new)
        if strength is not None:
            queries = queries * math.sqrt(new / old)  # scores are divided by the root of the width
    for name, rows in ((layer.queries, queries), (layer.keys, keys), (layer.values, values)):
        weights[f"{name}.weight"] = rows[..., :-1].flatten(0, 1)
        weights[f"{name}.bias"] = rows[..., -1].flatten()
    weights[f"{layer.out}.weight"] = out.flatten(0, 1).T


def _slice(first: Tensor, second: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Keep the rows of `[H, rows, …]` whose norms have the largest product."""
    norms = first.norm(dim=-1) * second.norm(dim=-1)
    kept = norms.topk(size).indices.sort().values.unsqueeze(-1)
    return first.take_along_dim(kept, 1), second.take_along_dim(kept, 1)


def _cut(first: Tensor, second: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return fewer rows whose product, firstᵀ · second, is the nearest of that rank, by SVD."""
    left, upper = torch.linalg.qr(first.mT.double())
    right, lower = torch.linalg.qr(second.mT.double())
    turn, values, back = torch.linalg.svd(upper @ lower.mT)
    root = values[..., :size].sqrt().unsqueeze(-2)
    return (
        (left @ turn[..., :size] * root).mT.float(),
        (right @ back.mT[..., :size] * root).mT.float(),
    )


def _keep_units(
    weights: _Weights, first: str, second: str, size: int, strengths: Mapping[str, Tensor]
) -> None:
    """Keep the units between two linear layers that write most."""
    strength = strengths.get(second)
    if strength is None:
        strength = _with_bias(weights, first).norm(dim=-1)
    kept = _largest(strength * weights[f"{second}.weight"].norm(dim=0), size)
    weights[f"{first}.weight"] = weights[f"{first}.weight"][kept]
    weights[f"{first}.bias"] = weights[f"{first}.bias"][kept]
    weights[f"{second}.weight"] = weights[f"{second}.weight"][:, kept]


def _with_bias(weights: Mapping[str, Tensor], name: str) -> Tensor:
    return torch.cat([weights[f"{name}.weight"], weights[f"{name}.bias"].unsqueeze(-1)], dim=-1)


def _largest(scores: Tensor, size: int) -> Tensor:
    """Return the places of the largest scores, rising."""
    return scores.topk(size).indices.sort().values
