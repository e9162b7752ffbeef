"""The box at the end of a fit: teacher and student side by side.

Measured on what was exported, so that the figures are those of the folder that ships.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.box import ROUNDED
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from kd.inference import Classifier
from kd.metrics import classification_metrics
from kd.models import EncoderClassifier
from kd.types import Row

__all__ = ["Score", "as_plain", "measure", "score", "show", "speed"]

_TIMED_ROWS = 512  # enough for a steady figure, few enough for a large teacher
_BYTES = 4  # of a float32 weight


@dataclass(frozen=True)
class Score:
    """What a model is worth and what it costs.

    Args:
        accuracy: Share of right validation rows.
        f1: Mean of the classes' F1.
        parameters: Number of weights.
        megabytes: Their size in float32, in millions of bytes.
        rows_per_second: Validation rows answered per second, here, tokenisation included.
    """

    accuracy: float
    f1: float
    parameters: int
    megabytes: float
    rows_per_second: float


def measure(folder: Path, rows: Sequence[Row], labels: Sequence[str]) -> Score:
    """Score an exported folder on labelled rows.

    Args:
        folder: The export.
        rows: Canonical rows; their labels count positions in ``labels``.
        labels: Class names of the data.

    Returns:
        Accuracy and macro-F1 by the data's labels, size and speed.
    """
    classifier = Classifier.from_pretrained(folder)
    probabilities = classifier.probabilities(rows)
    order = [classifier.labels.index(label) for label in labels]
    metrics = classification_metrics(len(labels), prefix="")
    values = metrics(probabilities[:, order], torch.tensor([row.label for row in rows]))
    return score(classifier.model, rows, float(values["accuracy"]), float(values["f1"]))


def score(model: EncoderClassifier, rows: Sequence[Row], accuracy: float, f1: float) -> Score:
    """Return a score of known accuracy, with size and speed measured."""
    parameters = model.info.parameters
    return Score(accuracy, f1, parameters, parameters * _BYTES / 1e6, speed(model, rows))


def speed(model: EncoderClassifier, rows: Sequence[Row]) -> float:
    """Return the rows that a model answers per second on its device, after a warm-up."""
    classifier = Classifier(model)
    timed = rows[:_TIMED_ROWS]
    classifier.probabilities(timed[:64])
    start = time.perf_counter()
    classifier.probabilities(timed)
    return len(timed) / (time.perf_counter() - start)


def show(scores: Mapping[str, Score], folder: Path, rows: int, took: float) -> None:
    """Print the box.

    Args:
        scores: By role.
        folder: The run directory.
        rows: Validation rows measured on.
        took: Seconds of the run.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for heading in ("accuracy", "macro-F1", "parameters", "MB", "rows/s"):
        table.add_column(heading, justify="right")
    for role, line in scores.items():
        table.add_row(
            role,
            f"{line.accuracy:.1%}",
            f"{line.f1:.1%}",
            f"{line.parameters:,}",
            f"{line.megabytes:.1f}",
            f"{line.rows_per_second:,.0f}",
        )
    student = folder / "student"
    notes = Text(
        f"\non {rows:,} validation rows, after {took:.0f} s\n"
        f"run    {folder}\n"
        f'try    python train.py classify --model {student} "I am very happy today!"',
        overflow="fold",
    )
    panel = Panel(Group(table, notes), title="kd", box=ROUNDED, expand=False)
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 110)
    console.print(panel, highlight=False)


def as_plain(scores: Mapping[str, Score]) -> dict[str, dict[str, float]]:
    """Return scores as plain values, for the manifest."""
    return {role: asdict(line) for role, line in scores.items()}
