"""Terms that learn from a teacher's hidden states.

A student of another width meets its teacher's by learnt linear maps, which are trained and saved
beside it and never exported. This room knows sizes and states, no model and no tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
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

__all__ = [
    "CosineKD",
    "EmbeddingKD",
    "HiddenKD",
    "PatientKD",
    "masked_cosine",
    "masked_mse",
    "patient_distance",
]

_Pairs = tuple[tuple[int, int], ...]


def masked_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error, mean over the width and the tokens of a row.

    Computed in float32 whatever the states are.

    Args:
        student: States `[B, L, D]`.
        teacher: States `[B, L, D]`, without a gradient.
        mask: `[B, L]`, 1 where there is a token.

    Returns:
        `[B]`.
    """
    gaps = student.float() - teacher.detach().float()
    return _mean_of_tokens(gaps.square().mean(dim=-1), mask)


def masked_cosine(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """One minus the cosine of the angle between states, mean over the tokens of a row.

    Computed in float32 whatever the states are.

    Args:
        student: States `[B, L, D]`.
        teacher: States `[B, L, D]`, without a gradient.
        mask: `[B, L]`, 1 where there is a token.

    Returns:
        `[B]`, from 0 to 2.
    """
    cosines = functional.cosine_similarity(student.float(), teacher.detach().float(), dim=-1)
    return _mean_of_tokens(1.0 - cosines, mask)


def patient_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of states of length one, sum over the width.

    Computed in float32 whatever the states are.

    Args:
        student: States `[B, D]`.
        teacher: States `[B, D]`, without a gradient.

    Returns:
        `[B]`, from 0 to 4.
    """
    ours = functional.normalize(student.float(), dim=-1)
    theirs = functional.normalize(teacher.detach().float(), dim=-1)
    return (ours - theirs).square().sum(dim=-1)


def _mean_of_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `[B, L]` where the mask is 1, `[B]`; zero for a row without tokens."""
    counted = mask.float()
    return (values * counted).sum(dim=-1) / counted.sum(dim=-1).clamp(min=1.0)


def _projections(
    kept: nn.ModuleList,
    pairs: _Pairs,
    student: ModelInfo,
    teacher: ModelInfo,
    always: bool = False,
) -> nn.ModuleList:
    """Return a map to the teacher's width per pair; learnt ones that fit stay as they are."""
    if student.width == teacher.width and not always:
        return nn.ModuleList(nn.Identity() for _ in pairs)
    shape = (teacher.width, student.width)
    if [tuple(weight.shape) for weight in kept.parameters()] == [shape] * len(pairs):
        return kept
    return nn.ModuleList(nn.Linear(student.width, teacher.width, bias=False) for _ in pairs)


def _layers_of(pairs: _Pairs) -> frozenset[str]:
    """Return the teacher's layers of the pairs."""
    return frozenset(f"hidden_states.{layer}" for _, layer in pairs)


def _matched(
    pairs: _Pairs, projections: nn.ModuleList, student: Outputs, teacher: Outputs
) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
    """Yield projection, student's and teacher's states `[B, L, D]` of each pair."""
    assert student.hidden_states is not None
    assert teacher.hidden_states is not None
    for projection, (ours, theirs) in zip(projections, pairs, strict=True):
        yield projection, student.hidden_states[ours], teacher.hidden_states[theirs]


def _compare_tokens(
    term: HiddenKD | CosineKD | EmbeddingKD,
    distance: Callable[[Tensor, Tensor, Tensor], Tensor],
    student: Outputs,
    teacher: Outputs,
) -> Tensor:
    """Return the distance of each row, mean over the pairs, `[B]`."""
    assert student.mask is not None
    rows = []
    for projection, ours, theirs in _matched(term.pairs, term.projections, student, teacher):
        check_same_length(type(term).__name__, ours.shape[1], theirs.shape[1])
        rows.append(distance(projection(ours), theirs, student.mask))
    return torch.stack(rows).mean(dim=0)


class HiddenKD(Objective):
    """Mean squared error between hidden states, layer by layer.

        mean((W · h_student - h_teacher)²) over D, the tokens of a row, the pairs and the rows

    W is a learnt map of each pair `[D teacher, D student]`, without a bias; padding is masked.
    TinyBERT (Jiao et al. 2020, arXiv:1909.10351, equation 8). Needs equal vocabularies.
    Near: :class:`PatientKD` compares directions of the first token alone: prefer it for a teacher
    with another tokenizer.

    Args:
        weight: Multiplier in the total loss.
        layers: Which layers learn from which: uniform, last, skip, or teacher layer by student
            layer; 0 is the embeddings.
        project: Whether there is a map W; null: only where the widths differ.
        by_confidence: Whether a row counts as much as its teacher is sure of it.

    Raises:
        ConfigError: If the models do not fit: their vocabularies, layers or widths.
    """

    needs: frozenset[str] = frozenset({"hidden_states"})

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        layers: LayerMap = "uniform",
        project: bool | None = None,
        by_confidence: bool = False,
    ) -> None:
        super().__init__(weight, by_confidence)
        self.layers: LayerMap = layers
        self.project = project
        self.pairs: _Pairs = ()
        self.projections = nn.ModuleList()

    def bind(self, student: ModelInfo, teacher: ModelInfo | None) -> None:
        """Pair the layers and build the maps."""
        super().bind(student, teacher)
        assert teacher is not None
        check_same_tokens("HiddenKD", student, teacher)
        if self.project is False and student.width != teacher.width:
            raise ConfigError(
                f"HiddenKD.project is false, but the student's width is {student.width} and the "
                f"teacher's {teacher.width}: leave it out."
            )
        self.pairs = pair_layers("HiddenKD", self.layers, student, teacher)
        self.asked = _layers_of(self.pairs)
        self.projections = _projections(
            self.projections, self.pairs, student, teacher, bool(self.project)
        )

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return the mean squared error."""
        assert teacher is not None
        rows = _compare_tokens(self, masked_mse, student, teacher)
        return weighted_mean(rows, self.row_weights(teacher, batch))

    def describe(self) -> str:
        """Return name and pairs of layers as the printed loss equation shows them."""
        return f"HiddenKD {show_pairs(self.pairs)}".rstrip()


class CosineKD(Objective):
    """One minus the cosine between the last hidden states.

        1 - cos(W · h_student, h_teacher), mean over the tokens of a row and over the rows

    W is a learnt map, without a bias, and only there where the widths differ; padding is masked.
    DistilBERT (Sanh et al. 2019, arXiv:1910.01108, section 2). Needs equal vocabularies.
    Near: :class:`HiddenKD` compares lengths too, and more layers than the last.

    Args:
        weight: Multiplier in the total loss.
        by_confidence: Whether a row counts as much as its teacher is sure of it.

    Raises:
        ConfigError: If the vocabularies differ.
    """

    needs: frozenset[str] = frozenset({"hidden_states"})

    def __init__(self, weight: float | Schedule = 1.0, by_confidence: bool = False) -> None:
        super().__init__(weight, by_confidence)
        self.pairs: _Pairs = ()
        self.projections = nn.ModuleList()

    def bind(self, student: ModelInfo, teacher: ModelInfo | None) -> None:
        """Pair the last layers; build the map."""
        super().bind(student, teacher)
        assert teacher is not None
        check_same_tokens("CosineKD", student, teacher)
        self.pairs = ((student.layers, teacher.layers),)
        self.asked = _layers_of(self.pairs)
        self.projections = _projections(self.projections, self.pairs, student, teacher)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return one minus the mean cosine."""
        assert teacher is not None
        rows = _compare_tokens(self, masked_cosine, student, teacher)
        return weighted_mean(rows, self.row_weights(teacher, batch))

    def describe(self) -> str:
        """Return name and layers as the printed loss equation shows them."""
        return f"CosineKD {show_pairs(self.pairs)}".rstrip()


class PatientKD(Objective):
    """Squared distance between the first token's hidden states, each of length one.

        ‖u / ‖u‖ - v / ‖v‖‖², u = W · h_student, v = h_teacher, mean over the pairs and the rows

    W is a learnt map of each pair, without a bias, and only there where the widths differ. PKD
    (Sun et al. 2019, arXiv:1908.09355, equation 7), which sums over the pairs. The first token
    stands for the whole text, so the vocabularies may differ.
    Near: :class:`HiddenKD` compares every token: prefer it where the vocabularies are equal.

    Args:
        weight: Multiplier in the total loss.
        layers: Which layers learn from which: uniform, last, skip, or teacher layer by student
            layer; 0 is the embeddings.
        by_confidence: Whether a row counts as much as its teacher is sure of it.

    Raises:
        ConfigError: If the layers do not fit.
    """

    needs: frozenset[str] = frozenset({"hidden_states"})

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        layers: LayerMap = "skip",
        by_confidence: bool = False,
    ) -> None:
        super().__init__(weight, by_confidence)
        self.layers: LayerMap = layers
        self.pairs: _Pairs = ()
        self.projections = nn.ModuleList()

    def bind(self, student: ModelInfo, teacher: ModelInfo | None) -> None:
        """Pair the layers; build the maps."""
        super().bind(student, teacher)
        assert teacher is not None
        self.pairs = pair_layers("PatientKD", self.layers, student, teacher)
        self.asked = _layers_of(self.pairs)
        self.projections = _projections(self.projections, self.pairs, student, teacher)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return the mean squared distance."""
        assert teacher is not None
        rows = [
            patient_distance(projection(ours[:, 0]), theirs[:, 0])
            for projection, ours, theirs in _matched(self.pairs, self.projections, student, teacher)
        ]
        return weighted_mean(torch.stack(rows).mean(dim=0), self.row_weights(teacher, batch))

    def describe(self) -> str:
        """Return name and pairs of layers as the printed loss equation shows them."""
        return f"PatientKD {show_pairs(self.pairs)}".rstrip()


class EmbeddingKD(Objective):
    """Mean squared error between the outputs of the embeddings.

        mean((W · e_student - e_teacher)²) over D, the tokens of a row and the rows

    W is a learnt map, without a bias, and only there where the widths differ; padding is masked.
    TinyBERT (Jiao et al. 2020, arXiv:1909.10351, equation 9). Needs equal vocabularies.
    Near: :class:`HiddenKD` does the same for the layers above; TinyBERT uses both.

    Args:
        weight: Multiplier in the total loss.
        by_confidence: Whether a row counts as much as its teacher is sure of it.

    Raises:
        ConfigError: If the vocabularies differ.
    """

    needs: frozenset[str] = frozenset({"hidden_states"})

    def __init__(self, weight: float | Schedule = 1.0, by_confidence: bool = False) -> None:
        super().__init__(weight, by_confidence)
        self.pairs: _Pairs = ((0, 0),)
        self.projections = nn.ModuleList()

    def bind(self, student: ModelInfo, teacher: ModelInfo | None) -> None:
        """Build the map."""
        super().bind(student, teacher)
        assert teacher is not None
        check_same_tokens("EmbeddingKD", student, teacher)
        self.asked = _layers_of(self.pairs)
        self.projections = _projections(self.projections, self.pairs, student, teacher)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return the mean squared error."""
        assert teacher is not None
        rows = _compare_tokens(self, masked_mse, student, teacher)
        return weighted_mean(rows, self.row_weights(teacher, batch))
