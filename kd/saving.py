"""When a training is saved: the best state, the newest one, and the last before it is stopped.

Saves happen where Lightning can go on exactly: after an optimizer step, and where a validation
follows, after that. How a file is written is the checkpoints' business.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from kd.checkpoints import BEST, is_valid
from kd.console import print_line
from kd.files import replacing
from kd.runs import global_rank
from kd.signals import StopSignals

__all__ = ["BestCheckpoint", "ResumeCheckpoint"]

_LOOK_EVERY = 8  # steps between two looks for a signal where each look waits for the device


class BestCheckpoint(ModelCheckpoint):
    """Keep the checkpoint with the best value of a metric as ``best.ckpt``.

    A resumed run takes over the best checkpoint and its score from the run that it continues.

    Args:
        monitor: Name of the metric; ``val/loss`` and ``val/objective`` are better when smaller.
    """

    def __init__(self, monitor: str) -> None:
        super().__init__(
            filename=BEST.stem,
            monitor=monitor,
            mode="min" if monitor.endswith(("loss", "objective")) else "max",
            save_top_k=1,
            save_on_train_epoch_end=False,  # but with the validation, before the newest is saved
            enable_version_counter=False,
            auto_insert_metric_name=False,
        )
        self._resumed: Path | None = None

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note from where the training goes on."""
        self._resumed = Path(trainer.ckpt_path) if trainer.ckpt_path else None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy the best checkpoint of the resumed run here, so that a worse one cannot win."""
        score = state_dict.get("best_model_score")
        if score is None or self.dirpath is None or self._resumed is None:
            return
        old, new = (Path(folder, BEST.name) for folder in (self._resumed.parent, self.dirpath))
        if not is_valid(old):
            return
        if global_rank() == 0:
            _copy(old, new)
        self.best_model_path = self.kth_best_model_path = str(new)
        self.best_model_score = self.kth_value = torch.as_tensor(score)
        self.best_k_models = {str(new): self.best_model_score}
        self.current_score = self.best_model_score


class ResumeCheckpoint(Checkpoint):
    """Keep the newest state as ``resume.ckpt``, and leave the training when a signal asks for it.

    A run that continues from there makes every further step as if it had never stopped.

    Args:
        steps: Optimizer steps between two saves; one more is made at the end.
        minutes: Time after which a save is made whatever the number of steps.
        signals: What may ask this process to stop; all ranks leave at the same step.
    """

    def __init__(self, steps: int, minutes: float, signals: StopSignals) -> None:
        self.steps = steps
        self.minutes = minutes
        self.signals = signals
        self.path: Path | None = None
        self._saved_step = 0
        self._saved_time = time.monotonic()
        self._is_late = False
        self._validates_anew = False
        self._metrics: dict[str, float] = {}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take back what other callbacks decide by, and what they have decided."""
        self._metrics = checkpoint.get("metrics", {})
        trainer.should_stop = checkpoint.get("should_stop", False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal waits for a save."""
        values = {name: torch.tensor(value) for name, value in self._metrics.items()}
        trainer.callback_metrics.update(values)  # such as an early stop's, at the epoch's end
        self._saved_step, self._saved_time = trainer.global_step, time.monotonic()
        self.signals.hold()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Obey signals at once again: all is saved, and other ranks have nothing left to do."""
        self.signals.release(obeys=trainer.is_global_zero)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after an optimizer step, but not where a validation or the epoch's end follows."""
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate():
            return
        waits = trainer.world_size > 1 and trainer.strategy.root_device.type != "cpu"
        if waits and trainer.global_step % _LOOK_EVERY and not _ends(trainer):
            return
        stops = self._agree(trainer)
        fetcher = trainer.fit_loop._data_fetcher
        if fetcher is None or loop._should_check_val_fx(fetcher):
            return
        if not loop.batch_progress.is_last_batch:
            self._save_if_due(trainer, stops)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Leave a long validation when asked to; it is then made anew."""
        if not self._is_safe(trainer) or trainer.global_step == trainer.max_steps:
            return  # Lightning makes no validation after the last step when it continues
        rows = trainer.val_dataloaders
        everywhere = len(rows.data) // trainer.world_size // rows.batch_size  # type: ignore[union-attr]
        if isinstance(trainer.limit_val_batches, float):
            everywhere = int(everywhere * trainer.limit_val_batches)
        if batch_idx < everywhere and self._agree(trainer):
            self._validates_anew = True
            self._save_if_due(trainer, True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation, which the best checkpoint has seen."""
        if self._is_safe(trainer):
            self._save_if_due(trainer, self._agree(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of the last epoch where no validation was."""
        is_whole = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if is_whole and _ends(trainer) and self._saved_step != trainer.global_step:
            self._save(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the state that was continued where it was the last one already."""
        if trainer.is_global_zero and self.path and trainer.ckpt_path and not self.path.exists():
            _copy(Path(trainer.ckpt_path), self.path)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep what callbacks decide by; let a validation that was left begin anew."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        checkpoint |= {"metrics": metrics, "should_stop": trainer.should_stop}
        if self._validates_anew:
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress = {"total": begun, "current": dict(begun), "is_last_batch": False}
            loops = checkpoint["loops"]["fit_loop"]
            loops["epoch_loop.val_loop.batch_progress"] = progress

    @staticmethod
    def _is_safe(trainer: Trainer) -> bool:
        """Tell whether this is a validation of a training, with no gradients waiting."""
        is_inside = trainer.state.fn == "fit" and not trainer.sanity_checking
        return is_inside and not trainer.fit_loop.epoch_loop._should_accumulate()

    def _agree(self, trainer: Trainer) -> bool:
        """Return whether any rank is to stop; every rank must ask, and all get one answer."""
        is_late = time.monotonic() - self._saved_time > 60 * self.minutes
        wishes = torch.tensor([self.signals.received, int(is_late)])
        if trainer.world_size > 1:
            wishes = wishes.to(trainer.strategy.root_device)
            torch.distributed.all_reduce(wishes, torch.distributed.ReduceOp.MAX)
        wished, self._is_late = wishes.tolist()
        self.signals.hear(wished)
        return bool(wished)

    def _save_if_due(self, trainer: Trainer, stops: bool) -> None:
        is_due = self._is_late or trainer.global_step - self._saved_step >= self.steps
        if stops or is_due or _ends(trainer):
            self._save(trainer)
        if stops:
            self._leave(trainer)

    def _save(self, trainer: Trainer) -> None:
        assert self.path is not None
        for logger in trainer.loggers:
            logger.save()  # what was logged belongs to the state
        trainer.save_checkpoint(self.path)
        self._saved_step, self._saved_time = trainer.global_step, time.monotonic()

    def _leave(self, trainer: Trainer) -> None:
        """End this rank."""
        if trainer.is_global_zero:
            print_line(f"stopped = step {trainer.global_step} is saved in {self.path}")
        raise SystemExit(self.signals.exit_code)


def _ends(trainer: Trainer) -> bool:
    """Tell whether the step just made is the last one."""
    if trainer.global_step == trainer.max_steps or trainer.should_stop:
        return True
    is_last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
    return is_last and trainer.current_epoch + 1 == trainer.max_epochs


def _copy(old: Path, new: Path) -> None:
    """Copy a checkpoint and its mark, each whole or not at all."""
    new.parent.mkdir(parents=True, exist_ok=True)
    for mark in ("", ".json"):
        with Path(f"{old}{mark}").open("rb") as source, replacing(Path(f"{new}{mark}")) as target:
            shutil.copyfileobj(source, target)
