"""What became of the rows that were asked about: counted, compared with their labels, audited.

Takes one reply after the other and keeps none of them but a sample. This room knows no store and no
annotator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from random import Random
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from kd.console import print_line, print_table
from kd.rationales.annotators import Reply
from kd.rationales.leaks import Audit, audit, mask
from kd.types import Annotation, Row

__all__ = ["Report"]

_SHOWN = 8  # classes whose confusion fits a terminal


class Report:
    """Counts of statuses and labels, and what the rationales give away.

    Args:
        labels: Class names.
        rows: How many there will be.
        audited: About how many of them, drawn from all over, are kept for the audit.
    """

    def __init__(self, labels: Sequence[str], rows: int, audited: int = 20_000) -> None:
        self.labels = labels
        self.rows = 0
        self.statuses: Counter[str] = Counter()
        self.examples: dict[str, dict[str, str]] = {}
        self.confusion: Counter[tuple[str, str]] = Counter()
        self._share = audited / max(rows, 1)
        self._random = Random(0)
        self._audited: list[Row] = []
        self._raw: list[str | None] = []

    def add(self, row: Row, reply: Reply | None) -> None:
        """Count a row.

        Args:
            row: It was asked about.
            reply: What was answered; null if nothing was.
        """
        self.rows += 1
        self.statuses[reply.status if reply else "unanswered"] += 1
        if reply is None or reply.label is None or reply.rationale is None:
            if reply:
                self.examples.setdefault(reply.status, {"text": row.text, "reason": reply.reason})
            return
        if isinstance(row.label, int):
            self.confusion[self.labels[row.label], reply.label] += 1
        if self._random.random() < self._share:
            told = mask(reply.rationale, self.labels)
            note = Annotation(self.labels.index(reply.label), reply.confidence, told)
            self._audited.append(replace(row, annotation=note))
            self._raw.append(reply.rationale)

    @property
    def share(self) -> float:
        """Share of the rows that have an explanation."""
        return self.statuses["ok"] / self.rows if self.rows else 1.0

    @property
    def failures(self) -> dict[str, int]:
        """How many rows have no explanation, by their status, the commonest first."""
        return {name: count for name, count in self.statuses.most_common() if name != "ok"}

    @property
    def agreement(self) -> float | None:
        """Share of the labelled rows with an explanation where that is of their own label."""
        same = sum(self.confusion[name, name] for name in self.labels)
        return same / self.confusion.total() if self.confusion else None

    @cached_property
    def leaks(self) -> Audit | None:
        """What the rationales give away, label words being masked; null if there are too few."""
        return audit(self._audited, self.labels, self._raw, self.labels)

    def as_plain(self) -> dict[str, Any]:
        """Return it all in plain values."""
        return {
            "rows": self.rows,
            "ok": self.share,
            "statuses": dict(self.statuses.most_common()),
            "examples": self.examples,
            "agreement": self.agreement,
            "confusion": {
                gold: {said: self.confusion[gold, said] for said in self.labels}
                for gold in self.labels
            },
            "leaks": self.leaks and self.leaks.as_plain(),
        }

    def show(self) -> None:
        """Print it."""
        table = Table("status", "rows", "share", "such as", box=None, pad_edge=False)
        for status, count in self.statuses.most_common():
            reason = self.examples.get(status, {}).get("reason", "")
            table.add_row(status, f"{count:,}", f"{count / self.rows:.1%}", Text(reason))
        print_table(table)
        if self.confusion and len(self.labels) <= _SHOWN:
            heads = [escape(f"said {name}") for name in self.labels]
            table = Table("label", *heads, box=None, pad_edge=False)
            for gold in self.labels:
                counts = [f"{self.confusion[gold, said]:,}" for said in self.labels]
                table.add_row(Text(gold), *counts)
            print_table(table)
        if self.agreement is not None and self.leaks is None:
            total = self.confusion.total()
            print_line(f"agreement = {self.agreement:.1%} of {total:,} labels")
        for line in self.leaks.lines() if self.leaks else ():
            print_line(line)
