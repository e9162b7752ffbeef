"""The term that learns from the data's own labels, and weights by class name.

It masks rows without a label and asks no teacher.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from kd.errors import ConfigError
from kd.objectives.base import Objective, count_of_a_rank, weighted_mean
from kd.objectives.schedules import Schedule
from kd.types import UNLABELLED, Batch, ModelInfo, Outputs

__all__ = [
    "HardLabel",
    "check_class_weights",
    "masked_binary_cross_entropy",
    "masked_cross_entropy",
    "order_class_weights",
]


def masked_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    row_weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy, mean over the labelled rows; zero, with a gradient of zero, without any.

    With class weights, rows whose class has weight 0 count like unlabelled ones. The mean is over
    class weight times row weight. Nothing waits for the device.

    Args:
        logits: `[B, C]`.
        labels: `[B]`, :data:`kd.types.UNLABELLED` where there is none.
        class_weights: `[C]`.
        label_smoothing: Share of the target that is spread over all classes, from 0 to 1.
        row_weights: `[B]`.

    Returns:
        A scalar.
    """
    losses = functional.cross_entropy(
        logits.float(),
        labels,
        weight=class_weights,
        ignore_index=UNLABELLED,
        label_smoothing=label_smoothing,
        reduction="none",
    )
    shares = (labels != UNLABELLED).float()
    if class_weights is not None:
        shares = shares * class_weights[labels.clamp(min=0)]
    losses = losses * (shares > 0)  # smoothing gives a class without weight a loss all the same
    if row_weights is not None:
        # a loss is already multiplied by its class weight: once is enough
        losses, shares = losses * row_weights, shares * row_weights
    return losses.sum() / count_of_a_rank(shares)


def masked_binary_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    row_weights: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy of every class, mean over classes and labelled rows.

    Args:
        logits: `[B, C]`, each read by a sigmoid.
        labels: `[B, C]`, 1 or 0, :data:`kd.types.UNLABELLED` throughout a row without labels.
        class_weights: `[C]`, how much a class that is there counts: above 1 for rare ones.
        label_smoothing: Share by which targets are moved to one half, from 0 to 1.
        row_weights: `[B]`.

    Returns:
        A scalar.
    """
    counted = (labels[:, 0] != UNLABELLED).float()
    targets = labels.float().clamp(min=0.0)
    targets = targets * (1.0 - label_smoothing) + 0.5 * label_smoothing
    losses = functional.binary_cross_entropy_with_logits(
        logits.float(), targets, pos_weight=class_weights, reduction="none"
    ).mean(dim=-1)
    return weighted_mean(losses, counted if row_weights is None else counted * row_weights)


def check_class_weights(where: str, class_weights: dict[str, float] | None) -> None:
    """Refuse class weights that are negative or not finite.

    Args:
        where: Name of the objective, for the message.
        class_weights: Weight by class name.

    Raises:
        ConfigError: If one is.
    """
    if not all(0 <= value < math.inf for value in (class_weights or {}).values()):
        raise ConfigError(f"{where}.class_weights is {class_weights}: give 0 or more each.")


def order_class_weights(
    where: str, class_weights: dict[str, float] | None, student: ModelInfo
) -> Tensor | None:
    """Return weights by class name in the order of the student's classes, 1 where not named.

    Args:
        where: Name of the objective, for the message.
        class_weights: Weight by class name.
        student: The student.

    Returns:
        `[C]`, or null if there are no weights.

    Raises:
        ConfigError: If the student has no class of a name.
    """
    if not class_weights:
        return None
    unknown = sorted(set(class_weights) - set(student.labels))
    if unknown:
        raise ConfigError(
            f"{where}.class_weights names {', '.join(unknown)}, but the classes are "
            f"{', '.join(student.labels)}."
        )
    return torch.tensor([class_weights.get(label, 1.0) for label in student.labels])


class HardLabel(Objective):
    """Cross-entropy with the data's labels.

        -log softmax(z)[y], mean over the labelled rows of the batch

    Rows without a label are masked. With class weights the mean is weighted, as in PyTorch. Where
    a row may have several labels: -[y log σ(z) + (1 - y) log(1 - σ(z))], mean over classes and
    rows, a class weight being that of its presence.
    Near: :class:`LogitKD` learns from a teacher's distribution instead and needs no label.

    Args:
        weight: Multiplier in the total loss.
        label_smoothing: Share of the target spread over all classes, from 0 to 1
            (Szegedy et al. 2016, arXiv:1512.00567, section 7).
        class_weights: Weight by class name, 1 for a class not named.

    Raises:
        ConfigError: If ``label_smoothing`` is outside 0..1 or a class weight is negative.
    """

    uses_teacher: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = True

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        label_smoothing: float = 0.0,
        class_weights: dict[str, float] | None = None,
    ) -> None:
        super().__init__(weight)
        if not 0.0 <= label_smoothing <= 1.0:
            raise ConfigError(f"HardLabel.label_smoothing is {label_smoothing}: give 0 to 1.")
        check_class_weights("HardLabel", class_weights)
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self._weights: Tensor | None
        self.register_buffer("_weights", None, persistent=False)

    def bind(self, student: ModelInfo, teacher: ModelInfo | None) -> None:
        """Put the class weights in the order of the student's classes."""
        super().bind(student, teacher)
        self._weights = order_class_weights("HardLabel", self.class_weights, student)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return the cross-entropy of the labelled rows."""
        entropy = masked_binary_cross_entropy if self.multi_label else masked_cross_entropy
        return entropy(
            student.logits, batch.labels, self._weights, self.label_smoothing, batch.weights
        )

    def describe(self) -> str:
        """Return name and settings as the printed loss equation shows them."""
        settings = f" smoothing={self.label_smoothing:g}" if self.label_smoothing else ""
        return "HardLabel" + settings + (" class-weighted" if self.class_weights else "")
