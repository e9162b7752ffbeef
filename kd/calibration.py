"""How far probabilities can be believed: temperature, calibration error, reliability.

Arrays in, arrays out: this room knows no model and no file, and starts without torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Bin",
    "calibration_error",
    "choices",
    "cross_fitted",
    "fit_temperature",
    "is_right",
    "probabilities",
    "reliability",
    "surety",
]

_LOWEST, _HIGHEST = 0.05, 20.0  # temperatures beyond say that there are too few rows
_PULL = 0.5  # towards a temperature of 1, worth as much as a few rows: they may be all right
_SEED = 0


@dataclass(frozen=True)
class Bin:
    """Choices of like confidence.

    Args:
        rows: How many there are.
        confidence: Their mean probability.
        accuracy: The share of them that is right.
    """

    rows: int
    confidence: float
    accuracy: float


def probabilities(
    logits: NDArray[np.float32], multi_label: bool = False, temperature: float = 1.0
) -> NDArray[np.float64]:
    """Return what logits `[N, C]` mean: a softmax, or a sigmoid for each class.

    Args:
        logits: Of N rows.
        multi_label: Whether a row may have several classes.
        temperature: T that the logits are divided by.

    Returns:
        `[N, C]`, in float64.
    """
    scaled = logits.astype(np.float64) / temperature
    if multi_label:
        return np.exp(-np.logaddexp(0.0, -scaled))
    shifted = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def choices(found: NDArray[np.float64], multi_label: bool = False) -> NDArray[np.int64]:
    """Return the chosen class of each row, `[N]`, or 1 for each chosen class, `[N, C]`."""
    return (found > 0.5).astype(np.int64) if multi_label else found.argmax(axis=1)


def is_right(
    found: NDArray[np.float64], truth: NDArray[np.int64], multi_label: bool = False
) -> NDArray[np.float64]:
    """Return what each row adds to the accuracy, `[N]`: 1 or 0, or its share of right choices.

    Args:
        found: Probabilities `[N, C]`.
        truth: Classes `[N]`, or 1 and 0 for each class `[N, C]`.
        multi_label: Whether a row may have several classes.

    Returns:
        `[N]`, whose mean is the accuracy.
    """
    right = (choices(found, multi_label) == truth).astype(np.float64)
    return np.asarray(right.mean(axis=1)) if multi_label else right


def fit_temperature(
    logits: NDArray[np.float32], truth: NDArray[np.int64], multi_label: bool = False
) -> float:
    """Return the temperature under which the labels are likeliest, from 0.05 to 20; 1 of no rows.

    Guo et al. 2017 (arXiv:1706.04599, section 4.2): one number, which changes no choice.

    Args:
        logits: `[N, C]`.
        truth: Classes `[N]`, or 1 and 0 for each class `[N, C]`.
        multi_label: Whether a row may have several classes.

    Returns:
        The temperature.
    """
    from scipy.optimize import minimize_scalar

    if not len(logits):
        return 1.0

    def surprise(exponent: float) -> float:
        scaled = logits.astype(np.float64) / np.exp(exponent)
        if multi_label:
            losses = np.logaddexp(0.0, np.where(truth == 1, -scaled, scaled))
        else:
            shifted = scaled - scaled.max(axis=1, keepdims=True)
            whole = np.log(np.exp(shifted).sum(axis=1))
            losses = whole - shifted[np.arange(len(truth)), truth]
        return float(losses.mean()) + _PULL / len(logits) * exponent**2

    bounds = (float(np.log(_LOWEST)), float(np.log(_HIGHEST)))
    return float(np.exp(minimize_scalar(surprise, bounds=bounds, method="bounded").x))


def cross_fitted(
    logits: NDArray[np.float32], truth: NDArray[np.int64], multi_label: bool = False
) -> NDArray[np.float64]:
    """Return probabilities, each row's by a temperature that was fitted on other rows.

    What a temperature does is not measured on the rows that it was fitted on: they lie in two
    halves, and each is answered by the temperature of the other.

    Args:
        logits: `[N, C]`.
        truth: Classes `[N]`, or 1 and 0 for each class `[N, C]`.
        multi_label: Whether a row may have several classes.

    Returns:
        `[N, C]`.
    """
    halves = np.array_split(np.random.default_rng(_SEED).permutation(len(logits)), 2)
    found = np.zeros(logits.shape)
    for mine, other in (halves, halves[::-1]):
        fitted = other if len(other) else mine
        temperature = fit_temperature(logits[fitted], truth[fitted], multi_label)
        found[mine] = probabilities(logits[mine], multi_label, temperature)
    return found


def reliability(
    found: NDArray[np.float64], truth: NDArray[np.int64], multi_label: bool = False, bins: int = 15
) -> list[Bin]:
    """Return how often choices of each confidence are right; empty bins are left out.

    Args:
        found: Probabilities `[N, C]`.
        truth: Classes `[N]`, or 1 and 0 for each class `[N, C]`.
        multi_label: Whether a row may have several classes; then each class is a choice of its own.
        bins: Of equal width, from 0 to 1.

    Returns:
        The bins, in the order of their confidence.
    """
    if multi_label:
        sure = np.maximum(found, 1 - found).ravel()
        right = (choices(found, True) == truth).ravel()
    else:
        sure, right = found.max(axis=1), choices(found) == truth
    places = np.minimum((sure * bins).astype(int), bins - 1)
    chosen = [places == place for place in range(bins)]
    return [
        Bin(int(one.sum()), float(sure[one].mean()), float(right[one].mean()))
        for one in chosen
        if one.any()
    ]


def calibration_error(bins: list[Bin]) -> float:
    """Return the expected calibration error: the mean gap of confidence and accuracy.

    Guo et al. 2017 (arXiv:1706.04599, equation 3).

    Args:
        bins: As :func:`reliability` returns them.

    Returns:
        From 0 to 1.
    """
    rows = sum(one.rows for one in bins)
    return sum(one.rows * abs(one.confidence - one.accuracy) for one in bins) / max(1, rows)


def surety(found: NDArray[np.float64], multi_label: bool) -> NDArray[np.float64]:
    """Return the probability of each row's choice or, of several, of the least sure one, `[N]`."""
    return np.asarray(np.maximum(found, 1 - found).min(1) if multi_label else found.max(1))
