"""Fits that belong together: each an ordinary run, in a process of its own, and made only once.

The run of a fit is found again by its recipe, gone on with where it was cut off, or made. What the
fits are for is not known here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd.console import in_words, print_line
from kd.errors import RunError
from kd.origins import essence, recipe_of
from kd.predictions import VALIDATION
from kd.processes import writer
from kd.runs import read_manifest, resolve, versions
from kd.signals import end_processes, ended, grace

__all__ = ["Fit", "Training"]

_LAST_LINES = 3  # of the log of a fit that failed
_SECONDS = 1.0  # between two looks at a run that another process writes


@dataclass
class Fit:
    """One training.

    Args:
        variant: Name of what it is a training of, beside others with other seeds.
        seed: Of the training.
        arguments: Its command line, after ``fit``.
        recipe: What that means, to the last default.
        version: Its run, once that is there.
    """

    variant: str
    seed: int
    arguments: list[str]
    recipe: dict[str, Any]
    version: Path = Path()

    @property
    def label(self) -> str:
        """What people call it."""
        return f"{self.variant}, seed {self.seed}"

    @property
    def manifest(self) -> dict[str, Any]:
        """What its run tells."""
        return read_manifest(self.version)

    @property
    def student(self) -> dict[str, Any]:
        """What its student is worth."""
        return dict(self.manifest["results"]["student"])

    @property
    def steps(self) -> int:
        """How long it was trained."""
        return int(self.manifest["results"]["steps"])


@dataclass(frozen=True)
class Training:
    """Makes the runs that are not there yet.

    Args:
        logs: Folder of what the fits say.
        root: Folder of all runs.
        name: What the names of those runs begin with that are used again.
        jobs: Fits at the same time.
        running: Their processes, those that have ended too.
    """

    logs: Path
    root: Path
    name: str
    jobs: int
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def train(self, fits: Sequence[Fit]) -> None:
        """Give each fit its run; recipes that count epochs get the steps of the first fit.

        The first fit of each teacher runs alone: it may have to train the teacher, and fills the
        cache for the others.

        Args:
            fits: In this order.

        Raises:
            RunError: If one fails, or they took unequal steps, or their rows have changed.
        """
        self.logs.mkdir()
        print_line(f"fits = {len(fits)}, logs in {self.logs}")
        first, together, taught = fits[0], list[Fit](), {"None"}
        for fit in fits:
            _equalise(fit, first)
            teacher = str(fit.recipe["model"]["teacher"])
            if fit is first or teacher not in taught:
                self._make(fit)
            else:
                together.append(fit)
            taught.add(teacher)
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                list(pool.map(self._make, together))  # after an error, what waits does not start
            except BaseException as error:
                end_processes(self.running, grace(error))
                raise
        if len({fit.steps for fit in fits}) > 1:
            told = ", ".join(f"{fit.label}: {fit.steps:,}" for fit in fits)
            raise RunError(f"The fits took unequal steps ({told}): set trainer.max_steps for all.")
        rows = {(fit.variant, fit.manifest["data"]["train"]) for fit in fits}
        if len(rows) > len({variant for variant, _ in rows}):
            raise RunError(
                f"The training rows have changed since some of the runs {self.root}/{self.name}* "
                "were made: remove those, or set another run.name."
            )

    def _make(self, fit: Fit) -> None:
        started = time.perf_counter()
        found = self._find(fit)
        fit.version = found or self._run(fit)
        how = "found" if found else f"after {in_words(time.perf_counter() - started)}"
        print_line(f"{fit.label} = {fit.student['accuracy']:.1%}, {how} in {fit.version}")

    def _same(self, fit: Fit) -> list[Path]:
        """Return the runs of a recipe and seed, newest first; the variant's name may be another."""
        folders = self.root.glob(f"{self.name}*")
        there = [version for folder in folders for version in reversed(versions(folder))]
        wanted = essence(fit.recipe)
        return [one for one in there if recipe_of(one) == wanted and _is_current(one)]

    def _find(self, fit: Fit) -> Path | None:
        """Return the finished run of a fit, if there is one."""
        for version in self._same(fit):
            # by another compare, or for one that was killed
            while writer(read_manifest(version)) is not None:
                time.sleep(_SECONDS)
            if read_manifest(version)["status"] == "finished":
                return version
        return None

    def _run(self, fit: Fit) -> Path:
        """Train, from where an earlier run of it was cut off, and return the run."""
        from kd.checkpoints import resumable  # torch comes with it, and help needs none

        command = [sys.executable, "-m", "kd", "fit", *fit.arguments]
        for version in self._same(fit):
            with suppress(RunError):  # it ended before its first save
                resumable(version, root=self.root, name=self.name)
                command.append(f"--run.resume={version}")
                break
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        shared = {"WANDB_RUN_GROUP": self.name}
        shared |= {"OMP_NUM_THREADS": str(threads)} if self.jobs > 1 else {}
        log = self.logs / f"{fit.variant}_{fit.seed}.log"
        with log.open("wb") as file:
            places: dict[str, Any] = {"stdout": file, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(command, env={**shared, **os.environ}, **places)
            self.running.append(process)
            with ended(process):
                code = process.wait()
        said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        run = next((line[6:] for line in said if line.startswith("run = ")), None)
        if code or run is None:
            raise RunError(f"{fit.label} failed, see {log}: {' | '.join(said[-_LAST_LINES:])}")
        return Path(run)


def _equalise(fit: Fit, first: Fit) -> None:
    """Give another recipe that counts epochs the steps of the first, and as many validations."""
    trainer = fit.recipe["trainer"]
    epochs, every = trainer["max_epochs"], trainer["val_check_interval"] or 1.0
    is_counted = trainer["max_steps"] != -1 or epochs == -1
    is_same = essence({**fit.recipe, "seed_everything": first.seed}) == essence(first.recipe)
    if is_same or is_counted or trainer["accumulate_grad_batches"] != 1:
        return
    if isinstance(every, float):  # a share of an epoch
        times = epochs / (trainer["check_val_every_n_epoch"] or 1) / every
        every = max(1, int(first.steps / max(1.0, times)))
    changes: dict[str, Any] = {"max_steps": first.steps, "max_epochs": -1}
    changes |= {"val_check_interval": every, "check_val_every_n_epoch": None}
    fit.recipe = {**fit.recipe, "trainer": {**trainer, **changes}}
    fit.arguments += [f"--trainer.{key}={json.dumps(value)}" for key, value in changes.items()]


def _is_current(version: Path) -> bool:
    """Tell whether a run is of this kd, and what it refers to has not been made anew since."""
    from kd.references import find_annotations  # likewise

    manifest = read_manifest(version)
    if manifest["status"] == "finished" and not (version / VALIDATION).is_file():
        return False
    for path, taken in (manifest.get("references") or {}).items():
        is_model = Path(taken).name == "student"
        with suppress(RunError):
            if str(resolve(path).student if is_model else find_annotations(path)) == taken:
                continue
        return False
    return True
