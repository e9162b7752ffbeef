"""A training that is asked to stop saves first and says so by its exit code, on every rank."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from kd.processes import process_identity
from kd.runs import read_manifest, versions
from kd.signals import StopSignals, end_processes, ended
from tests import soak
from tests.test_resume import cutting, train, world  # noqa: F401 - a fixture

SECONDS = 60


@pytest.fixture(autouse=True)
def _allowed(monkeypatch):
    monkeypatch.setenv("KD_ALLOW_IMPORTS", "tests")


@pytest.mark.fault(11)
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGUSR1", 143), ("SIGINT", 130)])
def test_the_first_signal_is_obeyed_after_the_next_step(world, tmp_path, capsys, name, code):  # noqa: F811
    recipe, _, _ = world
    root, journal = tmp_path / "runs", tmp_path / "journal"
    assert train(recipe, root, journal, cutting("batch_start", 0, 4, name)) == code
    told = capsys.readouterr()
    assert "stopped = step 2 is saved in" in told.out, "the second step is after the sixth batch"
    assert read_manifest(root / "soak" / "version_0")["status"] == "interrupted"
    assert len(soak.rows_of(journal)) == 6


@pytest.mark.fault(13)
@pytest.mark.parametrize("names", ["SIGTERM SIGTERM", "SIGINT SIGINT", "SIGTERM SIGINT"])
@pytest.mark.parametrize("at", ["batch_start", "save"])
def test_a_second_signal_ends_at_once_and_harms_no_save(world, tmp_path, names, at):  # noqa: F811
    recipe, whole, rows = world
    root, journal = tmp_path / "runs", tmp_path / "journal"
    code = 130 if names == "SIGINT SIGINT" else 143
    place = (at, 1, 4) if at == "batch_start" else (at, 1, 15)
    assert train(recipe, root, journal, cutting(*place, names)) == code
    assert len(soak.rows_of(journal)) == 34 + place[2]
    assert train(recipe, root, journal) == 0, "the last whole save is taken"
    assert soak.differences(whole, versions(root / "soak")[-1]) == []
    assert soak.rows_of(journal) == rows


def test_outside_of_training_a_signal_ends_at_once():
    signals, before = StopSignals(), signal.getsignal(signal.SIGTERM)
    with signals.handled():
        with pytest.raises(SystemExit) as end:
            os.kill(os.getpid(), signal.SIGTERM)
        assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    with signals.handled(), pytest.raises(SystemExit):
        signals.release()


@pytest.mark.fault(12)
def test_slurm_is_asked_to_queue_again_and_its_job_continues_its_own_run(
    world,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
):
    recipe, whole, rows = world
    root, journal, asked = tmp_path / "runs", tmp_path / "journal", tmp_path / "asked"
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    state = root / "soak" / "version_0" / "manifest.json"
    program.write_text(f'#!/bin/sh\necho "$@" > {asked}\ngrep -o interrupted {state} >> {asked}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    alone, cut = "--run.resume=null", cutting("batch_end", 0, 20, "SIGUSR1")
    assert train(recipe, root, journal, alone, cut) == 143
    assert asked.read_text().split() == ["requeue", "77", "interrupted"], "after all was written"
    assert "job = 77 is queued again" in capsys.readouterr().out
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    other = tmp_path / "other"
    assert train(recipe, root, other, alone, cutting("batch_end", 0, 12, "SIGTERM")) == 143
    assert "resume =" not in capsys.readouterr().out, "that was another job"
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert train(recipe, root, tmp_path / "third", alone) == 0
    assert "resume =" not in capsys.readouterr().out, "that was another recipe"
    assert train(recipe, root, journal, alone, cut) == 0
    last = versions(root / "soak")[-1]
    assert read_manifest(last)["resumed_from"] == str(root / "soak" / "version_0")
    assert soak.differences(whole, last) == []
    assert soak.rows_of(journal) == rows


def test_processes_that_do_not_listen_are_ended():
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True)"
    )
    script = f"{deaf}; time.sleep(99)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline()
        end_processes([process], (0.2, 0.5))
        assert process.returncode == -signal.SIGKILL


def test_a_process_of_our_own_does_not_outlive_an_error():
    script = "import time; time.sleep(99)"
    with pytest.raises(SystemExit), ended(subprocess.Popen([sys.executable, "-c", script])) as one:
        raise SystemExit(143)
    assert one.returncode == -signal.SIGTERM


# --- Two ranks -----------------------------------------------------------------------------------


def end(recipe, folder, *words):
    """Train on two ranks; return exit code, what was said, and the processes that are left."""
    folder.mkdir(exist_ok=True)
    (folder / "journal").mkdir(exist_ok=True)
    given = soak.command(recipe, folder / "runs", folder / "journal", ranks=2)
    process = soak.start([*given, *words], folder / "log.txt")
    try:
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
            if words and soak.lines_of(folder / "journal") >= 2 * 20 - 1:  # it is cut now
                deadline = min(deadline, time.monotonic() + SECONDS)
    finally:
        left = _group(process.pid)
        code = process.wait()
    return code, (folder / "log.txt").read_text(), left


def _group(leader):
    """Return the processes of a group that are alive some seconds later, and end them."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        told = subprocess.run(["ps", "-eo", "pgid=,pid=,stat="], capture_output=True, text=True)
        rows = [line.split() for line in told.stdout.splitlines()]
        left = [pid for group, pid, state in rows if int(group) == leader and state[0] != "Z"]
        if not left:
            return []
        time.sleep(0.5)
    os.killpg(leader, signal.SIGKILL)
    return left


@pytest.mark.slow
@pytest.mark.fault(8)
@pytest.mark.fault(11)
@pytest.mark.parametrize(
    ("name", "rank", "to_all", "code"),
    [
        ("SIGTERM", 0, False, 143),
        ("SIGTERM", 1, False, 143),
        ("SIGTERM", 0, True, 143),
        ("SIGINT", 0, True, 130),
    ],
)
def test_two_ranks_leave_together_and_go_on_exactly(world, tmp_path, name, rank, to_all, code):  # noqa: F811
    recipe, _, _ = world
    cut = cutting("batch_start", 0, 20, name, rank=rank, to_all=to_all)
    found, said, left = end(recipe, tmp_path / "cut", cut)
    assert found == code, said
    assert not left
    assert "stopped = step 7 is saved in" in said
    runs = versions(tmp_path / "cut" / "runs" / "soak")
    assert [read_manifest(run)["status"] for run in runs] == ["interrupted"]
    assert end(recipe, tmp_path / "cut")[0] == 0
    assert end(recipe, tmp_path / "whole")[0] == 0
    ends = [versions(tmp_path / name / "runs" / "soak")[-1] for name in ("whole", "cut")]
    assert soak.differences(*ends) == []
    rows = [soak.rows_of(tmp_path / name / "journal") for name in ("whole", "cut")]
    assert rows[0] == rows[1]


@pytest.mark.slow
@pytest.mark.fault(14)
def test_no_rank_outlives_a_torchrun_that_is_killed(world, tmp_path):  # noqa: F811
    recipe, _, _ = world
    journal, launcher = tmp_path / "journal", [*soak.TORCHRUN, "--nproc-per-node=2"]
    journal.mkdir()
    words = soak.command(recipe, tmp_path / "runs", journal, ranks=2)
    process = soak.start([*words, "--trainer.max_epochs=500"], tmp_path / "log.txt", launcher)
    while process.poll() is None and soak.lines_of(journal) < 20:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    ranks = [int(file.stem) for file in journal.glob("*.jsonl")]
    assert len(ranks) == 2
    try:
        soak.wait_for(ranks, 10)
    finally:
        for pid in filter(process_identity, ranks):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.fault(14)
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("by", ["death", "SIGKILL"])
def test_one_rank_that_fails_ends_them_all(world, tmp_path, by, rank):  # noqa: F811
    recipe, _, _ = world
    cut = cutting("batch_start", 0, 20, by, rank=rank)
    code, said, left = end(recipe, tmp_path / "cut", cut)
    assert code not in (0, 143)
    assert not left
    if by == "death":
        first = said.index("ZeroDivisionError")
        gone = said.find("Another process of this training has ended")
        assert gone == -1 or first < gone
    elif rank == 1:
        assert "Another process of this training has ended" in said
