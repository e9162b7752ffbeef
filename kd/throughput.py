"""How fast a run trains and where its time goes.

Figures go to the loggers of the run; the box at the end shows the phases. Nothing here waits for
the device in a step.
"""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer

from kd.module import DistillationModule
from kd.types import Batch

__all__ = ["Throughput"]


class Throughput(Callback):
    """Log ``speed/rows_per_second``, ``speed/padding_share`` and ``speed/teacher_share``.

    At the end the seconds of each phase follow, ``speed/training_seconds`` and so on. Rows are
    those of all ranks; the share of padding is that of the tokens that the student reads;
    the teacher's share is that of the time of the steps. The attribute ``phases`` holds the
    seconds of the run by phase.
    """

    def __init__(self) -> None:
        self.phases = {"start": 0.0, "teacher": 0.0, "training": 0.0, "validation": 0.0}
        self.rows = self.tokens = self.places = 0
        self._made = time.perf_counter()
        self._since = self._validation_since = 0.0
        self._last = (0, 0.0, 0.0)  # rows, training and teacher seconds at the last log

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note how long it took until here, and how much of it the teacher."""
        assert isinstance(pl_module, DistillationModule)
        self.phases["teacher"] = sum((one.seconds for one in pl_module.fillings), 0.0)
        self.phases["start"] = time.perf_counter() - self._made - self.phases["teacher"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch, and log now and then."""
        assert isinstance(pl_module, DistillationModule)
        assert isinstance(batch, Batch)
        self.rows += len(batch) * trainer.world_size
        self.tokens += batch.tokens
        self.places += batch.views["student"]["input_ids"].numel()
        if trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        now, teacher = self.training_seconds(), pl_module.teacher_time.seconds()
        rows, then, teacher_then = self._last
        values = {
            "speed/rows_per_second": (self.rows - rows) / (now - then),
            "speed/padding_share": 1 - self.tokens / self.places,
            "speed/teacher_share": (teacher - teacher_then) / (now - then),
        }
        self._last = (self.rows, now, teacher)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step - 1)

    def training_seconds(self) -> float:
        """Return the time since training started, without that of validation."""
        return time.perf_counter() - self._since - self.phases["validation"]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the validation."""
        self._validation_since = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of the validation; what ran before training is no part of it."""
        if not trainer.sanity_checking:
            self.phases["validation"] += time.perf_counter() - self._validation_since

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note how long training took, and log the phases until here."""
        self.phases["training"] = self.training_seconds()
        for logger in trainer.loggers:
            seconds = {f"speed/{name}_seconds": took for name, took in self.phases.items()}
            logger.log_metrics(seconds, step=max(0, trainer.global_step - 1))

    def describe(self) -> str:
        """Return the phases and the speed of training as one line."""
        phases = ", ".join(f"{name} {took:.1f} s" for name, took in self.phases.items())
        speed = self.rows / max(self.phases["training"], 1e-9)
        padding = 1 - self.tokens / max(self.places, 1)
        return f"{phases}; {speed:,.0f} rows/s in training, {padding:.0%} padding"
