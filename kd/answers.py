"""What caches hold, of teachers' answers and of variants: listed, and pruned.

Knows the files, not who wrote them; a cache is filled by `fit` or by `cache --config`.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.table import Table

from kd.console import print_line, print_table
from kd.errors import ConfigError, RunError
from kd.runs import answers_folder, variants_folder
from kd.shards import read_facts

__all__ = ["Held", "held", "list_answers", "prune_answers"]

_DAY = 24 * 60 * 60


@dataclass(frozen=True)
class Held:
    """The answers of one teacher, or all variants.

    Args:
        path: Its folder.
        teacher: Where the teacher was read from.
        size: Bytes.
        used: When they were last read or written, in seconds since 1970.
    """

    path: Path
    teacher: str
    size: int
    used: float


def held(root: str) -> list[Held]:
    """Return what is held below a folder of runs, the longest unused first."""
    found = []
    if not os.path.isdir(root):  # or no path at all
        return []
    for folder in answers_folder(root).glob("*/"):
        teacher = str(read_facts(folder).get("teacher", "unknown"))
        if folder == variants_folder(root):
            teacher = "(variants of training rows)"
        files = [file for file in folder.iterdir() if file.suffix != ".json"]
        times = [file.stat().st_mtime for file in files] or [folder.stat().st_mtime]
        size = sum(file.stat().st_size for file in folder.iterdir())
        found.append(Held(folder, teacher, size, max(times)))
    return sorted(found, key=lambda one: one.used)


def list_answers(root: str = "runs") -> None:
    """List the teachers whose answers are kept, and the variants.

    Args:
        root: Folder of the runs.
    """
    table = Table("key", "teacher", "MB", "last used", box=None, pad_edge=False)
    for one in held(root):
        used = datetime.fromtimestamp(one.used).strftime("%Y-%m-%d %H:%M")
        table.add_row(one.path.name, one.teacher, f"{one.size / 1e6:,.1f}", used)
    if not table.row_count:
        print_line(f"nothing is kept in {answers_folder(root)}")
        return
    print_table(table)


def prune_answers(
    root: str = "runs", unused_days: float = 30.0, key: str | None = None, everything: bool = False
) -> None:
    """Remove what nobody has used for some time, or what has one key, or all.

    Args:
        root: Folder of the runs.
        unused_days: Days without use after which answers go.
        key: Beginning of the key of one teacher, as listed; its answers go whatever their age.
        everything: Whether all answers go.

    Raises:
        ConfigError: If the age is negative, or no teacher or several have the key.
        RunError: If a folder cannot be removed.
    """
    if unused_days < 0:
        raise ConfigError(f"cache prune: unused_days is {unused_days}: give 0 or more.")
    chosen = held(root)
    if key is not None:
        chosen = [one for one in chosen if one.path.name.startswith(key)]
        if len(chosen) != 1:
            raise ConfigError(
                f"cache prune: {len(chosen)} teachers in {answers_folder(root)} have a key that "
                f"begins with {key!r}: see `cache list`."
            )
    elif not everything:
        chosen = [one for one in chosen if time.time() - one.used > unused_days * _DAY]
    for one in chosen:
        try:
            shutil.rmtree(one.path)
        except OSError as error:
            raise RunError(f"{one.path} cannot be removed: {error.strerror}.") from error
        print_line(f"removed {one.path} ({one.size / 1e6:,.1f} MB, {one.teacher})")
    print_line(f"{len(chosen)} teachers' answers removed from {answers_folder(root)}")
