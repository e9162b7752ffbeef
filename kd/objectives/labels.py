"""The term that learns from the data's own labels.

It masks rows without a label and asks no teacher.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from kd.errors import ConfigError
from kd.objectives.base import Objective
from kd.types import UNLABELLED, Batch, ModelInfo, Outputs

__all__ = ["HardLabel", "masked_cross_entropy"]


def masked_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy, mean over the labelled rows; zero, with a gradient of zero, without any.

    With class weights, rows whose class has weight 0 count like unlabelled ones.

    Args:
        logits: `[B, C]`.
        labels: `[B]`, :data:`kd.types.UNLABELLED` where there is none.
        class_weights: `[C]`; the mean is then weighted by them.
        label_smoothing: Share of the target that is spread over all classes, from 0 to 1.

    Returns:
        A scalar.
    """
    logits = logits.float()
    counted = labels != UNLABELLED
    if class_weights is not None:
        counted &= class_weights[labels.clamp(min=0)] > 0
    if not bool(counted.any()):
        return logits.sum() * 0.0
    return functional.cross_entropy(
        logits,
        labels,
        weight=class_weights,
        ignore_index=UNLABELLED,
        label_smoothing=label_smoothing,
    )


class HardLabel(Objective):
    """Cross-entropy with the data's labels.

        -log softmax(z)[y], mean over the labelled rows of the batch

    Rows without a label are masked. With class weights the mean is weighted, as in PyTorch.
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
        weight: float = 1.0,
        label_smoothing: float = 0.0,
        class_weights: dict[str, float] | None = None,
    ) -> None:
        super().__init__(weight)
        if not 0.0 <= label_smoothing <= 1.0:
            raise ConfigError(f"HardLabel.label_smoothing is {label_smoothing}: give 0 to 1.")
        if not all(0 <= value < math.inf for value in (class_weights or {}).values()):
            raise ConfigError(f"HardLabel.class_weights is {class_weights}: give 0 or more each.")
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self._weights: Tensor | None
        self.register_buffer("_weights", None, persistent=False)

    def bind(self, student: ModelInfo, teacher: ModelInfo | None) -> None:
        """Put the class weights in the order of the student's classes."""
        unknown = sorted(set(self.class_weights or {}) - set(student.labels))
        if unknown:
            raise ConfigError(
                f"HardLabel.class_weights names {', '.join(unknown)}, but the classes are "
                f"{', '.join(student.labels)}."
            )
        weights = self.class_weights or {}
        ordered = torch.tensor([weights.get(label, 1.0) for label in student.labels])
        self.register_buffer("_weights", ordered if weights else None, persistent=False)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return the cross-entropy of the labelled rows."""
        return masked_cross_entropy(
            student.logits, batch.labels, self._weights, self.label_smoothing
        )

    def describe(self) -> str:
        """Return name and settings as the printed loss equation shows them."""
        settings = f" smoothing={self.label_smoothing:g}" if self.label_smoothing else ""
        return "HardLabel" + settings + (" class-weighted" if self.class_weights else "")
