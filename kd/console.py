"""What a run says on the terminal: lines that also read well in a log file, and a bar.

This room knows only text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

__all__ = ["in_words", "print_line", "print_table", "progress_bar"]

_WIDTH = 160  # of a table that no terminal limits


class _Detail(ProgressColumn):
    """What is told beside a bar, as it is now."""

    def __init__(self, detail: Callable[[], str]) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self.detail = detail

    def render(self, task: Task) -> Text:
        return Text(self.detail())


def in_words(seconds: float) -> str:
    """Return a time as people say it, rounded up: ``45 s``, ``15 min`` or ``2 h 13 min``."""
    if seconds < 120:
        return f"{math.ceil(seconds)} s"
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def print_line(text: str) -> None:
    """Print to standard output at once, also into a pipe."""
    print(text, flush=True)  # noqa: T201


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal or, into a pipe, wide enough to be read."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    console.print(table, highlight=False)


@contextmanager
def progress_bar(
    label: str,
    total: int,
    shown: bool = True,
    detail: Callable[[], str] | None = None,
    seconds_per_line: float = 30.0,
) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal and, anywhere else, nothing or a line of detail now and then.

    Args:
        label: What is being done.
        total: Steps in all.
        shown: Whether to show it at all; only one rank does.
        detail: Tells how it goes, at any time.
        seconds_per_line: Time between two lines of it where there is no terminal.

    Yields:
        The function that moves the bar on by a number of steps.
    """
    console = Console()
    hidden = not (shown and console.is_terminal)
    width = None if detail else 40  # what the detail leaves, on a narrow terminal
    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(width)]
    columns += [MofNCompleteColumn(), TimeRemainingColumn()]
    columns += [_Detail(detail)] if detail else []
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(label, total=total)
        over = Event()

        def tell(detail: Callable[[], str]) -> None:
            while not over.wait(seconds_per_line):
                print_line(f"{label} = {bar.tasks[0].completed:.0f}/{total}, {detail()}")

        lines = Thread(target=tell, args=(detail,), daemon=True) if detail and hidden else None
        if lines:
            lines.start()
        try:
            yield lambda steps: bar.update(task, advance=steps)
        finally:
            over.set()
            if lines:
                lines.join()
