"""Answers: an exported folder reads texts and gives classes with probabilities.

With ONNX Runtime it starts in a fraction of a second and without torch; this room imports neither
lightning nor datasets, and knows no training.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from kd.backends import BackendName, Model, ONNXModel, TorchModel
from kd.calibration import choices, probabilities, surety
from kd.errors import ConfigError, DataError, ModelError
from kd.layout import FACTS, ONNX, read_facts
from kd.runs import is_reference, resolve
from kd.texts import repaired

__all__ = ["Cascade", "Classifier", "Prediction", "classify"]

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
        from_teacher: Whether it is the answer of the teacher in a `Cascade`.
    """

    text: str
    label: str
    probabilities: dict[str, float]
    labels: tuple[str, ...]
    from_teacher: bool = False


class Classifier:
    """A trained model that answers texts; the order of the answers is that of the texts.

    Args:
        model: What computes the logits.
        temperature: T that they are divided by before the softmax.
        batch_size: Most texts of one forward pass; they are sorted by length first.
    """

    def __init__(self, model: Model, temperature: float = 1.0, batch_size: int = 64) -> None:
        self.model = model
        self.temperature = temperature
        self.batch_size = batch_size

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        backend: Literal["auto", "torch", "onnx", "int8"] = "auto",
        threads: int | None = None,
        label_names: Sequence[str] | None = None,
        revision: str | None = None,
        model_type: str | None = None,
    ) -> Classifier:
        """Load an exported folder, a run reference or a classifier of the hub.

        Args:
            path: Such as ``shipped``, ``runs/quickstart/version_0/student``, ``runs/quickstart`` or
                ``user/name``.
            backend: What computes; ``auto`` is ONNX where the folder has it, else PyTorch.
            threads: Of the processor; null leaves it to the backend.
            label_names: Class names in the order of the logits, for a model that only says LABEL_0,
                LABEL_1.
            revision: Branch, tag or commit on the hub.
            model_type: Family of a model whose ``config.json`` does not say it.

        Returns:
            The classifier.

        Raises:
            ModelError: If there is none, its head is untrained, or it has other classes.
        """
        source = str(resolve(path).student if is_reference(path) else path)
        folder = Path(source)
        if not os.path.isdir(folder):
            folder = _from_hub(source, backend, revision)
        if backend == "auto":
            has_onnx = os.path.isfile(folder / ONNX) and find_spec("onnxruntime") is not None
            backend = "onnx" if has_onnx else "torch"
        model: Model
        if backend == "torch":
            model = TorchModel.load(source, threads, revision, model_type)
        else:
            model = ONNXModel(folder, backend, threads)
        if label_names is not None:
            if len(label_names) != len(model.labels):
                raise ModelError(
                    f"{path} has {len(model.labels)} classes, but label_names gives "
                    f"{len(label_names)}: name each."
                )
            model.labels = tuple(label_names)
        if len(set(model.labels)) < len(model.labels):
            raise ModelError(f"{path} has two classes of one name: tell them by label_names.")
        facts = read_facts(folder)
        return cls(model, facts.temperature if facts else 1.0)

    @property
    def backend(self) -> BackendName:
        """What computes: ``torch``, ``onnx`` or ``int8``."""
        return self.model.backend

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.model.labels

    @property
    def multi_label(self) -> bool:
        """Whether a text may have several classes, each with a probability of its own."""
        return self.model.multi_label

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Prediction]:
        """Classify texts.

        Args:
            texts: The texts; long ones are cut at the model's limit.
            pairs: The second text of each, where the model compares two.

        Returns:
            One prediction per text.

        Raises:
            DataError: If a text is no string or blank, or there are more or fewer pairs.
        """
        read = _checked(texts)
        if pairs is not None and len(pairs) != len(read):
            raise DataError(f"There are {len(read)} texts and {len(pairs)} pairs: give as many.")
        logits = self.logits(read, None if pairs is None else _checked(pairs))
        found = probabilities(logits, self.multi_label, self.temperature)
        return self._predictions(read, found)

    def logits(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None
    ) -> NDArray[np.float32]:
        """Return the logits of texts `[N, C]`, in their order, before any temperature.

        Args:
            texts: N of them.
            pairs: Their second texts, or null.

        Returns:
            The logits.

        Raises:
            ModelError: If one is no number.
        """
        found = self.model.logits(texts, pairs, self.batch_size)
        lost = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if len(lost):
            raise ModelError(
                f"The model's answer to text {lost[0] + 1} is no number: its weights are damaged, "
                "export or fetch it again."
            )
        return found

    def _predictions(self, texts: list[str], found: NDArray[np.float64]) -> list[Prediction]:
        if self.multi_label:
            chosen = [
                tuple(self.labels[place] for place in np.flatnonzero(row))
                for row in choices(found, multi_label=True)
            ]
        best = [self.labels[place] for place in found.argmax(axis=1)] if texts else []
        return [
            Prediction(
                text,
                best[row],
                dict(zip(self.labels, values, strict=True)),
                chosen[row] if self.multi_label else (best[row],),
            )
            for row, (text, values) in enumerate(zip(texts, found.tolist(), strict=True))
        ]


class Cascade:
    """A student that asks its teacher where it is not sure.

    Args:
        student: Who answers first.
        teacher: Who is asked about the texts that are left.
        threshold: Probability of its choice below which the student asks; where a text may have
            several classes, of its least sure choice.

    Raises:
        ConfigError: If the threshold is not from 0 to 1.
        ModelError: If the two know different classes.
    """

    def __init__(self, student: Classifier, teacher: Classifier, threshold: float) -> None:
        if not 0.0 <= threshold <= 1.0:
            raise ConfigError(f"threshold is {threshold}: it is a probability, from 0 to 1.")
        same = sorted(student.labels) == sorted(teacher.labels)
        if not same or student.multi_label != teacher.multi_label:
            raise ModelError(
                f"The student knows {', '.join(student.labels)} and the teacher of the cascade "
                f"{', '.join(teacher.labels)}: take two models of one task."
            )
        self.student = student
        self.teacher = teacher
        self.threshold = threshold

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Prediction]:
        """Classify texts.

        Args:
            texts: The texts.
            pairs: The second text of each, where the models compare two.

        Returns:
            One prediction per text; ``from_teacher`` tells whose it is.

        Raises:
            DataError: If a text is no string or blank.
        """
        answers = self.student.predict(texts, pairs)
        if not answers:
            return []
        shares = np.array([list(answer.probabilities.values()) for answer in answers])
        asked = np.flatnonzero(surety(shares, self.student.multi_label) < self.threshold).tolist()
        if asked:
            seconds = None if pairs is None else [pairs[place] for place in asked]
            found = self.teacher.predict([texts[place] for place in asked], seconds)
            for place, answer in zip(asked, found, strict=True):
                by_name = {name: answer.probabilities[name] for name in self.student.labels}
                answers[place] = replace(answer, probabilities=by_name, from_teacher=True)
        return answers


def classify(
    model: str,
    texts: list[str] | None = None,
    file: Path | None = None,
    output: Literal["text", "jsonl"] = "text",
    backend: Literal["auto", "torch", "onnx", "int8"] = "auto",
    cascade: str | None = None,
    threshold: float = 0.9,
    cascade_label_names: list[str] | None = None,
) -> None:
    """Classify texts with an exported model: arguments, the lines of a file, or standard input.

    Args:
        model: Exported folder, run such as runs/quickstart, or hub id.
        texts: The texts; none reads the file, or standard input.
        file: Read one text from each line of this file; - is standard input.
        output: Columns to read (labels, their probabilities, text; a | between several labels, a -
            for none), or one JSON object per line with all probabilities.
        backend: What computes; auto is ONNX where the folder has it, else PyTorch.
        cascade: Folder, run or hub id of a teacher that is asked where the student is not sure.
        threshold: Probability of its choice below which the student is not sure.
        cascade_label_names: Class names in the order of the teacher's logits, where it only says
            LABEL_0, LABEL_1.

    Raises:
        ConfigError: If texts and a file are given, or there is nothing to read.
    """
    if texts and file is not None:
        raise ConfigError("classify takes texts or --file, not both.")
    if not texts and file is None and sys.stdin.isatty():
        raise ConfigError("classify has nothing to read: give texts, --file, or a pipe.")
    student = Classifier.from_pretrained(model, backend)
    answering: Classifier | Cascade = student
    if cascade is not None:
        teacher = Classifier.from_pretrained(cascade, label_names=cascade_label_names)
        answering = Cascade(student, teacher, threshold)
    read = asked = 0
    for chunk in _chunks(texts, file):
        for prediction in answering.predict(chunk):
            read, asked = read + 1, asked + prediction.from_teacher
            sys.stdout.write(_line(prediction, output))
        sys.stdout.flush()
    if cascade is not None and read:
        sys.stderr.write(f"the teacher was asked about {asked:,} of {read:,} texts\n")


def _checked(texts: Sequence[str]) -> list[str]:
    """Return texts as they were in training."""
    if isinstance(texts, str):
        raise DataError("A single text is no list of texts: put it in brackets.")
    read = [repaired(text) if isinstance(text, str) else "" for text in texts]
    for place, text in enumerate(read):
        if not text.strip():
            raise DataError(f"Text {place + 1} of {len(texts)} is empty: give it words.")
    return read


def _from_hub(name: str, backend: str, revision: str | None) -> Path:
    """Return a folder with what a model of the hub says of itself, and its ONNX if that may do.

    A model that no `export` wrote says nothing: then a path where nothing is.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        facts = hf_hub_download(name, FACTS, revision=revision)
        if backend == "torch":
            return Path(facts).parent
        wanted = ["*.json", "onnx/*"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        if backend in ("auto", "torch"):
            return Path(name)  # transformers knows more kinds of folders, and says what is wrong
        raise ModelError(
            f"{name} is neither a folder nor a model of the hub with {FACTS}: give what `kd "
            "export` wrote, or take the backend torch."
        ) from error


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
        if isinstance(sys.stdin, TextIOWrapper):  # some locales let any byte pass
            sys.stdin.reconfigure(encoding="utf-8", errors="strict")
        yield from _read_lines(sys.stdin, "standard input")
    else:
        try:
            with file.open(encoding="utf-8-sig") as lines:
                yield from _read_lines(lines, str(file))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{file} cannot be read: {reason}.") from error


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
