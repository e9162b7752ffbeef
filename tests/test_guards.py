"""What would spoil a training stops it before it does, and is told in one sentence."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning import Callback

from kd.cli import main
from kd.errors import ConfigError, RunError
from kd.guards import FiniteGuard, explain_failure
from kd.objectives import Objective
from kd.runs import read_manifest
from tests import soak
from tests.test_module import data_of, make_module, trainer_of  # noqa: F401 - a fixture


class Steep(Objective):
    """A finite loss without a finite gradient."""

    uses_teacher = False

    def forward(self, student, teacher, batch):
        return (student.logits * 0.0).abs().sqrt().sum()


class Poison(Callback):
    """Make a teacher's answer, or a weight, infinite at a step."""

    def __init__(self, what: str, step: int) -> None:
        self.what = what
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if self.what == "answer" and trainer.global_step == self.step:
            answer = module.teacher.__call__

            class Broken(type(module.teacher)):
                def __call__(self, *words):
                    found = answer(*words)
                    found.logits[0, 0] = float("inf")
                    return found

            module.teacher.__class__ = Broken

    def on_train_batch_end(self, trainer, module, *rest):
        if self.what == "weight" and trainer.global_step == self.step:
            with torch.no_grad():
                next(module.parameters()).view(-1)[0] = float("nan")


class Hungry(Callback):
    """Leave a training little memory from some step on."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + (1 << 20)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@pytest.fixture(autouse=True)
def _allowed(monkeypatch):
    monkeypatch.setenv("KD_ALLOW_IMPORTS", "tests")


@pytest.fixture
def world(tmp_path):
    (tmp_path / "journal").mkdir()
    return soak.make_world(tmp_path, epochs=1)


def words_of(recipe, *words, poison=None):
    folder = recipe.parent
    given = [*soak.command(recipe, folder / "runs", folder / "journal"), *words]
    if poison:
        spec = {"class_path": f"tests.test_guards.{poison[0]}", "init_args": poison[1]}
        given.append(f"--trainer.callbacks+={json.dumps(spec)}")
    return given


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"].values()


@pytest.mark.fault(15)
def test_a_loss_that_is_no_number_stops_before_the_step(world, capsys):
    poison = "Poison", {"what": "answer", "step": 5}
    with pytest.raises(SystemExit) as end:
        main(words_of(world, poison=poison))
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert (
        "Step 6 was not made, as logits = nan" in told
        or "Step 6 was not made, as logits = inf" in told
    )
    assert "(labels = " in told
    assert "learning rate 0.0" in told
    run = world.parent / "runs" / "soak" / "version_0"
    kept = json.loads((run / "not_finite_rank_0.json").read_text())
    assert kept["step"] == 6
    assert len(kept["rows"]) == 8
    assert str(kept["rows"][0]) in told
    assert read_manifest(run)["status"] == "failed"
    assert "Step 6" in read_manifest(run)["error"]
    assert all(bool(weight.isfinite().all()) for weight in weights(run / "checkpoints/resume.ckpt"))


@pytest.mark.fault(16)
def test_a_gradient_that_is_no_number_stops_before_the_step(make_module, csv_file):  # noqa: F811
    module = make_module(taught=False, objectives={"steep": Steep()})
    before = [weight.detach().clone() for weight in module.parameters()]
    trainer = trainer_of(gradient_clip_val=1.0)
    with pytest.raises(RunError, match="Step 1 was not made, as the gradient of student.network"):
        trainer.fit(module, datamodule=data_of(csv_file))
    assert all(map(torch.equal, before, module.parameters()))


@pytest.mark.fault(16)
def test_weights_that_are_no_numbers_are_never_saved(world, capsys):
    poison = "Poison", {"what": "weight", "step": 8}
    with pytest.raises(SystemExit):
        main(words_of(world, "--run.save_every=1", poison=poison))
    told = capsys.readouterr().err
    assert "Nothing was saved at step 8, as student.network" in told
    saved = world.parent / "runs" / "soak" / "version_0" / "checkpoints"
    for name in ("best.ckpt", "resume.ckpt"):
        assert all(bool(weight.isfinite().all()) for weight in weights(saved / name))


@pytest.mark.fault(17)
def test_a_scaler_of_float16_may_skip_steps_but_not_for_ever():
    guard, network = FiniteGuard(), torch.nn.Linear(1, 1)
    rows, loss = torch.tensor([4]), torch.tensor(float("inf"))
    for turn in range(40):
        if turn == 19:  # one good step, and the count begins anew
            guard.check(torch.tensor(1.0), network, turn, 0.1, scaled=True)
            continue
        guard.see(loss, {"labels": loss}, rows)
        if turn < 39:
            guard.check(loss, network, turn, 0.1, scaled=True)
    with pytest.raises(RunError, match="labels = inf is not a finite number for 20 steps in a row"):
        guard.check(loss, network, 40, 0.1, scaled=True)


def test_without_memory_a_batch_size_is_named(world):
    poison = "Hungry", {"step": 3}
    clean = "--data.batch_size=64 --data.max_length=128 --trainer.accumulate_grad_batches=1".split()
    words = [*words_of(world, poison=poison), *clean, "--trainer.val_check_interval=1"]
    done = subprocess.run(
        [sys.executable, "-m", "kd", *words], cwd=soak.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert "data.batch_size=64: try data.batch_size=32 with" in done.stderr
    assert "trainer.accumulate_grad_batches=2" in done.stderr


def test_errors_of_pytorch_are_told_in_a_sentence():
    sizes = {"eval_batch_size": 128, "accumulate_grad_batches": 1}
    error = explain_failure(torch.OutOfMemoryError("CUDA out of memory"), sizes)
    assert isinstance(error, ConfigError)
    assert "data.eval_batch_size=128: try 64" in str(error)
    gone = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1")
    assert isinstance(explain_failure(gone, sizes), RunError)
    assert explain_failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), sizes) is None
    assert explain_failure(ValueError("gloo"), sizes) is None
