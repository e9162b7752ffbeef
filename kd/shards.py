"""Answers on disk: append-only shards, found by the key of the row that was asked about.

A shard is a safetensors file whose name is the digest of its content, so that damage shows, and
that appears whole or not at all. It is memory-mapped: what is not read costs no memory. This room
knows no teacher and no text, and chooses no path.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kd.errors import RunError
from kd.files import replacing, sweep

__all__ = [
    "ANSWERS",
    "Keys",
    "Shard",
    "add_facts",
    "elements",
    "locate",
    "read_facts",
    "read_shards",
    "write_shard",
]

ANSWERS = "answers-*.safetensors"
"""Pattern of the shards' file names."""

_FACTS = "facts.json"  # the file that tells of who answered
_OLD = 3600.0  # seconds after which what is not whole yet never will be
_ABOUT = "kd"  # the entry of a shard's metadata

Keys = NDArray[np.uint64]
"""128-bit digests of rows, `[rows, 2]`."""


@dataclass(frozen=True)
class Shard:
    """What was answered for some rows.

    Args:
        teacher: Key of who answered.
        precision: ``float32`` or ``bfloat16``: how it was computed.
        keys: Of the rows.
        lengths: Tokens of each row, `[rows]`.
        shapes: Shape of a row's answer by field, -1 standing for its number of tokens.
        fields: The answers by field, all rows one after the other in one dimension.
        path: The file; null in memory.
    """

    teacher: str
    precision: str
    keys: Keys
    lengths: NDArray[np.int64]
    shapes: Mapping[str, tuple[int, ...]]
    fields: Mapping[str, Tensor]
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def answer(self, field: str, row: int) -> Tensor:
        """Return the answer for a row, in its shape."""
        start, end = self._starts[field][row : row + 2]
        shape = [int(self.lengths[row]) if size < 0 else size for size in self.shapes[field]]
        return self.fields[field][start:end].view(shape)

    @cached_property
    def _starts(self) -> dict[str, NDArray[np.int64]]:
        return {
            field: np.concatenate([[0], np.cumsum(elements(shape, self.lengths))])
            for field, shape in self.shapes.items()
        }

    def is_whole(self) -> bool:
        """Tell whether keys, lengths and fields are of one size."""
        sizes = {field: len(values) for field, values in self.fields.items()}
        wanted = {f: int(elements(s, self.lengths).sum()) for f, s in self.shapes.items()}
        return self.keys.shape == (len(self.lengths), 2) and sizes == wanted


def elements(shape: Sequence[int], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many numbers an answer of this shape has for rows of these lengths, `[rows]`."""
    fixed = int(np.prod([size for size in shape if size >= 0]))
    return np.asarray(fixed * lengths ** sum(size < 0 for size in shape), dtype=np.int64)


def write_shard(folder: Path, shard: Shard) -> Path:
    """Append a shard to a folder.

    Args:
        folder: Made if it is not there.
        shard: What to write.

    Returns:
        The file.

    Raises:
        RunError: If it cannot be written; what was there stays.
    """
    tensors = {f"field.{name}": values.contiguous() for name, values in shard.fields.items()}
    tensors["keys"] = torch.from_numpy(shard.keys.view(np.int64))
    tensors["lengths"] = torch.from_numpy(shard.lengths)
    about = {"teacher": shard.teacher, "precision": shard.precision, "rows": len(shard)}
    # one entry: several have another order, and so another digest, each time
    content = save(tensors, {_ABOUT: json.dumps({**about, "shapes": dict(shard.shapes)})})
    path = folder / ANSWERS.replace("*", hashlib.sha256(content).hexdigest()[:32])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise RunError(
            f"The answers of the teacher cannot be written to {folder}: {error.strerror}; make "
            "room, choose another run.root, or set model.cache=false."
        ) from error
    return path


def read_shards(
    folder: Path, teacher: str, known: Sequence[Shard] = ()
) -> tuple[list[Shard], list[str]]:
    """Open the shards of a folder; a damaged or foreign one is removed and told of.

    Args:
        folder: Where they are; it need not exist.
        teacher: Key of the teacher whose they must be.
        known: Shards that are open already; their files are not read again.

    Returns:
        The shards in the order of their names, and a sentence for each one removed.
    """
    sweep(folder, _OLD)
    shards, notes = [], []
    opened = {shard.path: shard for shard in known}
    for path in sorted(folder.glob(ANSWERS)):
        shard, fault = (opened[path], "") if path in opened else _read(path, teacher)
        if shard is not None:
            shards.append(shard)
            continue
        notes.append(f"{path} {fault}: removed, and what it held is asked anew")
        with suppress(OSError):
            path.unlink()
    return shards, notes


def _read(path: Path, teacher: str) -> tuple[Shard | None, str]:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:32]
        if digest not in path.name:
            return None, "is damaged (its checksum is another)"
        with safe_open(path, framework="pt") as opened:
            about = json.loads(opened.metadata()[_ABOUT])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        shard = Shard(
            teacher=about["teacher"],
            precision=about["precision"],
            keys=tensors.pop("keys").numpy().view(np.uint64),
            lengths=tensors.pop("lengths").numpy(),
            shapes={name: tuple(shape) for name, shape in about["shapes"].items()},
            fields={name.removeprefix("field."): values for name, values in tensors.items()},
            path=path,
        )
    except FileNotFoundError:
        return None, "is gone"
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        return None, f"is damaged ({error})"
    if shard.teacher != teacher:
        return None, "is of another teacher"
    if not shard.is_whole():
        return None, "is damaged (its parts do not fit together)"
    os.utime(path)  # its last use, for who prunes
    return shard, ""


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what is known of who answered; what cannot be read is not known."""
    try:
        return dict(json.loads((folder / _FACTS).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def add_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Add to what is known of who answered; the folder must exist."""
    with replacing(folder / _FACTS) as file:
        file.write(json.dumps({**read_facts(folder), **facts}, indent=2).encode())


def locate(
    shards: Sequence[Shard], keys: Keys, fields: frozenset[str], precisions: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find rows in shards that hold all fields in an accepted precision.

    Args:
        shards: Where to look; an earlier precision is preferred, then a later shard.
        keys: Of the rows wanted.
        fields: That a shard must have.
        precisions: That are accepted, the best first.

    Returns:
        Number of the shard, -1 where there is none, and of the row in it; both `[rows]`.
    """
    found = np.full(len(keys), -1, dtype=np.int64)
    rows = np.zeros(len(keys), dtype=np.int64)
    if not len(keys):
        return found, rows
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    wanted = _sortable(keys[order])
    for precision in reversed(precisions):
        for number, shard in enumerate(shards):
            if shard.precision != precision or not fields <= shard.fields.keys():
                continue
            held = _sortable(shard.keys)
            places = np.searchsorted(wanted, held).clip(max=len(wanted) - 1)
            hits = np.flatnonzero(wanted[places] == held)
            found[order[places[hits]]] = number
            rows[order[places[hits]]] = hits
    return found, rows


def _sortable(keys: Keys) -> NDArray[np.void]:
    """Return keys as one column that numpy can sort, search and compare."""
    pairs = np.ascontiguousarray(keys).view([("high", np.uint64), ("low", np.uint64)])
    return pairs.reshape(-1)
