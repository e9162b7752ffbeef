"""Which process writes a run, and whether it lives.

This room knows no folder.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["process_identity", "writer"]


def process_identity(pid: int) -> str | None:
    """Return what tells a live process from a later one of the same number (Linux), or null."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]  # its start, in clock ticks after the boot


def writer(manifest: Mapping[str, Any]) -> int | None:
    """Return the process that still writes a run, or null; other hosts cannot be seen from here."""
    pid, started = manifest.get("pid"), manifest.get("process")
    if manifest.get("status") != "running" or manifest.get("hostname") != platform.node():
        return None
    if not isinstance(pid, int) or pid <= 0:
        return None
    if started is not None:  # a number is given again, a container's to every first process
        return pid if process_identity(pid) == started else None
    if os.name == "nt":  # there, signal 0 is no question but Ctrl-C
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return pid  # it lives, under another user
    return pid
