"""What is measured of a classifier, as torchmetrics collections.

Collections that are passed to Lightning's ``log`` are synchronised over ranks by Lightning.
"""

from __future__ import annotations

from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

__all__ = ["agreement_metric", "classification_metrics"]


def classification_metrics(classes: int, prefix: str) -> MetricCollection:
    """Return ``accuracy`` (share of right rows) and ``f1`` (mean over the classes).

    Args:
        classes: Number of classes, C.
        prefix: Put before the names, such as ``val/``.

    Returns:
        The collection, to be given `[B, C]` logits and `[B]` labels.
    """
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(classes, average="micro"),
            "f1": MulticlassF1Score(classes, average="macro"),
        },
        prefix=prefix,
    )


def agreement_metric(classes: int) -> MulticlassAccuracy:
    """Return the share of rows on which the student chooses the teacher's class."""
    return MulticlassAccuracy(classes, average="micro")
