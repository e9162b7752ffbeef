"""Where a student errs: by kind of text, beside its teacher, and with the teacher to help it.

This room knows predictions of a split, and neither a model nor a run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd.calibration import choices, cross_fitted, surety
from kd.data.sentence import NEGATIONS
from kd.predictions import Predictions

__all__ = [
    "FEW_ROWS",
    "Curve",
    "Flip",
    "Share",
    "Slice",
    "cascade_curve",
    "flips",
    "interval_of",
    "share_of",
    "slices",
]

FEW_ROWS = 30
"""A slice of fewer rows says little."""

_WORDS = re.compile(r"[\w'’]+")
_EMOJI = re.compile("[\u2600-\u27bf\U0001f1e6-\U0001faff]")
_QUARTERS = (0.25, 0.5, 0.75)
_NORMAL_975 = 1.959964  # quantile of the normal distribution
_GAIN = 0.9  # of what asking can bring, for the mark on the curve


@dataclass(frozen=True)
class Share:
    """A share of rows, with its interval of 95%.

    Args:
        value: From 0 to 1.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Slice:
    """The rows of one kind.

    Args:
        name: The kind.
        rows: How many they are.
        student: The student's accuracy on them.
        teacher: The teacher's; null without one.
    """

    name: str
    rows: int
    student: Share
    teacher: Share | None


@dataclass(frozen=True)
class Flip:
    """A row that one of the two has right and the other wrong.

    Args:
        text: The text, the second one after a slash.
        label: What it is.
        student: What the student said.
        teacher: What the teacher said.
        confidence: How sure the one was that erred, after temperature.
    """

    text: str
    label: str
    student: str
    teacher: str
    confidence: float


@dataclass(frozen=True)
class Curve:
    """What asking the teacher brings, from no text asked about to all.

    Args:
        threshold: Confidence below which the teacher is asked, rising; the last asks it always.
        asked: Share of the texts asked about.
        accuracy: Of both together.
        chosen: The first position with nine tenths of what asking brings, 0 if it brings nothing.
    """

    threshold: NDArray[np.float64]
    asked: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    chosen: int

    def at(self, threshold: float) -> tuple[float, float]:
        """Return the share asked and the accuracy with a threshold."""
        place = int(np.searchsorted(self.threshold, threshold))
        return float(self.asked[place]), float(self.accuracy[place])


def share_of(right: NDArray[np.float64]) -> Share:
    """Return the mean of what rows add to it, with its interval.

    Args:
        right: From 0 to 1 for each row, at least one; the interval is wider than need be where rows
            add fractions.

    Returns:
        The share.
    """
    return interval_of(float(right.mean()), len(right))


def interval_of(mean: float, rows: int) -> Share:
    """Return a share of so many rows, at least one, with Wilson's interval (Wilson 1927)."""
    z = _NORMAL_975
    middle = (mean + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z * sqrt(mean * (1 - mean) / rows + (z / (2 * rows)) ** 2) / (1 + z**2 / rows)
    return Share(mean, max(0.0, middle - half), min(1.0, middle + half))


def slices(predictions: Predictions) -> list[Slice]:
    """Return the accuracy on texts of each quarter by length, of each class, and of some kinds.

    Args:
        predictions: Of a split.

    Returns:
        The slices that have rows.
    """
    p = predictions
    student = p.is_right(p.student)
    teacher = None if p.teacher is None else p.is_right(p.teacher)
    return [
        Slice(
            name,
            int(rows.sum()),
            share_of(student[rows]),
            None if teacher is None else share_of(teacher[rows]),
        )
        for name, rows in _kinds(p)
        if rows.any()
    ]


def flips(predictions: Predictions, teacher_is_right: bool) -> list[Flip]:
    """Return the rows that one of the two has right and the other wrong, surest mistakes first.

    Args:
        predictions: Of a split, with a teacher.
        teacher_is_right: Whether it is the student that errs, or the teacher.

    Returns:
        The rows; of several classes, all must be right.
    """
    p = predictions
    assert p.teacher is not None
    right = [p.is_right(logits) == 1 for logits in (p.student, p.teacher)]
    wrong, good = right if teacher_is_right else right[::-1]
    found = [cross_fitted(logits, p.truth, p.multi_label) for logits in (p.student, p.teacher)]
    sure = surety(found[0] if teacher_is_right else found[1], p.multi_label)
    rows = np.flatnonzero(good & ~wrong)
    said = [choices(each, p.multi_label) for each in found]
    texts = _texts(p)
    return [
        Flip(
            texts[row],
            label=_named(p, p.truth[row]),
            student=_named(p, said[0][row]),
            teacher=_named(p, said[1][row]),
            confidence=float(sure[row]),
        )
        for row in rows[np.argsort(-sure[rows], kind="stable")]
    ]


def cascade_curve(predictions: Predictions) -> Curve:
    """Return what it brings to ask the teacher where the student is unsure, after temperature.

    Args:
        predictions: Of a split, with a teacher.

    Returns:
        The curve; texts of one confidence are asked about together, as a threshold does.
    """
    p = predictions
    assert p.teacher is not None
    sure = surety(cross_fitted(p.student, p.truth, p.multi_label), p.multi_label)
    order = np.argsort(sure, kind="stable")
    gains = (p.is_right(p.teacher) - p.is_right(p.student))[order]
    threshold = np.append(np.unique(sure), np.inf)  # with the last, every text is asked about
    asked = np.searchsorted(sure[order], threshold)
    accuracy = p.is_right(p.student).mean() + np.append(0, gains.cumsum())[asked] / len(p)
    wanted = accuracy[0] + _GAIN * (accuracy.max() - accuracy[0])
    return Curve(threshold, asked / len(p), accuracy, int(np.argmax(accuracy >= wanted)))


def _kinds(p: Predictions) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield the name of each kind of text, and which rows are of it."""
    texts = _texts(p)
    lengths = np.array([len(text.split()) for text in texts])
    edges = [0, *np.unique(np.quantile(lengths, _QUARTERS).astype(int)), int(lengths.max())]
    for low, high in pairwise(edges):
        name = f"{low + 1} to {high} words" if low else f"up to {high} words"
        yield name, (lengths > low) & (lengths <= high)
    for place, label in enumerate(p.labels):
        yield f"class {label}", (p.truth[:, place] == 1) if p.multi_label else (p.truth == place)
    words = [{word.replace("’", "'") for word in _WORDS.findall(text.casefold())} for text in texts]
    negated = [any(w in NEGATIONS or w.endswith("n't") for w in found) for found in words]
    has_emoji = np.array([bool(_EMOJI.search(text)) for text in texts])
    yield "with a negation (English)", np.array(negated)
    yield "without a negation", ~np.array(negated)
    yield "with an emoji", has_emoji
    yield "without an emoji", ~has_emoji


def _texts(p: Predictions) -> list[str]:
    if p.pairs is None:
        return list(p.texts)
    return [f"{first} / {second}" for first, second in zip(p.texts, p.pairs, strict=True)]


def _named(p: Predictions, choice: Any) -> str:
    """Return the name of a class or, of several, their names."""
    if not p.multi_label:
        return p.labels[int(choice)]
    return ", ".join(name for name, is_on in zip(p.labels, choice, strict=True) if is_on) or "none"
