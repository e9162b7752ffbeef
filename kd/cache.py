"""What a teacher said about a text, said once: kept on disk and found again by content.

A :class:`CachedTeacher` asks the teacher inside of it about every distinct text once, before
training, and answers from then on itself, whatever epoch, student or run asks. It knows no
objective; where its files lie it is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from kd.asking import Texts, ask, layer_fields, shape_of, teacher_views
from kd.classifiers import TextClassifier
from kd.console import print_line, progress_bar
from kd.data.collate import EncodedRows
from kd.data.encode import View
from kd.errors import ConfigError, DataError, RunError
from kd.layers import class_probabilities
from kd.shards import Shard, add_facts, elements, locate, read_facts, read_shards, write_shard
from kd.teachers import Reference, Teacher, check_answers
from kd.types import Batch, ModelInfo, Outputs

__all__ = ["CachedTeacher", "Filling"]

_TOKENS = {"cpu": 4096}  # of a batch: enough to fill the machine, few enough for its caches
_TOKENS_ELSEWHERE = 32768
_SAMPLE = 8  # texts answered in both precisions, to state and to check the difference
_TOLERANCE = 0.02  # of a probability: beyond it bfloat16 is not safe
_WORTH_TELLING = 10**8  # bytes
_SMALL = 10_000_000  # weights of a teacher that is fast enough to be exact


@dataclass(frozen=True)
class Filling:
    """What a cache did before training.

    Args:
        texts: Distinct texts that will be asked about.
        asked: Those that the teacher itself had to answer, on all ranks.
        seconds: That looking and asking took.
        size: Bytes of all answers that are kept of this teacher.
        precision: In which the teacher answered; null if it did not.
        difference: Largest difference of a probability between bfloat16 and float32 in a sample.
        folder: Where the answers are kept; null is in memory.
    """

    texts: int
    asked: int
    seconds: float
    size: int
    precision: str | None
    difference: float | None
    folder: Path | None

    def __str__(self) -> str:
        told = f"cache = {self.texts:,} texts, {self.asked:,} asked of the teacher"
        if self.asked:
            told += f" in {self.seconds:.1f} s, {self.precision}"
        if self.difference is not None:
            told += f" (a probability is off float32's by {self.difference:.4f} at most)"
        return f"{told}; {self.size / 1e6:,.1f} MB in {self.folder or 'memory'}"


class CachedTeacher(Teacher):
    """Ask a teacher once about each text, and keep the answers for every epoch, student and run.

    Answers are keyed by the teacher's weights, its tokenizer and the encoded text. Texts of like
    length are asked together, the longest first; the ranks share the work; a filling that was cut
    off goes on where it stopped. In float32, answers from disk, from memory, after a resume and on
    any number of ranks are equal to the bit.
    Near: a :class:`kd.teachers.ModelTeacher` is put into one by default (``model.cache``).

    Args:
        teacher: Who is asked.
        precision: ``auto`` multiplies in bfloat16 where the teacher is large, the hardware does
            that fast and a sample shows it to be safe (no probability is off by more than 0.02),
            else in float32.
        limit_gb: Most that the answers may take, in 10^9 bytes; known before the first is asked.
        over_limit: Whether more than that is an error, or the teacher is asked in every step.

    Raises:
        ConfigError: If ``limit_gb`` is not positive.
    """

    def __init__(
        self,
        teacher: Teacher,
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
        limit_gb: float = 20.0,
        over_limit: Literal["error", "ask"] = "error",
    ) -> None:
        if not limit_gb > 0:
            raise ConfigError(f"CachedTeacher.limit_gb is {limit_gb}: it must be positive.")
        check_answers("CachedTeacher", teacher)
        self.teacher = teacher
        self.provides = teacher.provides
        self.precision = precision
        self.limit_gb = limit_gb
        self.over_limit = over_limit
        self.folder: Path | None = None
        self.filling: Filling | None = None
        self._info: ModelInfo | None = None  # found once: batches ask for it too
        self._held: frozenset[str] = frozenset()
        self._shards: list[Shard] = []
        self._number = self._row = np.zeros(0, dtype=np.int64)  # where a text's answers are
        self._content = self._slots = self._logits = torch.zeros(0)

    def references(self) -> dict[str, Reference | None]:
        """Return the model paths of the teacher, each with what would train it."""
        return self.teacher.references()

    def follow(self, paths: Mapping[str, str]) -> None:
        """Read models from other paths."""
        self.teacher.follow(paths)

    def keep_in(self, folder: Path | None) -> None:
        """Keep answers in this folder, in one of its own for each teacher; null is in memory."""
        self.folder = folder

    def load(self, labels: Sequence[str], multi_label: bool = False) -> None:
        """Load the teacher; see :meth:`kd.teachers.Teacher.load`."""
        self.teacher.load(labels, multi_label)
        self._info = self.teacher.info

    def views(self, max_length: int) -> dict[str, View]:
        """Return what the teacher reads."""
        return self.teacher.views(max_length)

    @property
    def info(self) -> ModelInfo:
        """Sizes and class names of the teacher."""
        return self._info or self.teacher.info

    @property
    def models(self) -> tuple[TextClassifier, ...]:
        """Models of the teacher."""
        return self.teacher.models

    @property
    def key(self) -> str:
        """The key of the teacher."""
        return self.teacher.key

    def wrapped(self, wrap: Callable[[Teacher], Teacher]) -> Teacher:
        """Return itself: it is cached already."""
        return self

    def prepare(
        self, splits: Sequence[EncodedRows], needs: frozenset[str], device: torch.device
    ) -> None:
        """Fill the cache: afterwards no batch of these rows asks the teacher.

        Args:
            splits: All rows that will be asked about.
            needs: Fields, or single layers of them.
            device: Where the teacher works and the answers are wanted.

        Raises:
            ConfigError: If the answers would take more than ``limit_gb``, or more than logits are
                wanted of a teacher that reads in several ways.
        """
        self.teacher.prepare(splits, needs, device)
        texts = Texts.of(splits)
        fields = layer_fields(needs | {"logits"}, self.info)
        if len(teacher_views(list(splits[0].views))) > 1 and fields != {"logits"}:
            raise ConfigError(
                "CachedTeacher keeps only the logits of a teacher of several tokenizers: put each "
                "member into a CachedTeacher instead."
            )
        size = self._size(texts.lengths, fields, device)
        if size > self.limit_gb * 1e9:
            told = (
                f"the teacher's answers to {len(texts):,} texts would take {size / 1e9:,.3g} GB, "
                f"more than limit_gb={self.limit_gb:g}"
            )
            if self.over_limit == "error":
                raise ConfigError(
                    f"CachedTeacher: {told}: raise it, name fewer layers, or use the teacher alone."
                )
            _say(f"cache = logits only: {told}, so the teacher is asked in every step")
            fields = frozenset({"logits"})
        elif size > _WORTH_TELLING:
            _say(f"cache = about {size / 1e9:,.1f} GB for {len(texts):,} texts")
        self._fill(texts, fields, device)
        self._held = fields

    def recall(self, fact: str, find: Callable[[], float]) -> float:
        """Return a figure about the teacher, found once and kept beside its answers."""
        if self.filling is None or self.filling.folder is None:
            return self.teacher.recall(fact, find)
        known = read_facts(self.filling.folder).get(fact)
        if isinstance(known, float):
            return known
        found = self.teacher.recall(fact, find)
        add_facts(self.filling.folder, {fact: found})
        return found

    def _size(
        self, lengths: NDArray[np.int64], fields: frozenset[str], device: torch.device
    ) -> int:
        """Estimate the bytes of the answers."""
        each = 2 if self._wanted(device) == "bfloat16" else 4
        return sum(
            (4 if field == "logits" else each)
            * int(elements(shape_of(field, self.info), lengths).sum())
            for field in fields
        )

    def _wanted(self, device: torch.device) -> str:
        if self.precision != "auto":
            return self.precision
        is_small = self.info.parameters < _SMALL
        return "float32" if is_small or not _multiplies_bfloat16(device) else "bfloat16"

    def _fill(self, texts: Texts, fields: frozenset[str], device: torch.device) -> None:
        started = time.perf_counter()
        key, wanted = self.key, self._wanted(device)
        folder = self.folder / key if self.folder else None
        accepted = ["float32", "bfloat16"] if wanted == "bfloat16" else ["float32"]
        shards, notes = (self._shards, []) if folder is None else read_shards(folder, key)
        for note in notes:
            _say(f"note: {note}")
        found, _ = locate(shards, texts.keys, fields, accepted)
        asked = int((found < 0).sum())
        precision: str | None = None
        difference: float | None = None
        # memory is not shared: without a folder every rank asks for itself
        rank, ranks = (0, 1) if folder is None else _ranks()
        if asked:
            batches = texts.batches(_TOKENS.get(device.type, _TOKENS_ELSEWHERE))
            precision, difference = self._safe(texts, batches, wanted)
            # a batch belongs to a rank whatever is known of it: ranks may look at other moments
            mine = [batch[found[batch] < 0] for batch in batches[rank::ranks]]
            mine = [batch for batch in mine if len(batch)]
            new: list[Shard] = []  # in memory only: what is on disk is mapped below
            write = new.append if folder is None else partial(write_shard, folder)
            lowered = self.teacher.lowered() if precision == "bfloat16" else nullcontext()
            bar = progress_bar("asking the teacher", sum(map(len, mine)), _ranks()[0] == 0)
            with torch.inference_mode(), lowered, bar as advance:
                ask(self.teacher, key, texts, mine, fields, precision, write, advance)
            shards = [*shards, *new]
        if ranks > 1:
            distributed.barrier()
        if folder is not None and (asked or ranks > 1):
            shards, _ = read_shards(folder, key, shards)
        self._number, self._row = locate(shards, texts.keys, fields, accepted)
        if (self._number < 0).any():
            raise RunError(
                f"{int((self._number < 0).sum())} answers of the teacher are not in {folder}: all "
                "ranks must see this folder; choose a run.root that they share."
            )
        self._shards = shards
        self._index(texts, device)
        size = sum(values.nbytes for shard in shards for values in shard.fields.values())
        seconds = time.perf_counter() - started
        self.filling = Filling(len(texts), asked, seconds, size, precision, difference, folder)
        _say(str(self.filling))
        if folder is not None and asked and _ranks()[0] == 0:
            add_facts(folder, {"teacher": ", ".join(self.references())})

    def _safe(
        self, texts: Texts, batches: Sequence[NDArray[np.int64]], wanted: str
    ) -> tuple[str, float | None]:
        """Answer a few texts in both precisions; a bfloat16 that goes astray is not used."""
        if wanted == "float32":
            return wanted, None
        batch = texts.batch(batches[len(batches) // 2][:_SAMPLE])  # of middling length
        needs, several = frozenset({"logits"}), self.info.multi_label
        with torch.inference_mode():
            exact = class_probabilities(self.teacher(batch, needs).logits, several)
            with self.teacher.lowered():
                quick = class_probabilities(self.teacher(batch, needs).logits, several)
        difference = float((quick - exact).abs().max())
        if difference <= _TOLERANCE or self.precision == "bfloat16":
            return wanted, difference
        _say(f"note: bfloat16 moves a probability by {difference:.2f}, so float32 is used")
        return "float32", None

    def _index(self, texts: Texts, device: torch.device) -> None:
        """Lay out on the device what leads from a batch's content to its logits."""
        logits = torch.empty(len(texts), len(self.info.labels))
        for number, shard in enumerate(self._shards):
            mine = np.flatnonzero(self._number == number)
            if len(mine):
                stored = shard.fields["logits"].view(len(shard), -1)
                logits[mine] = stored[self._row[mine]]
        self._content = torch.from_numpy(texts.content).to(device)
        self._slots = torch.from_numpy(texts.slots).to(device)
        self._logits = logits.to(device)

    def __call__(self, batch: Batch, needs: frozenset[str]) -> Outputs:
        """Answer a batch from the cache, or ask the teacher for fields that are not kept.

        Args:
            batch: Rows with their content.
            needs: Fields, or single layers of them.

        Returns:
            Logits and what was asked for; layers that were not asked for are null.

        Raises:
            DataError: If a row was not prepared. On a GPU its logits are NaN instead, since
                looking would hold up the device.
        """
        fields = layer_fields(needs | {"logits"}, self.info)
        if not fields <= self._held:
            return self.teacher(batch, needs)
        if batch.content is None:
            raise DataError("A batch without content cannot be found in a teacher's cache.")
        places = torch.searchsorted(self._content, batch.content)
        places = places.clamp_(max=len(self._content) - 1)
        known = self._content[places] == batch.content
        if known.device.type == "cpu" and not bool(known.all()):
            raise DataError(
                "A batch holds texts that the teacher's cache was not filled with: prepare() "
                "takes every split that will be asked about."
            )
        slots = self._slots[places]
        logits = self._logits[slots].masked_fill(~known[:, None], torch.nan)
        view = batch.views[teacher_views(list(batch.views))[0]]
        outputs = Outputs(logits=logits, mask=view["attention_mask"])
        layers = fields - {"logits"}
        if not layers:
            return outputs
        return replace(outputs, **self._gather(slots.cpu().numpy(), layers, outputs))

    def _gather(
        self, slots: NDArray[np.int64], fields: frozenset[str], outputs: Outputs
    ) -> dict[str, Any]:
        """Read the answers to some texts out of the shards, padded with zeros."""
        assert outputs.mask is not None
        found: dict[str, list[Tensor | None]] = {}
        for field in fields:
            name, layer = field.split(".")
            rows = [self._shards[self._number[s]].answer(field, self._row[s]) for s in slots]
            longest = outputs.mask.shape[1]
            shape = [longest if n < 0 else n for n in shape_of(field, self.info)]
            padded = torch.zeros(len(rows), *shape)
            for place, row in enumerate(rows):
                view = padded[place]
                for axis, size in enumerate(row.shape):
                    view = view.narrow(axis, 0, size)
                view.copy_(row)
            count = self.info.layers + (name == "hidden_states")
            layers = found.setdefault(name, [None] * count)
            layers[int(layer)] = padded.to(outputs.logits.device, non_blocking=True)
        return {name: tuple(layers) for name, layers in found.items()}


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Tell whether the hardware multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch keeps them private
    return any(getattr(torch.cpu, name, bool)() for name in checks)


def _ranks() -> tuple[int, int]:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _say(text: str) -> None:
    if _ranks()[0] == 0:
        print_line(text)
