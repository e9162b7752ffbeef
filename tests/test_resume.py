"""A training that is cut off anywhere and continued makes what it would have made in one piece."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from lightning import Callback

from kd.cli import main
from kd.module import DistillationModule
from kd.runs import read_manifest, versions
from kd.saving import ResumeCheckpoint
from tests import soak

BATCHES = 34  # of an epoch; accumulation is over 3, validation after 11, 22 and 33 of them


class Cut(Callback):
    """End the training at a place: by a signal to its own process, or at once as kill -9 does.

    Args:
        at: Name of the hook.
        batch: Of the epoch, from 1.
        epoch: From 0.
        by: Name of the signals to send, one after the other, or ``death``.
    """

    def __init__(self, at: str, batch: int, epoch: int, by: str) -> None:
        self.place = at, epoch, batch
        self.by = by

    def on_train_batch_start(self, trainer, *rest):
        self.cut(trainer, "batch_start")

    def on_train_batch_end(self, trainer, *rest):
        self.cut(trainer, "batch_end")

    def on_validation_batch_start(self, trainer, *rest):
        self.cut(trainer, "validation")

    def on_train_epoch_end(self, trainer, *rest):
        self.cut(trainer, "epoch_end")

    def on_save_checkpoint(self, trainer, *rest):
        self.cut(trainer, "save")

    def cut(self, trainer, at):
        place = at, *trainer.datamodule.state_dict().values()
        if trainer.sanity_checking or place != self.place:
            return
        if self.by == "death":
            raise ZeroDivisionError
        self.place = None
        for name in self.by.split():
            os.kill(os.getpid(), signal.Signals[name])


@pytest.fixture(autouse=True)
def _allowed(monkeypatch):
    monkeypatch.setenv("KD_ALLOW_IMPORTS", "tests")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Return a recipe, the run that nobody touched, and the rows that it learnt from."""
    folder = tmp_path_factory.mktemp("world")
    recipe, journal = soak.make_world(folder, epochs=2), folder / "journal"
    journal.mkdir()
    os.environ["KD_ALLOW_IMPORTS"] = "tests"
    main(soak.command(recipe, folder / "runs", journal))
    return recipe, folder / "runs" / "soak" / "version_0", soak.rows_of(journal)


def train(recipe, root, journal, *words, cut=None):
    """Train, from where the newest run was cut off; return the exit code."""
    journal.mkdir(exist_ok=True)
    words = [*soak.command(recipe, root, journal), *words]
    if cut is not None:
        names = dict(zip(("at", "epoch", "batch", "by"), cut, strict=True))
        words += [
            f"--trainer.callbacks+={json.dumps({'class_path': 'tests.test_resume.Cut', 'init_args': names})}"
        ]
    try:
        main(words)
    except SystemExit as end:
        return end.code
    except ZeroDivisionError:
        return "death"
    return 0


PLACES = [
    ("batch_start", 0, 1),
    ("batch_end", 0, 5),  # inside an accumulation
    ("batch_end", 0, 6),  # after an optimizer step
    ("batch_end", 0, 12),  # after a step with a save
    ("batch_end", 0, 33),  # after a step, before a validation
    ("validation", 0, 11),  # with gradients waiting
    ("validation", 0, 33),
    ("batch_end", 0, 34),  # the last one, a short window
    ("epoch_end", 0, 34),
    ("batch_start", 1, 1),
    ("batch_end", 1, 20),
    ("save", 1, 15),
    ("validation", 1, 33),
    ("batch_end", 1, 34),  # the very last
    ("epoch_end", 1, 34),
]


@pytest.mark.fault(7)
@pytest.mark.fault(11)
@pytest.mark.parametrize("by", ["death", "SIGTERM"])
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_training_cut_off_anywhere_ends_as_if_it_never_was(world, tmp_path, capsys, place, by):
    recipe, whole, rows = world
    root, journal = tmp_path / "runs", tmp_path / "journal"
    code = train(recipe, root, journal, cut=(*place, by))
    assert code == ("death" if by == "death" else 143)
    first = root / "soak" / "version_0"
    status = read_manifest(first)["status"]
    assert status == ("failed" if by == "death" else "interrupted")
    if by == "SIGTERM":
        assert "is saved in" in capsys.readouterr().out or place[1:] == (1, 34)
    assert train(recipe, root, journal) == 0
    assert soak.differences(whole, versions(root / "soak")[-1]) == []
    assert soak.rows_of(journal) == rows
