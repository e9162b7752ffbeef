"""Terms that compare a row's logits with the teacher's, class by class.

Each needs no label. What is softened carries its T². This room knows no layer and no token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from kd.errors import ConfigError
from kd.objectives.base import Objective, weighted_mean
from kd.objectives.distributions import check_one_class, check_standardise, soften
from kd.objectives.labels import check_class_weights, order_class_weights
from kd.objectives.schedules import Schedule
from kd.types import Batch, ModelInfo, Outputs

__all__ = [
    "JensenShannonKD",
    "LogitKD",
    "LogitMSE",
    "ReverseKD",
    "logit_squared_error",
    "softened_jensen_shannon",
    "softened_kl",
    "softened_reverse_kl",
]


def softened_kl(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    multi_label: bool = False,
    standardise: bool = False,
    class_weights: Tensor | None = None,
) -> Tensor:
    """T² times KL from the teacher's softened distribution p to the student's q.

    Computed in float32 whatever the logits are; zero where the logits agree. With class weights
    each class's part is p log(p / q) - p + q: those are never negative, are zero only where p is
    q, and add up to KL.

    Args:
        student: Logits `[B, C]`.
        teacher: Logits `[B, C]`, without a gradient.
        temperature: T > 0.
        multi_label: Whether each class is a distribution of its own, σ(z / T); the divergences
            are then summed over the classes.
        standardise: Whether to take z-scores of the logits first.
        class_weights: `[C]`, how much each class's part counts.

    Returns:
        `[B]`.
    """
    student, teacher = _log_distributions(student, teacher, temperature, multi_label, standardise)
    parts = _kl_parts(teacher, student)
    if class_weights is not None:
        # p log(p / q) alone can be negative, and weighted it would not be least at p = q
        parts = (parts - teacher.exp() + student.exp()) * class_weights.unsqueeze(-1)
    return parts.sum(dim=(1, 2)) * temperature**2


def softened_reverse_kl(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    multi_label: bool = False,
    standardise: bool = False,
) -> Tensor:
    """T² times KL from the student's softened distribution to the teacher's.

    Args:
        student: Logits `[B, C]`.
        teacher: Logits `[B, C]`, without a gradient.
        temperature: T > 0.
        multi_label: As for :func:`softened_kl`.
        standardise: Whether to take z-scores of the logits first.

    Returns:
        `[B]`.
    """
    student, teacher = _log_distributions(student, teacher, temperature, multi_label, standardise)
    return _kl_parts(student, teacher).sum(dim=(1, 2)) * temperature**2


def softened_jensen_shannon(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    teacher_share: float = 0.5,
    multi_label: bool = False,
    standardise: bool = False,
) -> Tensor:
    """T² times the mean KL of both softened distributions to their mixture.

    Args:
        student: Logits `[B, C]`.
        teacher: Logits `[B, C]`, without a gradient.
        temperature: T > 0.
        teacher_share: Share of the teacher in the mixture and in the mean, between 0 and 1.
        multi_label: As for :func:`softened_kl`.
        standardise: Whether to take z-scores of the logits first.

    Returns:
        `[B]`.
    """
    student, teacher = _log_distributions(student, teacher, temperature, multi_label, standardise)
    mixture = torch.logaddexp(
        teacher + math.log(teacher_share), student + math.log(1.0 - teacher_share)
    )
    parts = torch.lerp(_kl_parts(student, mixture), _kl_parts(teacher, mixture), teacher_share)
    return parts.sum(dim=(1, 2)) * temperature**2


def logit_squared_error(student: Tensor, teacher: Tensor, centred: bool = False) -> Tensor:
    """Squared difference of the logits, mean over the classes.

    Args:
        student: Logits `[B, C]`.
        teacher: Logits `[B, C]`, without a gradient.
        centred: Whether each row's mean over the classes is taken off both sides first.

    Returns:
        `[B]`.
    """
    gap = student.float() - teacher.detach().float()
    if centred:
        gap = gap - gap.mean(dim=-1, keepdim=True)
    return gap.square().mean(dim=-1)


def _log_distributions(
    student: Tensor, teacher: Tensor, temperature: float, multi_label: bool, standardise: bool
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities `[B, C, 1]`, or `[B, C, 2]`: of a class being there, and not."""

    def log_distribution(logits: Tensor) -> Tensor:
        logits = soften(logits, temperature, standardise)
        if multi_label:
            return torch.stack([functional.logsigmoid(logits), functional.logsigmoid(-logits)], -1)
        return functional.log_softmax(logits, dim=-1).unsqueeze(-1)

    return log_distribution(student), log_distribution(teacher.detach())


def _kl_parts(p: Tensor, q: Tensor) -> Tensor:
    """Return p log(p / q) of log-probabilities."""
    return functional.kl_div(q, p, reduction="none", log_target=True)


class LogitKD(Objective):
    """Forward KL to the teacher's softened distribution.

        T² · KL(softmax(z_teacher / T) ‖ softmax(z_student / T)), mean over the rows of the batch

    T² keeps the gradient's size independent of T (Hinton et al. 2015, arXiv:1503.02531,
    section 2). Needs no label, so unlabelled rows count fully. Where a row may have several
    labels, each class has a sigmoid of its own and the divergences are summed over classes.
    Near: :class:`HardLabel` learns from the data's own labels; use both where there are labels.

    Args:
        weight: Multiplier in the total loss.
        temperature: T > 0; larger softens both sides more.
        standardise: Whether to compare z-scores of each row's logits over three or more classes,
            so that a small student need not reach the teacher's range (Sun et al. 2024,
            arXiv:2403.01427, section 4.3).
        class_weights: How much each class's part of the divergence counts, by class name, 1 for a
            class not named: above 1 for rare ones. The term is still least where both agree.
        by_confidence: Whether a row counts as much as its teacher is sure of it.

    Raises:
        ConfigError: If ``temperature`` is not positive or not finite or a class weight is
            negative.
    """

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        temperature: float | Schedule = 2.0,
        standardise: bool = False,
        class_weights: dict[str, float] | None = None,
        by_confidence: bool = False,
    ) -> None:
        super().__init__(weight, by_confidence)
        check_class_weights("LogitKD", class_weights)
        self.temperature = self.scheduled("temperature", temperature, positive=True)
        self.standardise = standardise
        self.class_weights = class_weights
        self._weights: Tensor | None
        self.register_buffer("_weights", None, persistent=False)

    def bind(self, student: ModelInfo, teacher: ModelInfo | None) -> None:
        """Put the class weights in the order of the student's classes."""
        super().bind(student, teacher)
        if self.standardise:
            check_standardise("LogitKD", student)
        self._weights = order_class_weights("LogitKD", self.class_weights, student)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return T² times the divergence."""
        assert teacher is not None
        rows = softened_kl(
            student.logits,
            teacher.logits,
            self.temperature,
            self.multi_label,
            self.standardise,
            self._weights,
        )
        return weighted_mean(rows, self.row_weights(teacher, batch))

    def describe(self) -> str:
        """Return name and settings as the printed loss equation shows them."""
        settings = " standardised" * self.standardise
        settings += " class-weighted" * bool(self.class_weights)
        return f"LogitKD T={self.shown('temperature')}{settings}"


class ReverseKD(Objective):
    """Reverse KL: from the student's softened distribution to the teacher's.

        T² · KL(softmax(z_student / T) ‖ softmax(z_teacher / T)), mean over the rows of the batch

    The student is punished for believing what the teacher does not, and not for leaving out what
    it does (Gu et al. 2023, arXiv:2306.08543, section 2.1). Unlabelled rows count fully. Where a
    row may have several labels, each class has a sigmoid and the divergences are summed.
    Near: :class:`LogitKD` asks for the whole distribution; prefer this one where the student is
    too small for that.

    Args:
        weight: Multiplier in the total loss.
        temperature: T > 0; larger softens both sides more.
        standardise: Whether to compare z-scores of the logits, as for :class:`LogitKD`.
        by_confidence: Whether a row counts as much as its teacher is sure of it.

    Raises:
        ConfigError: If ``temperature`` is not positive or not finite.
    """

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        temperature: float | Schedule = 2.0,
        standardise: bool = False,
        by_confidence: bool = False,
    ) -> None:
        super().__init__(weight, by_confidence)
        self.temperature = self.scheduled("temperature", temperature, positive=True)
        self.standardise = standardise

    def bind(self, student: ModelInfo, teacher: ModelInfo | None) -> None:
        """Refuse z-scores where they would leave nothing to learn from."""
        super().bind(student, teacher)
        if self.standardise:
            check_standardise("ReverseKD", student)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return T² times the divergence."""
        assert teacher is not None
        rows = softened_reverse_kl(
            student.logits, teacher.logits, self.temperature, self.multi_label, self.standardise
        )
        return weighted_mean(rows, self.row_weights(teacher, batch))

    def describe(self) -> str:
        """Return name and settings as the printed loss equation shows them."""
        return f"ReverseKD T={self.shown('temperature')}" + " standardised" * self.standardise


class JensenShannonKD(Objective):
    """Generalised Jensen-Shannon divergence of both softened distributions.

        T² · [s · KL(p_teacher ‖ m) + (1 - s) · KL(p_student ‖ m)]
        m = s · p_teacher + (1 - s) · p_student, mean over the rows of the batch

    p = softmax(z / T) and s is ``teacher_share`` (Agarwal et al. 2023, arXiv:2306.13649, section
    2, equation 1). Near s = 0 the gradient is like s times that of the forward KL, near 1 like
    1 - s times that of the reverse KL. Unlabelled rows count fully. Where a row may have several
    labels, each class has a sigmoid and the divergences are summed.
    Near: :class:`LogitKD` has no upper bound, a distribution costs at most T² log 2 here; prefer
    this one where the teacher is sure and sometimes wrong.

    Args:
        weight: Multiplier in the total loss.
        temperature: T > 0; larger softens both sides more.
        teacher_share: s, between 0 and 1.
        standardise: Whether to compare z-scores of the logits, as for :class:`LogitKD`.
        by_confidence: Whether a row counts as much as its teacher is sure of it.

    Raises:
        ConfigError: If ``temperature`` is not positive, or ``teacher_share`` not between 0 and 1.
    """

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        temperature: float | Schedule = 2.0,
        teacher_share: float = 0.5,
        standardise: bool = False,
        by_confidence: bool = False,
    ) -> None:
        super().__init__(weight, by_confidence)
        if not 0.0 < teacher_share < 1.0:
            raise ConfigError(
                f"JensenShannonKD.teacher_share is {teacher_share}: give a number between 0 and "
                "1, or use LogitKD or ReverseKD."
            )
        self.temperature = self.scheduled("temperature", temperature, positive=True)
        self.teacher_share = teacher_share
        self.standardise = standardise

    def bind(self, student: ModelInfo, teacher: ModelInfo | None) -> None:
        """Refuse z-scores where they leave nothing to learn from."""
        super().bind(student, teacher)
        if self.standardise:
            check_standardise("JensenShannonKD", student)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return T² times the divergence."""
        assert teacher is not None
        rows = softened_jensen_shannon(
            student.logits,
            teacher.logits,
            self.temperature,
            self.teacher_share,
            self.multi_label,
            self.standardise,
        )
        return weighted_mean(rows, self.row_weights(teacher, batch))

    def describe(self) -> str:
        """Return name and settings as the printed loss equation shows them."""
        settings = f"T={self.shown('temperature')} teacher_share={self.teacher_share:g}"
        return f"JensenShannonKD {settings}" + " standardised" * self.standardise


class LogitMSE(Objective):
    """Squared difference to the teacher's logits.

        mean over the classes of (z_student - z_teacher)², mean over the rows of the batch

    Not softened, so without T (Ba & Caruana 2014, arXiv:1312.6184, section 2.2; Kim et al. 2021,
    arXiv:2105.08919). Unlabelled rows count fully; rows of several labels are no different.
    Near: :class:`LogitKD` becomes half of the centred form as T grows; prefer this one for every
    relation of the logits, unlikely classes too.

    Args:
        weight: Multiplier in the total loss.
        centred: Whether to compare logits minus their mean over the classes: softmax does not see
            a shift of them all, so the student need not learn it.
        by_confidence: Whether a row counts as much as its teacher is sure of it.
    """

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        centred: bool = False,
        by_confidence: bool = False,
    ) -> None:
        super().__init__(weight, by_confidence)
        self.centred = centred

    def bind(self, student: ModelInfo, teacher: ModelInfo | None) -> None:
        """Refuse to take off a mean that a sigmoid does see."""
        super().bind(student, teacher)
        if self.centred:
            check_one_class("LogitMSE.centred", student, "leave it out")

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return the mean of the squared differences."""
        assert teacher is not None
        rows = logit_squared_error(student.logits, teacher.logits, self.centred)
        return weighted_mean(rows, self.row_weights(teacher, batch))

    def describe(self) -> str:
        """Return name and settings as the printed loss equation shows them."""
        return "LogitMSE" + " centred" * self.centred
