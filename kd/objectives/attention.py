"""Terms that learn how a teacher's tokens attend to each other.

They compare token by token, so both sides must read the same tokens. This room knows attention,
queries, keys and values as tensors, no model and no tokenizer.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from kd.errors import ConfigError
from kd.objectives.base import Objective, weighted_mean
from kd.objectives.layers import (
    LayerMap,
    check_same_length,
    check_same_tokens,
    pair_layers,
    show_pairs,
)
from kd.objectives.schedules import Schedule
from kd.types import Batch, ModelInfo, Outputs

__all__ = ["AttentionKD", "MiniLMKD", "attention_kl", "attention_mse", "attention_scores"]


def attention_scores(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Return q · k / √(D / H) of every head, computed in float32 whatever the inputs are.

    Args:
        queries: `[B, L, D]`, the heads side by side.
        keys: `[B, L, D]`, likewise.
        heads: H, which divides D.

    Returns:
        `[B, H, L, L]`; query by key.
    """
    ours, theirs = (side.float().reshape(*side.shape[:2], heads, -1) for side in (queries, keys))
    with torch.autocast(ours.device.type, enabled=False):
        return torch.einsum("bqhd,bkhd->bhqk", ours, theirs) / math.sqrt(ours.shape[-1])


def attention_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of attention, mean over heads and over pairs of tokens of a row.

    Computed in float32 whatever the inputs are. Where the numbers of heads differ, each side's
    mean over its heads is compared.

    Args:
        student: `[B, H, L, L]`.
        teacher: `[B, H, L, L]`, without a gradient.
        mask: `[B, L]`, 1 where there is a token; a pair counts where both are tokens.

    Returns:
        `[B]`.
    """
    student, teacher = student.float(), teacher.detach().float()
    if student.shape[1] != teacher.shape[1]:
        student, teacher = (side.mean(dim=1, keepdim=True) for side in (student, teacher))
    tokens = mask.float()
    pairs = tokens[:, :, None] * tokens[:, None, :]
    squares = (student - teacher).square().mean(dim=1) * pairs
    return squares.sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1.0)


def attention_kl(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """KL from the teacher's attention to the student's, mean over heads and tokens of a row.

    Attention is the softmax of scores over the keys; a masked key has no probability, a masked
    query does not count. Computed in float32 whatever the scores are; zero where they agree.

    Args:
        student: Scores `[B, H, L, L]`.
        teacher: Scores `[B, H, L, L]`, without a gradient.
        mask: `[B, L]`, 1 where there is a token.

    Returns:
        `[B]`.
    """
    absent = mask[:, None, None, :] == 0
    lowest = torch.finfo(torch.float32).min  # -inf would make nan of 0 · (-inf - -inf)
    ours, theirs = (
        scores.float().masked_fill(absent, lowest).log_softmax(dim=-1)
        for scores in (student, teacher.detach())
    )
    divergence = functional.kl_div(ours, theirs, reduction="none", log_target=True)
    tokens = mask.float()
    rows = (divergence.sum(dim=-1).mean(dim=1) * tokens).sum(dim=-1)
    return rows / tokens.sum(dim=-1).clamp(min=1.0)


def _layer(outputs: Outputs, field: str, layer: int) -> Tensor:
    """Return a field of one layer, counted from 1."""
    tensor: Tensor = getattr(outputs, field)[layer - 1]
    return tensor


def _shared_mask(where: str, student: Outputs, teacher: Outputs, field: str, layer: int) -> Tensor:
    """Return the mask of both sides, `[B, L]`, once they are seen to be equally long."""
    assert student.mask is not None
    check_same_length(where, student.mask.shape[1], _layer(teacher, field, layer).shape[-2])
    return student.mask


class AttentionKD(Objective):
    """Mean squared error between attention matrices of paired layers.

        MSE(A_student, A_teacher), mean over pairs of layers, heads, pairs of tokens and rows

    TinyBERT's attention term (Jiao et al. 2020, arXiv:1909.10351, equation 7), which takes the
    scores before the softmax. Scores are computed from queries and keys: dropout is not in them,
    nor the positions that some families add to or rotate into attention. Pairs with a masked
    token do not count.
    Near: :class:`MiniLMKD` compares one layer as distributions and asks for no map of layers.

    Args:
        weight: Multiplier in the total loss.
        layers: Which student layer learns from which teacher layer: a rule, or teacher layer by
            student layer, counted from 1.
        matrices: ``probabilities`` after the softmax, with the student's attention dropout in them
            while it trains, and the mean over heads where student and teacher have different
            numbers of them; ``scores`` before the softmax, which need equal numbers of heads.
        by_confidence: Whether a row counts as much as its teacher is sure of it.

    Raises:
        ConfigError: If the models do not fit: their vocabularies or layers, or for ``scores``
            their heads.
    """

    needs: frozenset[str] = frozenset({"attentions"})

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        layers: LayerMap = "uniform",
        matrices: Literal["probabilities", "scores"] = "probabilities",
        by_confidence: bool = False,
    ) -> None:
        super().__init__(weight, by_confidence)
        self.layers: LayerMap = layers
        self.matrices = matrices
        self.pairs: tuple[tuple[int, int], ...] = ()
        self._heads = 0
        if matrices == "scores":
            self.needs = frozenset({"queries", "keys"})

    def bind(self, student: ModelInfo, teacher: ModelInfo | None) -> None:
        """Pair the layers."""
        super().bind(student, teacher)
        assert teacher is not None
        check_same_tokens("AttentionKD", student, teacher)
        self.pairs = pair_layers("AttentionKD", self.layers, student, teacher)
        if any(0 in pair for pair in self.pairs):
            raise ConfigError(
                f"AttentionKD.layers is {self.layers}, but 0 is the embeddings, which have no "
                "attention: count layers from 1."
            )
        if self.matrices == "scores" and student.heads != teacher.heads:
            raise ConfigError(
                f"AttentionKD.matrices is scores, but the student has {student.heads} heads and "
                f"the teacher {teacher.heads}: use matrices=probabilities, or MiniLMKD."
            )
        self._heads = student.heads
        layers = [layer - 1 for _, layer in self.pairs]  # attentions.3 is that of the fourth
        self.asked = frozenset(f"{field}.{layer}" for field in self.needs for layer in layers)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return the mean squared error."""
        assert teacher is not None
        field, last = min(self.needs), self.pairs[-1][1]
        mask = _shared_mask("AttentionKD", student, teacher, field, last)
        rows = torch.stack(
            [
                attention_mse(self._matrices(student, ours), self._matrices(teacher, theirs), mask)
                for ours, theirs in self.pairs
            ]
        ).mean(dim=0)
        return weighted_mean(rows, self.row_weights(teacher, batch))

    def _matrices(self, outputs: Outputs, layer: int) -> Tensor:
        """Return probabilities or scores of one layer, `[B, H, L, L]`."""
        if self.matrices == "probabilities":
            return _layer(outputs, "attentions", layer)
        queries, keys = _layer(outputs, "queries", layer), _layer(outputs, "keys", layer)
        return attention_scores(queries, keys, self._heads)

    def describe(self) -> str:
        """Return name and settings as the printed loss equation shows them."""
        return f"AttentionKD {self.matrices} {show_pairs(self.pairs) or self.layers}"


class MiniLMKD(Objective):
    """KL between self-attention relations of the student's last layer and one of the teacher's.

        Σ over relations of KL(softmax(X Xᵀ / √d)_teacher ‖ softmax(X Xᵀ / √d)_student),
        mean over heads, tokens and rows

    Version 2 (Wang et al. 2021, arXiv:2012.15828, section 3) relates queries, keys and values
    each with themselves, split anew into relation heads of width d. Version 1 (Wang et al. 2020,
    arXiv:2002.10957, equations 5-8) adds the relation of values to attention itself,
    softmax(Q Kᵀ / √d), computed from queries and keys, so without dropout and without positions
    that some families add to or rotate into attention. A masked key has no probability, a masked
    query does not count.
    Near: :class:`AttentionKD` compares attention of several layers by squared error.

    Args:
        weight: Multiplier in the total loss.
        version: Of MiniLM; 1 needs equal numbers of heads, 2 does not.
        teacher_layer: The layer to learn from, counted from 1; null is the last.
        relation_heads: Heads to split both sides into, a divisor of both widths; null is the
            teacher's number. In version 1 they are those of the values alone.
        relations: What version 2 relates with itself; null is all three.
        by_confidence: Whether a row counts as much as its teacher is sure of it.

    Raises:
        ConfigError: If ``relations`` is empty or given with version 1, or the models do not fit:
            their vocabularies, layers or heads.
    """

    needs: frozenset[str] = frozenset({"queries", "keys", "values"})

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        version: Literal[1, 2] = 2,
        teacher_layer: int | None = None,
        relation_heads: int | None = None,
        relations: list[Literal["queries", "keys", "values"]] | None = None,
        by_confidence: bool = False,
    ) -> None:
        super().__init__(weight, by_confidence)
        if relation_heads is not None and relation_heads < 1:
            raise ConfigError(f"MiniLMKD.relation_heads is {relation_heads}: give 1 or more.")
        if relations is not None and (version == 1 or not relations):
            raise ConfigError(
                f"MiniLMKD.relations is {relations}: name one or more with version 2, and leave "
                "it out with version 1."
            )
        self.version = version
        self.teacher_layer = teacher_layer
        self.relation_heads = relation_heads
        self.pair = (0, 0)
        self._relations: tuple[tuple[str, str, int], ...] = ()
        if relations is not None:
            self.needs = frozenset(relations)

    def bind(self, student: ModelInfo, teacher: ModelInfo | None) -> None:
        """Choose layers and heads."""
        super().bind(student, teacher)
        assert teacher is not None
        check_same_tokens("MiniLMKD", student, teacher)
        layer = teacher.layers if self.teacher_layer is None else self.teacher_layer
        if not 1 <= layer <= teacher.layers:
            raise ConfigError(
                f"MiniLMKD.teacher_layer is {layer}, but the teacher has {teacher.layers} layers: "
                f"give 1 to {teacher.layers}."
            )
        if self.version == 1 and student.heads != teacher.heads:
            raise ConfigError(
                f"MiniLMKD.version is 1, which compares attention head by head, but the student "
                f"has {student.heads} heads and the teacher {teacher.heads}: use version 2."
            )
        heads = teacher.heads if self.relation_heads is None else self.relation_heads
        if student.width % heads or teacher.width % heads:
            raise ConfigError(
                f"MiniLMKD.relation_heads is {heads}, which does not divide the student's width "
                f"{student.width} and the teacher's {teacher.width}: give a divisor of "
                f"{math.gcd(student.width, teacher.width)}."
            )
        self.pair = (student.layers, layer)
        self.asked = frozenset(f"{field}.{layer - 1}" for field in self.needs)
        if self.version == 1:
            self._relations = (("queries", "keys", teacher.heads), ("values", "values", heads))
        else:
            self._relations = tuple((field, field, heads) for field in sorted(self.needs))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return the sum of the divergences."""
        assert teacher is not None
        ours, theirs = self.pair
        mask = _shared_mask("MiniLMKD", student, teacher, min(self.needs), theirs)
        rows = torch.stack(
            [
                attention_kl(
                    attention_scores(_layer(student, left, ours), _layer(student, right, ours), n),
                    attention_scores(
                        _layer(teacher, left, theirs), _layer(teacher, right, theirs), n
                    ),
                    mask,
                )
                for left, right, n in self._relations
            ]
        ).sum(dim=0)
        return weighted_mean(rows, self.row_weights(teacher, batch))

    def describe(self) -> str:
        """Return name and settings as the printed loss equation shows them."""
        bound = f" {show_pairs((self.pair,))}" if self._relations else ""
        return f"MiniLMKD version={self.version}{bound}"
