"""Answers: an exported folder reads texts and gives classes with probabilities.

This room imports neither lightning nor datasets, so that it starts fast; it knows no training.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Literal

import torch

from kd.classifiers import TextClassifier
from kd.data.collate import EncodedRows, EvaluationBatches
from kd.data.encode import encode
from kd.data.rows import repaired
from kd.errors import ConfigError, DataError
from kd.layers import class_probabilities, is_multi_label
from kd.models import choose_classifier
from kd.runs import is_reference, resolve
from kd.types import Row
from kd.views import view_of

__all__ = ["Classifier", "Prediction", "classify"]

_CHUNK = 4096  # texts read from a file or a pipe before the first answers are written


@dataclass(frozen=True)
class Prediction:
    """What a model says of one text.

    Args:
        text: The text.
        label: The class with the highest probability.
        probabilities: By class name; they sum to 1, unless a row may have several classes.
        labels: The classes of the text: ``label`` alone or, where a row may have several, those
            above 0.5, perhaps none.
    """

    text: str
    label: str
    probabilities: dict[str, float]
    labels: tuple[str, ...]


class Classifier:
    """A trained model that answers texts; the order of the answers is that of the texts.

    Args:
        model: A loaded classifier.
        batch_size: Texts per forward pass.
    """

    def __init__(self, model: TextClassifier, batch_size: int = 64) -> None:
        self.model = model.eval()
        self.batch_size = batch_size

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Classifier:
        """Load an exported folder, a run reference or a classifier of the hub.

        Args:
            path: Such as ``runs/quickstart/version_0/student`` or ``runs/quickstart``.

        Returns:
            The classifier; a `ModelError` says that there is none, or that its head is untrained.
        """
        folder = str(resolve(path).student) if is_reference(path) else str(path)
        model = choose_classifier(folder)(path=folder)
        model.load(fresh_head=False)
        return cls(model)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the probabilities."""
        return self.model.labels

    @property
    def multi_label(self) -> bool:
        """Whether a text may have several classes, each with a probability of its own."""
        return is_multi_label(self.model.loaded.config)

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """Classify texts.

        Args:
            texts: The texts; long ones are cut at the model's limit.

        Returns:
            One prediction per text.

        Raises:
            DataError: If a text is no string or blank.
        """
        for place, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"Text {place + 1} of {len(texts)} is empty: give it words.")
        rows = [Row(place, repaired(text)) for place, text in enumerate(texts)]
        probabilities = self.probabilities(rows).tolist()
        return [
            self._prediction(row.text, dict(zip(self.labels, values, strict=True)))
            for row, values in zip(rows, probabilities, strict=True)
        ]

    def _prediction(self, text: str, probabilities: dict[str, float]) -> Prediction:
        label = max(probabilities, key=probabilities.__getitem__)
        chosen: tuple[str, ...] = (label,)
        if self.multi_label:
            chosen = tuple(name for name, value in probabilities.items() if value > 0.5)
        return Prediction(text, label, probabilities, chosen)

    @torch.inference_mode()
    def probabilities(self, rows: Sequence[Row]) -> torch.Tensor:
        """Return the probabilities of canonical rows, `[rows, C]`, in their order."""
        model = self.model
        result = torch.zeros(len(rows), len(self.labels))
        if not rows:
            return result
        view = view_of(model, model.max_length)
        places = [Row(place, row.text, pair=row.pair) for place, row in enumerate(rows)]
        data = EncodedRows(places, {"student": encode(places, view)})
        device = next(model.parameters()).device
        for batch in EvaluationBatches(data, self.batch_size):
            logits = model(batch.to(device).views["student"]).logits
            result[batch.index] = class_probabilities(logits, self.multi_label).cpu()
        return result


def classify(
    model: str,
    texts: list[str] | None = None,
    file: Path | None = None,
    output: Literal["text", "jsonl"] = "text",
) -> None:
    """Classify texts with an exported model: arguments, the lines of a file, or standard input.

    Args:
        model: Exported folder, run such as runs/quickstart, or hub id.
        texts: The texts; none reads the file, or standard input.
        file: Read one text from each line of this file; - is standard input.
        output: Columns to read (labels, their probabilities, text; a | between several labels, a -
            for none), or one JSON object per line with all probabilities.

    Raises:
        ConfigError: If texts and a file are given, or there is nothing to read.
    """
    if texts and file is not None:
        raise ConfigError("classify takes texts or --file, not both.")
    if not texts and file is None and sys.stdin.isatty():
        raise ConfigError("classify has nothing to read: give texts, --file, or a pipe.")
    classifier = Classifier.from_pretrained(model)
    for chunk in _chunks(texts, file):
        for prediction in classifier.predict(chunk):
            sys.stdout.write(_line(prediction, output))
        sys.stdout.flush()


def _line(prediction: Prediction, output: str) -> str:
    if output == "jsonl":
        return json.dumps(asdict(prediction), ensure_ascii=False) + "\n"
    labels = "|".join(prediction.labels) or "-"
    shares = "|".join(f"{prediction.probabilities[label]:.3f}" for label in prediction.labels)
    return f"{labels}\t{shares or '-'}\t{prediction.text}\n"


def _chunks(texts: list[str] | None, file: Path | None) -> Iterator[list[str]]:
    if texts:
        yield texts
    elif file is None or str(file) == "-":
        yield from _read_lines(sys.stdin, "standard input")
    else:
        try:
            with file.open(encoding="utf-8-sig") as lines:
                yield from _read_lines(lines, str(file))
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}.") from error


def _read_lines(lines: IO[str], origin: str) -> Iterator[list[str]]:
    chunk: list[str] = []
    try:
        for line in lines:
            if line.strip():
                chunk.append(line.rstrip("\n"))
            if len(chunk) == _CHUNK:
                yield chunk
                chunk = []
    except UnicodeDecodeError as error:
        raise DataError(f"{origin} is not UTF-8: convert it first.") from error
    if chunk:
        yield chunk
