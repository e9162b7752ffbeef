"""Which rows: to validate on, to train on, to keep a label; chosen by a seed and by class.

Equal seeds choose alike, and a small choice lies inside a large one. This room reads no file and
knows no column.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from kd.errors import DataError
from kd.types import Row

__all__ = ["fingerprint", "hide_labels", "select_rows", "stratified_split"]


def stratified_split(
    rows: Sequence[Row], fraction: float, seed: int
) -> tuple[list[Row], list[Row]]:
    """Split off a validation set in which each class has its share.

    Unlabelled rows and one row at least of every class stay in the training set. Both sets keep
    the order of the rows.

    Args:
        rows: Labelled and perhaps unlabelled rows.
        fraction: Share of the labelled rows to validate on, between 0 and 1.
        seed: Decides which rows; equal seeds choose alike.

    Returns:
        Rows to train on, and rows to validate on.

    Raises:
        DataError: If no row would be left to validate on.
    """
    labelled = [i for i, row in enumerate(rows) if row.label is not None]
    order = [labelled[i] for i in _stratified_order([rows[i] for i in labelled], seed)]
    stays = set({label: i for i in order for label in _labels(rows[i])}.values())
    chosen = set([i for i in order if i not in stays][: max(0, round(fraction * len(order)))])
    if not chosen:
        raise DataError(
            f"A validation fraction of {fraction} of {len(order):,} labelled rows is empty: name "
            "validation data in data.source.validation, or take a larger fraction."
        )
    train = [row for i, row in enumerate(rows) if i not in chosen]
    return train, [rows[i] for i in sorted(chosen)]


def _stratified_order(rows: Sequence[Row], seed: int) -> list[int]:
    """Order positions at random so that every beginning holds each class in proportion.

    The j-th of n rows of a class stands at (j - 1/2) / n, whatever the number to be chosen: so a
    small choice lies inside a large one. A row of several labels counts with the rarest of them:
    sets of labels are often too rare to be shared out.
    """
    draw = random.Random(seed).random  # Python promises this sequence, and not that of `shuffle`
    shuffled = sorted(range(len(rows)), key=[draw() for _ in rows].__getitem__)
    counts = Counter(label for row in rows for label in _labels(row))
    groups = [min(_labels(row), key=counts.__getitem__, default=row.label) for row in rows]
    sizes = Counter(groups)
    seen: Counter[int | tuple[int, ...] | None] = Counter()
    place = [0.0] * len(rows)
    for i in shuffled:
        seen[groups[i]] += 1
        place[i] = (seen[groups[i]] - 0.5) / sizes[groups[i]]
    return sorted(shuffled, key=place.__getitem__)


def _labels(row: Row) -> tuple[int, ...]:
    if isinstance(row.label, tuple):
        return row.label
    return () if row.label is None else (row.label,)


def select_rows(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """Choose ``count`` rows, each class (and the unlabelled) in proportion, in their order.

    Under one seed the choice of 5,000 lies inside the choice of 20,000. An impossible count is a
    DataError.
    """
    if not 0 < count <= len(rows):
        raise DataError(
            f"data.train_rows is {count:,}, but there are {len(rows):,} rows: give 1 to as many."
        )
    return [rows[i] for i in sorted(_stratified_order(rows, seed)[:count])]


def hide_labels(rows: Sequence[Row], keep: int, seed: int) -> list[Row]:
    """Take the label from all but ``keep`` of the labelled rows, chosen as by :func:`select_rows`.

    More labels than there are is a DataError.
    """
    labelled = [i for i, row in enumerate(rows) if row.label is not None]
    if not 0 <= keep <= len(labelled):
        raise DataError(
            f"data.labelled_rows is {keep:,}, but {len(labelled):,} rows have a label: give 0 to "
            "as many."
        )
    order = _stratified_order([rows[i] for i in labelled], seed)
    hidden = {labelled[i] for i in order[keep:]}
    return [replace(row, label=None) if i in hidden else row for i, row in enumerate(rows)]


def fingerprint(rows: Sequence[Row], labels: Sequence[str]) -> str:
    """Return a digest of all that is learnt from rows, in their order."""
    state = hashlib.sha256(repr(tuple(labels)).encode())
    for row in rows:
        said = (row.annotation,) if row.annotation else ()
        state.update(repr((row.text, row.pair, row.label, row.weight, *said)).encode())
    return state.hexdigest()[:16]
