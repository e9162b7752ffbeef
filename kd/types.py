"""The words that every room shares: rows, batches and what a model answers.

Letters in shapes: ``B`` batch, ``L`` tokens, ``D`` width, ``H`` heads, ``C`` classes,
``V`` vocabulary, ``R`` rationale tokens. This room knows no model, no file and no objective.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["UNLABELLED", "Annotation", "Batch", "Inputs", "ModelInfo", "Outputs", "Row"]

UNLABELLED = -100
"""The label of a row that has none; PyTorch's ``ignore_index``."""

Inputs = Mapping[str, Tensor]
"""What one model reads: ``input_ids``, ``attention_mask`` and, for pairs, ``token_type_ids``."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """What a language model, or a person, said about a row of training; never about another.

    Args:
        label: Position of the class that it named, or null.
        confidence: How sure it was, from 0 to 1, or null.
        rationale: Why, without the words that give the label away; null where nothing is taught.
        evidence: Parts of the text that show it: first character and the one after the last.
        is_told: Whether it was told the label and only had to say why: then no model reads its
            rationale, which may be made to fit.
    """

    label: int | None = None
    confidence: float | None = None
    rationale: str | None = None
    evidence: tuple[tuple[int, int], ...] = ()
    is_told: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One canonical row of a data set.

    Args:
        index: Stable number of the row in its split.
        text: The text; never empty, valid Unicode.
        label: Position in the list of class names, several of them where a row may have several,
            or null for an unlabelled row.
        pair: The second text of a sentence pair.
        origin: ``index`` of the row that this one was made from, or null for an original.
        weight: How much the row counts in every row-wise term of the loss.
        annotation: What was said about it, in training.
    """

    index: int
    text: str
    label: int | tuple[int, ...] | None = None
    pair: str | None = None
    origin: int | None = None
    weight: float = 1.0
    annotation: Annotation | None = None

    @property
    def content(self) -> int:
        """Digest of the text and its pair, 63 bits: equal numbers are equal texts."""
        parts = self.text if self.pair is None else f"{self.text}\x00{self.pair}"
        state = hashlib.blake2b(parts.encode(), digest_size=8).digest()
        return int.from_bytes(state, "big") >> 1


@dataclass(frozen=True)
class Batch:
    """Rows as tensors: one encoding per view.

    Args:
        views: Inputs by view name; ``student`` always, ``teacher`` where there is one; in training
            also ``privileged`` (text and rationale), ``rationale`` (that alone) and ``explain``
            (the text, asked for a rationale), where an objective reads them. Equal views share
            tensors.
        labels: Class positions, `[B]`, or 1 for each class that a row has, `[B, C]`;
            :data:`UNLABELLED` where a row has no label.
        index: ``Row.index`` of each row, `[B]`.
        content: Digest of each row's text, `[B]`: equal numbers are equal texts, in any split.
        weights: ``Row.weight`` of each row, `[B]`; null where all are 1.
        tokens: How many tokens the student reads, without padding; known without the device.
        family: Digest of the text that each row was made from, `[B]`; null where all are originals.
        privileged: What is known in training only, by name: ``weight`` `[B]`, 1 where a row has a
            rationale to learn from and else 0; ``told`` `[B]`, whether its author was told the
            label, so that no model reads it; ``label`` `[B]` and ``confidence`` `[B]` as
            annotated, :data:`UNLABELLED` and NaN where not; ``embedding`` `[B, D]` of the
            rationale; ``evidence`` `[B, L]`, 1 for tokens that were quoted, 0 for others,
            :data:`UNLABELLED` for rows and tokens that do not count.
    """

    views: Mapping[str, Inputs]
    labels: Tensor
    index: Tensor
    content: Tensor | None = None
    weights: Tensor | None = None
    tokens: int = 0
    family: Tensor | None = None
    privileged: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch on another device; shared views stay shared."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, for fast copies to a GPU; shared views too."""
        return self._moved(lambda tensor: tensor.pin_memory())

    def _moved(self, move: Callable[[Tensor], Tensor]) -> Batch:
        moved: dict[int, Inputs] = {}
        for inputs in self.views.values():
            if id(inputs) not in moved:
                moved[id(inputs)] = {key: move(value) for key, value in inputs.items()}
        return Batch(
            views={name: moved[id(inputs)] for name, inputs in self.views.items()},
            labels=move(self.labels),
            index=move(self.index),
            content=None if self.content is None else move(self.content),
            weights=None if self.weights is None else move(self.weights),
            tokens=self.tokens,
            family=None if self.family is None else move(self.family),
            privileged={name: move(value) for name, value in self.privileged.items()},
        )


@dataclass(frozen=True)
class Outputs:
    """What any model answers to a batch.

    Args:
        logits: `[B, C]`, never softened outside an objective.
        hidden_states: ``layers + 1`` tensors `[B, L, D]`; the first is the embeddings.
        attentions: ``layers`` tensors `[B, H, L, L]` of probabilities.
        queries: ``layers`` tensors `[B, L, D]`, the heads side by side.
        keys: Likewise.
        values: Likewise.
        mask: `[B, L]`, 1 where there is a token.
        privileged: What the same model answers when it is shown the rationale too.
        again: What the same model answers when it is asked once more, with other dropout.
        rationale_logits: `[B, R, V]`, of each rationale token given those before it.
        weights: How much each row's answer counts, `[B]`; null where all count the same.

    Whoever is asked for some layers of a field may leave the others out, as null.
    """

    logits: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    queries: tuple[Tensor, ...] | None = None
    keys: tuple[Tensor, ...] | None = None
    values: tuple[Tensor, ...] | None = None
    mask: Tensor | None = None
    privileged: Outputs | None = None
    again: Outputs | None = None
    rationale_logits: Tensor | None = None
    weights: Tensor | None = None


@dataclass(frozen=True)
class ModelInfo:
    """What an objective may know of a model before it sees an output.

    Args:
        labels: Class names in the order of the logits.
        parameters: Number of weights.
        layers: Number of transformer layers.
        width: Width of the hidden states, D.
        heads: Attention heads per layer, H.
        vocabulary: Digest of the tokenizer; equal digests encode every text alike.
        multi_label: Whether a row may have several classes: logits are then read by a sigmoid each.
        tokens: Size of the vocabulary, V.
    """

    labels: tuple[str, ...]
    parameters: int
    layers: int
    width: int
    heads: int
    vocabulary: str
    multi_label: bool = False
    tokens: int = 0
