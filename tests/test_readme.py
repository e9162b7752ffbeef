"""The README's commands do what it says, on a tiny world; its claims about files hold."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from kd.cli import main
from kd.runs import read_manifest
from tests.conftest import TEXTS, MakeModel
from tests.rationales.server import AnnotationServer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
QUICKLY = ["--trainer.max_epochs=1", "--trainer.max_steps=2", "--trainer.accelerator=cpu"]
QUICKLY += ["--data.batch_size=8", "--data.max_length=16", "--trainer.val_check_interval=1"]
QUICKLY += ["--trainer.check_val_every_n_epoch=null", "--trainer.log_every_n_steps=1"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [
        shlex.split(line, comments=True) for line in lines if line.startswith("python train.py")
    ]


def test_the_two_commands_stand_first_and_alone() -> None:
    first, second = blocks("bash")[:2]
    assert first.count("\n") == second.count("\n") == 1
    assert "train.py fit --config configs/quickstart.yaml" in first
    assert second.rstrip().endswith("-m pytest -n 2")
    for command in (first, second):
        assert "-m venv .venv" in command
        assert "pip install" in command


def test_own_data_commands_run_in_order(
    tmp_path: Path,
    csv_file: Path,
    make_model: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews.yaml").write_text(blocks("yaml")[0])
    (tmp_path / "reviews.csv").write_text(csv_file.read_text())
    (tmp_path / "held_out.csv").write_text(csv_file.read_text())
    for name in ("more_reviews.csv", "new.csv"):
        (tmp_path / name).write_text("text\n" + "".join(f'"{text}"\n' for text in TEXTS))
    (tmp_path / "new.txt").write_text("\n".join(TEXTS))
    models = [f"--model.student.path={make_model('tiny')}"]
    models += [f"--model.teacher.path={make_model('big', hidden_size=32)}"]
    done = [words[2:] for words in commands() if "reviews" in " ".join(words)]
    assert [words[0] for words in done] == ["fit", "test", "predict", "classify", "export"]
    for words in done:
        is_recipe = "--config" in words
        main([*words, *models, *QUICKLY] if is_recipe else words)
    told = capsys.readouterr().out
    assert "loss = 0.5 * labels[HardLabel] + 0.5 * logits[LogitKD T=4]" in told
    assert f"{len(TEXTS)} unlabelled" in told
    assert (tmp_path / "my_student" / "model.safetensors").is_file()
    assert (tmp_path / "runs" / "reviews" / "version_2" / "predictions.csv").is_file()


def test_every_command_uses_known_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each one parses: what is asked for is printed, not run."""
    for words in commands():
        is_recipe = words[2] in ("fit", "validate", "test", "predict", "cache")
        if words[2:4] in (["cache", "list"], ["cache", "prune"]):
            with monkeypatch.context() as context:
                context.chdir(tmp_path)
                main(words[2:])
            assert "runs/.cache" in capsys.readouterr().out
        elif is_recipe and "reviews" not in " ".join(words):
            with pytest.raises(SystemExit) as stop:
                main([*words[2:], "--print_config"])
            assert not stop.value.code, words
            assert yaml.safe_load(capsys.readouterr().out)["model"]


def test_reasoning_commands_run_in_order(
    tmp_path: Path,
    csv_file: Path,
    make_model: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("openai")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GROQ_API_KEY", "gsk_a1B2c3D4e5F6g7H8i9J0")
    rows = [
        f"--data.source={{path: null, name: null, train: {csv_file}}}",
        "--data.train_rows=null",
    ]
    rows += ["--data.text_column=text"]
    named = ("annotate", "rationale_encoder_sst2")
    done = [w[2:] for w in commands() if any(name in " ".join(w) for name in named)]
    assert [words[0] for words in done] == ["annotate", "annotate", "fit", "classify"]
    with AnnotationServer() as server:
        more = {
            "annotate": [*rows, f"--annotator.base_url={server.url}"],
            "fit": [*rows, *QUICKLY, f"--model.student.path={make_model(num_hidden_layers=6)}"],
        }
        for words in done:
            words = [re.sub("^configs/", f"{ROOT}/configs/", word) for word in words]
            main([*words, *more.get(words[0], [])])
            assert (server.requests == 0) == ("--dry_run" in words)
    assert (tmp_path / "runs/annotate_sst2/version_0/annotations.parquet").is_file()
    assert capsys.readouterr().out.splitlines()[-1].endswith("I am very happy today!")


@pytest.mark.slow
def test_the_five_commands_run_in_order(
    tmp_path: Path,
    csv_file: Path,
    make_model: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a recipe of the quickstart's name, with a tiny student and teacher."""
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    source = {"train": str(csv_file), "validation": str(csv_file)}
    model = {
        "student": {"class_path": "EncoderClassifier", "init_args": {"path": str(make_model())}},
        "teacher": {"class_path": "ModelTeacher", "init_args": {"path": str(make_model("big"))}},
        "objectives": {"logits": {"class_path": "LogitKD"}},
    }
    recipe = {"model": model, "data": {"source": source, "max_length": 16}}
    recipe["trainer"] = {"accelerator": "cpu", "max_epochs": 1}
    Path("configs/quickstart.yaml").write_text(yaml.safe_dump(recipe))
    main(["fit", "--config", "configs/quickstart.yaml"])
    shipping = ("compare", "export", "bench", "report")
    done = [words[2:] for words in commands() if words[2] in shipping and "my_student" not in words]
    assert [words[0] for words in done] == ["compare", "export", "export", "bench", "report"]
    for words in done:
        main(words)
    told = capsys.readouterr().out
    assert "over without (3 seeds, 40 rows" in told
    assert "shipped is whole" in told
    assert {read_manifest(path)["command"] for path in Path("runs/quickstart").iterdir()} == {
        "fit", "compare", "bench", "report",
    }  # fmt: skip
    assert "distilled" in Path("shipped/README.md").read_text()


def test_run_folder_is_as_described(
    tmp_path: Path, csv_file: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [f"--model.student.path={make_model()}", f"--data.source.train={csv_file}"]
    given += ["--run.name=quickstart", "--data.augment.augmenters=[WordDrop]"]
    main(["fit", *given, *QUICKLY])
    described = next(block for block in blocks("text") if block.startswith("runs/quickstart"))
    names = re.findall(r"^  (\S+?)/? ", described, flags=re.MULTILINE)
    run = tmp_path / "runs" / "quickstart" / "version_0"
    assert {path.name for path in run.iterdir()} == set(names)
    assert read_manifest(run)["checksums"]


def test_tree_names_every_room() -> None:
    tree = next(block for block in blocks("text") if block.startswith("train.py"))
    for path in (ROOT / "kd").glob("*.py"):
        if not path.stem.startswith("__"):
            assert re.search(rf"\b{path.stem}\b", tree), path.name


def test_example_objective_works(tmp_path: Path) -> None:
    import torch

    from kd.objectives import Objective
    from kd.types import Outputs

    space: dict[str, type[Objective]] = {}
    exec(next(block for block in blocks("python") if "class LogitMAE" in block), space)
    logits = torch.tensor([[1.0, 3.0]])
    term = space["LogitMAE"]()(Outputs(logits), Outputs(logits - 2), None)
    assert term.item() == pytest.approx(2.0)


def test_no_placeholder_is_left() -> None:
    assert "@@" not in README
    for recipe in (ROOT / "configs").glob("*.yaml"):
        assert "_RESULT" not in recipe.read_text(), recipe.name
