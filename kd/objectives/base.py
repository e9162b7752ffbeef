"""What a term of the loss is.

An objective is a short adaptor from `Outputs` to a pure function. It says which fields it needs,
whether it asks a teacher and whether it reads labels; it knows no model and no data.
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor, nn

from kd.errors import ConfigError
from kd.types import Batch, ModelInfo, Outputs

__all__ = ["Objective"]


class Objective(nn.Module):
    """A named term of the loss; the total is the sum of weight times term.

    Subclasses set the class variables and implement `forward`. What they own (projections) is
    trained and saved in checkpoints, and never exported.

    Args:
        weight: Multiplier in the total loss, absolute.

    Raises:
        ConfigError: If ``weight`` is negative or not finite.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    uses_teacher: ClassVar[bool] = True
    uses_labels: ClassVar[bool] = False

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if not 0 <= weight < math.inf:
            raise ConfigError(f"{type(self).__name__}.weight is {weight}: give 0 or more.")
        self.weight = weight

    def bind(self, student: ModelInfo, teacher: ModelInfo | None) -> None:
        """Look at the models once, before training; build what depends on their sizes.

        Args:
            student: Sizes and class names of the student.
            teacher: Those of the teacher, if there is one.

        Raises:
            ConfigError: If the objective cannot work with these models.
        """

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return the unweighted term, a scalar.

        Args:
            student: What the student answers, with the fields of ``needs``.
            teacher: What the teacher answers, if ``uses_teacher``.
            batch: The rows, for labels.

        Returns:
            The mean over what counts in the batch.

        Raises:
            TypeError: If a subclass does not implement it.
        """
        raise TypeError(f"{type(self).__name__} does not implement forward.")

    def describe(self) -> str:
        """Return name and settings as the printed loss equation shows them."""
        return type(self).__name__
