"""Checks of the machine: do disk and memory hold what a run needs, and how long does it take.

Sizes are estimates, in bytes. This room knows numbers, no model and no trainer.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse import Namespace

from kd.checks.findings import Finding, graded
from kd.console import in_words
from kd.types import ModelInfo

__all__ = [
    "SMALLER",
    "Course",
    "check_disk",
    "check_memory",
    "check_time",
    "course_of",
    "free_memory",
    "training_memory",
]

SMALLER = "take a smaller data.batch_size with trainer.accumulate_grad_batches, or max_length"
"""What to do where a batch is too large for the memory."""

_BYTES = 4  # of a float32
_TRIPLE = 3  # a weight and AdamW's two moments of it
_CHECKPOINTS = 3  # the best, the newest, and a next one on its way
_NEARLY = 0.8  # of what is free: little is left for others


def check_disk(weights: int, answers: float, folder: Path) -> Finding:
    """Compare what a run writes with what is free.

    Args:
        weights: Number of weights that are trained.
        answers: Bytes of the teacher's cache.
        folder: Where all will be; it need not be there yet.

    Returns:
        What was found.
    """
    needed = {"checkpoints": float(_CHECKPOINTS * _TRIPLE * _BYTES * weights)}
    needed |= {"student": float(_BYTES * weights), "the teacher's answers": answers}
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    return _compared("disk", needed, free, f"in {folder}", "make room, or move run.root")


def training_memory(
    student: ModelInfo, weights: int, teacher: int, rows: int, tokens: int
) -> dict[str, float]:
    """Return the bytes that training takes, by what they are for.

    Activations are those of Korthikanti et al. 2022 (arXiv:2205.05198, equation 1), in float32.

    Args:
        student: Its sizes.
        weights: Number of weights that are trained.
        teacher: Number of the teacher's weights.
        rows: Rows in a batch, B.
        tokens: Their longest, L.

    Returns:
        Bytes of each kind.
    """
    each = 34 * student.width + 5 * student.heads * tokens  # bytes of a token in a layer, halved
    return {
        "weights, gradients and AdamW": float((1 + _TRIPLE) * _BYTES * weights),
        "a batch": 2.0 * student.layers * rows * tokens * each,
        "teacher": float(_BYTES * teacher),
    }


def free_memory(device: torch.device) -> float | None:
    """Return the bytes that are free on a device; null where nothing tells."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(float(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    told = limit.read_text().strip() if limit.is_file() else ""
    return min(1024 * free, float(told)) if told.isdecimal() else 1024 * free


def check_memory(needed: Mapping[str, float], free: float, device: str) -> Finding:
    """Compare what training takes with what is free; bytes by what they are for."""
    return _compared("memory", needed, free, f"on {device}", SMALLER)


@dataclass(frozen=True)
class Course:
    """What a training consists of.

    Args:
        steps: Of the optimizer; perhaps infinite.
        validations: How often it is measured.
    """

    steps: float
    validations: float


def course_of(trainer: Namespace, batches: float) -> Course:
    """Return what a trainer will do.

    Args:
        trainer: Its options.
        batches: Training batches in an epoch.

    Returns:
        Steps and validations of the whole run.
    """
    limit, together = trainer.limit_train_batches, trainer.accumulate_grad_batches
    if limit is not None:
        batches = min(limit, batches) if isinstance(limit, int) else limit * batches
    each = max(1, math.ceil(batches / together))
    steps = math.inf if trainer.max_epochs in (None, -1) else each * trainer.max_epochs
    steps = steps if trainer.max_steps < 0 else min(steps, trainer.max_steps)
    interval = trainer.val_check_interval or 1.0
    if trainer.check_val_every_n_epoch is None:
        interval *= 1 if isinstance(interval, int) else batches
        return Course(steps, steps * together // interval)
    often = batches // interval if isinstance(interval, int) else 1 / interval
    return Course(steps, often * (steps / each) // trainer.check_val_every_n_epoch)


def check_time(seconds: Mapping[str, float], course: Course, per_step: float) -> list[Finding]:
    """Say how long a run takes, and whether it is ever measured.

    Args:
        seconds: By what takes them, without the training.
        course: Of the training.
        per_step: Seconds of a step.

    Returns:
        What was found.
    """
    step = f"{per_step * 1000:,.1f} ms a step"
    if not math.isfinite(course.steps):
        return [Finding("ok", "time", f"{step}, and no end is set")]
    whole = {**seconds, f"{course.steps:,.0f} steps": per_step * course.steps}
    parts = [f"{name} {in_words(took)}" for name, took in whole.items() if took >= 1.0]
    told = f"about {in_words(sum(whole.values()))} ({', '.join([*parts, step])})"
    if course.validations >= 1:
        return [Finding("ok", "time", told)]
    found = f"no validation in {course.steps:,.0f} steps, so no best student is chosen"
    advice = "lower trainer.val_check_interval, or train longer"
    return [Finding("ok", "time", told), Finding("error", "validation", found, advice)]


def _compared(
    check: str, needed: Mapping[str, float], free: float, where: str, advice: str
) -> Finding:
    whole = sum(needed.values())
    parts = ", ".join(f"{name} {_shown(size)}" for name, size in needed.items() if size)
    found = f"about {_shown(whole)} of {_shown(free)} free {where} ({parts})"
    return graded(check, found, advice, warns=whole > _NEARLY * free, fails=whole > free)


def _shown(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
