"""Numbers that change while a run goes on: weights and temperatures.

A schedule is a function of the share of the run that is done; it knows no step and no optimizer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from kd.errors import ConfigError

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """A number that goes from one value to another, for any weight or temperature.

    Args:
        start: Value at the beginning, after the warm-up.
        end: Value at the end.
        shape: Straight line, half a cosine, or ``constant``: stay at ``start``.
        warmup: Share of the run over which the value first rises from 0 to ``start``.
        until: Share of the run after which ``end`` is reached.

    Raises:
        ConfigError: If a share is not from 0 to 1, or the warm-up lasts beyond ``until``.
    """

    start: float
    end: float = 0.0
    shape: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise ConfigError(f"A schedule goes from {self.start} to {self.end}: give numbers.")
        if not 0.0 <= self.warmup <= self.until <= 1.0:
            raise ConfigError(
                f"A schedule's warmup={self.warmup} and until={self.until} are shares of the run: "
                "0 <= warmup <= until <= 1."
            )

    def at(self, progress: float) -> float:
        """Return the value when this share of the run is done.

        Args:
            progress: From 0 at the first step to 1 at the end.

        Returns:
            The value.
        """
        if progress < self.warmup:
            return self.start * progress / self.warmup
        if self.shape == "constant":
            return self.start
        if progress >= self.until:
            return self.end
        done = (progress - self.warmup) / (self.until - self.warmup)
        if self.shape == "cosine":
            done = 0.5 - 0.5 * math.cos(math.pi * done)
        return self.start + (self.end - self.start) * done

    @property
    def lowest(self) -> float:
        """The smallest value of the whole course."""
        last = self.start if self.shape == "constant" else self.end
        return min([self.start, last] + [0.0] * (self.warmup > 0))

    def __str__(self) -> str:
        if self.shape == "constant":
            return f"0→{self.start:g}" if self.warmup else f"{self.start:g}"
        return f"{'0→' if self.warmup else ''}{self.start:g}→{self.end:g}"
