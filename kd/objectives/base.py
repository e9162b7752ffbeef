"""What a term of the loss is.

An objective is a short adaptor from `Outputs` to a pure function. It says which fields it needs,
whether it asks a teacher and whether it reads labels; it knows no model and no data. Its mean is
that of the whole batch, over all ranks.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, distributed, nn

from kd.errors import ConfigError
from kd.objectives.schedules import Schedule
from kd.types import Batch, ModelInfo, Outputs

__all__ = ["Objective", "count_of_a_rank", "weighted_mean"]


def count_of_a_rank(weights: Tensor) -> Tensor:
    """Return what counts in the batch on this rank or, in training, on an average rank.

    A sum over this rank's rows goes by it. Gradients are averaged over the ranks, and then are
    those of the mean over the whole batch, however unevenly the ranks share what counts. Without
    a gradient no rank waits for another: in evaluation they have other numbers of batches.

    Args:
        weights: How much each row, token or pair of this rank counts.

    Returns:
        A positive scalar.
    """
    count = weights.detach().sum()
    if torch.is_grad_enabled() and distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(count)
        count = count / distributed.get_world_size()
    return count.clamp(min=1e-12)


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of `[N]` values, weighted where there are weights `[N]`; zero if those are all zero.

    In training it is a rank's part of the mean over all ranks; see :func:`count_of_a_rank`.
    """
    weights = torch.ones_like(values) if weights is None else weights
    return (values * weights).sum() / count_of_a_rank(weights)


class Objective(nn.Module):
    """A named term of the loss; the total is the sum of weight times term.

    Subclasses set the class variables and implement `forward`. What they own (projections) is
    trained and saved in checkpoints, and never exported.

    Args:
        weight: Multiplier in the total loss, absolute; a schedule changes it during the run.
        by_confidence: Whether a row counts as much as its teacher is sure of it: its largest
            probability.

    Raises:
        ConfigError: If ``weight`` is negative or not finite.
    """

    needs: frozenset[str] = frozenset({"logits"})
    uses_teacher: ClassVar[bool] = True
    uses_labels: ClassVar[bool] = False
    """Whether a row without a label teaches nothing."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """What it reads of a batch that is there in training only: the views ``privileged``,
    ``rationale`` and ``explain``, and ``embedding`` and ``evidence`` of ``Batch.privileged``."""
    asked: frozenset[str] | None
    """What the teacher is asked for instead of ``needs``; set by `bind` where it is less."""
    multi_label: bool
    """Whether logits are read by a sigmoid each; set by `bind`."""

    def __init__(self, weight: float | Schedule = 1.0, by_confidence: bool = False) -> None:
        super().__init__()
        self._schedules: dict[str, Schedule] = {}
        self.weight = self.scheduled("weight", weight)
        self.by_confidence = by_confidence
        self.asked = None
        self.multi_label = False

    def scheduled(self, name: str, value: float | Schedule, positive: bool = False) -> float:
        """Take a setting that may be a schedule; return what the attribute ``name`` starts with.

        Args:
            name: Of the argument and of the attribute.
            value: A number or a schedule.
            positive: Whether 0 is refused too.

        Returns:
            The value at the first step.

        Raises:
            ConfigError: If it is, or ever becomes, negative, or 0 where that is refused.
        """
        lowest = value.lowest if isinstance(value, Schedule) else value
        if not (lowest > 0 if positive else lowest >= 0) or not math.isfinite(lowest):
            raise ConfigError(
                f"{type(self).__name__}.{name} is {value}: "
                + ("it must be positive." if positive else "give 0 or more.")
            )
        if isinstance(value, Schedule):
            self._schedules[name] = value
            return value.at(0.0)
        return value

    def advance(self, progress: float) -> None:
        """Set the scheduled settings for a share of the run, from 0 to 1."""
        for name, schedule in self._schedules.items():
            setattr(self, name, schedule.at(progress))

    def shown(self, name: str) -> str:
        """Return a setting as the loss equation shows it: a number or its course."""
        return str(self._schedules[name]) if name in self._schedules else f"{getattr(self, name):g}"

    @property
    def has_weight(self) -> bool:
        """Whether the term ever counts."""
        return self.weight > 0 or "weight" in self._schedules

    def bind(self, student: ModelInfo, teacher: ModelInfo | None) -> None:
        """Look at the models once, before training; build what depends on their sizes.

        Args:
            student: Sizes and class names of the student.
            teacher: Those of the teacher, if there is one.

        Raises:
            ConfigError: If the objective cannot work with these models.
        """
        self.multi_label = student.multi_label

    def teacher_needs(self) -> frozenset[str]:
        """Return what the teacher is asked for, once bound: fields, or single layers of them.

        A layer of a field is written ``hidden_states.4``; a cache keeps no more than is named.
        """
        asked = self.needs if self.asked is None else self.asked
        return asked | {"logits"} if self.by_confidence else asked

    def row_weights(self, teacher: Outputs | None, batch: Batch) -> Tensor | None:
        """Return how much each row counts.

        Where a row may have several labels, a teacher is as sure of it as it is, on average, that
        a class is there, or that it is not.

        Args:
            teacher: Whose confidence counts, if it does.
            batch: The rows, with the data's own weights.

        Returns:
            `[B]`; null where all count the same.
        """
        if teacher is None:
            return batch.weights
        factors = [batch.weights, teacher.weights]
        if self.by_confidence:
            logits = teacher.logits.detach().float()
            if self.multi_label:
                factors.append(logits.abs().sigmoid().mean(dim=-1))
            else:
                factors.append(logits.softmax(dim=-1).amax(dim=-1))
        known = [factor for factor in factors if factor is not None]
        return torch.stack(known).prod(dim=0) if known else None

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return the unweighted term, a scalar.

        Args:
            student: What the student answers, with the fields of ``needs``.
            teacher: What the teacher answers, if ``uses_teacher``.
            batch: The rows, for labels and weights.

        Returns:
            The mean over what counts in the batch.

        Raises:
            TypeError: If a subclass does not implement it.
        """
        raise TypeError(f"{type(self).__name__} does not implement forward.")

    def describe(self) -> str:
        """Return name and settings as the printed loss equation shows them."""
        return type(self).__name__
