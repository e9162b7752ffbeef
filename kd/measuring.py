"""Models in processes of their own, timed there: their start, their answers, their memory.

A process imports what its models need and nothing else, so the figures are those of an
application. This room knows no run and writes no file.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from kd import errors
from kd.errors import KDError, RunError
from kd.layout import CHECKSUMS, FACTS, FILES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kd.backends import BackendName
    from kd.inference import Classifier
    from kd.predictions import Predictions

__all__ = ["WARM_TEXTS", "Contender", "Process", "serve"]

WARM_TEXTS = 8
"""Answered one by one before anything is timed."""

_LATENCY_SECONDS, _TURN_SECONDS = 0.3, 0.15  # of a turn with one text at once, or with several
_MOST_SECONDS = 2.0  # of all turns with one batch size: a slow model has fewer
_LONGEST_BATCH = 20.0  # seconds; larger ones of a very slow model are left out
_LONGEST_ASKING = 30.0  # seconds, for all rows with labels
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_DESCRIPTIONS = {".json", ".txt", ".model"}  # endings of configurations and tokenizers
_PROGRAM = "import sys; sys.path.append({!r}); from kd.measuring import serve; serve()"


@dataclass
class Contender:
    """A model, or models that answer a text one after the other, and what was measured of it.

    Args:
        role: ``teacher`` or ``student``.
        backend: What computes.
        paths: Of the models.
        is_optional: Whether the others are measured without it where it does not start.
        accuracy: If it is known.
    """

    role: str
    backend: BackendName
    paths: Sequence[str]
    is_optional: bool = False
    accuracy: float | None = None
    parameters: int | None = field(default=None, init=False)
    peak_megabytes: float = field(default=0.0, init=False)
    turns: dict[int, list[list[float]]] = field(default_factory=dict, init=False)  # by batch size

    @property
    def name(self) -> str:
        """Role and, of a student, backend."""
        return self.role if self.role == "teacher" else f"{self.role}, {self.backend}"

    def start(self, threads: int, texts: Sequence[str], pairs: Sequence[str] | None) -> Process:
        """Start a process for it, with nothing measured there yet."""
        self._process = Process(self.paths, self.backend, threads, texts, pairs)
        self.parameters, self.turns = self._process.parameters, {}
        return self._process

    def take_turn(self, size: int) -> None:
        """Answer batches of a size for a moment, going on in the texts, if that is worth it."""
        turns = self.turns.get(size, [])
        if turns and sum(map(sum, turns)) > _MOST_SECONDS:
            return
        if not turns and self.turns and size / self._best_rate() > _LONGEST_BATCH:
            return
        seconds = _LATENCY_SECONDS if size == 1 else _TURN_SECONDS
        took = self._process.time(size, size * sum(map(len, turns)), seconds)
        self.turns[size] = [*turns, took]

    def finish(self, rows: Predictions | None) -> None:
        """Note the memory and, if it is unknown and rows can tell it soon, the accuracy."""
        self.peak_megabytes = self._process.peak_megabytes()
        if rows is None or self.accuracy is not None or len(self.paths) > 1:
            return
        if len(rows) / self._best_rate() < _LONGEST_ASKING:
            logits = self._process.logits(rows.texts, rows.pairs, rows.labels)
            self.accuracy = None if logits is None else rows.accuracy(logits)

    def rates(self, size: int) -> list[float]:
        """Return the texts per second of each turn."""
        return [size * len(turn) / sum(turn) for turn in self.turns.get(size, [])]

    def as_plain(self, threads: int, sizes: Sequence[int]) -> dict[str, Any]:
        """Return the figures as they stand in ``bench.json``."""
        quantiles = 1000 * np.percentile(np.concatenate(self.turns[1]), (50, 95, 99))
        rates = {str(size): self.rates(size) for size in sizes}
        return {
            "name": self.name,
            "role": self.role,
            "backend": self.backend,
            "parameters": self.parameters,
            "megabytes": sum(_bytes(path, self.backend) for path in self.paths) / 1e6,
            "accuracy": self.accuracy,
            "threads": threads,
            "latency_ms": dict(zip(("p50", "p95", "p99"), quantiles.tolist(), strict=True)),
            "rows_per_second": {n: median(each) if each else None for n, each in rates.items()},
            "texts_timed": {str(n): n * sum(map(len, turns)) for n, turns in self.turns.items()},
            "peak_megabytes": self.peak_megabytes,
            "cold_start_seconds": self._process.cold_start_seconds,
        }

    def _best_rate(self) -> float:
        return max(median(self.rates(size)) for size in self.turns)


class Process:
    """Models that answer texts in another process, until they are closed by ``with``.

    Its attributes: ``cold_start_seconds``, from the start of the process to its first answer, and
    ``parameters``, the weights of the models; null of ONNX models, which do not tell them apart.

    Args:
        paths: Of the models; several answer a text one after the other.
        backend: What computes.
        threads: Of the processor, for the models and for the tokenizer.
        texts: What they are timed on.
        pairs: The second texts, or null.

    Raises:
        KDError: If a model does not load.
        RunError: If the process dies.
    """

    def __init__(
        self,
        paths: Sequence[str],
        backend: BackendName,
        threads: int,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
    ) -> None:
        self._name = f"{', '.join(paths)} ({backend})"
        environment = dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads))
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        begun = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(str(Path(__file__).parents[1]))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **environment, "TOKENIZERS_PARALLELISM": "true"},
        )
        try:
            self._ask("load", paths, backend, threads, texts[0], pairs and pairs[0])
            self.cold_start_seconds = time.perf_counter() - begun
            self.parameters: int | None = self._ask("read", texts, pairs)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        # what a dead process has not read of a request is still in the pipe's buffer
        with self._errors, suppress(BrokenPipeError), self._process:
            self._process.kill()

    def time(self, batch_size: int, first: int, seconds: float) -> list[float]:
        """Answer one batch after the other.

        Args:
            batch_size: Texts of a batch; after the last text comes the first again.
            first: Text to begin with.
            seconds: Time after which no second batch is begun; nor is one when all texts were read.

        Returns:
            The seconds of each batch.
        """
        return list(self._ask("time", batch_size, first, seconds))

    def logits(
        self, texts: Sequence[str], pairs: Sequence[str] | None, labels: Sequence[str]
    ) -> NDArray[np.float32] | None:
        """Return logits in the order of ``labels``; null where the model knows other classes."""
        found = self._ask("logits", texts, pairs, labels)
        return None if found is None else np.array(found, dtype=np.float32)

    def peak_megabytes(self) -> float:
        """Return the most memory that the process has held."""
        return float(self._ask("peak_megabytes"))

    def _ask(self, request: str, *arguments: Any) -> Any:
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None
        assert answers is not None
        try:
            _send(requests, [request, arguments])
            kind, answer = json.loads(answers.readline())
        except (OSError, ValueError) as error:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").split("\n")
            last = [line for line in said if line.strip()][-1:]
            raise RunError(
                f"The process of {self._name} died with code {self._process.wait()}: "
                f"{''.join(last) or 'perhaps it ran out of memory'}."
            ) from error
        if kind:
            raise getattr(errors, kind)(answer)
        return answer


def _send(pipe: IO[bytes], message: object) -> None:
    """Write a line of JSON, which can do nothing where it is read."""
    pipe.write(json.dumps(message).encode() + b"\n")
    pipe.flush()


def serve() -> None:
    """Do in this process what another asks by its pipes, until it closes them."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    served = _Served()
    for line in requests:
        request, arguments = json.loads(line)
        try:
            answer = "", getattr(served, request)(*arguments)
        except KDError as error:
            answer = type(error).__name__, str(error)
        _send(answers, answer)


class _Served:
    """The other end: each method is what :class:`Process` asks by its name."""

    models: list[Classifier]
    texts: Sequence[str]
    pairs: Sequence[str] | None

    def load(
        self,
        paths: Sequence[str],
        backend: BackendName,
        threads: int,
        text: str,
        pair: str | None,
    ) -> None:
        from kd.inference import Classifier

        self.models = [Classifier.from_pretrained(path, backend, threads) for path in paths]
        self.texts, self.pairs = [text], None if pair is None else [pair]
        self._answer([0])

    def read(self, texts: Sequence[str], pairs: Sequence[str] | None) -> int | None:
        from kd.backends import TorchModel

        self.texts, self.pairs = texts, pairs
        for place in range(WARM_TEXTS):
            self._answer([place % len(texts)])
        inside = [model.model for model in self.models]
        sizes = [one.classifier.info.parameters for one in inside if isinstance(one, TorchModel)]
        return sum(sizes) or None

    def time(self, batch_size: int, first: int, seconds: float) -> list[float]:
        count = len(self.texts)
        self._answer([first % count])  # wakes the threads
        took: list[float] = []
        end = time.perf_counter() + seconds
        while not took or (time.perf_counter() < end and len(took) < math.ceil(count / batch_size)):
            start = first + len(took) * batch_size
            places = [place % count for place in range(start, start + batch_size)]
            before = time.perf_counter()
            self._answer(places)
            took.append(time.perf_counter() - before)
        return took

    def logits(
        self, texts: Sequence[str], pairs: Sequence[str] | None, labels: Sequence[str]
    ) -> list[list[float]] | None:
        (model,) = self.models
        if sorted(model.labels) != sorted(labels):
            return None
        model.batch_size = 64
        order = [model.labels.index(label) for label in labels]
        found: list[list[float]] = model.logits(texts, pairs)[:, order].tolist()
        return found

    def peak_megabytes(self) -> float:
        status = Path("/proc/self/status")
        if status.is_file():  # there, what getrusage says is at least what the parent held
            return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0]) / 1e6
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes, on macOS

    def _answer(self, places: list[int]) -> None:
        texts = [self.texts[place] for place in places]
        pairs = None if self.pairs is None else [self.pairs[place] for place in places]
        for model in self.models:
            model.batch_size = len(places)
            model.predict(texts, pairs)


def _bytes(path: str, backend: BackendName) -> int:
    """Return the bytes of the files that a backend reads of a model."""
    folder = Path(path)
    if not folder.is_dir():  # of the hub, and just loaded
        from huggingface_hub import try_to_load_from_cache

        folder = Path(str(try_to_load_from_cache(path, "config.json"))).parent
    if backend == "torch":
        files = [*folder.glob("*.safetensors")] or [*folder.glob("*.bin")]
        others = (file for file in folder.glob("*") if file.suffix in _DESCRIPTIONS)
        files += [file for file in others if file.name != CHECKSUMS]
    else:
        files = [folder / name for name in (FACTS, *_TOKENIZER)]
        files += folder.glob(f"{FILES[backend]}*")  # weights may lie beside the graph
    return sum(file.stat().st_size for file in files)
