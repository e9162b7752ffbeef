"""Rationales made elsewhere: a file of answers, held to the same rules as any other.

Whatever wrote them (LangChain, a script, people), a row becomes the JSON object that a model is
asked for, and is read as one. This room knows no network, no store and no data set.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from kd.errors import ConfigError, DataError
from kd.rationales.annotators import Annotator, Question, Reply, Take
from kd.rationales.replies import read_reply

__all__ = ["ImportedAnnotator"]


class ImportedAnnotator(Annotator):
    """Answers from a file: JSON lines, parquet or CSV, a row for each text, in any order.

    Where a text stands in several rows, the last one counts.

    Args:
        path: The file, its kind told by its name: .jsonl, .parquet or .csv.
        text_column: Column of the text, exactly as in the training data.
        rationale_column: Column of the explanation.
        label_column: Column of the class name that the explanation argues for. Null if its author
            was told the gold label: that is then the answer's label too.
        confidence_column: Column of a number from 0 to 1; there need not be one.
        evidence_column: Column of quotes from the text; there need not be one.
        name: Who wrote the answers, for the record.
    """

    def __init__(
        self,
        path: str,
        text_column: str = "text",
        rationale_column: str = "rationale",
        label_column: str | None = "teacher_label",
        confidence_column: str = "teacher_confidence",
        evidence_column: str = "evidence",
        name: str = "imported",
    ) -> None:
        self.path = path
        self.text_column = text_column
        self.rationale_column = rationale_column
        self.label_column = label_column
        self.confidence_column = confidence_column
        self.evidence_column = evidence_column
        self.name = name

    @property
    def tells_labels(self) -> bool:
        """Whether the answers were written knowing the label: no column says another."""
        return self.label_column is None

    def facts(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return the digest of the file, its columns and the class names."""
        try:
            with Path(self.path).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise self._unreadable(error.strerror) from error
        return {
            "annotator": type(self).__name__,
            "model": self.name,
            "sha256": digest,
            "columns": [
                self.text_column,
                self.rationale_column,
                self.label_column,
                self.confidence_column,
                self.evidence_column,
            ],
            "labels": list(labels),
        }

    def tokens(self, question: Question, labels: Sequence[str]) -> tuple[int, int]:
        """Return none: the answers are there."""
        return 0, 0

    def answer(self, questions: Iterable[Question], labels: Sequence[str], take: Take) -> None:
        """Look up all questions, in their order.

        Args:
            questions: What to look up.
            labels: Class names.
            take: Receives each question with its reply.
        """
        for question in questions:
            take(question, self._reply(question, labels))

    def _reply(self, question: Question, labels: Sequence[str]) -> Reply:
        row = self._rows.get(question.text)
        if row is None:
            return Reply("empty", reason=f"The text is not in {self.path}.")
        told = {
            "rationale": row.get(self.rationale_column),
            "label": row.get(self.label_column) if self.label_column else question.label,
            "confidence": row.get(self.confidence_column),
            "evidence": row.get(self.evidence_column),
        }
        return read_reply(json.dumps(told, default=str), question, labels)

    @cached_property
    def _rows(self) -> dict[str, dict[str, Any]]:
        """The rows by their text."""
        read = _READERS.get(Path(self.path).suffix.lower())
        if read is None:
            raise ConfigError(
                f"annotator.path is {self.path}: give a file whose name ends with one of "
                f"{', '.join(_READERS)}."
            )
        try:
            rows = read(Path(self.path))
        except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors are among them
            raise self._unreadable(error) from error
        columns = dict.fromkeys(column for row in rows for column in row)
        needed = {"text_column": self.text_column, "rationale_column": self.rationale_column}
        needed |= {"label_column": self.label_column} if self.label_column else {}
        for key, column in needed.items():
            if column not in columns:
                raise DataError(
                    f"{self.path} has no column {column!r}: set annotator.{key} to one of: "
                    f"{', '.join(map(str, columns))}."
                )
        return {str(row[self.text_column]): row for row in rows if row.get(self.text_column)}

    def _unreadable(self, reason: object) -> DataError:
        told = " ".join(str(reason).split())
        return DataError(f"annotator.path: {self.path} cannot be read: {told}.")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is no JSON object")
    return rows


def _read_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


_READERS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    ".jsonl": _read_lines,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}
