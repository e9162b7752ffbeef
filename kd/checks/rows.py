"""Checks of the rows: repeated, contradicting and leaking texts, and how the classes are spread.

Two texts are equal here if they differ in case and white space only. This room knows no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from kd.checks.findings import Finding, graded
from kd.types import Row

__all__ = ["check_balance", "check_duplicates", "check_leaks"]

_REPEATED = 0.1  # share of the texts from which on repeating them is worth a word
_CONTRADICTING = 0.01  # share of the labelled rows
_LEAKING, _USELESS = 0.01, 0.2  # shares of the rows that are measured on
_FEW, _RARE = 10, 0.01  # a class of fewer rows is hardly learnt
_RARE_OF_MANY = 0.1  # of its even share, where there are many classes
_CHARACTERS, _NAMES = 50, 5  # that are shown


def check_duplicates(train: Sequence[Row], labels: Sequence[str]) -> list[Finding]:
    """Look for texts that are trained on more than once, and for those with several labels.

    Args:
        train: Training rows; their variants do not count.
        labels: Class names.

    Returns:
        What was found of both.
    """
    groups: dict[str, list[Row]] = {}
    for row in _originals(train):
        groups.setdefault(_folded(row), []).append(row)
    many = [group for group in groups.values() if len(group) > 1]
    rows, repeated = sum(map(len, groups.values())), sum(len(group) - 1 for group in many)
    found = f"{repeated:,} of {rows:,} training texts repeat another" + _example(many)
    advice = "leave them out, or each counts as often as it stands there"
    told = [graded("duplicates", found, advice, warns=repeated >= _REPEATED * rows)]
    torn = [group for group in many if len({row.label for row in group} - {None}) > 1]
    if torn:
        labelled = sum(row.label is not None for group in groups.values() for row in group)
        hit = sum(row.label is not None for group in torn for row in group)
        named = " and ".join(sorted({_name(row, labels) for row in torn[0]} - {""}))
        found = f"{hit:,} of {labelled:,} labelled rows contradict one of the same text"
        found += f"{_example(torn)} ({named})"
        advice = "decide for one label of each text"
        told.append(graded("labels", found, advice, warns=hit >= _CONTRADICTING * labelled))
    return told


def check_leaks(train: Sequence[Row], held_out: Sequence[Row], split: str) -> Finding:
    """Look for texts that are trained on and measured on.

    Args:
        train: Training rows; their variants do not count.
        held_out: Rows of another split.
        split: Its name.

    Returns:
        What was found.
    """
    known = {_folded(row) for row in _originals(train)}
    shared = [[row] for row in held_out if _folded(row) in known]
    found = f"{len(shared):,} of {len(held_out):,} {split} texts are trained on too"
    advice = f"take them out of one of the two, or the {split} figures flatter"
    share = len(shared) / len(held_out)
    return graded(
        "leaks", found + _example(shared), advice, warns=share >= _LEAKING, fails=share >= _USELESS
    )


def check_balance(
    train: Sequence[Row], validation: Sequence[Row], labels: Sequence[str]
) -> list[Finding]:
    """Look for classes that are rare in training, or of which nothing is measured.

    Args:
        train: Training rows; their variants do not count.
        validation: Rows that are measured on.
        labels: Class names.

    Returns:
        What was found.
    """
    counts, measured = _counts(_originals(train), labels), _counts(validation, labels)
    rows = sum(counts)
    least = max(_FEW, min(_RARE, _RARE_OF_MANY / len(labels)) * rows)
    rare = [f"{name} ({counts[c]:,})" for c, name in enumerate(labels) if counts[c] < least]
    absent = [name for c, name in enumerate(labels) if not measured[c]]
    told = []
    if not rows:
        told.append(Finding("ok", "classes", "no training row has a label"))
    elif rare:
        found = f"few of the {rows:,} labels are {_some(rare)}"
        advice = "collect more, merge classes by data.label_map, or give HardLabel class_weights"
        told.append(Finding("warning", "classes", found, advice))
    else:
        found = f"{min(counts) / rows:.0%} to {max(counts) / rows:.0%} of {rows:,} labels each"
        told.append(Finding("ok", "classes", f"{len(labels)} classes, {found}"))
    if absent:
        found = f"no validation row is {_some(absent)}"
        advice = "validate on more rows, or nothing is known of what the student makes of them"
        told.append(Finding("warning", "classes", found, advice))
    return told


def _originals(rows: Sequence[Row]) -> Iterable[Row]:
    return (row for row in rows if row.origin is None)


def _folded(row: Row) -> str:
    text = " ".join(row.text.casefold().split())
    return text if row.pair is None else f"{text}\0{' '.join(row.pair.casefold().split())}"


def _classes(row: Row) -> tuple[int, ...]:
    if row.label is None:
        return ()
    return (row.label,) if isinstance(row.label, int) else row.label


def _counts(rows: Iterable[Row], labels: Sequence[str]) -> list[int]:
    counts = Counter(c for row in rows for c in _classes(row))
    return [counts[c] for c in range(len(labels))]


def _name(row: Row, labels: Sequence[str]) -> str:
    return " + ".join(labels[c] for c in _classes(row))


def _example(groups: Sequence[Sequence[Row]]) -> str:
    if not groups:
        return ""
    text = " ".join(groups[0][0].text.split())
    return f", such as {text if len(text) <= _CHARACTERS else text[:_CHARACTERS] + '…'!r}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMES
    return ", ".join(names[:_NAMES]) + (f" and {more} more" if more > 0 else "")
