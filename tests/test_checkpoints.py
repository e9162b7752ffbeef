import json
import os
import pickle
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from kd import checkpoints, files, runs
from kd.checkpoints import SafeCheckpointIO, last_valid, resumable
from kd.errors import RunError
from kd.files import sweep
from kd.processes import process_identity
from kd.runs import claim

IO = SafeCheckpointIO()
DEAD = 1 << 22 | 1  # above all numbers that Linux gives


def checkpoint(step=1, size=1000):
    return {"step": step, "state_dict": {"weight": torch.full((size,), float(step))}}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "checkpoints" / "resume.ckpt"
    IO.save_checkpoint(checkpoint(), path)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_read_again_and_marked(saved):
    IO.save_checkpoint(checkpoint(2), str(saved))
    loaded = IO.load_checkpoint(str(saved), weights_only=False)
    assert loaded["step"] == loaded["state_dict"]["weight"].mean() == 2
    assert names(saved.parent) == ["resume.ckpt", "resume.ckpt.json"]
    with saved.open("rb") as file:
        expected = runs.checksum(file)
    assert json.loads(saved.with_name("resume.ckpt.json").read_text()) == [expected]
    assert expected["bytes"] == saved.stat().st_size


SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from kd.checkpoints import SafeCheckpointIO, last_valid

torch.set_num_threads(1)
io, path = SafeCheckpointIO(), Path(sys.argv[1], "resume.ckpt")

def save(step):
    io.save_checkpoint({"step": step, "w": torch.full((250_000,), float(step))}, path)

def dying(original):
    def function(*arguments, **keywords):
        global calls
        calls -= 1
        if calls < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)
    return function

save(1)
for turn in range(28):
    step, calls = turn + 2, turn
    pid = os.fork()
    if pid == 0 and turn < 16:  # die before each call that touches the disk, one after another
        os.open, os.fsync, os.replace = dying(os.open), dying(os.fsync), dying(os.replace)
        save(step)
        os._exit(0)
    while pid == 0:
        save(step)
        step += 1
    if turn >= 16:  # die anywhere
        time.sleep(random.uniform(0.005, 0.12))
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert last_valid(path.parent) == path
    loaded = io.load_checkpoint(path)
    assert (loaded["w"] == loaded["step"]).all()
    print(turn, loaded["step"], code)
"""


@pytest.mark.fault(1)
def test_no_death_in_a_save_costs_the_committed_file(tmp_path):
    elsewhere = "/dev/shm" if os.path.isdir("/dev/shm") else "/tmp"
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env={**os.environ, "TMPDIR": elsewhere},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr
    turns = [tuple(map(int, line.split())) for line in answer.stdout.splitlines()]
    assert [code for _, _, code in turns] == [-9] * 12 + [0] * 4 + [-9] * 12
    assert turns[0][1] == 1  # the first death came before anything was replaced
    assert turns[15][1] == 17
    leftovers = [name for name in names(tmp_path) if name.endswith(".tmp")]
    assert sorted(path.name for path in sweep(tmp_path)) == leftovers
    assert names(tmp_path) == ["resume.ckpt", "resume.ckpt.json"]


class Full:
    """A file on a disk that is full after a number of bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= memoryview(data).nbytes
        if self.room < 0:
            raise OSError(28, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.fault(2)
@pytest.mark.parametrize("room", [0, 10, 1000, 30_000, 40_700])
def test_full_disk_keeps_the_last_good_file(saved, monkeypatch, room):
    @contextmanager
    def full(path):
        with files.replacing(path) as file:
            yield Full(file, room)

    monkeypatch.setattr(checkpoints, "replacing", full)
    with pytest.raises(RunError, match=r"disk is full, 0\.0 MB are needed and [0-9.]+ MB are free"):
        IO.save_checkpoint(checkpoint(2, 10_000), saved)
    assert IO.load_checkpoint(saved)["step"] == 1
    assert names(saved.parent) == ["resume.ckpt", "resume.ckpt.json"]


@pytest.mark.fault(2)
def test_really_full_disk(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "kd-test", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no right to mount")
    try:
        path = tmp_path / "resume.ckpt"
        IO.save_checkpoint(checkpoint(1, 800_000), path)
        with pytest.raises(RunError, match=r"disk is full, 4\.0 MB are needed and 3\.\d MB are"):
            IO.save_checkpoint(checkpoint(2, 1_000_000), path)
        assert IO.load_checkpoint(path)["step"] == 1
        (tmp_path / "filler").write_bytes(bytes(3_000_000))
        with pytest.raises(RunError, match=r"run\.root: .*No space left on device"):
            claim(tmp_path, "a", command="fit")
        assert names(tmp_path) == ["a", "filler", "resume.ckpt", "resume.ckpt.json"]
        assert names(tmp_path / "a") == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.fault(3)
@pytest.mark.parametrize(("place", "call"), [(os, "fsync"), (os, "replace"), (Path, "open")])
def test_failing_disk_keeps_the_last_good_file(saved, monkeypatch, place, call):
    def broken(*arguments):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(place, call, broken)
        with pytest.raises(RunError, match="Permission denied; the last good file is kept"):
            IO.save_checkpoint(checkpoint(2), saved)
    assert IO.load_checkpoint(saved)["step"] == 1
    assert names(saved.parent) == ["resume.ckpt", "resume.ckpt.json"]
    with pytest.raises(RunError, match="cannot save checkpoint"):
        IO.save_checkpoint(checkpoint(), saved / "under_a_file" / "x.ckpt")


def test_what_cannot_be_saved_is_told(saved):
    with pytest.raises(RunError, match="cannot save checkpoint"):
        IO.save_checkpoint({"function": lambda: None}, saved)
    with pytest.raises(RunError, match="storage options"):
        IO.save_checkpoint(checkpoint(), saved, storage_options={})
    assert IO.load_checkpoint(saved)["step"] == 1
    assert names(saved.parent) == ["resume.ckpt", "resume.ckpt.json"]


def test_remove_takes_the_mark_too(saved):
    IO.remove_checkpoint(saved)
    IO.remove_checkpoint(saved)
    assert names(saved.parent) == []
    saved.mkdir()
    (saved / "shard").touch()
    IO.remove_checkpoint(str(saved))
    assert names(saved.parent) == []


@pytest.mark.fault(6)
def test_sweep_takes_only_own_leftovers(tmp_path):
    keep = ["notes.tmp", ".hidden.tmp", ".x.ckpt.tmp", "resume.ckpt", ".x.0123456.tmp"]
    for name in [*keep, ".resume.ckpt.0a1b2c3d.tmp"]:
        (tmp_path / name).write_text("")
    assert [path.name for path in sweep(tmp_path)] == [".resume.ckpt.0a1b2c3d.tmp"]
    assert names(tmp_path) == sorted(keep)


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def sentence(path):
    with pytest.raises(RunError) as caught:
        IO.load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.fault(4)
def test_damaged_checkpoints_are_told_in_a_sentence(saved):
    whole = saved.read_bytes()
    saved.write_bytes(b"")
    assert "is empty" in sentence(saved)
    saved.write_bytes(whole[:-100])
    assert f"cut off: {len(whole) - 100} bytes instead of {len(whole)}" in sentence(saved)
    for place in (0, 40, len(whole) // 2, -1):
        saved.write_bytes(whole)
        flip(saved, place)
        assert "was damaged after it was saved" in sentence(saved)
        assert last_valid(saved.parent) is None
    saved.write_bytes(whole)
    saved.with_name("resume.ckpt.json").write_text("[{")
    assert "unreadable mark" in sentence(saved)
    assert last_valid(saved.parent) is None
    saved.unlink()
    assert "No such file" in sentence(saved)
    assert "Is a directory" in sentence(saved.parent)


def test_damage_shows_without_a_mark_too(saved):
    saved.with_name("resume.ckpt.json").unlink()
    assert IO.load_checkpoint(saved)["step"] == 1
    whole = saved.read_bytes()
    for size in (3, 10, 100, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:size])
        sentence(saved)
    torch.save([1, 2], saved)
    assert "holds a list" in sentence(saved)


class Evil:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (os.mkdir, (str(self.canary),))


def evil_files(folder, canary):
    content = {"state_dict": {"weight": torch.zeros(2)}, "callbacks": Evil(canary)}
    torch.save(content, folder / "zip.ckpt")
    torch.save(content, folder / "legacy.ckpt", _use_new_zipfile_serialization=False)
    (folder / "raw.ckpt").write_bytes(pickle.dumps(content["callbacks"]))
    (folder / "named.safetensors").write_bytes(pickle.dumps(content["callbacks"]))
    return [folder / name for name in ("zip.ckpt", "legacy.ckpt", "raw.ckpt", "named.safetensors")]


@pytest.mark.parametrize("force", ["", "1"])
@pytest.mark.parametrize("weights_only", [None, False, True])
def test_no_code_of_a_checkpoint_runs(tmp_path, monkeypatch, force, weights_only):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)
    canary = tmp_path / "canary"
    for path in evil_files(tmp_path, canary):
        with pytest.raises(RunError, match="could run code") as caught:
            IO.load_checkpoint(path, weights_only=weights_only)
        assert "\n" not in str(caught.value)
    assert not canary.exists()
    torch.load(tmp_path / "zip.ckpt", weights_only=False)  # the bait is real
    assert canary.exists()


URLS = ["http://host/x.ckpt", "HTTPS://host/x.ckpt", "s3://bucket/x.ckpt", "file:///x.ckpt"]
URLS += ["simplecache::http://host/x.ckpt", Path("https://host/x.ckpt")]


@pytest.mark.parametrize("url", URLS)
def test_urls_are_refused(url, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="is a URL"):
        IO.load_checkpoint(url)
    with pytest.raises(RunError, match="is a URL"):
        IO.save_checkpoint(checkpoint(), url)
    assert names(tmp_path) == []


@pytest.mark.filterwarnings("ignore")
def test_lightning_saves_and_resumes_through_it(tmp_path):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"accelerator": "cpu", "limit_val_batches": 0, "default_root_dir": tmp_path}

    def trainer(steps):
        return Trainer(max_steps=steps, plugins=[SafeCheckpointIO()], **quiet)

    first = trainer(2)
    first.fit(BoringModel())
    first.save_checkpoint(tmp_path / "resume.ckpt")
    assert last_valid(tmp_path) == tmp_path / "resume.ckpt"
    second = trainer(3)
    second.fit(BoringModel(), ckpt_path=tmp_path / "resume.ckpt", weights_only=False)
    assert second.global_step == 3
    for path, told in [
        (evil_files(tmp_path, tmp_path / "canary")[0], "code"),
        ("http://x/y", "URL"),
    ]:
        with pytest.raises(RunError, match=told):
            trainer(4).fit(BoringModel(), ckpt_path=path, weights_only=False)
    assert not (tmp_path / "canary").exists()


@pytest.mark.fault(4)
def test_last_valid_is_the_newest_whole_one(tmp_path):
    assert last_valid(tmp_path) is None
    for age, name in enumerate(["resume.ckpt", "best.ckpt"]):
        IO.save_checkpoint(checkpoint(), tmp_path / name)
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    assert last_valid(tmp_path) == tmp_path / "best.ckpt"
    flip(tmp_path / "best.ckpt", 500)
    assert last_valid(tmp_path) == tmp_path / "resume.ckpt"
    (tmp_path / "resume.ckpt.json").unlink()
    assert last_valid(tmp_path) is None


def started(root, status=None, command="fit", save=True):
    """Make a version as another process leaves it: one that has died, when it has no status."""
    run = claim(root, "a", command=command)
    if save:
        IO.save_checkpoint(checkpoint(), run.path / "checkpoints" / "resume.ckpt")
    facts = {**runs.read_manifest(run.path), "pid": DEAD, "process": None}
    (run.path / "manifest.json").write_text(json.dumps(facts))
    if status:
        run.finish(status)
    return run.path


def auto(root):
    return resumable("auto", root=root, name="a")


@pytest.mark.fault(4)
def test_auto_takes_the_newest_that_was_cut_off(tmp_path):
    assert auto(tmp_path) is None
    assert resumable(None, root=tmp_path, name="a") is None
    killed = started(tmp_path)
    assert auto(tmp_path) == killed / "checkpoints" / "resume.ckpt"
    failed = started(tmp_path, "failed")
    started(tmp_path, "interrupted", save=False)
    started(tmp_path, "interrupted", command="test")
    assert auto(tmp_path) == failed / "checkpoints" / "resume.ckpt"
    flip(failed / "checkpoints" / "resume.ckpt", 700)
    assert auto(tmp_path) == killed / "checkpoints" / "resume.ckpt"
    started(tmp_path, "finished")
    assert auto(tmp_path) is None
    again = started(tmp_path, "interrupted")
    assert auto(tmp_path) == again / "checkpoints" / "resume.ckpt"


@pytest.mark.fault(4)
def test_a_named_version_gives_its_checkpoint_or_a_sentence(tmp_path):
    path = started(tmp_path, "finished")
    resume = path / "checkpoints" / "resume.ckpt"
    assert resumable(str(path), root="elsewhere", name="b") == resume
    IO.save_checkpoint(checkpoint(), path / "checkpoints" / "best.ckpt")
    flip(resume, 500)
    with pytest.raises(RunError, match=r"damaged or was never committed; .*best\.ckpt is whole"):
        resumable(path, root=tmp_path, name="a")
    IO.remove_checkpoint(resume)
    with pytest.raises(RunError, match=r"run\.resume: .* has no resume\.ckpt"):
        resumable(path, root=tmp_path, name="a")
    with pytest.raises(RunError, match="is no run of kd"):
        resumable(path / "none", root=tmp_path, name="a")


@pytest.mark.fault(20)
@pytest.mark.parametrize("told", [True, False])
def test_a_living_run_is_refused(tmp_path, told):
    path = started(tmp_path)
    facts = runs.read_manifest(path)

    def write(**changes):
        (path / "manifest.json").write_text(json.dumps({**facts, **changes}))

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        identity = process_identity(process.pid) if told else None
        write(pid=process.pid, process=identity)
        for resume in ("auto", path):
            with pytest.raises(RunError, match=f"written by process {process.pid}"):
                resumable(resume, root=tmp_path, name="a")
        write(pid=process.pid, process=identity, hostname="elsewhere")
        assert auto(tmp_path)
        write(pid=process.pid, process=identity, status="interrupted")
        assert auto(tmp_path)
        write(pid=process.pid, process="0")  # the number was given to another process
        assert auto(tmp_path)
        process.communicate(b"\n")
    write(pid=process.pid, process=identity)
    assert auto(tmp_path)
