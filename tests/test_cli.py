"""The command line as a user meets it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from kd.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]


def run(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "train.py", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)


def failure(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(word: str) -> None:
    script = (
        "import sys\nfrom kd.cli import main\n"
        f"try: main([{word!r}])\nexcept SystemExit: pass\n"
        "print({'torch', 'transformers', 'lightning', 'datasets', 'jsonargparse'} "
        "& set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip().endswith("set()"), done.stdout + done.stderr


def test_three_doors_are_one() -> None:
    module = subprocess.run(
        [sys.executable, "-m", "kd", "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert module.stdout == run("--help").stdout
    for name, text in COMMANDS.items():
        assert f"{name} " in module.stdout
        assert text in module.stdout


def test_unknown_command_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean classify" in failure("clasify", capsys=capsys)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.learning_rat=1"], "model.learning_rate"),
        (["--modle.learning_rate=1"], "did you mean model.learning_rate"),
        (["--data.source.trian=x.csv"], "did you mean train"),
        (["--data.batch_sise=4"], "data.batch_size"),
        (["--trainer.max_epoch=4"], "trainer.max_epochs"),
        (["--model.objectives={a: {class_path: LogitKDD}}"], "did you mean LogitKD"),
        (
            ["--model.objectives={a: {class_path: LogitKD, init_args: {temprature: 4}}}"],
            "did you mean temperature",
        ),
        (["--model.learning_rate=fast"], "model.learning_rate"),
        (["--config=no/such.yaml"], "no/such.yaml"),
        (["--model.objectives={a: {class_path: os.system}}"], "may not import"),
        (["--trainer.callbacks=subprocess.Popen"], "may not import"),
        (["--trainer.strategy=ddp_spawn"], "use ddp"),
        (["--run.name=../x"], "run.name"),
    ],
)
def test_mistakes_get_one_sentence(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    told = failure("fit", "--model.student.path=x", f"--run.root={tmp_path}", *words, capsys=capsys)
    assert expected in told
    assert told.startswith("kd: error: ")
    assert "Traceback" not in told
    assert not list(tmp_path.iterdir()), "a mistake leaves no run behind"


def test_yaml_with_an_unknown_key(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {student: {class_path: EncoderClassifier}, learnig_rate: 1.0e-3}\n")
    assert "did you mean model.learning_rate" in failure("fit", f"--config={recipe}", capsys=capsys)


def test_a_class_outside_the_allowlist_is_not_even_imported(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "hostile_module.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    objectives = "--model.objectives={a: {class_path: hostile_module.Evil}}"
    told = failure("fit", "--model.student.path=x", objectives, capsys=capsys)
    assert "hostile_module" in told
    assert not canary.exists()


def test_own_package_is_allowed_by_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "from kd.objectives import HardLabel\nclass MyLabel(HardLabel):\n    '''A label.'''\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("KD_ALLOW_IMPORTS", "mine")
    data = "--data.source.train=nothing.csv"
    objectives = "--model.objectives={a: {class_path: mine.MyLabel}}"
    told = failure(
        "fit", "--model.student.path=x", objectives, data, f"--run.root={tmp_path / 'runs'}",
        capsys=capsys,
    )  # fmt: skip
    assert "nothing.csv" in told, "it came as far as the data"


def test_classify_has_one_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert "not both" in failure("classify", "--model=x", "--file=y", "some words", capsys=capsys)
    assert "did you mean model" in failure("classify", "--modell=x", "word", capsys=capsys)


@pytest.mark.slow
def test_help_takes_about_a_second() -> None:
    took = []
    for _ in range(3):
        start = time.perf_counter()
        assert run("--help").returncode == 0
        took.append(time.perf_counter() - start)
    assert min(took) < 2.0
