"""Terms that learn from a teacher's logits.

Each needs no label. Softening happens here and nowhere else, and carries its T².
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from kd.errors import ConfigError
from kd.objectives.base import Objective
from kd.types import Batch, Outputs

__all__ = ["LogitKD", "softened_kl"]


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² times KL from the teacher's softened distribution to the student's, mean over rows.

    Computed in float32 whatever the logits are; zero when the logits agree.

    Args:
        student: Logits `[B, C]`.
        teacher: Logits `[B, C]`, without a gradient.
        temperature: T > 0.

    Returns:
        A scalar.
    """
    divergence = functional.kl_div(
        functional.log_softmax(student.float() / temperature, dim=-1),
        functional.log_softmax(teacher.detach().float() / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    return divergence * temperature**2


class LogitKD(Objective):
    """Forward KL to the teacher's softened distribution.

        T² · KL(softmax(z_teacher / T) ‖ softmax(z_student / T)), mean over the rows of the batch

    T² keeps the gradient's size independent of T (Hinton et al. 2015, arXiv:1503.02531,
    section 2). Needs no label, so unlabelled rows count fully.
    Near: :class:`HardLabel` learns from the data's own labels; use both where there are labels.

    Args:
        weight: Multiplier in the total loss.
        temperature: T > 0; larger softens both sides more.

    Raises:
        ConfigError: If ``temperature`` is not positive or not finite.
    """

    uses_teacher: ClassVar[bool] = True

    def __init__(self, weight: float = 1.0, temperature: float = 2.0) -> None:
        super().__init__(weight)
        if not 0 < temperature < math.inf:
            raise ConfigError(f"LogitKD.temperature is {temperature}: it must be positive.")
        self.temperature = temperature

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return T² times the divergence."""
        assert teacher is not None
        return softened_kl(student.logits, teacher.logits, self.temperature)

    def describe(self) -> str:
        """Return name and settings as the printed loss equation shows them."""
        return f"LogitKD T={self.temperature:g}"
