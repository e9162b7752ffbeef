"""Students made from a larger model: narrower, with fewer words, or as large as a budget allows.

Weights are computed from the source's and copied by name into a fresh network, which starts close
to what the source computes. This room knows Hugging Face networks, no row and no objective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from kd.budget import Shape, choose, shape_of, spread
from kd.errors import ConfigError
from kd.layers import keep_layers
from kd.narrowing import narrow
from kd.pruning import prune
from kd.types import Inputs

__all__ = ["Shrink", "shrunk"]

_SIZES = ("width", "heads", "intermediate")
_TEXTS = 128  # to look at, in batches
_BATCH = 16
_TOKENS = 64


@dataclass(frozen=True)
class Shrink:
    """How a student is made smaller than the model that it starts from.

    Either the sizes are given, or a budget chooses them: the largest student within it that has a
    share of the source's layers and heads, heads as wide as the source's and its ratio of
    ``intermediate`` to ``width``. Largest is what has most parameters outside the embeddings; of
    numbers within a tenth of each other the deeper student is taken.

    Args:
        width: Width of the hidden states; null keeps the source's.
        heads: Attention heads per layer; null keeps their number.
        intermediate: Width inside the feed-forward layers; null keeps the source's.
        method: How layers become narrower: ``svd`` projects hidden states on the directions in
            which they vary on training texts; ``magnitude`` copies the numbers of largest norm.
        vocabulary: Whether to drop the tokens that the training texts do not use.
        minimum_count: Occurrences in the training texts of a token that is kept.
        max_parameters: Most parameters that the student may have.
        max_latency_ms: Longest time for a text of 32 tokens on one thread of this machine's CPU,
            which every run measures anew that continues no other.

    Raises:
        ConfigError: If a number is not positive, or there are both sizes and a budget.
    """

    width: int | None = None
    heads: int | None = None
    intermediate: int | None = None
    method: Literal["svd", "magnitude"] = "svd"
    vocabulary: bool = False
    minimum_count: int = 1
    max_parameters: int | None = None
    max_latency_ms: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not value > 0:
                raise ConfigError(f"Shrink.{name} is {value}: give a positive number.")
        sizes = [name for name in _SIZES if getattr(self, name)]
        if sizes and self.has_budget:
            raise ConfigError(
                f"Shrink has {', '.join(sizes)} and a budget, which chooses them: give one or the "
                "other."
            )

    @property
    def has_budget(self) -> bool:
        """Whether the sizes are to be chosen."""
        return self.max_parameters is not None or self.max_latency_ms is not None


def shrunk(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    shrink: Shrink,
    chosen: Shape | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, list[str]]:
    """Make a smaller model: first fewer tokens, then fewer layers, then narrower ones.

    Args:
        network: The source, left as it is.
        tokenizer: Its tokenizer, left as it is.
        texts: Those of the training.
        shrink: What to do.
        chosen: What its budget, measured before, has allowed already; null measures.

    Returns:
        The student, its tokenizer, and what was done, a line each.

    Raises:
        ConfigError: If the sizes or the budget cannot be had.
    """
    notes = []
    if shrink.vocabulary:
        before, special = len(tokenizer), _special_tokens(network)
        tokenizer, rows = prune(tokenizer, texts, shrink.minimum_count, special.values())
        network = _with_rows(network, rows)
        notes.append(f"vocabulary = {len(rows):,} of {before:,} tokens")
    sizes = {name: getattr(shrink, name) for name in _SIZES if getattr(shrink, name)}
    shape = replace(shape_of(network.config), **sizes)
    if shrink.has_budget:
        if chosen is None:
            shape, why = choose(network, shrink.max_parameters, shrink.max_latency_ms)
            notes.append(why)
        else:
            shape = chosen
        if shape.layers < network.config.num_hidden_layers:
            network = keep_layers(network, spread(network.config, shape.layers))
    if shape != shape_of(network.config):
        seen = _sample(network, tokenizer, texts) if shrink.method == "svd" else []
        network = narrow(network, shape, seen)
        if not shrink.has_budget:
            notes.append(f"shape = {shape}: {network.num_parameters() / 1e6:.3g}M parameters")
    return network, tokenizer, notes


def _special_tokens(network: PreTrainedModel) -> dict[str, int]:
    """Return the special tokens that the configuration names, by key."""
    values = network.config.to_dict()
    return {
        name: value
        for name, value in values.items()
        if name.endswith("_token_id") and isinstance(value, int)
    }


def _with_rows(network: PreTrainedModel, rows: list[int]) -> PreTrainedModel:
    """Copy a model with some rows of its word embeddings, in this order."""
    config = type(network.config).from_dict(network.config.to_dict())
    config.vocab_size = len(rows)
    for name, row in _special_tokens(network).items():
        setattr(config, name, rows.index(row) if row in rows else None)
    words = network.get_input_embeddings()
    weights = dict(network.state_dict())
    for name, module in network.named_modules():
        if module is words:
            weights[f"{name}.weight"] = weights[f"{name}.weight"][rows]
    copy: PreTrainedModel = type(network)(config)
    copy.load_state_dict(weights)
    return copy


def _sample(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
) -> list[Inputs]:
    """Encode a few of the texts, evenly spread."""
    count = min(len(texts), _TEXTS)
    chosen = [texts[place * len(texts) // count] for place in range(count)]
    if not chosen:
        raise ConfigError(
            "Shrink.method is svd, which looks at the training texts, and there are none: give "
            "texts, or use magnitude."
        )
    config = network.config
    limit = min(_TOKENS, config.max_position_embeddings - (config.pad_token_id or 0) - 1)
    batches: list[Inputs] = []
    for start in range(0, len(chosen), _BATCH):
        encoded = tokenizer(
            chosen[start : start + _BATCH],
            padding=True,
            truncation=True,
            max_length=limit,
            return_token_type_ids=False,
            return_tensors="pt",
        )
        batches.append(dict(encoded))
    return batches
