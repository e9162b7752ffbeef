"""Queries, keys and values: read from inside a network's attention while it runs.

``transformers`` returns hidden states and attention, not these; hooks on the linear layers that
make them do. This room knows how the families of encoders name those layers, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from kd.errors import ModelError

__all__ = ["PROJECTIONS", "captured"]

PROJECTIONS = ("queries", "keys", "values")
"""The fields of `Outputs` that this room fills."""

_NAMES = {
    "queries": ("query", "q_lin", "query_proj", "q_proj"),
    "keys": ("key", "k_lin", "key_proj", "k_proj"),
    "values": ("value", "v_lin", "value_proj", "v_proj"),
}
_FUSED = "Wqkv"  # ModernBERT: one layer makes the three


@contextmanager
def captured(
    network: PreTrainedModel, fields: Sequence[str]
) -> Iterator[dict[str, tuple[Tensor, ...]]]:
    """Collect projections while the network runs once inside the block.

    Args:
        network: The encoder.
        fields: Which of :data:`PROJECTIONS`.

    Yields:
        By field, after the run: one tensor `[B, L, D]` per layer.

    Raises:
        ModelError: If the network's attention has no such layers.
    """
    found: dict[str, tuple[Tensor, ...]] = {}
    caught: dict[nn.Module, Tensor] = {}
    sources = {field: _sources(network, field) for field in fields}

    def catch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # DeBERTa projects its relative positions by the same layers, afterwards
        caught.setdefault(module, output)

    modules = {module for layers in sources.values() for module, _ in layers}
    handles = [module.register_forward_hook(catch) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    for field, layers in sources.items():
        found[field] = tuple(
            caught[module] if part is None else caught[module].chunk(3, dim=-1)[part]
            for module, part in layers
        )


def _sources(network: PreTrainedModel, field: str) -> list[tuple[nn.Module, int | None]]:
    """Return the layer that makes a field in each attention, and which third of its output."""
    layers: list[tuple[nn.Module, int | None]] = []
    for name, module in network.base_model.named_modules():
        last = name.rsplit(".", 1)[-1]
        if last in _NAMES[field] and isinstance(module, nn.Linear):
            layers.append((module, None))
        elif last == _FUSED:
            layers.append((module, PROJECTIONS.index(field)))
    if len(layers) != network.config.num_hidden_layers:
        raise ModelError(
            f"The {field} of a {network.config.model_type} cannot be read: use an objective on "
            "logits, hidden states or attention."
        )
    return layers
