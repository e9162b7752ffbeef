"""The optimizer and its schedule: AdamW with decay groups, warm-up, then decay.

Pure functions of parameters and step counts; no model is named here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from kd.errors import ConfigError

__all__ = ["RateSchedule", "build_adamw", "build_schedule", "rate_factor"]

RateSchedule = Literal["linear", "cosine", "constant"]


def build_adamw(
    parameters: Iterable[tuple[str, nn.Parameter]], learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov & Hutter 2019) that decays matrices only; one kernel updates all.

    Biases and normalisation weights, which have one dimension, are not decayed.

    Args:
        parameters: Names and parameters; those without gradient are left out.
        learning_rate: Peak rate.
        weight_decay: Of the decayed group.

    Returns:
        The optimizer, with one group or two.
    """
    trained = [value for _, value in parameters if value.requires_grad]
    groups = [
        {"params": [value for value in trained if value.ndim > 1], "weight_decay": weight_decay},
        {"params": [value for value in trained if value.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=learning_rate, fused=True
    )
    # fused kernels can unscale by themselves, and so Lightning refuses to clip in mixed precision
    optimizer._step_supports_amp_scaling = False
    return optimizer


def rate_factor(step: int, steps: int, warmup: int, schedule: RateSchedule) -> float:
    """Say what share of the peak rate a step uses.

    Args:
        step: Number of the step, from 0.
        steps: Steps of the whole run.
        warmup: Steps over which the rate rises linearly.
        schedule: What follows: a straight line or half a cosine down to zero, or nothing.

    Returns:
        From 0 to 1.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def build_schedule(
    optimizer: torch.optim.Optimizer, steps: float, warmup_share: float, schedule: RateSchedule
) -> LambdaLR:
    """Return a scheduler to step after every optimizer step.

    Args:
        optimizer: The optimizer whose rate it sets.
        steps: Steps of the whole run, perhaps infinite.
        warmup_share: Share of the steps for warm-up, from 0 to 1.
        schedule: Course of the rate after that.

    Returns:
        The scheduler.

    Raises:
        ConfigError: If the number of steps is infinite and the schedule needs it.
    """
    if not math.isfinite(steps):
        if schedule != "constant":
            raise ConfigError(
                f"The schedule '{schedule}' needs an end: set trainer.max_epochs or "
                "trainer.max_steps, or model.schedule=constant."
            )
        steps = 0
    warmup = round(warmup_share * steps)
    return LambdaLR(optimizer, lambda step: rate_factor(step, int(steps), warmup, schedule))
