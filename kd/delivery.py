"""The end of a fit: the best student exported, measured beside its teacher, shown, logged.

This room trains nothing.
"""

from __future__ import annotations

import time
from itertools import compress
from typing import Any

import numpy as np
from lightning import Trainer

from kd import summary, tracking
from kd.calibration import cross_fitted, surety
from kd.checkpoints import BEST
from kd.console import print_line
from kd.data.datamodule import TextDataModule
from kd.export import export_checkpoint
from kd.findings import Findings
from kd.module import DistillationModule
from kd.predictions import VALIDATION, write_predictions
from kd.runs import Run
from kd.throughput import Throughput

__all__ = ["deliver"]

_MOST_ROWS = 100  # of a table in W&B


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
    if (run.path / BEST).is_file():
        export_checkpoint(run.path, "best", folder)
    else:
        print_line("note: it was never validated in training, so the newest state is exported")
        model.student.save(folder)
    rows = data.encoded("validation")
    found, scores = summary.measure(folder, rows, data.labels, model.measured_teacher)
    write_predictions(run.path / VALIDATION, found)
    throughput.phases["delivery"] = time.perf_counter() - started
    results = {**summary.as_plain(scores), "steps": trainer.global_step}
    run.update(results=results, seconds=throughput.phases)
    run.finish("finished")
    took = time.perf_counter() - began
    summary.show(scores, run.path, len(rows), took, throughput.describe())
    if any(map(tracking.is_wandb, trainer.loggers)):  # last, for a network may take its time
        told = Findings.of(run.path)
        pictures = list(told.pictures.values())
        tracking.log_results(trainer.loggers, run, results, found, _tables(told), pictures)


def _tables(told: Findings) -> dict[str, list[dict[str, Any]]]:
    """Return the rows where student and teacher differ and where the student errs, surest first."""
    p, several = told.predictions, told.predictions.multi_label
    sure = {
        role: surety(cross_fitted(logits, p.truth, several), several)
        for role, logits in told.logits.items()
    }

    def named(choice: Any) -> str:
        return ", ".join(compress(p.labels, choice)) if several else p.labels[choice]

    def row(place: int) -> dict[str, Any]:
        said: dict[str, Any] = {"text": p.texts[place]}
        said |= {"pair": p.pairs[place]} if p.pairs is not None else {}
        said["label"] = named(p.truth[place])
        for role, chosen in told.chosen.items():
            said |= {role: named(chosen[place]), f"{role}_confidence": float(sure[role][place])}
        return said

    rows = {"worst_errors": p.is_right(p.student) < 1}
    if p.teacher is not None:
        differ = told.chosen["student"] != told.chosen["teacher"]
        rows["flips"] = differ.reshape(len(p), -1).any(axis=1)
    order = np.argsort(-sure["student"], kind="stable")
    return {
        name: [row(place) for place in order[of_interest[order]][:_MOST_ROWS]]
        for name, of_interest in rows.items()
    }
