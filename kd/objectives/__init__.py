"""The terms that a loss can be made of; each file is one kind of signal."""

from kd.objectives.base import Objective
from kd.objectives.labels import HardLabel, masked_cross_entropy
from kd.objectives.logits import LogitKD, softened_kl

__all__ = ["HardLabel", "LogitKD", "Objective", "masked_cross_entropy", "softened_kl"]
