"""Where a run lives and what it says of itself: ``<root>/<name>/version_N/manifest.json``.

This is the only room that chooses a path: it claims run directories, writes files so that a crash
leaves the old or the new content and never half of one, and finds runs again by reference. It
must not know models, trainers or objectives, and imports neither torch nor lightning.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kd.errors import ConfigError, RunError
from kd.files import replacing
from kd.processes import process_identity
from kd.redaction import mask, redact

__all__ = [
    "ANNOTATIONS",
    "MANIFEST",
    "Resolved",
    "Run",
    "annotations_folder",
    "answers_folder",
    "check_name",
    "checksum",
    "claim",
    "global_rank",
    "is_reference",
    "job_of_slurm",
    "read_manifest",
    "resolve",
    "variants_folder",
    "verify",
    "versions",
]

MANIFEST = "manifest.json"
"""Name of the file in which a run tells its story."""

ANNOTATIONS = "annotations.parquet"
"""Name of the file that a run of ``annotate`` writes."""

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", re.IGNORECASE)
_VERSION = re.compile(r"version_([0-9]{1,9})")


def global_rank() -> int:
    """Return the rank of this process as the environment tells it, in Lightning's order, or 0.

    A process on another node than the first is never rank 0, even where only a local rank is told.
    """
    order = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    rank = next((int(os.environ[key]) for key in order if os.environ.get(key)), 0)
    return rank or max(int(os.environ.get(key) or 0) for key in ("NODE_RANK", "GROUP_RANK"))


def job_of_slurm() -> str | None:
    """Return the job of SLURM that this process is part of, as its commands name it, or null."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    return job if job and re.fullmatch("[0-9_]+", job) else None


def check_name(name: str) -> str:
    """Return a run's name; `ConfigError` unless it is a safe folder name on every system."""
    if not _NAME.fullmatch(name) or ".." in name or name.endswith(".") or _RESERVED.match(name):
        raise ConfigError(
            f"run.name: {name[:80]!r} must be 1 to 64 of the characters A-Z a-z 0-9 . _ - "
            "without '..' or a dot at either end, and not a name that Windows keeps for itself"
        )
    return name


def answers_folder(root: str) -> Path:
    """Return where the caches of teachers lie: beside the runs, for all of them."""
    return Path(root, ".cache")


def variants_folder(root: str) -> Path:
    """Return where the variants of training rows lie: among the caches, as one more."""
    return answers_folder(root) / "variants"


def annotations_folder(root: str) -> Path:
    """Return where the answers of annotators lie: in no cache, for they cost money."""
    return Path(root, ".annotations")


def checksum(file: BufferedReader) -> dict[str, str | int]:
    """Return ``sha256`` and ``bytes`` of a file just opened, read in small pieces."""
    return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": file.tell()}


def _checksums(folder: Path) -> dict[str, dict[str, str | int]]:
    """Return the checksum of every real file of a run, but of the manifest and of W&B's own."""
    found = {}
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            relative = path.relative_to(folder).as_posix()
            is_real = path.is_file() and not path.is_symlink()  # a pipe would be read for ever
            is_ours = relative != MANIFEST and not relative.startswith("wandb/")  # which goes on
            if is_real and is_ours and path.suffix != ".tmp":
                with suppress(OSError), path.open("rb") as file:
                    found[relative] = checksum(file)
    return dict(sorted(found.items()))


def _package_versions() -> dict[str, str | None]:
    from importlib import metadata  # slow to import, and only a claim needs it

    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("kd", "torch", "lightning", "transformers", "datasets"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def _git() -> dict[str, str | bool] | None:
    """Return the commit of the working directory and whether tracked files differ from it."""
    flags = "--no-optional-locks -c core.fsmonitor=false"  # write nothing, run no named program
    command = f"git {flags} status --porcelain=v2 --branch --untracked-files=no".split()
    try:
        answer = subprocess.run(command, capture_output=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = answer.stdout.decode(errors="replace").splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), "")
    return {"commit": commit, "dirty": any(not line.startswith("#") for line in lines)}


def read_manifest(version: str | Path) -> dict[str, Any]:
    """Return the manifest of a version folder; `RunError` where none can be read."""
    try:
        return dict(json.loads(Path(version, MANIFEST).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{version} is no run of kd: it has no readable {MANIFEST}") from error


@dataclass(frozen=True)
class Run:
    """A run directory, as its one writer holds it.

    Args:
        path: The directory, ``<root>/<name>/version_N``.
    """

    path: Path

    def update(
        self,
        *,
        seed: int | None = None,
        data: Mapping[str, Any] | None = None,
        references: Mapping[str, Any] | None = None,
        keys: Mapping[str, Any] | None = None,
        resumed_from: str | Path | None = None,
        wandb_id: str | None = None,
        results: Mapping[str, Any] | None = None,
        seconds: Mapping[str, float] | None = None,
    ) -> None:
        """Add facts to the manifest: mappings are merged, null leaves what is there."""
        facts: dict[str, object] = {"seed": seed, "data": data, "keys": keys, "results": results}
        facts |= {"references": references, "resumed_from": resumed_from, "wandb_id": wandb_id}
        facts |= {"seconds": seconds}
        manifest = read_manifest(self.path)
        for key, value in facts.items():
            if isinstance(value, Mapping):
                manifest[key] = {**(manifest.get(key) or {}), **value}
            elif value is not None:
                manifest[key] = value
        self._write_manifest(manifest)

    def finish(
        self, status: Literal["finished", "interrupted", "failed"], error: str | None = None
    ) -> None:
        """Write checksums, status and the error's sentence: the commit mark, so the last write."""
        manifest = read_manifest(self.path)
        manifest["checksums"] = _checksums(self.path)
        manifest["error"] = None if error is None else " ".join(error.split())
        manifest |= {"finished": datetime.now(UTC).isoformat(timespec="seconds"), "status": status}
        self._write_manifest(manifest)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Break off the run at an error in here."""
        try:
            yield
        except BaseException as error:
            self.break_off(error)
            raise

    def break_off(self, error: BaseException) -> None:
        """Write into the manifest that, and why, the run came to no good end."""
        is_stop = isinstance(error, KeyboardInterrupt | SystemExit)
        status: Literal["interrupted", "failed"] = "interrupted" if is_stop else "failed"
        told = None if is_stop else str(error) or type(error).__name__
        self._write_manifest(read_manifest(self.path) | {"status": status})  # checksums take time
        self.finish(status, told)

    def discard(self) -> None:
        """Remove the directory of a run in which nothing has happened yet."""
        shutil.rmtree(self.path)

    def write_text(self, name: str, text: str) -> Path:
        """Write a file of the run, given by its relative path, whole or not at all.

        `RunError` where the path leaves the run directory or cannot be written.
        """
        path = self.path / name
        try:
            if self.path.resolve() not in path.resolve().parents:
                raise RunError(f"{name!r} lies outside the run directory {self.path}")
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                file.write(text.encode())
        except (OSError, ValueError) as error:
            raise RunError(f"cannot write {name!r} of run {self.path}: {error}") from error
        return path

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        text = json.dumps(manifest, indent=2, default=str) + "\n"
        self.write_text(MANIFEST, mask(text))


def claim(root: str | Path, name: str, *, command: str, argv: Sequence[str] | None = None) -> Run:
    """Make a fresh run directory that no other process has, prove it writable, start its manifest.

    Call it once, on global rank 0, before anything else happens; the other ranks are told.

    Args:
        root: Folder of all runs (``run.root``).
        name: Name of the run (``run.name``).
        command: Subcommand, such as ``fit``.
        argv: Command line; that of this process by default. Secrets are masked.

    Returns:
        The run, with status ``running``.

    Raises:
        RunError: If no directory can be made and written there.
    """
    folder = Path(root, check_name(name))
    try:
        os.fspath(root).encode()  # else it fails in tokenizers, hours later
        if "://" in str(root) or not folder.resolve().is_relative_to(Path(root).resolve()):
            raise RunError(f"run.root: {folder} leads out of the local folder {root}")
        folder.mkdir(parents=True, exist_ok=True)
        path = _next_version(folder)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"run.root: cannot write a run under {folder} ({reason}); "
            "make room or rights there, or choose another folder"
        ) from error
    run = Run(path)
    run._write_manifest(
        {
            "command": command,
            "name": name,
            "version": int(path.name.removeprefix("version_")),
            "status": "running",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command_line": redact(sys.argv if argv is None else argv),
            "git": _git(),
            "versions": _package_versions(),
            "platform": platform.platform(),
            "hostname": platform.node(),
            "pid": os.getpid(),
            "process": process_identity(os.getpid()),
            "job": job_of_slurm(),
            **dict.fromkeys(("seed", "data", "references", "keys", "resumed_from", "wandb_id")),
            **dict.fromkeys(("results", "seconds", "finished", "error", "checksums")),
        }
    )
    return run


def _next_version(folder: Path) -> Path:
    """Make the next version folder; `mkdir` is exclusive, so N racing processes get N folders."""
    taken = [int(match[1]) for entry in os.listdir(folder) if (match := _VERSION.fullmatch(entry))]
    for number in itertools.count(max(taken, default=-1) + 1):
        with suppress(FileExistsError):
            path = folder / f"version_{number}"
            path.mkdir()
            break
    try:  # a full or locked disk shows now and not after hours
        with replacing(path / "probe") as file:
            file.write(os.urandom(1 << 20))
        (path / "probe").unlink()
    except OSError:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return path


class Resolved(NamedTuple):
    """What a reference was taken to mean: a version folder, and the exported student in it."""

    version: Path
    student: Path


def versions(folder: str | Path) -> list[Path]:
    """Return the version folders of a run that have a manifest, in the order of their numbers."""
    entries = os.listdir(folder) if os.path.isdir(folder) else []
    paths = [path for path in (Path(folder, entry) for entry in entries) if _is_version(path)]
    return sorted(paths, key=lambda path: int(path.name.removeprefix("version_")))


def _is_version(path: Path) -> bool:
    return bool(_VERSION.fullmatch(path.name)) and os.path.isfile(path / MANIFEST)


def is_reference(path: str | Path) -> bool:
    """Return whether a path names a run: its folder, a version of it or that version's student.

    An ordinary model folder, a hub id and a path where nothing is are no references.
    """
    path = Path(path)
    if _is_version(path) or (path.name == "student" and _is_version(path.parent)):
        return True
    return not os.path.isfile(path / "config.json") and bool(versions(path))


def resolve(reference: str | Path, *, root: str | Path | None = None) -> Resolved:
    """Return the version that a reference means.

    A run (``runs/teacher``) means its newest finished ``fit`` that holds a student; a version of
    it, or the student in there, means itself. With ``root``, ``teacher`` is looked for there too.
    `RunError` where no run is there or, with the state of each version, no student to take.
    """
    places = [Path(reference)] if root is None else [Path(reference), Path(root, reference)]
    path = next((place for place in places if is_reference(place)), None)
    if path is None:
        raise RunError(f"{reference} is no run: give runs/name or runs/name/version_3")
    if path.name == "student" and _is_version(path.parent):
        path = path.parent
    is_named = _is_version(path)
    states = {version: _state(version) for version in ([path] if is_named else versions(path))}
    for version, state in reversed(states.items()):
        student = version / "student"
        if state == "finished" or (is_named and os.path.isfile(student / "config.json")):
            return Resolved(version, student)
    told = ", ".join(f"{version.name} is {state}" for version, state in states.items())
    raise RunError(f"{path} has no finished run with a student to take: {told}")


def _state(version: Path) -> str:
    """Return "finished" where a student may be taken by its run's name, or in words why not."""
    manifest = read_manifest(version)
    command, status = manifest.get("command"), str(manifest.get("status"))
    if command != "fit":
        return f"a run of {command}"
    if status == "finished" and not os.path.isfile(version / "student" / "config.json"):
        return "finished without an exported student"
    return status


def verify(version: str | Path) -> list[str]:
    """Return what differs from the manifest of a version: a line for each file, or none."""
    manifest = read_manifest(version)
    if manifest.get("checksums") is None:
        return [f"{MANIFEST}: no checksums, because the run is still {manifest.get('status')}"]
    problems = []
    found = _checksums(Path(version))
    for name, wanted in manifest["checksums"].items():
        if name not in found:
            problems.append(f"{name}: missing")
        elif found[name]["bytes"] != wanted["bytes"]:
            problems.append(f"{name}: {found[name]['bytes']} bytes instead of {wanted['bytes']}")
        elif found[name] != wanted:
            problems.append(f"{name}: sha256 differs")
    return problems
