"""What happens around training: one run directory on all ranks, checkpoints, predictions.

Callbacks write where the run tells them; they know no objective and compute no loss.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from kd.checkpoints import MODEL_FOLDER, RESUME
from kd.console import print_line
from kd.data.datamodule import TextDataModule
from kd.data.rows import Fields
from kd.errors import RunError
from kd.module import DistillationModule
from kd.runs import MANIFEST, Run, read_manifest
from kd.saving import ResumeCheckpoint
from kd.tracking import begin
from kd.types import Row

_SHOWN = ("accuracy", "f1", "agreement", "loss", "objective")

__all__ = [
    "MetricsFile",
    "Milestones",
    "PredictionWriter",
    "RunDirectory",
]


class RunDirectory(Callback):
    """Let all ranks agree on the run directory that rank 0 claimed, and on its references.

    Args:
        run: The claimed run on rank 0, null on all others.
        references: Model path by reference as rank 0 resolved them.
        answers: Folder of the teachers' caches; null keeps answers in memory.
    """

    def __init__(
        self, run: Run | None, references: Mapping[str, str], answers: Path | None = None
    ) -> None:
        self.run = run
        self.references = dict(references)
        self.answers = answers
        self.path: str | None = None
        self.was_training = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell every rank; runs before the checkpoints and the models need a path."""
        mine = (str(self.run.path) if self.run else None, self.references)
        self.path, self.references = path, _ = trainer.strategy.broadcast(mine)
        assert isinstance(pl_module, DistillationModule)
        pl_module.follow(self.references)
        pl_module.answers_folder = self.answers
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None and path:
                callback.dirpath = str(Path(path, "checkpoints"))
            if isinstance(callback, ResumeCheckpoint) and path:
                callback.path = Path(path) / RESUME

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the loss, and note the data and the id at W&B in the manifest."""
        assert isinstance(pl_module, DistillationModule)
        for note in pl_module.student.notes:
            print_line(note)
        print_line(pl_module.equation)
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, TextDataModule)
        prints = data.fingerprints()
        _check_data(trainer.ckpt_path, prints)
        print_line(data.summary())
        if data.explained is not None and trainer.ckpt_path is None:
            for logger in trainer.loggers:
                logger.log_metrics(data.explained.figures(), step=0)
        if self.run is None:
            return
        for name, report in data.reports().items():
            text = json.dumps(report, indent=2, ensure_ascii=False)
            self.run.write_text(f"{name}.json", text + "\n")
        wandb_id = begin(trainer.loggers, self.run)
        pl_module.student.describe(self.run.path / MODEL_FOLDER, data.max_length)
        folders = [str(one.folder) for one in pl_module.fillings if one.folder]
        keys = {"cache": ", ".join(folders)} if folders else None
        self.run.update(data=prints, wandb_id=wandb_id, keys=keys)

    @rank_zero_only
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Begin ``metrics.csv`` with what the run that is continued measured until its save."""
        old = Path(trainer.ckpt_path or "").parent.parent / MetricsFile.NAME
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile) and trainer.state.fn == "fit":
                logger.continue_from(old, checkpoint["global_step"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the steps begin."""
        self.was_training = True

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write down the rows of a batch whose loss was no finite number."""
        self.was_training = self.was_training and bool(trainer.training)
        assert isinstance(pl_module, DistillationModule)
        blamed = pl_module.guard.blamed
        if self.path is not None and blamed is not None:
            name = f"not_finite_rank_{trainer.global_rank}.json"
            Path(self.path, name).write_text(json.dumps(blamed, indent=2) + "\n")


def _check_data(resumed: str | Path | None, found: Mapping[str, str]) -> None:
    """Refuse to continue a run on other rows: its place in them would mean nothing."""
    old = Path(resumed or "").parent.parent
    if not resumed or not (old / MANIFEST).is_file():
        return
    known = read_manifest(old).get("data") or {}
    for role in ("train", "validation"):
        if known.get(role, found[role]) != found[role]:
            raise RunError(
                f"The {role} rows are not those of {old}, which is continued: bring them back, or "
                "train afresh with --run.resume=null."
            )


class MetricsFile(CSVLogger):
    """``metrics.csv`` in the run directory, and no other file.

    Args:
        folder: The run directory.
    """

    NAME = ExperimentWriter.NAME_METRICS_FILE

    def __init__(self, folder: Path) -> None:
        super().__init__(save_dir=folder, name="", version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer of the file."""
        if self._experiment is None:
            self._experiment = _MetricsWriter(self.log_dir)
        return self._experiment  # type: ignore[return-value]

    def continue_from(self, old: Path, step: int) -> None:
        """Begin with the lines of another file that were logged before a step."""
        if not old.is_file():
            return
        with old.open(newline="") as file:
            lines = list(csv.DictReader(file))
        kept = [line for line in lines if line.get("step") and float(line["step"]) < step]
        writer = self.experiment
        writer.metrics = [_filled(line) for line in kept] + writer.metrics


def _filled(line: Mapping[str, str]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if value}


class _MetricsWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """Say nothing: the directory is this run's own."""

    def save(self) -> None:
        try:
            super(ExperimentWriter, self).save()  # without hparams.yaml: config.yaml is the record
        except OSError as error:
            raise RunError(f"cannot write {self.metrics_file_path}: {error.strerror}") from error


class Milestones(Callback):
    """Print one line after each validation, which also reads well in a log file."""

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print step and the validation metrics."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        values = {
            name.removeprefix("val/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        order = [name for name in _SHOWN if name in values]
        metrics = "  ".join(f"{name} {values[name]:.4f}" for name in order)
        print_line(f"step {trainer.global_step}/{trainer.estimated_stepping_batches}  {metrics}")


class PredictionWriter(Callback):
    """Gather the predictions of all ranks and write ``predictions.parquet`` and ``.csv``.

    Args:
        run: The claimed run on rank 0, null on all others.
    """

    def __init__(self, run: Run | None) -> None:
        self.run = run
        self._parts: list[dict[str, Tensor]] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the answers to a batch."""
        self._parts.append({name: value.cpu() for name, value in outputs.items()})

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the rows in their order and write them."""
        gathered: list[list[dict[str, Tensor]]] = [self._parts]
        if trainer.world_size > 1:
            gathered = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(gathered, self._parts)
        if self.run is None:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, TextDataModule)
        answers = {
            int(index): values
            for rank in gathered
            for part in rank
            for index, values in zip(part["index"], part["probabilities"].tolist(), strict=True)
        }
        _write_predictions(self.run.path, data.rows["predict"], answers, data.labels, data.fields)


def _write_predictions(
    folder: Path,
    rows: Sequence[Row],
    answers: Mapping[int, Sequence[float]],
    labels: Sequence[str],
    fields: Fields,
) -> None:
    import pandas as pd

    columns: dict[str, list[Any]] = {"text": [row.text for row in rows]}
    if any(row.pair is not None for row in rows):
        columns["pair"] = [row.pair for row in rows]
    probabilities = [answers[row.index] for row in rows]
    if fields.multi_label:
        columns["label"] = [
            [label for label, value in zip(labels, values, strict=True) if value > 0.5]
            for values in probabilities
        ]
    else:
        columns["label"] = [labels[max(range(len(p)), key=p.__getitem__)] for p in probabilities]
    for place, label in enumerate(labels):
        columns[f"probability_{label}"] = [values[place] for values in probabilities]
    frame = pd.DataFrame(columns)
    frame.to_parquet(folder / "predictions.parquet", index=False)
    if fields.multi_label:  # as it would be read again: the separator alone is a row of no class
        between = fields.label_separator
        frame["label"] = [between.join(chosen) or between for chosen in columns["label"]]
    frame.to_csv(folder / "predictions.csv", index=False)
    print_line(f"{len(frame)} predictions in {folder / 'predictions.parquet'} and .csv")
