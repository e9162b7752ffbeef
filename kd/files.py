"""Files that are there whole or not at all.

This room knows no format and chooses no path.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter
from pathlib import Path

__all__ = ["replacing", "sweep"]

_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[BufferedWriter]:
    """Yield a temporary file that takes the place of ``path`` once it is whole and on disk.

    It lies in the same folder, because a rename is atomic only inside one file system. After an
    error it is gone and the old file untouched; after a kill ``.<name>.<random>.tmp`` remains.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    with suppress(OSError):  # Windows and some network disks cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sweep(directory: str | Path, age: float = 0.0) -> list[Path]:
    """Remove what kills have left of files in a folder.

    Args:
        directory: It need not exist.
        age: In seconds; what is younger stays. A folder with several writers needs one.

    Returns:
        What was removed.
    """
    found, newest = [], time.time() - age
    for path in Path(directory).glob(".*.tmp"):
        with suppress(OSError):
            if _LEFTOVER.fullmatch(path.name) and path.stat().st_mtime <= newest:
                path.unlink()
                found.append(path)
    return found
