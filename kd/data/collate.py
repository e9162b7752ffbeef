"""Batches: which rows go together, in what order, on which rank.

Order is a function of (seed, epoch) alone, so a resumed run continues where it stopped and every
rank can work out its own share. Batches hold rows of like length, which saves padding.
This room knows encoded rows, no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kd.data.encode import Encoded
from kd.types import UNLABELLED, Batch, Inputs, Row

__all__ = ["EncodedRows", "EvaluationBatches", "TrainingBatches", "bucketed_order"]

# Batches sorted by length together: many save padding, few mix better. Where the label goes with
# the length, a pool that spans a small data set makes batches of one class.
_POOL = 50
_POOLS = 8  # in an epoch, at least


@dataclass(frozen=True)
class EncodedRows:
    """A split, encoded for every view.

    Args:
        rows: The canonical rows.
        views: Their encoding by view name; equal views are the same object.
    """

    rows: Sequence[Row]
    views: Mapping[str, Encoded]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row as the student reads it, `[rows]`."""
        return self.views["student"].lengths

    def batch(self, chosen: NDArray[np.int64]) -> Batch:
        """Return some rows as a batch, each view padded to its own longest row."""
        padded: dict[int, Inputs] = {}
        for encoded in self.views.values():
            if id(encoded) not in padded:
                padded[id(encoded)] = encoded.pad(chosen)
        rows = [self.rows[place] for place in chosen]
        return Batch(
            views={name: padded[id(encoded)] for name, encoded in self.views.items()},
            labels=torch.tensor([UNLABELLED if row.label is None else row.label for row in rows]),
            index=torch.tensor([row.index for row in rows]),
        )


def bucketed_order(
    lengths: NDArray[np.int64], batch_size: int, seed: int, epoch: int
) -> list[NDArray[np.int64]]:
    """Cut a shuffled epoch into batches of like length.

    Rows are shuffled; pools of at most 50 batches, and at most an eighth of the epoch, are sorted
    by length and cut; all batches are shuffled. Every row comes exactly once.

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
    size = batch_size * max(1, min(_POOL, len(order) // batch_size // _POOLS))
    for start in range(0, len(order), size):
        pool = order[start : start + size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches.extend(pool[cut : cut + batch_size] for cut in range(0, len(pool), batch_size))
    return [batches[place] for place in random.permutation(len(batches))]


class TrainingBatches:
    """Endless epochs of bucketed batches, one rank's share, resumable in the middle.

    Every iteration is an epoch. A batch is ``batch_size`` rows over all ranks; rank r of n takes
    every n-th row of it. A last batch with fewer rows than ranks is left out on all of them.

    Args:
        data: The encoded split.
        batch_size: Rows in a batch, over all ranks.
        seed: Of the order.
        rank: This process.
        ranks: Number of processes.
        position: Epoch and number of batches already consumed in it.
    """

    def __init__(
        self,
        data: EncodedRows,
        batch_size: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        position: tuple[int, int] = (0, 0),
    ) -> None:
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.ranks = ranks
        self.position = position
        self._next = position

    def __len__(self) -> int:
        full, rest = divmod(len(self.data), self.batch_size)
        return full + (rest >= self.ranks)

    def __iter__(self) -> Iterator[Batch]:
        epoch, consumed = self._next
        if consumed >= len(self):
            epoch, consumed = epoch + 1, 0
        self.position, self._next = (epoch, consumed), (epoch + 1, 0)
        batches = bucketed_order(self.data.lengths, self.batch_size, self.seed, epoch)
        whole = [batch for batch in batches if len(batch) >= self.ranks]
        for batch in whole[consumed:]:
            self.position = (epoch, self.position[1] + 1)
            yield self.data.batch(batch[self.rank :: self.ranks])


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
