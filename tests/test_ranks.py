"""Training on several ranks is training on one: the same global batches, means and weights."""

from __future__ import annotations

import csv
import dataclasses
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy
from safetensors.torch import load_file
from torch import Tensor, distributed, multiprocessing

from kd import objectives
from kd.cli import main
from kd.runs import read_manifest, verify
from kd.types import Batch, Outputs
from tests.conftest import LABELS, TEXTS, MakeModel
from tests.objectives.test_fuzz import (
    CASES,
    STUDENT,
    TEACHER,
    every_tensor,
    outputs,
    some_batch,
    taught,
)

ROOT = Path(__file__).parents[1]
COMPARING = {"RelationalKD", "SimilarityKD", "ContrastiveKD", "DistKD"}
BY_ROW = [(name, case) for name, cases in CASES.items() for case in cases if name not in COMPARING]
RANKS, ROWS = 2, 7


# --- The mean over the ranks, by hand ------------------------------------------------------------


def share_of(whole: Any, mine: slice) -> Any:
    """Return some rows of what holds tensors of rows; leaves that had a gradient have one."""
    if isinstance(whole, Tensor):
        return whole.detach()[mine].clone().requires_grad_(whole.requires_grad)
    if isinstance(whole, Outputs | Batch):
        fields = {field.name: getattr(whole, field.name) for field in dataclasses.fields(whole)}
        return type(whole)(**{name: share_of(value, mine) for name, value in fields.items()})
    if isinstance(whole, Mapping):
        return {name: share_of(value, mine) for name, value in whole.items()}
    return tuple(share_of(value, mine) for value in whole) if isinstance(whole, tuple) else whole


def check_every_term(rank: int, meeting: str) -> None:
    """Compare this rank's share of the loss of random batches with what one rank alone finds."""
    torch.manual_seed(0)
    length, found = 5, []
    mask = (torch.arange(length) < torch.tensor([[5], [3], [1], [5], [2], [4], [5]])).long()
    for name, case in BY_ROW:
        term = getattr(objectives, name)(**case)
        term.bind(STUDENT, TEACHER)
        for is_weighted in (False, True):
            student, teacher = (outputs(info, ROWS, mask, 1.0) for info in (STUDENT, TEACHER))
            whole = taught(student, mask, 1.0), teacher, some_batch(mask, is_weighted)
            value = term(*whole)
            gradients = torch.autograd.grad(value, every_tensor(whole[0]), allow_unused=True)
            found.append((name, term, whole, value.detach(), gradients))
    distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=RANKS)
    mine = slice(rank, None, RANKS)
    for name, term, whole, value, gradients in found:
        parts = [share_of(one, mine) for one in whole]
        ours = term(*parts)
        leaves = every_tensor(parts[0])
        made = torch.autograd.grad(ours, leaves, allow_unused=True)
        for wanted, got in zip(gradients, made, strict=True):
            assert (wanted is None) == (got is None), name
            if wanted is not None:
                torch.testing.assert_close(
                    got / RANKS, wanted[mine], rtol=1e-4, atol=1e-7, msg=name
                )
        mean = ours.detach().clone()
        distributed.all_reduce(mean)
        torch.testing.assert_close(mean / RANKS, value, rtol=1e-5, atol=1e-7, msg=name)
        if rank == 0:
            with torch.no_grad():  # waits for nobody: the others are not asked
                assert torch.isfinite(term(*parts)), name
    distributed.destroy_process_group()


def test_gradient_of_every_mean_over_rows_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    multiprocessing.spawn(check_every_term, (str(tmp_path / "meeting"),), RANKS)


@pytest.mark.parametrize("name", sorted(COMPARING))
def test_terms_that_compare_rows_say_that_they_see_one_rank(name: str) -> None:
    told = " ".join(str(getattr(objectives, name).__doc__).split())
    assert re.search(r"On several ranks .* this rank's|On several ranks each .* its own rows", told)


# --- Whole runs: real processes, one directory, the same weights ---------------------------------


@pytest.fixture
def fit(tmp_path: Path, make_model: MakeModel) -> list[str]:
    """A fit of 37 rows, one in three without a label, in batches of 12: the last has one row.

    Nothing is random but the order: the ranks would draw other dropout.
    """
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    teacher = make_model("teacher", initializer_range=0.5)
    rows = [f"{TEXTS[place % 8]} {place}" for place in range(37)]
    named = ["" if place % 3 == 0 else LABELS[place % 8 < 4] for place in range(37)]
    for name, labels in (("train", named), ("validation", [LABELS[p % 2] for p in range(37)])):
        lines = [
            f'"{row}",{label},{1 + place % 4}'
            for place, (row, label) in enumerate(zip(rows, labels, strict=True))
        ]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label,sure", *lines]) + "\n")
    terms = "{labels: HardLabel, logits: {class_path: LogitKD, init_args: {by_confidence: true}}}"
    return [
        "fit",
        f"--model.student.path={make_model('student', **still)}",
        f"--model.teacher={{class_path: ModelTeacher, init_args: {{path: {teacher}}}}}",
        f"--model.objectives={terms}",
        "--model.learning_rate=1e-3",
        f"--data.source.train={tmp_path / 'train.csv'}",
        f"--data.source.validation={tmp_path / 'validation.csv'}",
        "--data.weight_column=sure",
        "--data.on_empty_label=unlabelled",
        "--data.batch_size=12",
        "--trainer.max_epochs=3",
        "--trainer.check_val_every_n_epoch=3",  # once: the best student is the last
        "--trainer.accelerator=cpu",
        "--trainer.log_every_n_steps=1",
    ]


def start(program: list[str], **environment: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *program],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in environment.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def finished(root: Path, *processes: subprocess.Popen[str]) -> Path:
    """Return the student of the one run under a root, once all its processes ended well."""
    told = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), told
    assert sum(output.count("run = ") for output in told) == 1, "rank 0 alone has a directory"
    (run,) = (path for path in root.glob("*/version_*") if path.parent.name != ".cache")
    assert run == root / "run" / "version_0"
    assert read_manifest(run)["status"] == "finished"
    assert verify(run) == []
    return run / "student"


def losses(student: Path) -> list[float]:
    with (student.parent / "metrics.csv").open() as file:
        return [float(line["train/loss"]) for line in csv.DictReader(file) if line["train/loss"]]


def farthest(student: Path, other: Path) -> float:
    first, second = (load_file(path / "model.safetensors") for path in (student, other))
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def on(ranks: int, nodes: int = 1) -> list[str]:
    return ["--trainer.strategy=ddp", f"--trainer.num_nodes={nodes}", f"--trainer.devices={ranks}"]


def test_ddp_copies_no_gradient_and_sends_no_buffer() -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    strategy = Trainer(strategy="ddp", accelerator="cpu", devices=2, logger=False).strategy
    assert isinstance(strategy, DDPStrategy)
    assert strategy._ddp_kwargs == {"gradient_as_bucket_view": True, "broadcast_buffers": False}
    assert strategy._start_method == "popen"


@pytest.mark.slow
def test_four_processes_and_two_nodes_of_slurm_train_as_one(fit: list[str], tmp_path: Path) -> None:
    roots = [tmp_path / name for name in ("one", "four", "slurm")]
    program, four, slurm = (["train.py", *fit, f"--run.root={root}"] for root in roots)
    job = {"SLURM_JOB_ID": 4217, "SLURM_JOB_NAME": "kd", "MASTER_PORT": free_port()}
    job |= {"SLURM_NTASKS": 2, "SLURM_NNODES": 2, "SLURM_NTASKS_PER_NODE": 1}
    job |= {"SLURM_NODELIST": "localhost", "SLURM_LOCALID": 0}
    nodes = [
        start([*slurm, *on(1, nodes=2)], **job, SLURM_PROCID=rank, SLURM_NODEID=rank)
        for rank in range(2)
    ]
    started = [[start(program)], [start([*four, *on(4)])], nodes]
    one, *others = (finished(root, *ps) for root, ps in zip(roots, started, strict=True))
    for other in others:
        assert farthest(one, other) < 1e-5
        assert losses(other) == pytest.approx(losses(one), rel=1e-4)
    assert farthest(one, tmp_path / "student") > 1e-3, "it has learnt"


@pytest.mark.slow
def test_two_launchers_of_torchrun_accumulate_as_one_process(
    fit: list[str], tmp_path: Path
) -> None:
    roots = [tmp_path / name for name in ("one", "two")]
    program, two = (
        [*fit, f"--run.root={root}", "--trainer.accumulate_grad_batches=2"] for root in roots
    )
    words = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
    words += [f"--master-port={free_port()}", "-m", "kd", *two, *on(1, nodes=2)]
    nodes = [start(["-m", "torch.distributed.run", f"--node-rank={n}", *words]) for n in range(2)]
    started = [[start(["train.py", *program])], nodes]
    one, other = (finished(root, *ps) for root, ps in zip(roots, started, strict=True))
    assert farthest(one, other) < 1e-5
