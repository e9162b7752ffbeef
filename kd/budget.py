"""Sizes of an encoder, and the largest that a budget allows.

Parameters are counted without memory, latency is measured on this machine. This room knows
Hugging Face networks and nothing of their weights.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from kd.errors import ConfigError

__all__ = ["NARROWABLE", "Shape", "choose", "resized", "shape_of", "spread"]

NARROWABLE = ("bert", "distilbert", "electra", "roberta", "xlm-roberta")
"""Families whose layers can be made narrower; any family can lose layers."""

_SHARES = (1, 3 / 4, 2 / 3, 1 / 2, 1 / 3, 1 / 4, 1 / 6, 1 / 12)  # of the source's layers and heads
_TOKENS = 32  # of the text whose latency is measured
_TURNS = 7


@dataclass(frozen=True)
class Shape:
    """Sizes of an encoder's layers.

    Args:
        layers: Number of transformer layers.
        width: Width of the hidden states, D.
        heads: Attention heads per layer, H.
        intermediate: Width inside the feed-forward layers.
    """

    layers: int
    width: int
    heads: int
    intermediate: int

    def __str__(self) -> str:
        return (
            f"{self.layers} layer{'s' * (self.layers > 1)} of {self.width}, "
            f"{self.heads} head{'s' * (self.heads > 1)}"
        )


def shape_of(config: PretrainedConfig) -> Shape:
    """Return the sizes that a configuration has."""
    return Shape(
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        getattr(config, _intermediate(config)),
    )


def resized(config: PretrainedConfig, shape: Shape) -> PretrainedConfig:
    """Copy a configuration with other sizes.

    Args:
        config: Of the source; left as it is.
        shape: The sizes.

    Returns:
        A new configuration.
    """
    copy: PretrainedConfig = type(config).from_dict(config.to_dict())
    copy.num_hidden_layers = shape.layers
    if getattr(copy, "layer_types", None):  # ModernBERT: one kind of attention per layer
        copy.layer_types = [config.layer_types[layer] for layer in spread(config, shape.layers)]
    if getattr(config, "embedding_size", None) == config.hidden_size:
        copy.embedding_size = shape.width  # ELECTRA: no projection behind the embeddings
    copy.hidden_size, copy.num_attention_heads = shape.width, shape.heads
    setattr(copy, _intermediate(config), shape.intermediate)
    return copy


def spread(config: PretrainedConfig, layers: int) -> list[int]:
    """Return numbers of some layers, spread evenly from the first to the last."""
    last = config.num_hidden_layers - 1
    return [round(place * last / max(1, layers - 1)) for place in range(layers)]


def choose(
    network: PreTrainedModel, max_parameters: int | None, max_latency_ms: float | None
) -> tuple[Shape, str]:
    """Choose the largest shape within a budget.

    Shapes have a share of the source's layers and of its heads, with heads as wide as the source's
    and the feed-forward layers in the source's ratio. The largest has most parameters outside the
    embeddings, as those tell what a shape can learn (arXiv:2001.08361, section 3.1); of numbers
    within a tenth of each other the deeper shape is taken.

    Args:
        network: The source, with the vocabulary that the student will have.
        max_parameters: Most parameters, embeddings included; null for any number.
        max_latency_ms: Longest time for one text of 32 tokens on one thread of this machine's CPU,
            the median of several; null for any time.

    Returns:
        The shape, and a line that says why.

    Raises:
        ConfigError: If no shape is small enough.
    """
    choice = [_chosen(network, max_parameters, max_latency_ms)]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(choice)  # each rank measures another latency
    return choice[0]


def _chosen(
    network: PreTrainedModel, max_parameters: int | None, max_latency_ms: float | None
) -> tuple[Shape, str]:
    shapes = _grid(network.config)
    sizes, steps = {}, {}
    for shape in shapes:
        sizes[shape], inner = _count(network, shape)
        steps[shape] = round(math.log(inner, 1.1))
    most = "" if max_parameters is None else f" of at most {_millions(max_parameters)}"
    rejected = []  # by how much they are too large
    for shape in sorted(shapes, key=lambda shape: (steps[shape], shape.layers), reverse=True):
        told = f"{_millions(sizes[shape])} parameters{most}"
        if max_parameters is not None and sizes[shape] > max_parameters:
            why = f"{shape}, has {_millions(sizes[shape])}"
            rejected.append((sizes[shape] / max_parameters, why))
            continue
        if max_latency_ms is not None:
            latency = _latency_ms(network, shape)
            told += f", {latency:.3g} ms of at most {max_latency_ms:g} ms"
            if latency > max_latency_ms:
                rejected.append((latency / max_latency_ms, f"{shape}, takes {latency:.3g} ms"))
                continue
        larger = f"; next larger {min(rejected)[1]}" if rejected else ""
        return shape, f"shape = {shape}: {told}{larger}"
    limits = {"max_parameters": max_parameters, "max_latency_ms": max_latency_ms}
    told = " and ".join(f"{name}={limit}" for name, limit in limits.items() if limit is not None)
    raise ConfigError(
        f"Shrink's {told} cannot be met, as the smallest student, {min(rejected)[1]}: allow more, "
        "or keep fewer tokens with vocabulary and minimum_count."
    )


def _grid(config: PretrainedConfig) -> list[Shape]:
    source = shape_of(config)
    head = source.width // source.heads
    shares = _SHARES if config.model_type in NARROWABLE else (1,)
    shapes = set()
    for heads in {max(1, round(source.heads * share)) for share in shares}:
        width = heads * head
        if width == getattr(config, "embedding_size", None) != source.width:
            continue  # ELECTRA's embeddings would have no projection behind them
        inner = source.intermediate * width // source.width
        for layers in {max(1, round(source.layers * share)) for share in _SHARES}:
            shapes.add(replace(source, layers=layers, width=width, heads=heads, intermediate=inner))
    return list(shapes)


def _intermediate(config: PretrainedConfig) -> str:
    return "hidden_dim" if hasattr(config, "hidden_dim") else "intermediate_size"


def _count(network: PreTrainedModel, shape: Shape) -> tuple[int, int]:
    """Return the number of all parameters, and of those outside the embeddings."""
    with torch.device("meta"):
        empty = type(network)(resized(network.config, shape))
    total = sum(weight.numel() for weight in empty.parameters())
    tables = [module for module in empty.modules() if isinstance(module, nn.Embedding)]
    return total, total - sum(table.weight.numel() for table in tables)


def _latency_ms(network: PreTrainedModel, shape: Shape) -> float:
    config = resized(network.config, shape)
    config.vocab_size = max(2, (config.pad_token_id or 0) + 1)  # it is looked up in no time
    model = type(network)(config).eval()
    tokens = torch.ones(1, _TOKENS, dtype=torch.long)
    times, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for _ in range(_TURNS):
                start = time.perf_counter()
                model(input_ids=tokens, attention_mask=tokens)
                times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(times) * 1000


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g}M"
