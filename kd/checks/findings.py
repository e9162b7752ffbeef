"""What a check found: how bad it is, what it is, and what to do. This room knows only text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from kd.errors import KDError

__all__ = ["Finding", "attempt", "errors_of", "graded"]


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Args:
        level: Whether all is as it should be, or worth a look, or training would be in vain.
        check: A word for what was looked at.
        found: What was found, with figures.
        advice: What to do; empty where there is nothing.
    """

    level: Literal["ok", "warning", "error"]
    check: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.found}: {self.advice}" if self.advice else self.found


def graded(
    check: str, found: str, advice: str, *, warns: bool = False, fails: bool = False
) -> Finding:
    """Return a finding with the level that a figure deserves; where it is ok, without advice."""
    if not (warns or fails):
        return Finding("ok", check, found)
    return Finding("error" if fails else "warning", check, found, advice)


def attempt(check: str, action: Callable[[], object]) -> list[Finding]:
    """Return what hinders an action, as its error says it; nothing where it succeeds."""
    try:
        action()
    except KDError as error:
        return [Finding("error", check, str(error))]
    return []


def errors_of(findings: Sequence[Finding]) -> list[Finding]:
    """Return those findings that are errors."""
    return [finding for finding in findings if finding.level == "error"]
