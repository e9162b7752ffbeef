"""From raw tables to canonical rows: texts that are texts, labels that are positions.

Whatever a file spells (names, numbers, holes, stray bytes) ends here, either as a valid
:class:`~kd.types.Row` or in a message that names the file, the line and the key to change. This
room reads no file, and knows neither tokens nor models.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from kd.errors import ConfigError, DataError
from kd.texts import repaired
from kd.types import Row

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "Fields",
    "RowReport",
    "Table",
    "canonical_rows",
    "number",
    "report_rows",
    "resolve_labels",
    "spelling",
]

_WHOLE = re.compile(r"[+-]?\d{1,18}(\.0+)?$")
_UNKNOWN = -1
_MOST_CLASSES = 1000  # more different values are texts or numbers, not classes


@dataclass(frozen=True)
class Table:
    """Raw rows, each cell as its source spells it.

    Args:
        frame: One column of plain Python values per field; CSV files give strings only.
        origin: File, or data set and split, for messages.
        numbers: Number of each row in its origin, counted from 1; null counts the rows.
        unit: What the numbers count: line in a text file, row elsewhere.
        label_names: Class names of the columns whose whole numbers stand for classes.
        parts: The tables that stand under each other here, in order; empty if this is from one.
    """

    frame: DataFrame
    origin: str
    numbers: Sequence[int] | None = None
    unit: str = "row"
    label_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    parts: tuple[Table, ...] = ()

    def place(self, position: int) -> str:
        """Name the origin and the line of the row at a position, for messages."""
        for part in self.parts:
            if position < len(part.frame):
                return part.place(position)
            position -= len(part.frame)
        number = position + 1 if self.numbers is None else self.numbers[position]
        return f"{self.origin}, {self.unit} {number}"


@dataclass
class Fields:
    """Which columns hold what, and what to do with rows that do not.

    Args:
        text_column: Column of the text.
        pair_column: Column of the second text of a sentence pair.
        label_column: Column of the label; null where no row has one.
        label_map: Class name of each raw label, such as {"0": negative, "4": positive}.
        label_names: Class names in the order of the logits. Null takes the source's own names,
            else those of label_map, else the sorted labels of the training rows.
        multi_label: Whether a row may have several labels: a list, or a text that is cut at
            label_separator. An empty list, or the separator alone, is a row of no class.
        label_separator: Stands between the labels of a row in a text.
        weight_column: Column of how much a row counts; null where all count alike.
        on_empty_label: error, or unlabelled: the row is kept for objectives that need no label.
        on_bad_row: error, or drop: leave out rows whose text is missing, blank or no text.
    """

    text_column: str = "text"
    pair_column: str | None = None
    label_column: str | None = "label"
    label_map: dict[str, str] | None = None
    label_names: list[str] | None = None
    multi_label: bool = False
    label_separator: str = "|"
    weight_column: str | None = None
    on_empty_label: Literal["error", "unlabelled"] = "error"
    on_bad_row: Literal["error", "drop"] = "error"


@dataclass(frozen=True)
class RowReport:
    """What became of the rows of a table.

    Args:
        rows: Rows of the table.
        unlabelled: Kept rows without a label.
        dropped: Rows left out for their text.
        repaired: Kept rows in which a lone surrogate or a NUL was replaced.
    """

    rows: int
    unlabelled: int
    dropped: int
    repaired: int


def resolve_labels(train: Table, fields: Fields) -> tuple[str, ...]:
    """Return the class names in the order of the logits; :class:`Fields` says where from.

    Args:
        train: The training rows.
        fields: Which column holds the label, and how it is named.

    Returns:
        At least two names, each once.

    Raises:
        DataError: If the label column is missing, or there are fewer than two classes.
        ConfigError: If ``label_names`` contradicts itself or ``label_map``.
    """
    mapped = _label_map(fields)
    if fields.label_names is not None:
        names = [str(name).strip() for name in fields.label_names]
        if len(set(names)) < len(names) or not set(mapped.values()) <= set(names):
            raise ConfigError(
                f"data.label_names must hold each class once and all of data.label_map: {names}."
            )
    elif fields.label_column is not None and fields.label_column in train.label_names:
        own = train.label_names[fields.label_column]
        names = [mapped.get(name, mapped.get(str(i), name)) for i, name in enumerate(own)]
    elif mapped:
        names = list(mapped.values())
    else:
        raw = [label for cell in _label_cells(train, fields) for label in _spelt(cell, fields)]
        found = {spelling(label) for label in raw if not _is_empty(label)}
        if len(found) > _MOST_CLASSES:
            raise DataError(
                f"{train.origin}: column {fields.label_column!r} has {len(found):,} different "
                "values, too many for classes: check data.label_column."
            )
        names = sorted(found, key=int) if all(map(_WHOLE.match, found)) else sorted(found)
    labels = tuple(dict.fromkeys(names))
    if len(labels) < 2:
        raise DataError(
            f"{train.origin}: one class only ({', '.join(labels) or 'no label at all'}) in column "
            f"{fields.label_column!r}: a classifier needs two: check data.label_column."
        )
    return labels


def _label_map(fields: Fields) -> dict[str, str]:
    return {spelling(key): str(name).strip() for key, name in (fields.label_map or {}).items()}


def _column(table: Table, name: str | None, key: str) -> list[Any]:
    """Return a column as a list of plain values."""
    if name in table.frame.columns:
        return list(table.frame[name].tolist())
    columns = ", ".join(map(str, table.frame.columns))
    raise DataError(
        f"{table.origin} has no column {name!r}: set data.{key} to one of: {columns} (if these are "
        "no names, see data.source.header and delimiter)."
    )


def _label_cells(table: Table, fields: Fields) -> list[Any]:
    """Return the label column, with lists in it only where a row may have several labels."""
    cells = _column(table, fields.label_column, "label_column")
    lists = [i for i, cell in enumerate(cells) if isinstance(cell, list)]
    if lists and not fields.multi_label:
        raise DataError(
            f"{table.place(lists[0])}: the label is a list, {cells[lists[0]]!r:.60}"
            f"{_others(lists)}: set data.multi_label=true if a row may have several labels."
        )
    return cells


def _spelt(cell: Any, fields: Fields) -> list[Any]:
    """Return the labels of a cell, each as it is spelt there."""
    if fields.multi_label and isinstance(cell, str) and cell.strip():
        return [label for label in cell.split(fields.label_separator) if label.strip()]
    return cell if isinstance(cell, list) else [cell]


def _is_empty(value: object) -> bool:
    """Tell whether a cell is empty: None, NaN or blank."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def spelling(value: object) -> str:
    """Return the one spelling of a label: no outer spaces, whole numbers without a fraction."""
    text = repaired(str(value)).strip()
    return str(int(text.partition(".")[0])) if _WHOLE.match(text) else text


def canonical_rows(
    table: Table, fields: Fields, labels: Sequence[str], labelled: bool = True, start: int = 0
) -> list[Row]:
    """Turn a table into rows, or say in one sentence which line cannot be one.

    Args:
        table: Raw rows.
        fields: Which columns hold what, and what to do with rows that do not.
        labels: Class names in the order of the logits.
        labelled: Whether the label column is read; false leaves every row unlabelled.
        start: Index of the first row; the index of a row is this plus its position in the table.

    Returns:
        At least one row, in the order of the table.

    Raises:
        DataError: If a column is missing, a text, label or weight is unusable, or no row is left.
    """
    texts, bad = _texts(table, fields, fields.text_column, "text_column")
    pairs: list[Any] = [None] * len(texts)
    if fields.pair_column is not None:
        pairs, lacking = _texts(table, fields, fields.pair_column, "pair_column")
        bad |= lacking
    if len(bad) == len(texts):
        raise DataError(f"{table.origin} has no usable row: none of {len(bad):,} has a text.")
    classes: Sequence[int | tuple[int, ...] | None] = [None] * len(texts)
    if labelled and fields.label_column is not None:
        classes = _classes(table, fields, labels, bad)
    weights = [1.0] * len(texts)
    if fields.weight_column is not None:
        weights = _weights(table, fields.weight_column, bad)
    columns = zip(texts, classes, pairs, weights, strict=True)
    return [
        Row(start + position, text, label, pair, weight=weight)
        for position, (text, label, pair, weight) in enumerate(columns)
        if position not in bad
    ]


def report_rows(table: Table, fields: Fields, rows: Sequence[Row], start: int = 0) -> RowReport:
    """Count what :func:`canonical_rows` made of a table, from its arguments and its answer."""
    texts = _column(table, fields.text_column, "text_column")
    pairs = texts
    if fields.pair_column is not None:
        pairs = _column(table, fields.pair_column, "pair_column")
    return RowReport(
        rows=len(texts),
        unlabelled=sum(row.label is None for row in rows),
        dropped=len(texts) - len(rows),
        repaired=sum(
            row.text != texts[row.index - start]
            or (row.pair is not None and row.pair != pairs[row.index - start])
            for row in rows
        ),
    )


def _texts(table: Table, fields: Fields, name: str, key: str) -> tuple[list[Any], set[int]]:
    """Return a column as valid Unicode, and the positions that hold no text."""
    raw = _column(table, name, key)
    texts = [repaired(text) if isinstance(text, str) else text for text in raw]
    bad = {i for i, text in enumerate(texts) if not isinstance(text, str) or not text.strip()}
    if bad and fields.on_bad_row == "error":
        first = min(bad)
        blank = isinstance(raw[first], str) or _is_empty(raw[first])
        what = "no text" if blank else f"no text but {type(raw[first]).__name__} {raw[first]!r:.40}"
        raise DataError(
            f"{table.place(first)}: column {name!r} holds {what}{_others(bad)}: correct it, or set "
            "data.on_bad_row=drop."
        )
    return texts, bad


def _others(positions: Collection[int]) -> str:
    return f" (and so do {len(positions) - 1:,} more rows)" if len(positions) > 1 else ""


def _weights(table: Table, name: str, skipped: Collection[int]) -> list[float]:
    """Return how much each row counts."""
    cells = _column(table, name, "weight_column")
    weights = [number(cell) for cell in cells]
    bad = [i for i, weight in enumerate(weights) if not 0 <= weight < math.inf and i not in skipped]
    if bad:
        raise DataError(
            f"{table.place(bad[0])}: the weight is {cells[bad[0]]!r:.60}{_others(bad)}: give a "
            f"number, 0 or more, in column {name!r}."
        )
    return weights


def number(cell: Any) -> float:
    """Return a cell as a number, NaN if it is none."""
    try:
        return float(cell)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _classes(
    table: Table, fields: Fields, labels: Sequence[str], skipped: Collection[int]
) -> Sequence[int | tuple[int, ...] | None]:
    """Return the class of each row, or its classes; null where empty or the row is skipped."""
    values = _label_cells(table, fields)
    meanings = _meanings(table, fields, labels)
    kinds = [(type(value), str(value)) for value in values]
    cells = {kind: _spelt(v, fields) for kind, v in zip(kinds, values, strict=True)}
    known = {kind: [_class_of(label, meanings) for label in raw] for kind, raw in cells.items()}
    found = [known[kind] for kind in kinds]
    unknown = [i for i, classes in enumerate(found) if _UNKNOWN in classes and i not in skipped]
    if unknown:
        first = unknown[0]
        label = cells[kinds[first]][found[first].index(_UNKNOWN)]
        raise DataError(
            f"{table.place(first)}: label {label!r:.60} is none of the classes "
            f"{', '.join(labels)}{_others(unknown)}: correct it, or translate it in data.label_map."
        )
    empty = [i for i, classes in enumerate(found) if None in classes and i not in skipped]
    if empty and fields.on_empty_label == "error":
        none = f" ({fields.label_separator} alone is a row of no class)" * fields.multi_label
        raise DataError(
            f"{table.place(empty[0])}: the label is empty{_others(empty)}: fill it in{none}, or "
            "set data.on_empty_label=unlabelled."
        )
    if not fields.multi_label:
        return [classes[0] for classes in found]
    return [
        None if None in classes else tuple(sorted({c for c in classes if c is not None}))
        for classes in found
    ]


def _class_of(value: object, meanings: Mapping[str, int | None]) -> int | None:
    """Return a class, null for an empty label, or an impossible class."""
    if _is_empty(value):
        return None
    spelt = spelling(value)
    return meanings.get(spelt, meanings.get(_fold(spelt), _UNKNOWN))


def _fold(name: str) -> str:
    return "\0" + name.casefold()  # no label begins with NUL: exact and loose spellings stay apart


def _meanings(table: Table, fields: Fields, labels: Sequence[str]) -> dict[str, int | None]:
    """Map each accepted spelling of a label to its class; what comes later takes precedence."""
    mapped = _label_map(fields)
    own = table.label_names.get(fields.label_column or "")
    position: dict[str, int | None] = {name: i for i, name in enumerate(labels)}
    folded = Counter(map(_fold, labels))
    meanings = {_fold(name): i for name, i in position.items() if folded[_fold(name)] == 1}
    if own is None and not mapped and not any(map(_WHOLE.match, labels)):
        meanings |= {str(i): i for i in range(len(labels))}
    meanings |= position
    meanings |= {raw: position[name] for raw, name in mapped.items() if name in position}
    if own is not None:
        meanings.setdefault("-1")  # null: this is how data sets hide the labels of test rows
        renamed = len(own) == len(labels) and not {*own, *mapped.values()} & {*labels}
        for i, name in enumerate(labels if renamed else own):
            name = mapped.get(name, mapped.get(str(i), name))
            meanings |= {str(i): position[name]} if name in position else {}
    return meanings
