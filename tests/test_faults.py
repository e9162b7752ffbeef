"""The table of faults is whole, and the rows that no other file shows."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from statistics import median

import pytest
import torch

from kd.checkpoints import SafeCheckpointIO
from kd.checks.models import check_reading
from kd.cli import main
from kd.data.augment import WordDrop
from kd.data.sentence import Sentence
from kd.data.variants import Augmentation, make_variants
from kd.errors import RunError
from kd.models import EncoderClassifier
from kd.module import DistillationModule
from kd.runs import claim
from kd.serve import serve
from kd.types import Row
from tests.conftest import LABELS, MakeModel
from tests.faults import FAULTS, ROOT, Guard, marked, outcomes, table, without

README = re.compile(r"<!-- faults: .*? -->\n(.*?)<!-- end of faults -->", re.DOTALL)


def test_every_row_has_a_promise_a_guard_and_a_test() -> None:
    tests = marked()
    assert [one.row for one in FAULTS] == list(range(1, 46))
    for one in FAULTS:
        assert one.guards, f"row {one.row} has no guard"
        assert tests.get(one.row), f"row {one.row} has no test"
    assert tests.keys() <= {one.row for one in FAULTS}


def test_every_mark_is_read() -> None:
    sources = [path.read_text() for path in (ROOT / "tests").rglob("*.py")]
    written = sum(len(re.findall(r"\.fault\(\d", source)) for source in sources)
    assert written == sum(map(len, marked().values())), "a mark stands above a test, with one row"


@pytest.mark.parametrize(
    "guard", sorted({guard for one in FAULTS for guard in one.guards}), ids=lambda guard: guard.file
)
def test_every_guard_is_in_one_place_and_leaves_python(guard: Guard) -> None:
    source = (ROOT / guard.file).read_text()
    assert source.count(guard.text) == 1, guard.text
    compile(source.replace(guard.text, guard.without), guard.file, "exec")


def test_the_readme_has_the_table() -> None:
    found = README.search((ROOT / "README.md").read_text())
    assert found, "the README has no table of faults"
    assert found[1].strip() == table().strip(), "paste what python -m tests.faults --table prints"


def test_a_test_that_fails_without_its_guard_is_told_from_one_that_does_not(tmp_path: Path) -> None:
    guard = Guard("limit.py", "if number > 9:", "if False:")
    (tmp_path / "limit.py").write_text(
        "def check(number):\n    if number > 9:\n        raise ValueError\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_limit.py").write_text(
        "import limit, pytest\n\n"
        "@pytest.mark.slow\n@pytest.mark.parametrize('n', [10, 11])\ndef test_much(n):\n"
        "    with pytest.raises(ValueError):\n        limit.check(n)\n\n"
        "def test_little():\n    limit.check(1)\n\n"
        "def test_elsewhere():\n    pytest.skip()\n"
    )
    names = [f"tests/test_limit.py::test_{name}" for name in ("much", "little", "elsewhere")]
    assert [*outcomes(tmp_path, names).values()] == ["passed", "passed", "skipped"]
    without((guard,), tmp_path)
    assert [*outcomes(tmp_path, names).values()] == ["failure", "passed", "skipped"]
    with pytest.raises(ValueError, match="0 times"):
        without((guard,), tmp_path)
    gone = ["tests/test_limit.py::test_gone"]
    assert [*outcomes(tmp_path, gone).values()] == ["did not run"]


# --- rows that no other file shows ---------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "kd-test", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no right to mount")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.fault(3)
def test_a_disk_that_is_read_only_is_an_error_before_a_run_and_at_each_save(disk: Path) -> None:
    path = disk / "resume.ckpt"
    SafeCheckpointIO().save_checkpoint({"step": 1, "weight": torch.zeros(9)}, path)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(RunError, match=r"run\.root: cannot write .*Read-only file system"):
        claim(disk, "a", command="fit")
    with pytest.raises(RunError, match=r"Read-only file system; the last good file is kept"):
        SafeCheckpointIO().save_checkpoint({"step": 2, "weight": torch.zeros(9)}, path)
    assert SafeCheckpointIO().load_checkpoint(path)["step"] == 1


def words_of(rows: Path, student: Path, root: Path) -> list[str]:
    words = [f"--model.student.path={student}", f"--data.source.train={rows}"]
    words += [f"--run.root={root}", "--trainer.accelerator=cpu", "--data.batch_size=8"]
    return ["fit", *words, "--data.max_length=16", "--trainer.log_every_n_steps=1"]


@pytest.mark.fault(18)
def test_the_same_recipe_twice_leaves_the_first_run_as_it_was(
    tmp_path: Path, csv_file: Path, make_model: MakeModel
) -> None:
    words = [*words_of(csv_file, make_model(), tmp_path / "runs"), "--trainer.max_epochs=1"]
    first, second = (tmp_path / "runs" / "run" / f"version_{number}" for number in range(2))
    main(words)
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    main(words)
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before
    assert (second / "manifest.json").is_file()


@pytest.mark.fault(31)
@pytest.mark.parametrize("text", ["😀🎉 👍🏽", "❤️ ❤️ ❤️", "🏳️‍🌈", "i love this film 😀 🎉 👍"])
def test_emoji_that_no_vocabulary_has_are_warned_of(make_model: MakeModel, text: str) -> None:
    student = EncoderClassifier(path=str(make_model()))
    student.load(LABELS)
    _, vocabulary = check_reading([Row(0, text, 0)] * 9, DistillationModule(student), 32)
    assert (vocabulary.level, vocabulary.check) == ("warning", "vocabulary")


class Killer(WordDrop):
    """Kills the process that it works in, unless that is where it was made."""

    def __init__(self) -> None:
        super().__init__()
        self.home = os.getpid()

    def change(self, sentence: Sentence, draw: Random) -> Sentence:
        if os.getpid() != self.home:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().change(sentence, draw)


@pytest.mark.fault(43)
def test_a_process_of_augmentation_that_is_killed_is_one_sentence() -> None:
    rows = [Row(number, f"this is a rather good film {number}", 0) for number in range(1001)]
    with pytest.raises(RunError, match=r"was killed.*data\.augment\.processes") as caught:
        make_variants(rows, Augmentation([Killer()], processes=2), LABELS)
    assert "\n" not in str(caught.value)


@pytest.mark.fault(44)
def test_serve_listens_to_this_machine_alone_unless_told() -> None:
    assert inspect.signature(serve).parameters["host"].default == "127.0.0.1"


def held(process: int) -> list[int]:
    """Return the resident kilobytes, threads and open files of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    figures = dict(re.findall(r"^(VmRSS|Threads):\s+(\d+)", status, re.M))
    open_files = len(os.listdir(f"/proc/{process}/fd"))
    return [int(figures.get("VmRSS", 0)), int(figures["Threads"]), open_files]


@pytest.mark.slow
@pytest.mark.fault(45)
def test_memory_threads_and_open_files_stay_flat(
    tmp_path: Path, csv_file: Path, make_model: MakeModel
) -> None:
    words = words_of(csv_file, make_model(), tmp_path / "runs")
    words += ["--trainer.max_epochs=-1", "--trainer.max_steps=300", "--run.save_every=50"]
    words += ["--trainer.check_val_every_n_epoch=5"]
    log = tmp_path / "runs" / "run" / "version_0" / "metrics.csv"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "kd", *words], cwd=ROOT, env=environment)
    seen = []
    while process.poll() is None:
        with suppress(OSError):
            seen.append((log.stat().st_size, *held(process.pid)))
        time.sleep(0.1)
    assert process.returncode == 0
    whole = log.stat().st_size
    training = [figures for size, *figures in seen if whole / 5 < size < whole]
    assert len(training) > 5
    early, late = training[: len(training) // 2], training[len(training) // 2 :]
    for figure in range(3):
        before, after = (median(figures[figure] for figures in half) for half in (early, late))
        assert after <= 1.05 * before
