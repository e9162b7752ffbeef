"""What a run says on the terminal: lines that also read well in a log file, and a bar.

This room knows only text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["print_line", "progress_bar"]


def print_line(text: str) -> None:
    """Print to standard output at once, also into a pipe."""
    print(text, flush=True)  # noqa: T201


@contextmanager
def progress_bar(label: str, total: int, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, and nothing anywhere else.

    Args:
        label: What is being done.
        total: Steps in all.
        shown: Whether to show it at all; only one rank does.

    Yields:
        The function that moves the bar on by a number of steps.
    """
    console = Console()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    hidden = not (shown and console.is_terminal)
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden
    ) as bar:
        task = bar.add_task(label, total=total)
        yield lambda steps: bar.update(task, advance=steps)
