"""Batches: which rows go together, in what order, on which rank.

Order is a function of (seed, epoch) alone, so a resumed run continues where it stopped and every
rank can work out its own share. Batches hold rows of like length, which saves padding.
This room knows encoded rows, no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd.data.encode import Encoded
from kd.types import UNLABELLED, Annotation, Batch, Inputs, Row

__all__ = [
    "EncodedRows",
    "EvaluationBatches",
    "TrainingBatches",
    "bucketed_order",
    "budgeted_order",
    "label_tensor",
]

# Batches sorted by length together: many save padding, few mix better. Where the label goes with
# the length, a pool that spans a small data set makes batches of one class.
_POOL = 50
_FEW = 32  # batches of a small epoch


@dataclass(frozen=True)
class EncodedRows:
    """A split, encoded for every view.

    Args:
        rows: The canonical rows.
        views: Their encoding by view name; equal views are the same object.
        classes: Number of classes, C, where a row may have several of them; null where not.
    """

    rows: Sequence[Row]
    views: Mapping[str, Encoded]
    classes: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row as the student reads it, `[rows]`."""
        return self.views["student"].lengths

    @cached_property
    def content(self) -> NDArray[np.int64]:
        """`Row.content` of each row, `[rows]`."""
        return np.fromiter((row.content for row in self.rows), np.int64, len(self.rows))

    def with_views(self, views: Mapping[str, Encoded]) -> EncodedRows:
        """Return the same rows under other views; what is known of the rows is not found anew."""
        other = replace(self, views=views)
        vars(other).update(content=self.content, _columns=self._columns)
        return other

    def select(self, rows: Sequence[Row], keep: NDArray[np.bool_]) -> EncodedRows:
        """Return the rows that are kept, or others with their texts, in their order."""
        distinct = {id(view): view.select(keep) for view in self.views.values()}
        views = {name: distinct[id(view)] for name, view in self.views.items()}
        return EncodedRows(rows, views, self.classes)

    def learn(self, embeddings: Tensor) -> None:
        """Take the embeddings of the rationales, `[rows, D]`."""
        device = next(iter(self.views.values())).device
        self._privileged["embedding"] = embeddings.to(device)

    def batch(self, chosen: NDArray[np.int64], hidden: NDArray[np.bool_] | None = None) -> Batch:
        """Return some rows as a batch, each view padded to its own longest row.

        Args:
            chosen: Positions of the rows.
            hidden: Of which of them the student is not shown the rationale, `[B]`.

        Returns:
            The batch.
        """
        padded: dict[tuple[int, bool], Inputs] = {}
        views: dict[str, Inputs] = {}
        for name, encoded in self.views.items():
            hides = hidden is not None and not name.startswith("teacher")
            key = id(encoded), hides and encoded.texts is not None
            if key not in padded:
                padded[key] = encoded.pad(chosen, hidden if hides else None)
            views[name] = padded[key]
        device = next(iter(self.views.values())).device
        places = torch.from_numpy(chosen).to(device, non_blocking=True)
        columns = {name: column[places] for name, column in self._columns.items()}
        privileged = {name: column[places] for name, column in self._privileged.items()}
        if "evidence" in views:
            privileged["evidence"] = views.pop("evidence")["input_ids"]
        return Batch(
            views=views,
            labels=columns["labels"],
            index=columns["index"],
            content=columns["content"],
            family=columns.get("family"),
            weights=columns.get("weights"),
            tokens=int(self.lengths[chosen].sum()),
            privileged=privileged,
        )

    @cached_property
    def _columns(self) -> dict[str, Tensor]:
        """What a batch says of its rows beside their tokens, for the whole split."""
        columns = {
            "labels": label_tensor(self.rows, self.classes),
            "index": torch.tensor([row.index for row in self.rows]),
            "content": torch.from_numpy(self.content),
        }
        if any(row.origin is not None for row in self.rows):
            content = {
                row.index: n for row, n in zip(self.rows, self.content.tolist(), strict=True)
            }
            origins = [row.index if row.origin is None else row.origin for row in self.rows]
            columns["family"] = torch.tensor([content[origin] for origin in origins])
        if any(row.weight != 1.0 for row in self.rows):
            columns["weights"] = torch.tensor([row.weight for row in self.rows])
        device = next(iter(self.views.values())).device
        return {name: column.to(device) for name, column in columns.items()}

    @cached_property
    def _privileged(self) -> dict[str, Tensor]:
        """What was annotated, for the whole split; empty where nothing was."""
        reads = {name.split(".")[0] for name in self.views} - {"student", "teacher"}
        if not reads and not any(row.annotation for row in self.rows):
            return {}
        said = [row.annotation or Annotation() for row in self.rows]
        classes = [UNLABELLED if one.label is None else one.label for one in said]
        sure = [math.nan if one.confidence is None else one.confidence for one in said]
        columns = {
            "weight": torch.tensor([float(one.rationale is not None) for one in said]),
            "told": torch.tensor([one.is_told for one in said]),
            "label": torch.tensor(classes),
            "confidence": torch.tensor(sure),
        }
        device = next(iter(self.views.values())).device
        return {name: column.to(device) for name, column in columns.items()}


def label_tensor(rows: Sequence[Row], classes: int | None = None) -> Tensor:
    """Return the labels of rows; :data:`~kd.types.UNLABELLED` where a row has none.

    Args:
        rows: Canonical rows.
        classes: Number of classes, C, where a row may have several of them; null where not.

    Returns:
        Class positions `[rows]`, or 1 for each class that a row has and else 0, `[rows, C]`.
    """
    if classes is None:
        return torch.tensor([UNLABELLED if row.label is None else row.label for row in rows])
    labels = np.zeros((len(rows), classes), dtype=np.int64)
    for place, row in enumerate(rows):
        if isinstance(row.label, tuple):
            labels[place, list(row.label)] = 1
        else:
            labels[place] = UNLABELLED
    return torch.from_numpy(labels)


def bucketed_order(
    lengths: NDArray[np.int64], batch_size: int, seed: int, epoch: int
) -> list[NDArray[np.int64]]:
    """Cut a shuffled epoch into batches of like length.

    Rows are shuffled; pools of at most 50 batches, and at most half of the epoch (an eighth of
    one of fewer than 32 batches), are sorted by length and cut; all batches are shuffled. Every
    row comes exactly once.

    Args:
        lengths: Tokens of each row, `[rows]`.
        batch_size: Rows in a batch; the last one cut may have fewer.
        seed: Of the run.
        epoch: Number of the epoch; another epoch mixes other rows.

    Returns:
        Positions of the rows of each batch.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    batches: list[NDArray[np.int64]] = []
    count = len(order) // batch_size
    size = batch_size * max(1, min(_POOL, count // (8 if count < _FEW else 2)))
    for start in range(0, len(order), size):
        pool = order[start : start + size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches.extend(pool[cut : cut + batch_size] for cut in range(0, len(pool), batch_size))
    return [batches[place] for place in random.permutation(len(batches))]


def budgeted_order(
    lengths: NDArray[np.int64], tokens: int, seed: int, epoch: int
) -> list[NDArray[np.int64]]:
    """Cut a shuffled epoch into batches of as many rows as fit a number of tokens.

    Rows are sorted by length, those of one length shuffled, and cut: every epoch has the same
    number of batches, of the same sizes. Every row comes exactly once.

    Args:
        lengths: Tokens of each row, `[rows]`.
        tokens: Most tokens of a batch, padding included; a longer row has a batch of its own.
        seed: Of the run.
        epoch: Number of the epoch.

    Returns:
        Positions of the rows of each batch.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    order = order[np.argsort(lengths[order], kind="stable")]
    cuts, first = [], 0
    for place, length in enumerate(lengths[order].tolist()):
        if (place + 1 - first) * length > tokens and place > first:
            cuts.append(place)
            first = place
    batches = np.split(order, cuts) if len(order) else []
    return [batches[place] for place in random.permutation(len(batches))]


class TrainingBatches:
    """Endless epochs of batches of like length, one rank's share, resumable in the middle.

    Every iteration is an epoch. A batch is ``batch_size`` rows over all ranks; rank r of n takes
    every n-th row of it. Where none is left for it, it repeats the first rank's, at weight 0.

    Args:
        data: The encoded split.
        batch_size: Rows in a batch, over all ranks.
        seed: Of the order.
        rank: This process.
        ranks: Number of processes.
        position: Epoch and number of batches already consumed in it.
        tokens: Most tokens of a rank's batch, instead of ``batch_size`` rows.
        dropout: Share of the rows whose rationale the student is not shown.
    """

    def __init__(
        self,
        data: EncodedRows,
        batch_size: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        position: tuple[int, int] = (0, 0),
        tokens: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.ranks = ranks
        self.position = position
        self.tokens = tokens
        self.dropout = dropout
        self._next = position
        self._length = len(self._batches(0))  # the same in every epoch

    def __len__(self) -> int:
        return self._length

    def _batches(self, epoch: int) -> list[NDArray[np.int64]]:
        lengths = self.data.lengths
        if self.tokens is None:
            return bucketed_order(lengths, self.batch_size, self.seed, epoch)
        return budgeted_order(lengths, self.tokens * self.ranks, self.seed, epoch)

    def __iter__(self) -> Iterator[Batch]:
        epoch, consumed = self._next
        if consumed >= len(self):
            epoch, consumed = epoch + 1, 0
        self.position, self._next = (epoch, consumed), (epoch + 1, 0)
        for number, batch in enumerate(self._batches(epoch)[consumed:], start=consumed):
            self.position = (epoch, number + 1)
            is_idle = self.rank >= len(batch)
            mine = slice(0 if is_idle else self.rank, None, self.ranks)
            hidden = None
            if self.dropout:
                random = np.random.default_rng([self.seed, epoch, number])
                hidden = (random.random(len(batch)) < self.dropout)[mine]
            rows = self.data.batch(batch[mine], hidden)
            yield replace(rows, weights=rows.index * 0.0) if is_idle else rows


class EvaluationBatches:
    """Every row once, over all ranks, none repeated: metrics are exact on any number of ranks.

    Rows are sorted by length, so that padding is rare; ``Batch.index`` tells where they belong.

    Args:
        data: The encoded split.
        batch_size: Rows in a batch of this rank.
        rank: This process.
        ranks: Number of processes.
    """

    def __init__(self, data: EncodedRows, batch_size: int, rank: int = 0, ranks: int = 1) -> None:
        self.data = data
        self.batch_size = batch_size
        self._order = np.argsort(data.lengths, kind="stable")[rank::ranks]

    def __len__(self) -> int:
        return -(-len(self._order) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self._order), self.batch_size):
            yield self.data.batch(self._order[start : start + self.batch_size])
