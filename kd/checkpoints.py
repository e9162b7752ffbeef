"""What a checkpoint file is, when it counts as written, and which one a run continues from.

A checkpoint is a zip of tensors and plain values; beside it lies its mark, ``<file>.json``, with
size and sha256. A file without a mark that fits was never committed. This room must not know what
is inside, nor when to save: that is the callbacks'.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch.serialization import MAP_LOCATION

from kd.console import print_line
from kd.errors import RunError
from kd.files import replacing, sweep
from kd.processes import writer
from kd.runs import checksum, job_of_slurm, read_manifest, versions

__all__ = [
    "BEST",
    "MODEL_FOLDER",
    "RESUME",
    "SafeCheckpointIO",
    "is_valid",
    "last_valid",
    "requeued",
    "resumable",
    "sweep_after",
]

BEST = Path("checkpoints", "best.ckpt")
"""Where a run keeps the best state of its training."""

RESUME = Path("checkpoints", "resume.ckpt")
"""Where a run keeps the newest state of its training."""

MODEL_FOLDER = Path("checkpoints", "model")
"""Where a run keeps what the weights belong to: configuration and tokenizer of its student."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:[:/]")  # not `C:\`; Path("s3://x") became "s3:/x"
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_ZIP = b"PK\x03\x04"


class SafeCheckpointIO(TorchCheckpointIO):
    """Checkpoints that survive a kill and a full disk, and that run no code when loaded.

    Lightning 2.6 saves through ``$TMPDIR``: on another file system a kill or a full disk destroys
    the last good file, and it passes over missing rights in silence
    (https://github.com/Lightning-AI/pytorch-lightning/issues/21253).
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None
    ) -> None:
        """Write a checkpoint and its mark; after any error the last good file is still there.

        While one file takes the other's place the mark names both contents, so that a kill at any
        instant leaves a file that the mark knows.

        Args:
            checkpoint: Tensors and plain values.
            path: A local path.
            storage_options: Must be null; for Lightning's sake.

        Raises:
            RunError: If it cannot be written.
        """
        path = _local(path)
        if storage_options is not None:
            raise RunError(f"cannot save checkpoint {path}: storage options are not supported")
        failure: OSError | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                writer = _HashingWriter(file)
                try:
                    torch.save(checkpoint, cast(IO[bytes], writer))
                finally:
                    failure = writer.failure  # torch hides it behind a RuntimeError
                _mark(path, [*_marked(path), writer.checksum()])
            _mark(path, [writer.checksum()])
        except Exception as error:
            told = _why_not_saved(checkpoint, path, failure or error)
            raise RunError(f"cannot save checkpoint {path}: {told}") from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: MAP_LOCATION = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint of tensors and plain values, after its checksum where it has one.

        Args:
            path: A local path.
            map_location: Where tensors go, as in `torch.load`; where they were saved is ignored.
            weights_only: Ignored: nothing else is ever loaded.

        Returns:
            The checkpoint.

        Raises:
            RunError: If it is a URL, missing, damaged, or holds what could run code.
        """
        path = _local(path)
        try:
            with path.open("rb") as file:
                if problem := _damage(path, file):
                    raise RunError(f"checkpoint {path} {problem}; take another one")
                # Said in so many words, True also stands against TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD,
                # which turns the mere default around.
                loaded = torch.load(file, map_location=map_location, weights_only=True, mmap=False)
        except OSError as error:
            raise RunError(f"cannot read checkpoint {path}: {error.strerror}") from error
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL (\S+)", str(error))
            raise RunError(
                f"checkpoint {path} holds more than tensors and plain values "
                f"({found[1] if found else 'an unknown object'}), which could run code: not loaded"
            ) from error
        except RunError:
            raise
        except Exception as error:  # what torch raises for broken bytes has no common class
            reason = str(error).partition("\n")[0]
            raise RunError(
                f"checkpoint {path} cannot be read, it may be damaged ({reason})"
            ) from error
        if not isinstance(loaded, dict):
            raise RunError(f"checkpoint {path} holds a {type(loaded).__name__}, not a checkpoint")
        return loaded

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint, a file or a folder, and then its mark.

        Args:
            path: A local path; nothing happens when nothing is there.

        Raises:
            RunError: If it cannot be removed.
        """
        path = _local(path)
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
            _mark_of(path).unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"cannot remove checkpoint {path}: {error.strerror}") from error


class _HashingWriter:
    """A file for `torch.save` that hashes what passes through, and remembers why it failed."""

    def __init__(self, file: BufferedWriter) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._bytes = 0
        self.failure: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise
        self._hash.update(data)
        self._bytes += memoryview(data).nbytes
        return memoryview(data).nbytes

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            self.failure = self.failure or error
            raise

    def checksum(self) -> dict[str, str | int]:
        return {"sha256": self._hash.hexdigest(), "bytes": self._bytes}


def _local(path: str | Path) -> Path:
    if _URL.match(str(path)):
        raise RunError(f"checkpoint {path} is a URL: fetch the file yourself and name its path")
    return Path(path)


def _mark_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _marked(path: Path) -> list[dict[str, str | int]]:
    """Return the contents that count as committed: none, one, or two while one is replaced."""
    try:
        return list(json.loads(_mark_of(path).read_bytes()))
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise RunError(f"checkpoint {path} has an unreadable mark, {_mark_of(path)}") from error


def _mark(path: Path, contents: list[dict[str, str | int]]) -> None:
    with replacing(_mark_of(path)) as file:
        file.write(json.dumps(contents).encode())


def _damage(path: Path, file: BufferedReader) -> str | None:
    """Return how an open checkpoint shows that it is no whole one, or null; rewind it."""
    start = file.read(len(_ZIP))
    file.seek(0)
    if not start:
        return "is empty, so its save was cut off"
    marked = _marked(path)
    found = checksum(file) if marked else None
    file.seek(0)
    if found is not None and found not in marked:
        if found["bytes"] not in [content["bytes"] for content in marked]:
            return f"is cut off: {found['bytes']} bytes instead of {marked[-1]['bytes']}"
        return "was damaged after it was saved: its sha256 differs"
    if start != _ZIP:
        return "is no zip of tensors, and other formats could run code"
    return None


def _why_not_saved(checkpoint: dict[str, Any], path: Path, error: Exception) -> str:
    """Return the end of a sentence; for a full disk how much room was wanted and is there."""
    if not isinstance(error, OSError):
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    if error.errno not in _DISK_FULL:
        return f"{error.strerror}; the last good file is kept"
    with open(os.devnull, "wb") as nowhere:
        writer = _HashingWriter(nowhere)
        torch.save(checkpoint, cast(IO[bytes], writer))
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    needed, free = int(writer.checksum()["bytes"]) / 1e6, shutil.disk_usage(folder).free / 1e6
    return (
        f"the disk is full, {needed:.1f} MB are needed and {free:.1f} MB are free; "
        "the last good file is kept"
    )


def is_valid(path: Path) -> bool:
    """Tell whether a checkpoint is there, whole, and as its mark says."""
    try:
        with path.open("rb") as file:
            return bool(_marked(path)) and _damage(path, file) is None
    except (OSError, RunError):
        return False


def last_valid(directory: str | Path) -> Path | None:
    """Return the newest of ``resume.ckpt`` and ``best.ckpt`` that fits its mark, or null."""
    paths = [
        path for path in (Path(directory, one.name) for one in (RESUME, BEST)) if is_valid(path)
    ]
    return max(paths, key=lambda path: path.stat().st_mtime_ns, default=None)


def resumable(resume: str | Path | None, *, root: str | Path, name: str) -> Path | None:
    """Return the checkpoint that ``run.resume`` means, or null to start afresh.

    A version folder means its ``checkpoints/resume.ckpt``. ``auto`` means that of the newest
    ``fit`` of this name that was cut off after the last finished one: what has been finished is
    not trained twice. A damaged checkpoint is passed over for that of an older version.
    `RunError` where the version named has no whole one, or its process still lives.
    """
    if resume is None:
        return None
    if resume != "auto":
        return _resume_of(Path(resume))
    for version in reversed(versions(Path(root, name))):
        manifest = read_manifest(version)
        if manifest.get("command") != "fit":
            continue
        if manifest.get("status") == "finished":
            return None
        path = version / RESUME
        if is_valid(path):
            return _resume_of(version)
        if path.exists():
            print_line(
                f"note: {path} is damaged or was never committed; an older one is looked for"
            )
    return None


def requeued(root: str | Path, name: str, is_same: Callable[[Path], bool]) -> Path | None:
    """Return the version that this very job of SLURM was to continue when it was queued again.

    Args:
        root: Folder of all runs.
        name: Of the run.
        is_same: Whether a version was trained by the recipe of now; a job may train several.

    Returns:
        The version folder; null where the job is not one that was queued again, or has no such.
    """
    job = job_of_slurm()
    if job is None or not int(os.environ.get("SLURM_RESTART_COUNT") or 0):
        return None
    mine = [one for one in versions(Path(root, name)) if read_manifest(one).get("job") == job]
    same = [one for one in mine if is_same(one)]
    if not same or read_manifest(same[-1])["status"] == "finished":
        return None
    return next((one for one in reversed(same) if is_valid(one / RESUME)), None)


def sweep_after(resume: Path) -> None:
    """Remove what the killed saves of a run left, now that another run continues it."""
    for path in sweep(resume.parent):
        print_line(f"note: {path.name} of a save that was cut off is removed")


def _resume_of(version: Path) -> Path:
    path = version / RESUME
    pid = writer(read_manifest(version))
    if pid is not None:
        raise RunError(f"run.resume: {version} is still written by process {pid}; stop it first")
    if not path.exists():
        raise RunError(f"run.resume: {version} has no {path.name}: it ended before its first save")
    if not is_valid(path):
        whole = last_valid(path.parent)
        raise RunError(
            f"run.resume: {path} is damaged or was never committed; "
            + (f"{whole} is whole" if whole else "start afresh")
        )
    return path
