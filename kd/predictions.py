"""What teacher and student said of a split, as a file that needs neither to be asked again.

Every fit writes one of its validation rows, ``validation.parquet``, from which exports are
calibrated, and reports and comparisons made. This room knows no model, and starts without torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kd.calibration import is_right, probabilities
from kd.errors import RunError
from kd.files import replacing

__all__ = ["VALIDATION", "Predictions", "read_predictions", "write_predictions"]

VALIDATION = "validation.parquet"
"""Name of the file in a run of ``fit``."""

_FACTS = b"kd"


@dataclass(frozen=True)
class Predictions:
    """The rows of a split with what teacher and student said of them, N rows and C classes.

    Args:
        labels: Class names; their order is that of the logits.
        multi_label: Whether a row may have several classes.
        texts: The texts, N.
        pairs: The second texts of sentence pairs, N, or null.
        truth: Position of each row's class, `[N]`, or 1 for each class that it has, `[N, C]`.
        student: Logits `[N, C]` of the exported student.
        teacher: Logits `[N, C]` of the teacher; null where there was none.
    """

    labels: tuple[str, ...]
    multi_label: bool
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    truth: NDArray[np.int64]
    student: NDArray[np.float32]
    teacher: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def is_right(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return what each row adds to the accuracy of these logits, `[N]`."""
        return is_right(probabilities(logits, self.multi_label), self.truth, self.multi_label)

    def accuracy(self, logits: NDArray[np.float32]) -> float:
        """Return the share of right rows or, where a row may have several, of right choices."""
        return float(self.is_right(logits).mean())

    def f1(self, logits: NDArray[np.float32]) -> float:
        """Return the mean of the classes' F1."""
        from sklearn.metrics import f1_score

        found = probabilities(logits, self.multi_label)
        if self.multi_label:
            return float(f1_score(self.truth, found > 0.5, average="macro", zero_division=0))
        return float(f1_score(self.truth, found.argmax(axis=1), average="macro", zero_division=0))


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions as parquet: text, pair, label and the logits of both, a row each."""
    import pyarrow as pa
    from pyarrow import parquet

    p = predictions
    names = np.array(p.labels, dtype=object)
    columns: dict[str, Sequence[object]] = {"text": p.texts}
    if p.pairs is not None:
        columns["pair"] = p.pairs
    columns["label"] = (
        [names[row == 1].tolist() for row in p.truth] if p.multi_label else names[p.truth].tolist()
    )
    columns["student"] = p.student.tolist()
    if p.teacher is not None:
        columns["teacher"] = p.teacher.tolist()
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    for place, name in enumerate(table.column_names):
        if name in ("student", "teacher"):
            floats = table.column(name).cast(pa.list_(pa.float32()))
            table = table.set_column(place, name, floats)
    facts = json.dumps({"labels": p.labels, "multi_label": p.multi_label})
    table = table.replace_schema_metadata({_FACTS: facts.encode()})
    with replacing(path) as file:
        parquet.write_table(table, file)


def read_predictions(path: Path) -> Predictions:
    """Read what :func:`write_predictions` wrote.

    Args:
        path: The file.

    Returns:
        The predictions.

    Raises:
        RunError: If the file is missing or broken.
    """
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.read_table(path)
        facts = json.loads((table.schema.metadata or {})[_FACTS])
        columns = {name: table.column(name).to_pylist() for name in table.column_names}
        labels, multi_label = tuple(facts["labels"]), bool(facts["multi_label"])
        places = {label: place for place, label in enumerate(labels)}
        if multi_label:
            truth = np.array([[int(name in row) for name in labels] for row in columns["label"]])
        else:
            truth = np.array([places[name] for name in columns["label"]])
        return Predictions(
            labels,
            multi_label,
            tuple(columns["text"]),
            tuple(columns["pair"]) if "pair" in columns else None,
            truth.astype(np.int64),
            np.array(columns["student"], dtype=np.float32),
            np.array(columns["teacher"], dtype=np.float32) if "teacher" in columns else None,
        )
    except FileNotFoundError as error:
        raise RunError(
            f"{path} is not there: the run was cut off before its end, or made by an older kd; "
            "train it again."
        ) from error
    except (OSError, ArrowException, KeyError, ValueError, TypeError) as error:
        raise RunError(
            f"{path} cannot be read ({type(error).__name__}): train it again."
        ) from error
