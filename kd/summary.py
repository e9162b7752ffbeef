"""The box at the end of a fit: teacher and student side by side.

Measured on what was exported, so that the figures are those of the folder that ships.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.box import ROUNDED
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from kd.answering import row_logits
from kd.backends import TorchModel
from kd.classifiers import TextClassifier
from kd.data.collate import EncodedRows, label_tensor
from kd.inference import Classifier
from kd.predictions import Predictions
from kd.teachers import Teacher
from kd.types import Row

__all__ = ["Score", "as_plain", "measure", "score", "score_teacher", "show", "speed"]

_TIMED_ROWS = 512  # enough for a steady figure
_TIMED_SECONDS = 0.2
_WARM_ROWS = 8
_BYTES = 4  # of a float32 weight


@dataclass(frozen=True)
class Score:
    """What a model is worth and what it costs.

    Args:
        accuracy: Share of right validation rows, or of right choices where a row may have several
            classes.
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


def measure(
    folder: Path, rows: EncodedRows, labels: Sequence[str], teacher: Teacher | None = None
) -> tuple[Predictions, dict[str, Score]]:
    """Ask an exported folder, and perhaps its teacher, about labelled rows.

    Args:
        folder: The export.
        rows: Whose labels count positions in ``labels``, encoded as the teacher reads them.
        labels: Class names of the data.
        teacher: Prepared for these rows.

    Returns:
        What they said, and what each is worth, the teacher first.
    """
    student = TorchModel.load(str(folder))
    order = [student.labels.index(label) for label in labels]
    several = student.multi_label
    texts, pairs = _read_by(rows.rows)
    found = Predictions(
        tuple(labels),
        several,
        texts,
        pairs,
        label_tensor(rows.rows, len(labels) if several else None).numpy(),
        Classifier(student).logits(texts, pairs)[:, order],
        row_logits(teacher, rows) if teacher else None,
    )
    own = score(
        student.classifier, rows.rows, found.accuracy(found.student), found.f1(found.student)
    )
    scores = {"student": own}
    if teacher and found.teacher is not None:
        figures = found.accuracy(found.teacher), found.f1(found.teacher)
        scores = {"teacher": score_teacher(teacher, rows.rows, *figures), **scores}
    return found, scores


def score(model: TextClassifier, rows: Sequence[Row], accuracy: float, f1: float) -> Score:
    """Return a score of known accuracy, with size and speed measured."""
    parameters = model.info.parameters
    return Score(accuracy, f1, parameters, parameters * _BYTES / 1e6, speed(model, rows))


def score_teacher(teacher: Teacher, rows: Sequence[Row], accuracy: float, f1: float) -> Score:
    """Return the score of a teacher of known accuracy; its speed is measured once and kept.

    Args:
        teacher: Whose models answer a row one after the other.
        rows: Canonical rows.
        accuracy: Share of right rows.
        f1: Mean of the classes' F1.

    Returns:
        The score.
    """

    def seconds_per_row(part: Teacher) -> float:
        return sum(1 / speed(model, rows) for model in part.models)

    parameters = sum(model.info.parameters for model in teacher.models)
    seconds = sum(
        part.recall("seconds_per_row", partial(seconds_per_row, part)) for part in teacher.parts
    )
    return Score(accuracy, f1, parameters, parameters * _BYTES / 1e6, 1 / seconds)


def speed(model: TextClassifier, rows: Sequence[Row]) -> float:
    """Return the rows that a model answers per second on its device, after a warm-up."""
    classifier = Classifier(TorchModel(model))
    texts, pairs = _read_by(rows)

    def ask(count: int) -> None:
        classifier.logits(texts[:count], pairs and pairs[:count])

    ask(_WARM_ROWS)
    count = _WARM_ROWS
    while True:  # more rows until the clock is fine enough: a large teacher is not kept long
        start = time.perf_counter()
        ask(count)
        took = time.perf_counter() - start
        if took > _TIMED_SECONDS or count >= min(len(rows), _TIMED_ROWS):
            return min(count, len(rows)) / took
        count *= 4


def show(scores: Mapping[str, Score], folder: Path, rows: int, took: float, phases: str) -> None:
    """Print the box.

    Args:
        scores: By role.
        folder: The run directory.
        rows: Validation rows measured on.
        took: Seconds of the run.
        phases: Where they went.
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
        f"time   {phases}\n"
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


def _read_by(rows: Sequence[Row]) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Return the texts of rows and, where there are any, their second texts."""
    pairs = tuple(row.pair or "" for row in rows)
    return tuple(row.text for row in rows), pairs if any(pairs) else None
