"""Explanations of training rows: joined to them by text, made safe to learn from, and audited.

What gives the label away is masked here, when the rows are read, so that what an annotator said is
kept as it came. This room knows tables and rows, no annotator and no model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from kd.data.rows import Table, number, spelling
from kd.errors import ConfigError, DataError
from kd.rationales.leaks import Audit, audit, mask
from kd.texts import repaired
from kd.types import Annotation, Row

__all__ = ["Explained", "Rationales", "explain"]

_PER_CENT = 1.5  # a larger confidence is no rounded 1
_FATES = (
    "without an annotation",
    "also held out",
    "naming none of the classes",
    "contradicting the label",
    "empty",
)


@dataclass
class Rationales:
    """Explanations of the training rows, joined to them by text; no other row ever has one.

    Args:
        path: File (parquet, jsonl, csv) or run of ``annotate`` such as runs/annotate_sst2, its
            newest finished version; null reads the columns of the training data itself.
        text_column: Column of the text in that file.
        rationale_column: Column of the explanation; null where there are only labels or quotes.
        label_column: Column of the class that the annotator named, or its position; may be
            missing, as may the two that follow.
        confidence_column: Column of how sure it was, from 0 to 1 or in per cent.
        evidence_column: Column of quotes of the text, a list or one text.
        words: Words that give the label away, beside the names of the classes.
        mask: Whether these words, and sentences that state the answer, are left out.
        agreement: Whether a rationale counts only where the annotator named the row's own label.
        control: What the explanations are worth is seen by training without: ``shuffled`` gives
            each text the explanation of another, ``absent`` an empty one, so that what reads it
            reads the text once more.
        dropout: Share of the rows whose rationale a student that reads it is not shown in a step.

    Raises:
        ConfigError: If ``dropout`` is not from 0 to below 1.
    """

    path: str | None = None
    text_column: str = "text"
    rationale_column: str | None = "rationale"
    label_column: str = "teacher_label"
    confidence_column: str = "teacher_confidence"
    evidence_column: str = "evidence"
    words: list[str] = field(default_factory=list)
    mask: bool = True
    agreement: bool = True
    control: Literal["shuffled", "absent"] | None = None
    dropout: float = 0.3

    def __post_init__(self) -> None:
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(
                f"data.rationales.dropout is {self.dropout}: it is a share of the rows, from 0 to "
                "below 1."
            )


@dataclass(frozen=True)
class Explained:
    """Training rows with what was said about them.

    Args:
        rows: All training rows, in their order.
        counts: How many rows have no rationale, and for what.
        said: What the rationales say, whatever the control made of them: all that is ever read.
        audit: What the rationales give away; null where there are too few to tell.
    """

    rows: list[Row]
    counts: Mapping[str, int]
    said: list[str]
    audit: Audit | None

    def lines(self) -> list[str]:
        """Return what a user should know, a line each."""
        lost = [f"{count} {fate}" for fate, count in self.counts.items() if count]
        known = sum(row.annotation is not None for row in self.rows)
        head = f"annotated = {known} of {len(self.rows)} rows"
        return [", ".join([head, *lost]), *(self.audit.lines() if self.audit else [])]

    def figures(self) -> dict[str, float]:
        """Return what the rationales give away, by log key; empty where it was not measured."""
        names = ("before", "after", "text", "rationale", "reader")
        return {f"leak/{name}": getattr(self.audit, name) for name in names} if self.audit else {}

    def as_plain(self) -> dict[str, Any]:
        """Return counts and audit as plain values."""
        return {**self.counts, "audit": self.audit.as_plain() if self.audit else None}


def explain(
    rows: Sequence[Row],
    table: Table,
    plan: Rationales,
    labels: Sequence[str],
    held_out: Sequence[Row] = (),
    seed: int = 0,
) -> Explained:
    """Join explanations to rows by their text.

    A row that was not annotated, or whose annotator failed, contradicts its label or says nothing
    but the label, stays without a rationale; so does one whose text is held out.

    Args:
        rows: Training rows.
        table: Of the explanations.
        plan: Which columns hold what, and what to do with them.
        labels: Class names in the order of the logits.
        held_out: Rows that are validated on.
        seed: Of the shuffled control.

    Returns:
        The rows, each with its annotation.

    Raises:
        ConfigError: If a row is a pair of texts, or may have several classes.
        DataError: If a column is missing, no label is a class, or no text is one of the rows'.
    """
    if any(row.pair is not None or isinstance(row.label, tuple) for row in rows):
        raise ConfigError(
            "data.rationales explains single texts with one class each: set it to null, or "
            "data.pair_column to null and data.multi_label to false."
        )
    found, unnamed = _read(table, plan, labels)
    contents = [row.content for row in rows]
    known = {content: found[content] for content in dict.fromkeys(contents) if content in found}
    if not known:
        raise DataError(
            f"{table.origin} explains none of the {len(rows):,} training texts: set "
            "data.rationales.path to the explanations of this data set."
        )
    raw = {content: annotation.rationale for content, annotation in known.items()}
    words = [*labels, *plan.words]
    if plan.mask:
        known = {
            content: replace(annotation, rationale=mask(annotation.rationale or "", words) or None)
            for content, annotation in known.items()
        }
    said = [annotation.rationale for annotation in known.values() if annotation.rationale]
    if plan.control is not None:
        lengths = {content: len(row.text) for content, row in zip(contents, rows, strict=True)}
        known = _controlled(known, lengths, plan.control, seed)
    joined = [
        replace(row, annotation=known.get(content))
        for row, content in zip(rows, contents, strict=True)
    ]
    measured = audit(joined, labels, [raw.get(content) for content in contents], words)
    forbidden = {row.content: "also held out" for row in held_out}
    fates = {**dict.fromkeys(unnamed, "naming none of the classes"), **forbidden}
    return Explained(*_filtered(joined, plan, fates), said, measured)


def _filtered(
    rows: Sequence[Row], plan: Rationales, known: Mapping[int, str]
) -> tuple[list[Row], dict[str, int]]:
    """Take the rationale from texts that must not be taught by it, and count the rows by why."""
    fates = dict(known)
    for row in rows:  # equal texts have one fate: a teacher answers both alike
        said = None if row.annotation is None else row.annotation.label
        if plan.agreement and None not in (row.label, said) and row.label != said:
            fates.setdefault(row.content, "contradicting the label")
    kept: list[Row] = []
    counts = dict.fromkeys(_FATES, 0)
    for row in rows:
        annotation, fate = row.annotation, fates.get(row.content)
        if annotation is None:
            fate = "without an annotation"
        elif fate:
            row = replace(row, annotation=replace(annotation, rationale=None, evidence=()))
        elif plan.rationale_column and annotation.rationale is None:
            fate = "empty"
        if fate:
            counts[fate] += 1
        kept.append(row)
    return kept, counts


def _controlled(
    known: Mapping[int, Annotation],
    lengths: Mapping[int, int],
    control: Literal["shuffled", "absent"],
    seed: int,
) -> dict[int, Annotation]:
    """Replace what was explained, and nothing else: where there was a rationale there is one."""
    draw = np.random.default_rng(seed)
    other: dict[int, int] = {}
    for is_told in (False, True):  # those that no model reads stay among themselves
        taught = [c for c, a in known.items() if a.rationale is not None and a.is_told == is_told]
        turn = draw.permutation(len(taught))  # each gets the one of its neighbour in this circle
        other |= {taught[a]: taught[b] for a, b in zip(turn, np.roll(turn, 1), strict=True)}
    changed = {}
    for content, annotation in known.items():
        rationale = annotation.rationale
        if rationale is not None:
            rationale = "" if control == "absent" else known[other[content]].rationale
        spans = []
        for first, end in annotation.evidence:
            start = int(draw.integers(0, lengths[content] - (end - first) + 1))
            spans.append((start, start + end - first) if control == "shuffled" else (0, 0))
        changed[content] = replace(annotation, rationale=rationale, evidence=tuple(spans))
    return changed


def _read(
    table: Table, plan: Rationales, labels: Sequence[str]
) -> tuple[dict[int, Annotation], set[int]]:
    """Return the annotation of each text by its digest, and the texts that got no known class.

    The last annotation of a text counts.
    """
    columns = table.frame.columns

    def column(name: str | None) -> list[Any]:
        return table.frame[name].tolist() if name in columns else [None] * len(table.frame)

    for key in ("text_column", "rationale_column"):
        name = getattr(plan, key)
        if name is not None and name not in columns:
            raise DataError(
                f"{table.origin} has no column {name!r}: set data.rationales.{key} to one of: "
                f"{', '.join(map(str, columns))}"
                + (", or to null." if key == "rationale_column" else ".")
            )
    names = {spelling(label).casefold(): place for place, label in enumerate(labels)}
    if not any(name.isdecimal() for name in names):
        names |= {str(place): place for place in range(len(labels))}
    sure = [number(cell) for cell in column(plan.confidence_column)]
    percent = 100.0 if any(_PER_CENT < one <= 100.0 for one in sure) else 1.0
    found, unnamed = {}, set()
    cells = zip(
        column(plan.text_column),
        column(plan.label_column),
        sure,
        column(plan.rationale_column),
        column(plan.evidence_column),
        column("status") if "status" in columns else ["ok"] * len(sure),
        column("rationale_source"),
        strict=True,
    )
    for n, (text, label, confidence, rationale, quotes, status, source) in enumerate(cells):
        if not isinstance(text, str) or status != "ok":
            continue
        text = repaired(text)
        is_named = isinstance(label, str | int | float) and label == label and label != ""
        named = spelling(label).casefold() if is_named else None
        content = Row(n, text).content
        unnamed.discard(content)
        if named is not None and named not in names:
            unnamed.add(content)
        found[content] = Annotation(
            label=None if named is None else names.get(named),
            confidence=min(1.0, confidence / percent) if 0.0 <= confidence <= 100.0 else None,
            rationale=rationale if isinstance(rationale, str) and rationale.strip() else None,
            evidence=_spans(text, quotes),
            is_told=source == "rationalised",
        )
    if found and len(unnamed) == len(found):
        raise DataError(
            f"{table.origin}: no {plan.label_column} is one of the classes {', '.join(labels)}: "
            "set data.rationales.label_column, or data.label_names to what it says."
        )
    return found, unnamed


def _spans(text: str, cell: object) -> tuple[tuple[int, int], ...]:
    """Return where quotes stand in a text; those that are not in it are nowhere."""
    quotes = [cell] if isinstance(cell, str) else cell if isinstance(cell, list) else []
    found = []
    for quote in quotes:
        if isinstance(quote, str) and quote and quote in text:
            whole = re.search(rf"(?<!\w){re.escape(quote)}(?!\w)", text)  # not in another word
            start = whole.start() if whole else text.index(quote)
            found.append((start, start + len(quote)))
    return tuple(found)
