"""A training that is cut off anywhere and continued makes what it would have made in one piece."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
import torch
from lightning import Callback

from kd.checkpoints import SafeCheckpointIO
from kd.cli import main
from kd.module import DistillationModule
from kd.runs import read_manifest, versions
from tests import soak

BATCHES = 34  # of an epoch; accumulation is over 3, validation after 11, 22 and 33 of them


class Cut(Callback):
    """End the training at a place: by a signal to its own process, or at once as kill -9 does.

    Args:
        at: Name of the hook.
        batch: Of the epoch, from 1.
        epoch: From 0.
        by: Names of the signals to send, one after the other, or ``death``.
        rank: Whose process it is.
        to_all: Whether every process gets the signals.
    """

    def __init__(
        self, at: str, batch: int, epoch: int, by: str, rank: int = 0, to_all: bool = False
    ) -> None:
        self.place = at, epoch, batch
        self.by = by
        self.rank = rank
        self.to_all = to_all

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
        place = at, *trainer.datamodule.place
        if trainer.sanity_checking or place != self.place or trainer.global_rank != self.rank:
            return
        if self.by == "death":
            raise ZeroDivisionError
        self.place = None
        for name in self.by.split():
            if self.to_all:
                os.killpg(os.getpgid(0), signal.Signals[name])
            else:
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


def cutting(at, epoch, batch, by, **more):
    """Return the word of a command line that cuts its training."""
    given = {"at": at, "epoch": epoch, "batch": batch, "by": by, **more}
    spec = {"class_path": "tests.test_resume.Cut", "init_args": given}
    return f"--trainer.callbacks+={json.dumps(spec)}"


def train(recipe, root, journal, *words):
    """Train, from where the newest run was cut off; return the exit code."""
    journal.mkdir(exist_ok=True)
    try:
        main([*soak.command(recipe, root, journal), *words])
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
    code = train(recipe, root, journal, cutting(*place, by))
    assert code == ("death" if by == "death" else 143)
    first = root / "soak" / "version_0"
    status = read_manifest(first)["status"]
    assert status == ("failed" if by == "death" else "interrupted")
    if by == "SIGTERM":
        assert "is saved in" in capsys.readouterr().out or place[1:] == (1, 34)
    assert train(recipe, root, journal) == 0
    assert soak.differences(whole, versions(root / "soak")[-1]) == []
    assert soak.rows_of(journal) == rows


@pytest.mark.fault(9)
@pytest.mark.parametrize("lost", ["noise", "position", "schedules"])
def test_what_a_resume_needs_is_all_needed(world, tmp_path, monkeypatch, lost):
    recipe, whole, _ = world
    root, journal = tmp_path / "runs", tmp_path / "journal"
    assert train(recipe, root, journal, cutting("batch_end", 0, 33, "SIGTERM")) == 143
    if lost == "noise":
        monkeypatch.setattr(DistillationModule, "on_train_batch_start", lambda *_: None)
    elif lost == "position":
        monkeypatch.setattr("kd.data.datamodule.TextDataModule.load_state_dict", lambda *_: None)
    else:
        monkeypatch.setattr(DistillationModule, "on_validation_start", lambda *_: None)
    assert train(recipe, root, journal) == 0
    assert soak.differences(whole, versions(root / "soak")[-1]) != []


@pytest.mark.fault(10)
def test_the_number_of_augmentation_workers_changes_nothing(world, tmp_path):
    recipe, whole, rows = world
    root, journal = tmp_path / "runs", tmp_path / "journal"
    cut = cutting("batch_end", 0, 20, "SIGTERM")
    assert train(recipe, root, journal, "--data.augment.processes=2", cut) == 143
    shutil.rmtree(root / ".cache")  # the variants and the teacher's answers are made anew
    assert train(recipe, root, journal, "--data.augment.processes=1") == 0
    assert soak.differences(whole, versions(root / "soak")[-1]) == []
    assert soak.rows_of(journal) == rows


@pytest.mark.fault(6)
def test_a_resume_says_what_differs_and_sweeps_what_a_kill_left(world, tmp_path, capsys):
    recipe, _, _ = world
    root, journal = tmp_path / "runs", tmp_path / "journal"
    assert train(recipe, root, journal, cutting("batch_end", 0, 20, "SIGTERM")) == 143
    half = root / "soak" / "version_0" / "checkpoints" / ".resume.ckpt.0123abcd.tmp"
    half.write_bytes(b"half of a save")
    capsys.readouterr()
    words = ["--model.learning_rate=1e-3", "--trainer.max_epochs=1"]
    assert train(recipe, root, journal, *words) == 0
    told = capsys.readouterr().out
    assert "model.learning_rate was 0.02 and is 0.001; the checkpoint has its own" in told
    assert "trainer.max_epochs was 2 and is 1" in told
    assert "seed" not in told
    assert half.name in told
    assert not half.exists()


@pytest.mark.fault(4)
def test_auto_passes_over_a_damaged_checkpoint_and_says_so(world, tmp_path, capsys):
    recipe, whole, rows = world
    root, journal = tmp_path / "runs", tmp_path / "journal"
    assert train(recipe, root, journal, cutting("batch_end", 0, 20, "SIGTERM")) == 143
    assert train(recipe, root, journal, cutting("batch_end", 1, 20, "SIGTERM")) == 143
    broken = root / "soak" / "version_1" / "checkpoints" / "resume.ckpt"
    broken.write_bytes(broken.read_bytes()[:-1])
    capsys.readouterr()
    assert train(recipe, root, journal) == 0
    told = capsys.readouterr().out
    assert f"{broken} is damaged" in told
    last = versions(root / "soak")[-1]
    assert read_manifest(last)["resumed_from"] == str(root / "soak" / "version_0")
    assert soak.differences(whole, last) == []
    assert soak.rows_of(journal) == rows


@pytest.mark.fault(22)
def test_a_checkpoint_holds_tensors_and_plain_values(tmp_path):
    recipe, root = soak.make_world(tmp_path, epochs=1), tmp_path / "runs"
    assert train(recipe, root, tmp_path / "journal") == 0
    whole = root / "soak" / "version_0"
    kept = torch.load(whole / "checkpoints" / "resume.ckpt", weights_only=True)
    assert {"state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks"} <= kept.keys()


def test_a_student_of_a_budget_keeps_its_size_whatever_the_machine_does_now(
    tmp_path, csv_file, make_model, monkeypatch
):
    words = ["fit", f"--model.student.path={make_model()}", f"--data.source.train={csv_file}"]
    words += ["--model.student.shrink.max_latency_ms=10000", f"--run.root={tmp_path / 'runs'}"]
    words += ["--trainer.accelerator=cpu", "--data.max_length=16", "--run.resume=auto"]
    with pytest.raises(SystemExit):
        main([*words, cutting("batch_end", 0, 1, "SIGTERM")])
    monkeypatch.setattr("kd.budget._latency_ms", lambda *_: 1e9)
    main(words)
    assert read_manifest(tmp_path / "runs" / "run" / "version_1")["status"] == "finished"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (("batch_end", 0, 20), ["--trainer.limit_train_batches=20"]),
        (("epoch_end", 0, 20), ["--trainer.limit_train_batches=20"]),
        (("batch_end", 1, 7), ["--trainer.val_check_interval=1.0"]),
        (("validation", 1, 34), ["--trainer.val_check_interval=0.5"]),
        (("batch_end", 1, 20), ["--trainer.check_val_every_n_epoch=2"]),
        (("batch_end", 0, 30), ["--trainer.max_steps=14", "--trainer.max_epochs=-1"]),
        (("batch_end", 1, 6), ["--trainer.max_steps=14", "--trainer.max_epochs=-1"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("by", ["death", "SIGTERM"])
def test_every_way_to_cut_an_epoch_goes_on_exactly(world, tmp_path, place, words, by):
    recipe, _, _ = world
    stop = {"monitor": "val/loss", "patience": 50}
    early = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": stop}
    words = [*words, f"--trainer.callbacks+={json.dumps(early)}"]
    whole, root = tmp_path / "whole", tmp_path / "cut"
    assert train(recipe, whole, tmp_path / "one", *words) == 0
    assert train(recipe, root, tmp_path / "two", *words, cutting(*place, by)) in (143, "death")
    assert train(recipe, root, tmp_path / "two", *words) == 0
    ends = [versions(runs / "soak")[-1] for runs in (whole, root)]
    assert soak.differences(*ends) == []
    assert soak.rows_of(tmp_path / "one") == soak.rows_of(tmp_path / "two")


def test_a_training_that_decided_to_stop_does_not_go_on(world, tmp_path):
    recipe, _, _ = world
    stop = {"monitor": "val/loss", "patience": 0, "stopping_threshold": 100.0}
    stop |= {"check_on_train_epoch_end": False}
    early = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": stop}
    words = [f"--trainer.callbacks+={json.dumps(early)}", "--trainer.val_check_interval=12"]
    assert train(recipe, tmp_path / "runs", tmp_path / "journal", *words) == 0
    first = tmp_path / "runs" / "soak" / "version_0"
    steps = read_manifest(first)["results"]["steps"]
    assert steps < 24
    words.append(f"--run.resume={first}")
    assert train(recipe, tmp_path / "runs", tmp_path / "journal", *words) == 0
    again = read_manifest(tmp_path / "runs" / "soak" / "version_1")
    assert again["results"]["steps"] == steps


def test_a_resume_keeps_its_teacher_and_refuses_other_rows(world, tmp_path, capsys):
    recipe, _, _ = world
    text, rows = recipe.read_text(), (recipe.parent / "rows.csv").read_text()
    (tmp_path / "rows.csv").write_text(rows)
    mine = tmp_path / "soak.yaml"
    mine.write_text(text.replace(str(recipe.parent / "rows.csv"), str(tmp_path / "rows.csv")))
    root, journal = tmp_path / "runs", tmp_path / "journal"
    assert train(mine, root, journal, cutting("batch_end", 0, 20, "SIGTERM")) == 143
    half = root / "soak" / "version_0" / "metrics.csv"
    half.write_text(half.read_text() + "1.0,0")  # as a power cut leaves it
    (tmp_path / "rows.csv").write_text(rows.replace(",positive", ",negative", 1))
    assert train(mine, root, journal) == 2
    assert "rows are not those of" in capsys.readouterr().err
    (tmp_path / "rows.csv").write_text(rows)
    assert train(mine, root, journal) == 0


def test_a_resume_takes_the_teacher_that_was_taken(tmp_path, csv_file, make_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["fit", f"--model.student.path={make_model()}", f"--data.source.train={csv_file}"]
    words += ["--trainer.accelerator=cpu", "--data.max_length=16", "--trainer.max_epochs=1"]
    taught = [*words, "--model.teacher=ModelTeacher", "--model.teacher.path=runs/teacher"]
    main([*words, "--run.name=teacher"])
    with pytest.raises(SystemExit):
        main([*taught, cutting("batch_end", 0, 1, "SIGTERM")])
    main([*words, "--run.name=teacher", "--seed_everything=1"])
    main([*taught, "--run.resume=auto"])
    taken = [read_manifest(run)["references"]["runs/teacher"] for run in versions("runs/run")]
    assert taken == ["runs/teacher/version_0/student"] * 2


def test_only_a_whole_best_checkpoint_beside_the_resumed_one_is_taken(world, tmp_path):
    recipe, _, _ = world
    root, journal, canary = tmp_path / "runs", tmp_path / "journal", tmp_path / "id_rsa"
    canary.write_text("secret")
    assert train(recipe, root, journal, cutting("batch_end", 1, 20, "SIGTERM")) == 143
    saved = root / "soak" / "version_0" / "checkpoints" / "resume.ckpt"
    kept = torch.load(saved, weights_only=True)
    for state in kept["callbacks"].values():
        if "best_model_path" in state:
            state["best_model_path"] = str(canary)
    SafeCheckpointIO().save_checkpoint(kept, saved)
    assert train(recipe, root, journal) == 0
    assert not list(root.rglob("id_rsa*"))
