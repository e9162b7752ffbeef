"""What logits say once softened, and the terms that take such distributions apart.

Softening happens here and nowhere else; what compares softened logits carries its T². This room
knows no layer and no token.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kd.errors import ConfigError
from kd.objectives.base import Objective, weighted_mean
from kd.objectives.schedules import Schedule
from kd.types import UNLABELLED, Batch, ModelInfo, Outputs

__all__ = [
    "DecoupledKD",
    "DistKD",
    "check_one_class",
    "check_standardise",
    "decoupled_kl",
    "inter_class_distance",
    "intra_class_distance",
    "soften",
]


def soften(logits: Tensor, temperature: float, standardise: bool = False) -> Tensor:
    """Return logits over T, in float32; as z-scores over the classes first if asked.

    A z-score is (z - mean) / standard deviation over the classes of a row: it keeps the relations
    of the logits and drops their size (Sun et al. 2024, arXiv:2403.01427, algorithm 1). Equal
    logits become zeros.

    Args:
        logits: `[B, C]`.
        temperature: T > 0.
        standardise: Whether to take z-scores first.

    Returns:
        `[B, C]`.
    """
    logits = logits.float()
    if standardise:
        logits = functional.layer_norm(logits, logits.shape[-1:], eps=1e-6)
    return logits / temperature


def check_one_class(where: str, student: ModelInfo, instead: str) -> None:
    """Refuse to compare the classes of a row with one another where it may have several.

    Args:
        where: Name of the objective or of its argument, for the message.
        student: The student.
        instead: What to do, for the message.

    Raises:
        ConfigError: If a row may have several classes.
    """
    if student.multi_label:
        raise ConfigError(
            f"{where} compares the classes of a row with one another, but here a row may have "
            f"several: {instead}."
        )


def check_standardise(where: str, student: ModelInfo) -> None:
    """Refuse z-scores where they leave nothing to learn from.

    Args:
        where: Name of the objective, for the message.
        student: The student.

    Raises:
        ConfigError: If a row may have several classes, or there are only two.
    """
    check_one_class(f"{where}.standardise", student, "leave it out")
    if len(student.labels) < 3:
        raise ConfigError(
            f"{where}.standardise leaves nothing of two classes but which one is larger: "
            "leave it out."
        )


def decoupled_kl(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    temperature: float,
    target_weight: float = 1.0,
    other_weight: float = 8.0,
    standardise: bool = False,
) -> Tensor:
    """T² times KL of target against the rest, and KL among the rest, each with its weight.

    With ``other_weight`` set to the rest's probability under the teacher this would be the KL of
    :func:`softened_kl` (equation 5 of the paper).

    Args:
        student: Logits `[B, C]`.
        teacher: Logits `[B, C]`, without a gradient.
        target: Class positions `[B]`.
        temperature: T > 0.
        target_weight: Weight of the first part.
        other_weight: Weight of the second.
        standardise: Whether to take z-scores of the logits first.

    Returns:
        `[B]`.
    """
    is_target = torch.arange(student.shape[-1], device=target.device) == target.unsqueeze(-1)

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        every = soften(logits, temperature, standardise).log_softmax(dim=-1)
        rest = every.masked_fill(is_target, -torch.inf).logsumexp(dim=-1, keepdim=True)
        binary = torch.cat([every.gather(-1, target.unsqueeze(-1)), rest], dim=-1)
        # the target is no part of the rest: equal on both sides, it adds nothing
        return binary, (every - rest).masked_fill(is_target, 0.0)

    parts = [
        functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1)
        for ours, theirs in zip(split(student), split(teacher.detach()), strict=True)
    ]
    return (target_weight * parts[0] + other_weight * parts[1]) * temperature**2


def inter_class_distance(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² times (1 - Pearson's correlation over the classes) of each row's probabilities.

    Args:
        student: Logits `[B, C]`.
        teacher: Logits `[B, C]`, without a gradient.
        temperature: T > 0.

    Returns:
        `[B]`; what does not vary has no correlation, and is at no distance from its like.
    """
    ours, theirs = (soften(z, temperature).softmax(-1) for z in (student, teacher.detach()))
    return _pearson_distance(ours, theirs) * temperature**2


def intra_class_distance(
    student: Tensor, teacher: Tensor, temperature: float, row_weights: Tensor | None = None
) -> Tensor:
    """T² times (1 - Pearson's correlation over the rows) of each class's probabilities.

    Args:
        student: Logits `[B, C]`.
        teacher: Logits `[B, C]`, without a gradient.
        temperature: T > 0.
        row_weights: `[B]`, how much each row counts in means and covariances.

    Returns:
        `[C]`; what does not vary has no correlation, and is at no distance from its like.
    """
    ours, theirs = (soften(z, temperature).softmax(-1).T for z in (student, teacher.detach()))
    return _pearson_distance(ours, theirs, row_weights) * temperature**2


def _pearson_distance(ours: Tensor, theirs: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return 1 - Pearson's correlation along the last dimension, weighted by `[N]`.

    It is half the squared distance of the two, centred and scaled to length 1: exactly zero at
    equality, also where nothing varies.
    """
    if weights is None:
        weights = torch.ones_like(ours[0])
    shares = weights / weights.sum().clamp(min=1e-12)

    def scaled(values: Tensor) -> Tensor:
        centred = values - (values * shares).sum(dim=-1, keepdim=True)
        # the floor is a standard deviation: a smaller one is float32's noise
        return functional.normalize(centred * shares.sqrt(), dim=-1, eps=1e-5)

    return 0.5 * (scaled(ours) - scaled(theirs)).square().sum(dim=-1)


class DecoupledKD(Objective):
    """KL of the target class against the rest, and KL among the rest, each with its weight (DKD).

        T² · [target_weight · KL(b_teacher ‖ b_student) + other_weight · KL(r_teacher ‖ r_student)]

    b is the probability of the target class and of all others together, r the distribution over
    the others alone; mean over the rows of the batch (Zhao et al. 2022, arXiv:2203.08679,
    equations 5 to 7). The target is the data's label and, for an unlabelled row, the teacher's top
    class. With two classes the second part is zero.
    Near: :class:`LogitKD` weighs the second part by what the teacher leaves to the others, which
    is next to nothing where it is sure; prefer this one with a sure teacher and many classes.

    Args:
        weight: Multiplier in the total loss.
        temperature: T > 0; larger softens both sides more.
        target_weight: Weight of the target class against the rest.
        other_weight: Weight of the distribution over the rest.
        standardise: Whether to compare z-scores of the logits, as for :class:`LogitKD`.
        by_confidence: Whether a row counts as much as its teacher is sure of it.

    Raises:
        ConfigError: If ``temperature`` is not positive or a weight is negative.
    """

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        temperature: float | Schedule = 2.0,
        target_weight: float | Schedule = 1.0,
        other_weight: float | Schedule = 8.0,
        standardise: bool = False,
        by_confidence: bool = False,
    ) -> None:
        super().__init__(weight, by_confidence)
        self.temperature = self.scheduled("temperature", temperature, positive=True)
        self.target_weight = self.scheduled("target_weight", target_weight)
        self.other_weight = self.scheduled("other_weight", other_weight)
        self.standardise = standardise

    def bind(self, student: ModelInfo, teacher: ModelInfo | None) -> None:
        """Refuse rows of several classes, and z-scores of two."""
        super().bind(student, teacher)
        check_one_class("DecoupledKD", student, "use LogitKD")
        if self.standardise:
            check_standardise("DecoupledKD", student)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return T² times the weighted sum of both divergences."""
        assert teacher is not None
        top = teacher.logits.argmax(dim=-1)
        rows = decoupled_kl(
            student.logits,
            teacher.logits,
            torch.where(batch.labels == UNLABELLED, top, batch.labels),
            self.temperature,
            self.target_weight,
            self.other_weight,
            self.standardise,
        )
        return weighted_mean(rows, self.row_weights(teacher, batch))

    def describe(self) -> str:
        """Return name and settings as the printed loss equation shows them."""
        weights = f"target={self.shown('target_weight')} other={self.shown('other_weight')}"
        settings = f"T={self.shown('temperature')} {weights}" + " standardised" * self.standardise
        return f"DecoupledKD {settings}"


class DistKD(Objective):
    """Correlation with the teacher's probabilities, within rows and within classes (DIST).

        T² · [inter_weight · (1 - mean over rows of ρ(p_student, p_teacher))
              + intra_weight · (1 - mean over classes of ρ(p_student, p_teacher))]

    p = softmax(z / T). The first ρ is Pearson's correlation over the classes of a row, the second
    over the rows of the batch for a class (Huang et al. 2022, arXiv:2205.10536, equations 9 to
    11; T² as in the authors' code). Row weights are those of the first mean, and of the means and
    covariances within the second ρ. What does not vary has no ρ: it adds 0 where neither side
    varies, 1/2 where one does. With two classes the first ρ is 1 or -1, without a gradient. On
    several ranks the second ρ is over this rank's rows only.
    Near: :class:`LogitKD` asks for the teacher's very probabilities; prefer this one where the
    teacher is much stronger, and batches are large enough for a correlation.

    Args:
        weight: Multiplier in the total loss.
        temperature: T > 0; larger softens both sides more.
        inter_weight: Weight of the relations between the classes of a row.
        intra_weight: Weight of the relations between the rows within a class.
        by_confidence: Whether a row counts as much as its teacher is sure of it.

    Raises:
        ConfigError: If ``temperature`` is not positive or a weight is negative.
    """

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        temperature: float | Schedule = 1.0,
        inter_weight: float | Schedule = 1.0,
        intra_weight: float | Schedule = 1.0,
        by_confidence: bool = False,
    ) -> None:
        super().__init__(weight, by_confidence)
        self.temperature = self.scheduled("temperature", temperature, positive=True)
        self.inter_weight = self.scheduled("inter_weight", inter_weight)
        self.intra_weight = self.scheduled("intra_weight", intra_weight)

    def bind(self, student: ModelInfo, teacher: ModelInfo | None) -> None:
        """Refuse rows of several classes."""
        super().bind(student, teacher)
        check_one_class("DistKD", student, "use LogitKD")

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return T² times the weighted sum of both distances."""
        assert teacher is not None
        weights = self.row_weights(teacher, batch)
        ours, theirs = student.logits, teacher.logits
        inter = weighted_mean(inter_class_distance(ours, theirs, self.temperature), weights)
        intra = intra_class_distance(ours, theirs, self.temperature, weights).mean()
        return self.inter_weight * inter + self.intra_weight * intra

    def describe(self) -> str:
        """Return name and settings as the printed loss equation shows them."""
        weights = f"inter={self.shown('inter_weight')} intra={self.shown('intra_weight')}"
        return f"DistKD T={self.shown('temperature')} {weights}"
