"""Terms that learn how the rows of a batch lie to each other, rather than each row alone.

They compare rows, not tokens: widths and tokenizers may differ. This room knows one vector per
row, no model and no data.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd.errors import ConfigError
from kd.objectives.base import Objective, weighted_mean
from kd.objectives.schedules import Schedule
from kd.types import Batch, ModelInfo, Outputs

__all__ = [
    "ContrastiveKD",
    "RelationalKD",
    "SimilarityKD",
    "contrastive_loss",
    "relational_angle",
    "relational_distance",
    "similarity_distance",
]

_Field = Literal["hidden_states", "logits"]
_Pool = Literal["first", "mean"]

# Of the mean distance. Nearer rows count as one: the gradient of an angle is 1 / distance.
_NEAREST = 1e-4


def relational_distance(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """Huber loss between distances of rows, each side's divided by their mean.

    Computed in float32 whatever the rows are; zero for fewer than two rows.

    Args:
        student: `[B, D]`.
        teacher: `[B, D]`, of any width, without a gradient.
        weights: `[B]`; a pair counts as the product of its rows' weights, in both means.

    Returns:
        A scalar, the mean over pairs of different rows.
    """
    pairs = _pair_weights(student, weights).fill_diagonal_(0.0)
    ours, theirs = _distances(student, pairs), _distances(teacher.detach(), pairs)
    losses = functional.huber_loss(ours, theirs, reduction="none")
    return weighted_mean(losses.flatten(), pairs.flatten())


def relational_angle(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """Huber loss between cosines of the angles that rows i and k make at row j.

    Computed in float32 whatever the rows are, in tensors `[B, B, B]`; zero for fewer than three
    rows. Where rows coincide there is no angle, and the triplet does not count.

    Args:
        student: `[B, D]`.
        teacher: `[B, D]`, of any width, without a gradient.
        weights: `[B]`; a triplet counts as the product of its rows' weights.

    Returns:
        A scalar, the mean over triplets of different rows.
    """
    pairs = _pair_weights(student, weights).fill_diagonal_(0.0)
    ours, exists = _cosines(_distances(student, pairs))
    theirs, is_given = _cosines(_distances(teacher.detach(), pairs))
    # a row is in two pairs of a triplet, hence the root
    triplets = (pairs[:, :, None] * pairs[None, :, :] * pairs[:, None, :]).sqrt()
    losses = functional.huber_loss(ours, theirs, reduction="none")
    return weighted_mean(losses.flatten(), (triplets * exists * is_given).flatten())


def _pair_weights(rows: Tensor, weights: Tensor | None) -> Tensor:
    """Return how much each pair counts, `[B, B]`."""
    single = torch.ones(len(rows), device=rows.device) if weights is None else weights.float()
    return torch.outer(single, single)


def _distances(rows: Tensor, pairs: Tensor) -> Tensor:
    """Return distances between rows over their weighted mean, `[B, B]`."""
    rows = rows.float()
    # exact for near rows, and its gradient at distance 0 is 0
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    mean = (distances * pairs).sum() / pairs.sum().clamp(min=1e-12)  # this rank's, for its rows
    return distances / mean.clamp(min=1e-12)


def _cosines(distances: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines of the angles i j k by the law of cosines, and where they exist."""
    squares, apart = distances.square(), distances > _NEAREST
    exists = apart[:, :, None] & apart[None, :, :]
    legs = (distances[:, :, None] * distances[None, :, :]).masked_fill(~exists, 1.0)
    opposite = squares[:, None, :]
    return (squares[:, :, None] + squares[None, :, :] - opposite) / (2.0 * legs), exists


def similarity_distance(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """Squared distance between similarities of rows, X Xᵀ with rows of length one, over B².

    Computed in float32 whatever the rows are.

    Args:
        student: `[B, D]`.
        teacher: `[B, D]`, of any width, without a gradient.
        weights: `[B]`; a pair counts as the product of its rows' weights, and a row of weight 0
            is in no length either.

    Returns:
        A scalar, the mean over all pairs, a row and itself included.
    """
    pairs = _pair_weights(student, weights)
    counted = pairs.diagonal() > 0
    squares = (_similarities(student, counted) - _similarities(teacher.detach(), counted)).square()
    return weighted_mean(squares.flatten(), pairs.flatten())


def _similarities(rows: Tensor, counted: Tensor) -> Tensor:
    """Return products of the rows with those that count, scaled to rows of length one."""
    products = _products(rows, rows) * counted
    lengths: Tensor = torch.linalg.vector_norm(products, dim=1, keepdim=True)
    return products / lengths.masked_fill(lengths == 0, 1.0)


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Return the products of rows in float32, `[B, B]`; in float16 they would overflow."""
    with torch.autocast(left.device.type, enabled=False):
        return left.float() @ right.float().t()


def contrastive_loss(
    student: Tensor, teacher: Tensor, temperature: float, content: Tensor | None = None
) -> Tensor:
    """Cross-entropy of finding the teacher's row of the same text among those of the batch.

    Computed in float32 whatever the rows are, by cosines; zero for a batch of one text.

    Args:
        student: `[B, D]`.
        teacher: `[B, D]`, of the same width.
        temperature: T > 0.
        content: `[B]`, equal for equal texts, which are then not told apart; null if all differ.

    Returns:
        `[B]`.
    """
    ours, theirs = (functional.normalize(side.float(), dim=-1) for side in (student, teacher))
    similarities = _products(ours, theirs) / temperature
    if content is not None:
        equals = (content[:, None] == content[None, :]).fill_diagonal_(False)
        similarities = similarities.masked_fill(equals, -torch.inf)
    own = torch.arange(len(student), device=student.device)
    return functional.cross_entropy(similarities, own, reduction="none")


def _rows(outputs: Outputs, vectors: _Field, pool: _Pool) -> Tensor:
    """Return one vector per row, `[B, D]`, in float32."""
    if vectors == "logits":
        return outputs.logits.float()
    assert outputs.hidden_states is not None
    states = outputs.hidden_states[-1].float()
    if pool == "first":
        return states[:, 0]
    assert outputs.mask is not None
    tokens = outputs.mask.float().unsqueeze(-1)
    return (states * tokens).sum(dim=1) / tokens.sum(dim=1).clamp(min=1.0)


def _shown(vectors: _Field, pool: _Pool) -> str:
    return vectors if vectors == "logits" else f"{vectors} {pool}"


def _last_of(vectors: _Field, teacher: ModelInfo) -> frozenset[str]:
    """Return what a teacher is asked for: logits, or its last hidden states alone."""
    return frozenset({vectors if vectors == "logits" else f"{vectors}.{teacher.layers}"})


class RelationalKD(Objective):
    """Huber loss between distances and angles among the rows of a batch.

        distance_weight · mean over pairs of huber(d_student / μ_student - d_teacher / μ_teacher)
        + angle_weight · mean over triplets of huber(cos ∠_student - cos ∠_teacher)

    with d the Euclidean distance and μ its mean over the pairs of the batch (Park et al. 2019,
    arXiv:1904.05068, section 3.2). A pair counts as the product of its rows' weights, a triplet
    as the product of three, μ likewise. Zero for one row; the angles need three. On several ranks
    each compares its own rows only.
    Near: :class:`SimilarityKD` compares inner products, so directions and lengths from the origin;
    this one is blind to a shift, a turn and a scale.

    Args:
        weight: Multiplier in the total loss.
        distance_weight: Multiplier of the part on distances.
        angle_weight: Multiplier of the part on angles.
        vectors: Which stand for the rows: last hidden states or logits.
        pool: Of hidden states: the first token's, or the mean over tokens without padding.
        by_confidence: Whether a row counts as much as its teacher is sure of it.

    Raises:
        ConfigError: If a weight is negative or not finite.
    """

    needs: frozenset[str] = frozenset({"hidden_states"})

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        distance_weight: float | Schedule = 1.0,
        angle_weight: float | Schedule = 2.0,
        vectors: _Field = "hidden_states",
        pool: _Pool = "first",
        by_confidence: bool = False,
    ) -> None:
        super().__init__(weight, by_confidence)
        self.distance_weight = self.scheduled("distance_weight", distance_weight)
        self.angle_weight = self.scheduled("angle_weight", angle_weight)
        self.vectors: _Field = vectors
        self.pool: _Pool = pool
        self.needs = frozenset({vectors})

    def bind(self, student: ModelInfo, teacher: ModelInfo | None) -> None:
        """Note the teacher's last layer."""
        super().bind(student, teacher)
        assert teacher is not None
        self.asked = _last_of(self.vectors, teacher)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return the weighted sum of both parts."""
        assert teacher is not None
        ours, theirs = (_rows(side, self.vectors, self.pool) for side in (student, teacher))
        weights = self.row_weights(teacher, batch)
        distance = relational_distance(ours, theirs, weights)
        angle = relational_angle(ours, theirs, weights)
        return self.distance_weight * distance + self.angle_weight * angle

    def describe(self) -> str:
        """Return name and settings as the printed loss equation shows them."""
        parts = f"distance={self.shown('distance_weight')} angle={self.shown('angle_weight')}"
        return f"RelationalKD {_shown(self.vectors, self.pool)} {parts}"


class SimilarityKD(Objective):
    """Squared distance between the similarities of the rows of a batch.

        ‖G_teacher - G_student‖² / B², with G = X Xᵀ, each of its rows scaled to length one

    Similarity-preserving distillation (2019, arXiv:1907.09682, equations 2-4). A pair counts as
    the product of its rows' weights, and a row of weight 0 is in no length either. On several
    ranks each compares its own rows only.
    Near: :class:`RelationalKD` compares distances and angles, which a shift of all rows leaves as
    they are; this one is simpler and has one term.

    Args:
        weight: Multiplier in the total loss.
        vectors: Which stand for the rows: last hidden states or logits.
        pool: Of hidden states: the first token's, or the mean over tokens without padding.
        by_confidence: Whether a row counts as much as its teacher is sure of it.
    """

    needs: frozenset[str] = frozenset({"hidden_states"})

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        vectors: _Field = "hidden_states",
        pool: _Pool = "first",
        by_confidence: bool = False,
    ) -> None:
        super().__init__(weight, by_confidence)
        self.vectors: _Field = vectors
        self.pool: _Pool = pool
        self.needs = frozenset({vectors})

    def bind(self, student: ModelInfo, teacher: ModelInfo | None) -> None:
        """Note the teacher's last layer."""
        super().bind(student, teacher)
        assert teacher is not None
        self.asked = _last_of(self.vectors, teacher)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return the squared distance."""
        assert teacher is not None
        ours, theirs = (_rows(side, self.vectors, self.pool) for side in (student, teacher))
        return similarity_distance(ours, theirs, self.row_weights(teacher, batch))

    def describe(self) -> str:
        """Return name and settings as the printed loss equation shows them."""
        return f"SimilarityKD {_shown(self.vectors, self.pool)}"


class ContrastiveKD(Objective):
    """Cross-entropy of finding the teacher's row of the same text among those of the batch.

        -log softmax(cos(P s_i, Q t_j) / T over j)[i], mean over the rows i of the batch

    with learnt linear maps P and Q to a common width. Contrastive distillation (Tian et al. 2020,
    arXiv:1910.10699, section 3) with the batch for negatives. Equal texts are not each other's
    negatives. A row's weight counts for its own loss; it stays a negative of the others. On several
    ranks the negatives are this rank's rows.
    Near: :class:`RelationalKD` asks for the teacher's geometry, not only for the same row. The
    paper's memory bank of negatives is left out: use large batches instead.

    Args:
        weight: Multiplier in the total loss.
        temperature: T > 0; smaller minds the nearest negatives more.
        width: Of the space that both sides are mapped to.
        vectors: Which stand for the rows: last hidden states or logits.
        pool: Of hidden states: the first token's, or the mean over tokens without padding.
        by_confidence: Whether a row counts as much as its teacher is sure of it.

    Raises:
        ConfigError: If ``temperature`` is not positive or not finite, or ``width`` is below 1.
    """

    needs: frozenset[str] = frozenset({"hidden_states"})
    student_projection: nn.Linear
    """P, built by `bind`."""
    teacher_projection: nn.Linear
    """Q, likewise."""

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        temperature: float | Schedule = 0.07,
        width: int = 128,
        vectors: _Field = "hidden_states",
        pool: _Pool = "first",
        by_confidence: bool = False,
    ) -> None:
        super().__init__(weight, by_confidence)
        if width < 1:
            raise ConfigError(f"ContrastiveKD.width is {width}: give 1 or more.")
        self.temperature = self.scheduled("temperature", temperature, positive=True)
        self.width = width
        self.vectors: _Field = vectors
        self.pool: _Pool = pool
        self.needs = frozenset({vectors})

    def bind(self, student: ModelInfo, teacher: ModelInfo | None) -> None:
        """Build both projections and note the teacher's last layer."""
        super().bind(student, teacher)
        assert teacher is not None
        self.asked = _last_of(self.vectors, teacher)
        ours, theirs = (
            len(side.labels) if self.vectors == "logits" else side.width
            for side in (student, teacher)
        )
        self.student_projection = nn.Linear(ours, self.width)
        self.teacher_projection = nn.Linear(theirs, self.width)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return the mean cross-entropy."""
        assert teacher is not None
        kind = self.student_projection.weight.dtype  # not float32 where all of training is not
        ours = self.student_projection(_rows(student, self.vectors, self.pool).to(kind))
        theirs = self.teacher_projection(_rows(teacher, self.vectors, self.pool).detach().to(kind))
        rows = contrastive_loss(ours, theirs, self.temperature, batch.content)
        return weighted_mean(rows, self.row_weights(teacher, batch))

    def describe(self) -> str:
        """Return name and settings as the printed loss equation shows them."""
        settings = f"T={self.shown('temperature')} width={self.width}"
        return f"ContrastiveKD {_shown(self.vectors, self.pool)} {settings}"
