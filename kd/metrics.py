"""What is measured of a classifier, as torchmetrics collections.

Collections that are passed to Lightning's ``log`` are synchronised over ranks by Lightning.
Where a row may have several labels, metrics are given probabilities, never logits: torchmetrics
takes a batch of logits that all lie between 0 and 1 for probabilities.
"""

from __future__ import annotations

from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MultilabelAccuracy,
    MultilabelF1Score,
)

__all__ = ["agreement_metric", "classification_metrics"]


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
