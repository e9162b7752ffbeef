"""Asking a teacher about many texts: each distinct one once, those of like length together.

Which texts are asked together follows from the texts alone, so that a filling that was cut off,
or is shared by several ranks, ends in the same answers to the bit. This room knows no student.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd.data.collate import EncodedRows
from kd.shards import Keys, Shard
from kd.teachers import Teacher
from kd.types import Batch, ModelInfo

__all__ = ["Texts", "ask", "layer_fields", "shape_of", "teacher_views"]

_FLUSH_SECONDS = 2.0  # at first; later a tenth of the time that the asking has taken
_FLUSH_BYTES = 256 * 2**20


def teacher_views(names: Sequence[str]) -> list[str]:
    """Return those names of views that belong to a teacher: ``teacher`` or ``teacher.…``."""
    return sorted(name for name in names if name.split(".")[0] == "teacher")


def layer_fields(needs: frozenset[str], info: ModelInfo) -> frozenset[str]:
    """Name every layer of the fields that are needed whole: ``hidden_states.0`` and so on."""
    named = set()
    for need in needs:
        count = info.layers + (need == "hidden_states")
        is_whole = need != "logits" and "." not in need
        named |= {f"{need}.{layer}" for layer in range(count)} if is_whole else {need}
    return frozenset(named)


def shape_of(field: str, info: ModelInfo) -> tuple[int, ...]:
    """Return the shape of one row's answer, -1 standing for its number of tokens."""
    name = field.split(".")[0]
    if name == "logits":
        return (len(info.labels),)
    return (info.heads, -1, -1) if name == "attentions" else (-1, info.width)


@dataclass(frozen=True)
class Texts:
    """The distinct texts of some splits, as a teacher reads them.

    Args:
        splits: Where they come from.
        keys: Digest of a text's token ids in all views of the teacher, `[texts, 2]`.
        places: Number of the split and of the row in it where a text is first found, `[texts, 2]`.
        lengths: Tokens of each text, `[texts]`.
        content: `Row.content` of every distinct content, rising, `[contents]`.
        slots: Number of the text that has this content, `[contents]`.
    """

    splits: Sequence[EncodedRows]
    keys: Keys
    places: NDArray[np.int64]
    lengths: NDArray[np.int64]
    content: NDArray[np.int64]
    slots: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def of(cls, splits: Sequence[EncodedRows]) -> Texts:
        """Find the distinct texts of splits."""
        names = teacher_views(list(splits[0].views))
        every = np.concatenate([np.zeros((0, 2), np.uint64), *(_keys(s, names) for s in splits)])
        places = np.concatenate(
            [np.stack([np.full(len(s), n), np.arange(len(s))], 1) for n, s in enumerate(splits)]
        )
        lengths = np.concatenate([split.views[names[0]].lengths for split in splits])
        # two rows of one content have one key, but not the other way round: case may not matter
        content, rows = np.unique(
            np.concatenate([split.content for split in splits]), return_index=True
        )
        keys, first, slots = np.unique(every[rows], axis=0, return_index=True, return_inverse=True)
        chosen = rows[first]
        return cls(splits, keys, places[chosen], lengths[chosen], content, slots.reshape(-1))

    def batches(self, tokens: int) -> list[NDArray[np.int64]]:
        """Return all texts in batches of one split and of like length, the longest first.

        Args:
            tokens: Most tokens of a batch, padding included; a longer text is asked alone.

        Returns:
            Numbers of the texts of each batch.
        """
        splits = self.places[:, 0]
        order = np.lexsort((self.keys[:, 1], self.keys[:, 0], -self.lengths, splits))
        found, start = [], 0
        while start < len(order):
            first = order[start]
            size = max(1, tokens // int(self.lengths[first]))
            batch = order[start : start + size]
            batch = batch[splits[batch] == splits[first]]
            found.append(batch)
            start += len(batch)
        return found

    def batch(self, texts: NDArray[np.int64]) -> Batch:
        """Return texts of one split as a batch."""
        split = self.splits[int(self.places[texts[0], 0])]
        return split.batch(self.places[texts, 1])


def _keys(split: EncodedRows, names: Sequence[str]) -> Keys:
    """Return the digest of each row's token ids in all views, `[rows, 2]`."""
    columns = [
        (view.ids, view.types, view.starts.tolist())
        for view in (split.views[name] for name in names)
    ]
    digests = bytearray()
    for row in range(len(split)):
        state = hashlib.blake2b(digest_size=16)
        for ids, types, starts in columns:
            start, end = starts[row : row + 2]
            if len(columns) > 1:  # else the end of one view passes for the beginning of the next
                state.update((end - start).to_bytes(8, "little"))
            state.update(ids[start:end].data)
            if types is not None:
                state.update(types[start:end].data)
        digests += state.digest()
    return np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)


def _without_padding(states: Tensor, lengths: NDArray[np.int64], shape: tuple[int, ...]) -> Tensor:
    """Return the answers to a batch's rows one after the other, in one dimension."""
    rows = []
    for row, length in zip(states, lengths.tolist(), strict=True):
        for axis, size in enumerate(shape):
            row = row.narrow(axis, 0, length) if size < 0 else row
        rows.append(row.reshape(-1))
    return torch.cat(rows)


@dataclass
class _Answers:
    """Answers that wait for being written."""

    teacher: str
    precision: str
    info: ModelInfo
    fields: frozenset[str]

    def __post_init__(self) -> None:
        self._texts: list[tuple[Keys, NDArray[np.int64]]] = []
        self._parts: dict[str, list[Tensor]] = {field: [] for field in self.fields}
        self.size = 0

    def add(self, keys: Keys, lengths: NDArray[np.int64], answers: dict[str, Tensor]) -> None:
        self._texts.append((keys, lengths))
        for field, values in answers.items():
            self._parts[field].append(values)
            self.size += values.nbytes

    def as_shard(self) -> Shard:
        return Shard(
            teacher=self.teacher,
            precision=self.precision,
            keys=np.concatenate([keys for keys, _ in self._texts]),
            lengths=np.concatenate([lengths for _, lengths in self._texts]),
            shapes={field: shape_of(field, self.info) for field in self.fields},
            fields={field: torch.cat(parts) for field, parts in self._parts.items()},
        )


def ask(
    teacher: Teacher,
    key: str,
    texts: Texts,
    batches: Sequence[NDArray[np.int64]],
    fields: frozenset[str],
    precision: str,
    write: Callable[[Shard], object],
    advance: Callable[[int], None],
) -> None:
    """Ask a teacher about batches of texts and write what it says, every few seconds.

    Args:
        teacher: Who is asked.
        key: Of the teacher.
        texts: All texts.
        batches: Numbers of those to ask about.
        fields: Which answers to keep, single layers named.
        precision: ``float32`` or ``bfloat16``.
        write: Takes the answers.
        advance: Told how many texts are done.
    """
    started = flushed = time.perf_counter()
    info = teacher.info
    waiting = _Answers(key, precision, info, fields)
    store = torch.bfloat16 if precision == "bfloat16" else torch.float32
    for number, chosen in enumerate(batches):
        outputs = teacher(texts.batch(chosen), fields)
        answers = {"logits": outputs.logits.float().cpu().reshape(-1)}
        for field in fields - {"logits"}:
            name, layer = field.split(".")
            states: Tensor = getattr(outputs, name)[int(layer)].to(store).cpu()
            answers[field] = _without_padding(states, texts.lengths[chosen], shape_of(field, info))
        waiting.add(texts.keys[chosen], texts.lengths[chosen], answers)
        advance(len(chosen))
        now = time.perf_counter()
        is_due = now - flushed > max(_FLUSH_SECONDS, (now - started) / 10)
        if is_due or waiting.size > _FLUSH_BYTES or number == len(batches) - 1:
            write(waiting.as_shard())
            waiting, flushed = _Answers(key, precision, info, fields), now
