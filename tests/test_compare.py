"""Whole comparisons on a tiny world; fits are processes, so most of them are slow."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml

from kd.compare import Variant, _resolved, _without_teacher, compare
from kd.errors import ConfigError, RunError
from kd.predictions import VALIDATION, Predictions, write_predictions
from kd.runs import claim, read_manifest, verify
from tests.conftest import LABELS, MakeModel

STUDENT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1}
STUDENT |= {"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 32}
ROWS = 400
STEPS = ["--trainer.max_steps=20", "--trainer.max_epochs=-1"]


def recipe(path: Path, rows: Path, teacher: Path | None = None, **taught: str) -> str:
    """Write a recipe of a student, whose teacher also reads the rows without their labels."""
    student = {"config": {**STUDENT, "initializer_range": 0.1}, "vocabulary_size": 200}
    objectives = {"labels": {"class_path": "HardLabel"}}
    source = {"train": str(rows), "validation": str(rows)}
    model: dict[str, object] = {
        "student": {"class_path": "EncoderClassifier", "init_args": student},
        "objectives": objectives,
        "learning_rate": 0.01,
    }
    if teacher:
        said = {"path": str(teacher), **taught}
        model["teacher"] = {"class_path": "ModelTeacher", "init_args": said}
        objectives["logits"] = {"class_path": "LogitKD"}
        source["unlabelled"] = str(rows)
    data = {"source": source, "batch_size": 8, "max_length": 16}
    trainer = {"accelerator": "cpu", "max_epochs": 2}
    path.write_text(yaml.safe_dump({"model": model, "data": data, "trainer": trainer}))
    return str(path)


def fits(root: Path) -> dict[str, str]:
    """Return the state of each fit by its place."""
    manifests = {path.parent: json.loads(path.read_text()) for path in root.rglob("manifest.json")}
    return {
        path.relative_to(root).as_posix(): manifest["status"]
        for path, manifest in manifests.items()
        if manifest["command"] == "fit"
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def test_comparison_tells_its_whole_story_and_is_found_again(
    tmp_path: Path,
    root: Path,
    csv_file: Path,
    make_model: MakeModel,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = recipe(tmp_path / "tiny.yaml", csv_file, make_model("teacher"))
    compare(config, seeds=(1,), root=str(root))
    told = capsys.readouterr().out
    assert "without = --model.teacher=null --model.objectives.logits=null" in told
    version = root / "tiny" / "version_0"
    facts = json.loads((version / "compare.json").read_text())
    distilled, without = facts["variants"]
    assert (distilled["name"], without["name"]) == ("distilled", "without")
    assert without["options"] == ["--model.teacher=null", "--model.objectives.logits=null"]
    assert distilled["steps"] == without["steps"] == 2 * 80 / 8, "epochs of the first, for all"
    assert distilled["seeds"] == without["seeds"] == [1]
    assert distilled["accuracy"] == [distilled["mean"]]
    for one in facts["variants"]:
        with Path(one["runs"][0], "metrics.csv").open() as file:
            validated = [line for line in csv.DictReader(file) if line["val/accuracy"]]
        assert len(validated) == 2, "as often as in the first"
    ran = [read_manifest(one["runs"][0]) for one in facts["variants"]]
    assert [one["results"]["student"]["accuracy"] for one in ran] == pytest.approx(
        [distilled["mean"], without["mean"]]
    )
    assert facts["rows"] == 40
    assert facts["teacher"]["accuracy"] == ran[0]["results"]["teacher"]["accuracy"]
    (found,) = facts["comparisons"]
    assert (found["variant"], found["against"]) == ("distilled", "without")
    assert found["difference"] == pytest.approx(distilled["mean"] - without["mean"])
    assert found["low"] <= found["difference"] <= found["high"]
    assert f"{100 * found['difference']:+.1f} points of accuracy [" in told
    assert "over without (1 seed, too few to know the luck of training, 40 rows, 20 steps" in told
    manifest = read_manifest(version)
    assert (manifest["status"], manifest["command"]) == ("finished", "compare")
    assert manifest["references"] == {
        "distilled, seed 1": str(root / "tiny_distilled" / "version_0"),
        "without, seed 1": str(root / "tiny_without" / "version_0"),
    }
    assert verify(version) == []
    for picture in ("intervals.png", "pareto.png"):
        assert (version / picture).read_bytes().startswith(b"\x89PNG")
    page = (version / "compare.md").read_text()
    assert page.count("| distilled |") == page.count("| teacher |") == 1
    assert "](pareto.png)" in page
    before = fits(root)
    compare(config, seeds=(1,), root=str(root))
    assert fits(root) == before, "nothing is trained twice"
    assert "distilled, seed 1 = " in (told := capsys.readouterr().out)
    assert f"found in {root / 'tiny_distilled' / 'version_0'}" in told
    again = json.loads((root / "tiny" / "version_1" / "compare.json").read_text())
    assert again == facts


def test_variants_and_seeds_are_checked_before_anything_runs(
    tmp_path: Path, root: Path, csv_file: Path
) -> None:
    config, place = recipe(tmp_path / "tiny.yaml", csv_file, tmp_path), str(root)
    two = {"a": Variant(), "b": Variant(["--model.weight_decay=0"])}
    with pytest.raises(ConfigError, match="two variants at least"):
        compare(config, variants={"a": Variant()}, root=place)
    with pytest.raises(ConfigError, match="against one of them: a, b"):
        compare(config, variants=two, against="c", root=place)
    with pytest.raises(ConfigError, match=r"seeds of a are \[1, 1\]"):
        compare(config, variants=two, seeds=(1, 1), root=place)
    with pytest.raises(ConfigError, match=r"seeds of b are \[\]"):
        compare(config, variants={**two, "b": Variant(seeds=[])}, root=place)
    with pytest.raises(ConfigError, match="jobs is 0"):
        compare(config, jobs=0, root=place)
    with pytest.raises(ConfigError, match="run.name"):
        compare(config, variants={**two, "c/d": Variant()}, root=place)
    with pytest.raises(ConfigError, match="did you mean"):
        compare(config, ["--model.learning_rat=1"], root=place)
    with pytest.raises(ConfigError, match="model.teacher is null"):
        compare(recipe(tmp_path / "tiny.yaml", csv_file), root=place)
    assert not root.exists()


def test_without_its_teacher_a_recipe_keeps_what_needs_none(tmp_path: Path, csv_file: Path) -> None:
    config = f"--config={recipe(tmp_path / 'tiny.yaml', csv_file, tmp_path)}"

    def less(*options: str) -> list[str]:
        return _without_teacher(_resolved([config, *options]))

    assert less("--model.objectives.drop=RDrop", "--model.objectives.mse=LogitMSE") == [
        "--model.teacher=null",
        "--model.objectives.logits=null",
        "--model.objectives.mse=null",
    ]
    assert less("--model.objectives.labels=null", "--run.monitor=val/agreement") == [
        "--model.teacher=null",
        "--model.objectives.logits=null",
        "--model.objectives.labels=HardLabel",
        "--run.monitor=val/accuracy",
    ]
    drops = "--data.augment={augmenters: [{class_path: WordDrop}], labels: teacher}"
    assert less(drops)[-1] == "--data.augment.labels=keep"


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_with_a_teacher_has_a_control(path: Path) -> None:
    written = yaml.safe_load(path.read_text())
    if not written.get("model", {}).get("teacher"):
        pytest.skip("nothing to take away")
    options = _without_teacher(_resolved([f"--config={path}"]))
    model = _resolved([f"--config={path}", *options])["model"]
    assert model["teacher"] is None
    left = [term["class_path"] for term in model["objectives"].values() if term]
    assert "kd.HardLabel" in left
    assert not [name for name in left if name.endswith("KD") and name != "kd.PrivilegedKD"]


@cache
def resolved(*words: str) -> dict[str, object]:
    return _resolved(words)


def plant(
    root: Path,
    words: list[str],
    seed: int,
    skill: float,
    steps: int = 20,
    rows: str = "rows",
    texts: str = "text",
    **references: str,
) -> Path:
    """Leave a finished fit as if it had been made, so that a comparison finds it."""
    run = claim(root, "tiny_planted", command="fit")
    recipe = {**resolved(*words), "seed_everything": seed}
    run.write_text("config.yaml", yaml.safe_dump(recipe))
    draw = np.random.default_rng(seed)
    truth = np.random.default_rng(99).integers(0, 2, ROWS)
    answers = np.where(draw.random(ROWS) < skill, truth, 1 - truth)
    logits = np.eye(2, dtype=np.float32)[answers]
    names = tuple(f"{texts} {place}" for place in range(ROWS))
    write_predictions(run.path / VALIDATION, Predictions(LABELS, False, names, None, truth, logits))
    student = {"accuracy": float((answers == truth).mean()), "f1": 0.5, "parameters": 1000}
    student |= {"megabytes": 0.004, "rows_per_second": 1000.0 + seed}
    run.update(
        results={"student": student, "steps": steps}, data={"train": rows}, references=references
    )
    run.finish("finished")
    return run.path


SMALL, LARGE, LARGER = ([f"--model.weight_decay=0.0{number}"] for number in (1, 2, 3))
SWEEP = {"small": Variant(SMALL), "large": Variant(LARGE), "larger": Variant(LARGER, seeds=[8, 9])}


def test_each_variant_gets_its_verdict(
    tmp_path: Path, root: Path, csv_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = recipe(tmp_path / "tiny.yaml", csv_file, tmp_path)
    given = [f"--config={config}", *STEPS]
    for seed in (1, 2, 3):
        plant(root, [*given, *SMALL], seed, 0.6)
        plant(root, [*given, *LARGE], seed, 0.9)
    for seed in (8, 9):
        plant(root, [*given, *LARGER], seed, 0.6)
    compare(config, STEPS, variants=SWEEP, root=str(root))
    told = capsys.readouterr().out
    assert "large helps: +" in told
    assert "over small (3 seeds, 400 rows, 20 steps each)" in told
    assert "larger makes no difference: " in told
    assert "over small (2 and 3 seeds, 400 rows, 20 steps each)" in told
    facts = json.loads((root / "tiny" / "version_0" / "compare.json").read_text())
    assert facts["teacher"] is None
    assert [one["rows_per_second"] for one in facts["variants"]] == [1003, 1003, 1009]
    assert [one["seeds"] for one in facts["variants"]] == [[1, 2, 3], [1, 2, 3], [8, 9]]
    assert [one["verdict"] for one in facts["comparisons"]] == ["helps", "no difference"]
    compare(config, STEPS, variants=SWEEP, against="large", root=str(root), name="tiny")
    told = capsys.readouterr().out
    assert "small hurts: -" in told
    assert "larger hurts: -" in told
    assert len(fits(root)) == 8, "what was planted was found"


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"steps": 21}, "unequal steps .small, seed 1: 20, large, seed 1: 21"),
        ({"texts": "another"}, "large, seed 1 was validated on other rows than small, seed 1"),
    ],
    ids=["steps", "rows"],
)
def test_only_like_is_compared_with_like(
    tmp_path: Path, root: Path, csv_file: Path, other: dict[str, int], words: str
) -> None:
    config = recipe(tmp_path / "tiny.yaml", csv_file, tmp_path)
    given = [f"--config={config}", *STEPS]
    plant(root, [*given, *SMALL], 1, 0.6)
    plant(root, [*given, *LARGE], 1, 0.6, **other)
    plan = {"small": Variant(SMALL), "large": Variant(LARGE)}
    with pytest.raises(RunError, match=words):
        compare(config, STEPS, variants=plan, seeds=(1,), root=str(root))


def test_seeds_on_changed_rows_are_refused(tmp_path: Path, root: Path, csv_file: Path) -> None:
    config = recipe(tmp_path / "tiny.yaml", csv_file, tmp_path)
    given = [f"--config={config}", *STEPS]
    for words in (SMALL, LARGE):
        plant(root, [*given, *words], 1, 0.6)
        plant(root, [*given, *words], 2, 0.6, rows="changed")
    plan = {"small": Variant(SMALL), "large": Variant(LARGE)}
    with pytest.raises(RunError, match="training rows have changed"):
        compare(config, STEPS, variants=plan, seeds=(1, 2), root=str(root))


def test_run_is_not_used_again_after_its_teacher_was_trained_anew(
    tmp_path: Path, root: Path, csv_file: Path
) -> None:
    config, teacher = recipe(tmp_path / "tiny.yaml", csv_file, root / "teacher"), root / "teacher"
    for _ in range(2):
        run = claim(root, "teacher", command="fit")
        run.write_text("student/config.json", "{}")
        run.finish("finished")
    words = [f"--config={config}", "--model.weight_decay=0.5"]
    newest = str(teacher / "version_1" / "student")
    plant(root, words, 1, 0.6, **{str(teacher): newest})
    plant(root, words, 2, 0.6, **{str(teacher): newest.replace("version_1", "version_0")})
    plan = {"one": Variant(), "two": Variant()}
    compare(config, words[1:], variants=plan, seeds=(1,), root=str(root))
    said = r"one, seed 2 failed, see .*one_2\.log: .*run = .*model_type"
    with pytest.raises(RunError, match=said):  # so it was tried, with a folder that is no model
        compare(config, words[1:], variants=plan, seeds=(2,), root=str(root))
    manifest = read_manifest(root / "tiny" / "version_1")
    assert manifest["status"] == "failed"
    assert "model_type" in manifest["error"]


@pytest.fixture
def world(tmp_path: Path) -> tuple[str, list[str]]:
    """Return a recipe whose teacher has seen all words, and its student few; and its options."""
    draw = random.Random(0)
    words = {label: [f"{label[:3]}{number}" for number in range(30)] for label in LABELS}
    lines = []
    for _ in range(600):
        label = draw.choice(LABELS)
        said = [draw.choice(words[label]), *(f"so{draw.randrange(20)}" for _ in range(4))]
        draw.shuffle(said)
        lines.append(f"{' '.join(said)},{label}\n")
    for name, part in {"few": lines[:24], "many": lines[:400], "unseen": lines[400:]}.items():
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "".join(part))
    unseen = f"--data.source.validation={tmp_path / 'unseen.csv'}"
    taught = recipe(tmp_path / "teacher.yaml", tmp_path / "many.csv")
    written = yaml.safe_load(Path(taught).read_text())
    written["data"]["source"]["validation"] = str(tmp_path / "unseen.csv")
    written["trainer"]["max_epochs"] = 6
    Path(taught).write_text(yaml.safe_dump(written))
    teacher = tmp_path / "runs" / "teacher"
    config = recipe(tmp_path / "tiny.yaml", tmp_path / "few.csv", teacher, recipe=taught)
    many = f"--data.source.unlabelled={tmp_path / 'many.csv'}"
    return config, [unseen, many, "--trainer.max_steps=200", "--trainer.max_epochs=-1"]


@pytest.mark.slow
def test_teacher_helps_a_wrong_one_hurts_and_luck_makes_no_difference(
    world: tuple[str, list[str]], root: Path
) -> None:
    config, options = world
    plan = {
        "without": Variant(teacher=False),
        "distilled": Variant(),
        "wrong": Variant(["--model.teacher.label_names=[positive, negative]"]),
        "luck": Variant(teacher=False, seeds=[4, 5, 6]),
    }
    compare(config, options, variants=plan, jobs=2, root=str(root))
    facts = json.loads((root / "tiny" / "version_0" / "compare.json").read_text())
    verdicts = {one["variant"]: one["verdict"] for one in facts["comparisons"]}
    assert verdicts == {"distilled": "helps", "wrong": "hurts", "luck": "no difference"}
    assert [path.name for path in (root / "teacher").iterdir()] == ["version_0"]
    assert set(fits(root).values()) == {"finished"}
    assert len(fits(root)) == 1 + 4 * 3


@pytest.mark.slow
@pytest.mark.parametrize("survives", [False, True], ids=["all", "but its fit"])
def test_killed_comparison_goes_on_by_the_same_command(
    world: tuple[str, list[str]], root: Path, survives: bool
) -> None:
    config, options = world
    options = [*options, "--trainer.max_steps=800", "--run.save_every=40"]
    given = {"config": config, "options": options, "seeds": (1,), "root": str(root)}
    code = f"from kd.compare import compare; compare(**{given!r})"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    saved = root / "tiny_without" / "version_0" / "checkpoints" / "resume.ckpt"
    while not saved.exists():
        assert process.poll() is None, "it ended too early"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL) if not survives else process.kill()
    process.wait()
    assert fits(root)["tiny_without/version_0"] == "running"
    subprocess.run([sys.executable, "-c", code], check=True)
    expected = {"teacher/version_0", "tiny_distilled/version_0", "tiny_without/version_0"}
    if survives:
        assert fits(root) == dict.fromkeys(expected, "finished"), "it was waited for"
    else:
        assert fits(root).keys() == expected | {"tiny_without/version_1"}
        manifest = read_manifest(root / "tiny_without" / "version_1")
        assert manifest["status"] == "finished"
        assert "tiny_without/version_0" in manifest["resumed_from"]
    assert read_manifest(root / "tiny" / "version_1")["status"] == "finished"


def test_help_needs_no_torch() -> None:
    code = "import sys, kd.compare; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
