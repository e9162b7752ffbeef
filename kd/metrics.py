"""What is measured of a classifier, as torchmetrics collections.

Collections that are passed to Lightning's ``log`` are synchronised over ranks by Lightning.
Where a row may have several labels, metrics are given probabilities, never logits: torchmetrics
takes a batch of logits that all lie between 0 and 1 for probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MultilabelAccuracy,
    MultilabelF1Score,
)

__all__ = ["StageMetrics", "agreement_metric", "classification_metrics"]


class StageMetrics(nn.Module):
    """All that is measured of student and teacher in one stage, such as validation.

    Args:
        stage: Put before the names, such as ``val``.
        classes: Number of classes, C.
        multi_label: Whether a row may have several labels.
        means: Names of the values whose means over the rows are taken.
        has_teacher: Whether a teacher is measured beside the student.
    """

    def __init__(
        self, stage: str, classes: int, multi_label: bool, means: Sequence[str], has_teacher: bool
    ) -> None:
        super().__init__()
        self.stage = stage
        self.multi_label = multi_label
        apart: dict[str, Metric | MetricCollection] = {name: MeanMetric() for name in means}
        self.means = MetricCollection(apart, prefix=f"{stage}/", compute_groups=False)
        self.student = classification_metrics(classes, f"{stage}/", multi_label)
        if has_teacher:
            name = f"{stage}/teacher_"
            self.teacher = classification_metrics(classes, name, multi_label)
            self.agreement = agreement_metric(classes, multi_label)

    def update(
        self,
        values: Mapping[str, Tensor],
        labels: Tensor,
        student: Tensor,
        teacher: Tensor | None = None,
    ) -> None:
        """Take a batch.

        Args:
            values: Means over the batch, scalars.
            labels: `[B]`, or `[B, C]` where a row may have several.
            student: Probabilities `[B, C]`.
            teacher: Probabilities `[B, C]`, if one is measured.
        """
        for name, value in values.items():  # Lightning's own mean rounds row counts
            self.means[f"{self.stage}/{name}"].update(value, weight=len(labels))
        self.student.update(student, labels)
        if teacher is not None:
            self.teacher.update(teacher, labels)
            choices = (teacher > 0.5).long() if self.multi_label else teacher.argmax(dim=-1)
            self.agreement.update(student, choices)

    def logged(self, has_teacher: bool) -> Iterator[tuple[str, Metric]]:
        """Return every metric by the name under which it is logged."""
        yield from self.means.items(keep_base=False)
        yield from self.student.items(keep_base=False)
        if has_teacher:
            yield from self.teacher.items(keep_base=False)
            yield f"{self.stage}/agreement", self.agreement


def classification_metrics(
    classes: int, prefix: str, multi_label: bool = False
) -> MetricCollection:
    """Return ``accuracy`` (share of right rows) and ``f1`` (mean over the classes).

    Where a row may have several labels, a class is chosen above a probability of 0.5, ``accuracy``
    is the share of right choices, C of them in a row, and a class that is in no row and no answer
    has an F1 of 0.

    Args:
        classes: Number of classes, C.
        prefix: Put before the names, such as ``val/``.
        multi_label: Whether a row may have several labels.

    Returns:
        The collection, to be given `[B, C]` logits or probabilities and `[B]` labels; with several
        labels, `[B, C]` probabilities and `[B, C]` labels, 1 or 0.
    """
    return MetricCollection(
        {
            "accuracy": agreement_metric(classes, multi_label),
            "f1": MultilabelF1Score(classes, average="macro")
            if multi_label
            else MulticlassF1Score(classes, average="macro"),
        },
        prefix=prefix,
    )


def agreement_metric(
    classes: int, multi_label: bool = False
) -> MulticlassAccuracy | MultilabelAccuracy:
    """Return the share of rows on which the student chooses the teacher's class.

    Where a row may have several labels: the share of equal choices, given the student's
    probabilities and the teacher's choices, `[B, C]`.
    """
    if multi_label:
        return MultilabelAccuracy(classes, average="micro")
    return MulticlassAccuracy(classes, average="micro")
