"""The end of a fit: the best student exported, measured beside its teacher, shown, logged.

This room trains nothing.
"""

from __future__ import annotations

import time

from lightning import Trainer

from kd import summary, tracking
from kd.console import print_line
from kd.data.datamodule import TextDataModule
from kd.export import export_checkpoint
from kd.module import DistillationModule
from kd.predictions import VALIDATION, write_predictions
from kd.runs import Run
from kd.throughput import Throughput

__all__ = ["deliver"]


def deliver(run: Run, trainer: Trainer, throughput: Throughput, began: float) -> None:
    """Export the best student, measure it beside its teacher, and close the run.

    Args:
        run: The run of the fit.
        trainer: What trained, with its module and data.
        throughput: What it noted of the time; the delivery's is added.
        began: When the run began, by `time.perf_counter`.
    """
    model, data = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(model, DistillationModule)
    assert isinstance(data, TextDataModule)
    started, folder = time.perf_counter(), run.path / "student"
    if (run.path / "checkpoints" / "best.ckpt").is_file():
        export_checkpoint(run.path, "best", folder)
    else:
        print_line("note: it was never validated in training, so the newest state is exported")
        model.student.save(folder)
    rows = data.encoded("validation")
    found, scores = summary.measure(folder, rows, data.labels, model.measured_teacher)
    write_predictions(run.path / VALIDATION, found)
    if any(map(tracking.is_wandb, trainer.loggers)):
        from kd.report import pictures_of  # draws, which takes a second to import

        tracking.log_pictures(trainer.loggers, pictures_of(run.path))
    throughput.phases["delivery"] = time.perf_counter() - started
    results = {**summary.as_plain(scores), "steps": trainer.global_step}
    run.update(results=results, seconds=throughput.phases)
    run.finish("finished")
    took = time.perf_counter() - began
    summary.show(scores, run.path, len(rows), took, throughput.describe())
