"""Whether one recipe is better than another, or only luckier: an interval and a verdict.

Arrays in, numbers out: this room knows no model, no file and no recipe, and starts without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Verdict", "judge"]

_RESAMPLES = 10_000
_SEED = 0
_TAILS = (0.025, 0.975)


@dataclass(frozen=True)
class Verdict:
    """How much more accurate one recipe is than another.

    Args:
        difference: In accuracy, from -1 to 1.
        low: Lower end of its interval of 95%.
        high: Upper end.
        knows_training: Whether the interval knows how far two trainings of one recipe differ. It
            takes two seeds of each; with one, it tells of these two students only.
    """

    difference: float
    low: float
    high: float
    knows_training: bool

    @property
    def words(self) -> Literal["helps", "no difference", "hurts"]:
        """What to make of it: an interval that leaves zero out decides."""
        return "helps" if self.low > 0 else "hurts" if self.high < 0 else "no difference"


def judge(right: NDArray[np.float64], against: NDArray[np.float64]) -> Verdict:
    """Compare two recipes, each trained with several seeds, on the same rows.

    Two kinds of chance are in the difference of their accuracies. Which rows were drawn: a paired
    bootstrap (Efron and Tibshirani 1993; Koehn 2004, "Statistical significance tests for machine
    translation evaluation") draws rows again and takes the mean difference of the seeds' averages.
    Which seeds were drawn: to each resample a Student-t draw is added, of the variance of the two
    means over seeds and Welch's degrees of freedom (Welch 1947), so that few seeds are wide.

    Args:
        right: What each row adds to the accuracy, `[seeds, rows]`.
        against: The same of the other recipe, whose seeds may be others, and more or fewer.

    Returns:
        The difference, ``right`` less ``against``.
    """
    differences = right.mean(axis=0) - against.mean(axis=0)
    rows, draw = differences.size, np.random.default_rng(_SEED)
    # a resample is no more than how often each of the few values is drawn
    values, counts = np.unique(differences, return_counts=True)
    means = draw.multinomial(rows, counts / rows, size=_RESAMPLES) @ values / rows
    knows_training = min(len(right), len(against)) > 1
    if knows_training:
        variances = np.array([_training_variance(right), _training_variance(against)])
        if total := variances.sum():
            freedom = total**2 / (variances**2 / [len(right) - 1, len(against) - 1]).sum()
            means += np.sqrt(total) * draw.standard_t(freedom, size=_RESAMPLES)
    low, high = np.quantile(means, _TAILS)
    return Verdict(float(differences.mean()), float(low), float(high), knows_training)


def _training_variance(right: NDArray[np.float64]) -> float:
    """Return the variance of a mean over seeds, less what the bootstrap of rows has already."""
    by_rows = right.var(axis=0, ddof=1).mean() / right.shape[1]  # were the rows independent
    return float(max(0.0, right.mean(axis=1).var(ddof=1) - by_rows) / len(right))
