"""Whole runs through the real command line, on a tiny world."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kd.checkpoints import SafeCheckpointIO
from kd.cli import main
from kd.inference import Classifier
from kd.predictions import VALIDATION, read_predictions
from kd.runs import read_manifest, verify
from kd.shards import read_shards
from tests.conftest import LABELS, TEXTS, MakeModel
from tests.rationales.server import AnnotationServer

ROOT = Path(__file__).parents[1]
OTHERS = ("annotator:", "program:")  # of kd annotate, of W&B's sweeps
RECIPES = sorted(
    path
    for path in (ROOT / "configs").glob("*.yaml")
    if not any(word in path.read_text() for word in OTHERS)
)
TINY = [
    "--trainer.accelerator=cpu",
    "--trainer.log_every_n_steps=1",
    "--data.batch_size=8",
    "--data.max_length=16",
]


DROPS = "--data.augment.augmenters=[{class_path: WordDrop, init_args: {share: 0.4}}]"


TINY_T5 = {"model_type": "t5", "d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 2}


def explained(rows: Path) -> Path:
    """Write what an annotator might say of the rows of a file, and return where."""
    file = rows.with_suffix(".said.jsonl")
    with rows.open() as lines, file.open("w") as out:
        for row in csv.DictReader(lines):
            said = {"text": row["text"], "teacher_label": row["label"], "teacher_confidence": 0.8}
            out.write(json.dumps({**said, "rationale": f"it says {row['text'][-9:]}"}) + "\n")
    return file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def fit(root: Path, rows: Path, student: Path, *words: str) -> Path:
    """Run a fit and return its version folder."""
    given = [f"--model.student.path={student}", f"--data.source.train={rows}"]
    main(["fit", *given, f"--run.root={root}", "--trainer.max_epochs=1", *TINY, *words])
    name = next((word.split("=")[1] for word in words if word.startswith("--run.name=")), "run")
    return max((root / name).iterdir(), key=lambda path: int(path.name.split("_")[1]))


def metrics(run: Path) -> dict[str, list[float]]:
    with (run / "metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    return {key: [float(line[key]) for line in lines if line[key]] for key in lines[0]}


def trained_steps(run: Path) -> list[int]:
    with (run / "metrics.csv").open() as file:
        return [int(float(line["step"])) for line in csv.DictReader(file) if line["train/loss"]]


def test_fit_tells_its_whole_story(
    root: Path, csv_file: Path, make_model: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(root, csv_file, make_model())
    told = capsys.readouterr().out
    assert "loss = 1 * labels[HardLabel]" in told
    assert "student" in told
    assert "try    python train.py classify --model" in told
    names = {path.name for path in run.iterdir()}
    told = {"config.yaml", "manifest.json", "metrics.csv", "validation.parquet"}
    assert names == {*told, "checkpoints", "student"}
    manifest = read_manifest(run)
    assert manifest["status"] == "finished"
    assert manifest["seed"] == 42
    assert set(manifest["data"]) == {"train", "validation"}
    assert set(manifest["results"]) == {"student", "steps"}
    assert manifest["results"]["steps"] == 5
    assert verify(run) == []
    assert {"train/loss", "train/labels", "val/accuracy", "val/f1"} <= set(metrics(run))


def test_student_loads_in_pipeline_and_classifies(
    root: Path, csv_file: Path, make_model: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import pipeline

    run = fit(root, csv_file, make_model())
    capsys.readouterr()
    main(["classify", f"--model={root / 'run'}", "--output=jsonl", *TEXTS])
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    pipe = pipeline("text-classification", str(run / "student"), top_k=None)
    theirs = pipe(TEXTS, truncation=True)  # as the student was trained: 16 tokens
    for ours, other in zip(answers, theirs, strict=True):
        assert ours["label"] == other[0]["label"]
        for row in other:
            assert ours["probabilities"][row["label"]] == pytest.approx(row["score"], abs=1e-5)


@pytest.mark.parametrize("classes", [("negative", "positive"), ("positive", "negative")])
def test_a_run_keeps_what_teacher_and_student_said_of_its_validation_rows(
    root: Path, csv_file: Path, make_model: MakeModel, classes: tuple[str, str]
) -> None:
    teacher = make_model("teacher", labels=classes, initializer_range=0.5)
    words = [f"--model.teacher={{class_path: ModelTeacher, init_args: {{path: {teacher}}}}}"]
    words += ["--model.objectives.logits=LogitKD", "--data.max_length=64"]
    run = fit(root, csv_file, make_model(), *words)
    kept = read_predictions(run / VALIDATION)
    assert kept.labels == ("negative", "positive")
    with csv_file.open() as file:
        truth = {line["text"]: line["label"] for line in csv.DictReader(file)}
    assert [kept.labels[place] for place in kept.truth] == [truth[text] for text in kept.texts]
    assert kept.teacher is not None
    for folder, logits in ((run / "student", kept.student), (teacher, kept.teacher)):
        model = Classifier.from_pretrained(folder)
        order = [model.labels.index(label) for label in kept.labels]
        assert model.logits(kept.texts)[:, order] == pytest.approx(logits, abs=1e-5)
    results = read_manifest(run)["results"]
    for role, logits in (("student", kept.student), ("teacher", kept.teacher)):
        assert results[role]["accuracy"] == kept.accuracy(logits)
        logged = metrics(run)["val/accuracy" if role == "student" else "val/teacher_accuracy"]
        assert any(value == pytest.approx(kept.accuracy(logits)) for value in logged)


def test_a_run_that_is_never_validated_delivers_its_newest_state(
    root: Path, csv_file: Path, make_model: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_model()
    words = ["--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=100"]
    run = fit(root, csv_file, base, *words, "--trainer.max_steps=3")
    assert "the newest state is exported" in capsys.readouterr().out
    last = fit(root, csv_file, base, "--trainer.max_steps=3", "--run.save_every=3")
    saved = SafeCheckpointIO().load_checkpoint(last / "checkpoints" / "resume.ckpt")["state_dict"]
    student = load_file(run / "student" / "model.safetensors")
    assert all(torch.equal(value, saved[f"student.network.{n}"]) for n, value in student.items())
    assert read_manifest(run)["results"]["steps"] == 3
    assert verify(run) == []


def test_fit_warns_of_what_doctor_would_find(
    root: Path, csv_file: Path, make_model: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(root, csv_file, make_model(), f"--data.source.validation={csv_file}")
    told = capsys.readouterr().out
    assert "error: 40 of 40 validation texts are trained on too" in told
    assert "is no key" not in told


def test_saved_config_is_the_recipe(root: Path, csv_file: Path, make_model: MakeModel) -> None:
    first = fit(root, csv_file, make_model(), "--model.learning_rate=0.001")
    main(["fit", f"--config={first / 'config.yaml'}"])
    second = root / "run" / "version_1"
    assert (first / "config.yaml").read_text() == (second / "config.yaml").read_text()
    assert str(first) not in (first / "config.yaml").read_text()
    ours, again = metrics(first), metrics(second)
    for values in (ours, again):
        assert min(values.pop("speed/rows_per_second")) > 0
        assert min(values["speed/padding_share"]) >= 0
        for name in [name for name in values if name.endswith(("_seconds", "teacher_share"))]:
            assert values.pop(name)
    assert ours == again, "the same recipe and seed give the same figures"


def test_teacher_is_trained_first_once_and_then_found(
    root: Path, csv_file: Path, make_model: MakeModel, tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher.yaml"
    recipe = {
        "model": {"student": {"class_path": "EncoderClassifier"}},
        "data": {"source": {"train": str(csv_file)}, "batch_size": 8, "max_length": 16},
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    }
    recipe["model"]["student"]["init_args"] = {"path": str(make_model("base", hidden_size=32))}
    teacher.write_text(yaml.safe_dump(recipe))
    words = [
        "--run.name=student",
        f"--model.teacher={{class_path: ModelTeacher, init_args: {{path: {root / 'teacher'}, "
        f"recipe: {teacher}}}}}",
        "--model.objectives={labels: {class_path: HardLabel, init_args: {weight: 0.5}}, "
        "logits: {class_path: LogitKD, init_args: {weight: 0.5}}}",
    ]
    student = make_model("student")
    first = fit(root, csv_file, student, *words)
    second = fit(root, csv_file, student, *words)
    assert [path.name for path in (root / "teacher").iterdir()] == ["version_0"]
    taken = str(root / "teacher" / "version_0" / "student")
    for run in (first, second):
        manifest = read_manifest(run)
        assert manifest["references"] == {str(root / "teacher"): taken}
        assert set(manifest["results"]) == {"teacher", "student", "steps"}
        logged = metrics(run)
        assert {"train/labels", "train/logits", "val/agreement", "val/teacher_accuracy"} <= set(
            logged
        )
        for loss, labels, logits in zip(
            logged["train/loss"], logged["train/labels"], logged["train/logits"], strict=True
        ):
            assert loss == pytest.approx(0.5 * labels + 0.5 * logits, abs=1e-5)


def test_student_may_begin_with_layers_of_a_teacher_that_is_trained_first(
    root: Path, csv_file: Path, make_model: MakeModel, tmp_path: Path
) -> None:
    teacher, path = tmp_path / "teacher.yaml", root / "teacher"
    student = {"class_path": "EncoderClassifier", "init_args": {"path": str(make_model())}}
    data = {"source": {"train": str(csv_file)}, "batch_size": 8, "max_length": 16}
    trainer = {"max_epochs": 1, "accelerator": "cpu"}
    recipe = {"model": {"student": student}, "data": data, "trainer": trainer}
    teacher.write_text(yaml.safe_dump(recipe))
    words = ["--model.student.keep_layers=[0, 2]", "--model.objectives.logits=LogitKD"]
    words += [f"--model.teacher={{class_path: ModelTeacher, init_args: {{path: {path}, "]
    words[-1] += f"recipe: {teacher}}}}}"
    run = fit(root, csv_file, path, *words)
    assert read_manifest(run)["references"] == {str(path): str(path / "version_0" / "student")}
    results = read_manifest(run)["results"]
    assert results["student"]["parameters"] < results["teacher"]["parameters"]


def test_validate_test_and_predict_use_the_newest_finished_run(
    root: Path,
    csv_file: Path,
    make_model: MakeModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = fit(root, csv_file, make_model())
    texts = tmp_path / "texts.csv"
    texts.write_text("text\n" + "\n".join(f'"{text}"' for text in reversed(TEXTS)) + "\n")
    common = ["--model.student.path=x", f"--data.source.train={csv_file}", f"--run.root={root}"]
    main(["test", *common, f"--data.source.test={csv_file}", *TINY])
    assert f"= {run / 'student'}" in capsys.readouterr().out
    main(["validate", *common, *TINY])
    wanted = read_manifest(run)["results"]["student"]["accuracy"]
    assert metrics(root / "run" / "version_2")["val/accuracy"] == [pytest.approx(wanted)]
    main(["predict", *common, f"--data.source.predict={texts}", *TINY])
    out = root / "run" / "version_3"
    with (out / "predictions.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["text"] for line in lines] == list(reversed(TEXTS))
    assert {"label", "probability_negative", "probability_positive"} <= set(lines[0])
    assert (out / "predictions.parquet").is_file()
    assert [read_manifest(path)["command"] for path in sorted((root / "run").iterdir())] == [
        "fit", "test", "validate", "predict",
    ]  # fmt: skip


def test_measuring_without_a_trained_run_is_refused(
    root: Path, csv_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model.student.path=x", f"--data.source.train={csv_file}", f"--run.root={root}"]
    with pytest.raises(SystemExit) as stop:
        main(["validate", *words])
    assert stop.value.code == 2
    assert "run" in capsys.readouterr().err
    assert not [path for path in root.rglob("manifest.json")]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data.text_column=tweet"], "data.text_column"),
        (["--data.source.validation=none.csv"], "none.csv"),
        (["--data.label_names=[good, bad]"], "positive"),
        (["--data.train_rows=1000"], "data.train_rows"),
        (["--model.student.keep_layers=[0,9]"], "keep_layers"),
        (["--run.resume=nowhere/version_0"], "nowhere"),
        (["--model.objectives={kd: LogitKD}"], "model.teacher"),
        (["--trainer.max_epochs=-1"], "max_epochs"),
        (["--run.monitor=val/acc"], "val/accuracy"),
        (["--run.monitor=val/agreement"], "val/agreement"),
        (["--trainer.devices=0"], "devices"),
    ],
)
def test_mistakes_in_data_and_model_are_one_sentence(
    root: Path,
    csv_file: Path,
    make_model: MakeModel,
    words: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        fit(root, csv_file, make_model(), *words)
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("kd: error: ")
    assert expected in told


@pytest.mark.fault(27)
def test_data_is_checked_before_a_model_loads(
    root: Path, csv_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("text,label\nfine,positive\n,negative\nwell,negative\n")
    with pytest.raises(SystemExit):
        fit(root, bad, tmp_path / "no_such_model")
    told = capsys.readouterr().err
    assert "line 3" in told, "the row, not the missing model, is the first complaint"
    assert not [path for path in root.rglob("manifest.json")], "nothing happened, nothing is left"


@pytest.mark.fault(3)
def test_unwritable_root_is_refused_first(
    csv_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        fit(tmp_path / "file" / "runs", csv_file, tmp_path / "no_such_model")
    assert "run.root" in capsys.readouterr().err


def test_failed_run_says_so_and_keeps_its_checkpoint(
    root: Path, csv_file: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd.delivery.export_checkpoint", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(root, csv_file, make_model())
    manifest = read_manifest(root / "run" / "version_0")
    assert manifest["status"] == "failed"
    assert "division" in manifest["error"]
    main(["export", f"--run={root / 'run'}", f"--output={root / 'rescued'}"])
    assert (root / "rescued" / "model.safetensors").is_file()


@pytest.mark.fault(18)
def test_resume_is_a_new_version_and_touches_nothing_old(
    root: Path, csv_file: Path, make_model: MakeModel
) -> None:
    student = make_model()
    words = ["--trainer.max_epochs=2", "--run.save_every=3"]
    whole = fit(root, csv_file, student, "--run.name=whole", *words)
    first = fit(root, csv_file, student, *words, "--trainer.max_steps=7")
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    second = fit(root, csv_file, student, *words, f"--run.resume={first}")
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before
    assert second.name == "version_1"
    assert read_manifest(second)["resumed_from"] == str(first)
    assert trained_steps(first) == list(range(7))
    assert trained_steps(second) == trained_steps(whole), "none is missing, none is there twice"


def test_wandb_offline_stays_inside_the_run(
    root: Path, csv_file: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(root.parent)
    runs = [fit(root, csv_file, make_model(), "--trainer.logger=WandbLogger") for _ in range(2)]
    ids = [read_manifest(run)["wandb_id"] for run in runs]
    assert len(set(ids)) == 2, "two runs of one process are two runs at W&B"
    for run, name in zip(runs, ids, strict=True):
        assert list((run / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
        assert (run / "metrics.csv").is_file()
        pictures = {path.name.split("_")[0] for path in (run / "wandb").rglob("report/*.png")}
        assert pictures == {"losses", "validation", "confusion", "reliability"}
        log = next((run / "wandb").rglob("debug*.log"))
        log.write_text(log.read_text() + "its process has a last word\n")
        assert verify(run) == [], "what W&B writes is its own"
    assert not (root.parent / "wandb").exists()


@pytest.mark.usefixtures("wandb_without_key")
def test_wandb_without_a_key_is_refused_before_a_model_loads(
    root: Path, csv_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        fit(root, csv_file, tmp_path / "no_such_model", "--trainer.logger=WandbLogger")
    assert "WANDB_MODE=offline" in capsys.readouterr().err
    assert not root.exists()


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_a_checkpoint_from_a_url_is_refused(
    verb: str,
    root: Path,
    csv_file: Path,
    make_model: MakeModel,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [f"--model.student.path={make_model()}", f"--data.source.train={csv_file}"]
    words += [f"--run.root={root}", "--ckpt_path=https://example.org/student.ckpt", *TINY]
    with pytest.raises(SystemExit):
        main([verb, *words])
    assert "example.org" in capsys.readouterr().err


def test_a_pickle_in_a_checkpoint_does_not_run(
    root: Path,
    csv_file: Path,
    make_model: MakeModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    canary = tmp_path / "canary"

    class Bait:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.mkdir, (str(canary),))

    torch.save({"state_dict": {}, "bait": Bait()}, tmp_path / "bait.ckpt")
    with pytest.raises(SystemExit):
        fit(root, csv_file, make_model(), f"--ckpt_path={tmp_path / 'bait.ckpt'}")
    assert "bait.ckpt" in capsys.readouterr().err
    assert not canary.exists()


def test_the_command_line_wins_over_a_checkpoint(
    root: Path, csv_file: Path, make_model: MakeModel
) -> None:
    """LightningCLI takes hyperparameters out of checkpoints; ours hold none."""
    student = make_model()
    first = fit(root, csv_file, student, "--model.weight_decay=0.5")
    checkpoint = first / "checkpoints" / "resume.ckpt"
    assert not {"hyper_parameters", "datamodule_hyper_parameters"} & set(
        torch.load(checkpoint, weights_only=True)
    )
    words = ["--model.weight_decay=0.25", f"--ckpt_path={checkpoint}", "--trainer.max_epochs=2"]
    second = fit(root, csv_file, student, *words)
    assert yaml.safe_load((second / "config.yaml").read_text())["model"]["weight_decay"] == 0.25


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_fits(recipe: Path, root: Path, csv_file: Path, make_model: MakeModel) -> None:
    """The recipe's own model, objectives and trainer, on a tiny student, teacher and data set."""
    content = yaml.safe_load(recipe.read_text())
    words = [f"--config={recipe}", f"--run.root={root}", *TINY]
    words += [f"--data.source={{path: null, name: null, unlabelled: null, train: {csv_file}}}"]
    words += ["--data.text_column=text"]
    words += ["--data.train_rows=null", "--data.labelled_rows=null"]
    words += ["--trainer.max_epochs=1", "--trainer.max_steps=-1"]
    words += ["--trainer.val_check_interval=1.0", "--trainer.check_val_every_n_epoch=1"]
    student = content["model"]["student"]
    if student["class_path"] == "Seq2SeqClassifier":
        student["init_args"] = {"path": None, "config": TINY_T5}
        words.append(f"--model.student={json.dumps(student)}")
    elif "path" in student["init_args"]:
        words.append(f"--model.student.path={make_model(num_hidden_layers=6)}")
    if "path" in content["data"].get("rationales", {}):
        words.append(f"--data.rationales.path={explained(csv_file)}")
    elif "rationales" in content["data"]:
        words.append("--data.source={path: sample, train: 'train[:80]'}")  # it brings its own
    teacher = content["model"].get("teacher", {})
    if "init_args" in teacher:
        folder = make_model("teacher", hidden_size=32, num_hidden_layers=6)
        if "teachers" in teacher["init_args"]:
            for member in teacher["init_args"]["teachers"].values():
                member["init_args"] = {"path": str(folder), "label_names": None}
            words.append(f"--model.teacher.teachers={json.dumps(teacher['init_args']['teachers'])}")
        else:
            words.append(f"--model.teacher.path={folder}")
        words += ["--model.student.tokenizer=null"]
    for augmenter in content["data"].get("augment", {}).get("augmenters", []):
        augmenter["init_args"] = {"thesaurus": "builtin"}  # WordNet is not everywhere
        words.append(f"--data.augment.augmenters=[{json.dumps(augmenter)}]")
    main(["fit", *words])
    run = root / recipe.stem / "version_0"
    assert read_manifest(run)["status"] == "finished"
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert set(saved["model"]["objectives"] or {}) == set(content["model"].get("objectives") or {})


def test_explanations_are_those_of_the_newest_finished_run_and_on_a_resume_the_same(
    root: Path, csv_file: Path, make_model: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    student, rows, said = make_model(), csv_file, root / "said"
    words = [f"--data.rationales.path={said}", "--model.objectives={privileged: PrivilegedKD}"]
    with pytest.raises(SystemExit):
        fit(root, rows, student, *words)
    assert f"data.rationales.path={said} is not there: run kd annotate" in capsys.readouterr().err

    def annotate(*more: str) -> None:
        told = {"class_path": "ImportedAnnotator", "init_args": {"path": str(explained(rows))}}
        words = [f"--annotator={json.dumps(told)}", f"--data.source.train={rows}", *more]
        main(["annotate", *words, f"--root={root}", "--name=said"])

    with pytest.raises(SystemExit):
        annotate("--limit=1", "--data.train_rows=1", "--min_ok=1", "--data.validation_fraction=2")
    annotate()
    run = fit(root, rows, student, *words)
    first = str(said / "version_0" / "annotations.parquet")
    assert read_manifest(run)["references"][str(said)] == first
    annotate()
    (root / "said/version_2").mkdir()
    shutil.copy(said / "version_1/manifest.json", root / "said/version_2")  # without its file
    again = fit(root, rows, student, *words, f"--run.resume={run}", "--trainer.max_epochs=2")
    assert read_manifest(again)["references"][str(said)] == first
    fresh = fit(root, rows, student, *words)
    assert read_manifest(fresh)["references"][str(said)] == first.replace("_0", "_1")


def start(*words: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "train.py", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_eight_processes_get_eight_whole_directories(
    root: Path, csv_file: Path, make_model: MakeModel
) -> None:
    words = ["fit", f"--model.student.path={make_model()}", f"--data.source.train={csv_file}"]
    words += [f"--run.root={root}", "--trainer.max_epochs=1", *TINY]
    processes = [start(*words) for _ in range(8)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, outputs
    versions = sorted(path.name for path in (root / "run").iterdir())
    assert versions == sorted(f"version_{number}" for number in range(8))
    for version in (root / "run").iterdir():
        assert read_manifest(version)["status"] == "finished"
        assert verify(version) == []
        assert (version / "student" / "model.safetensors").is_file()


@pytest.mark.slow
def test_keys_of_the_environment_are_in_no_file(
    root: Path, csv_file: Path, make_model: MakeModel
) -> None:
    """An annotator's key and W&B's, from the question to the trained student."""
    pytest.importorskip("openai")
    keys = {"WANDB_API_KEY": "c0ffee" * 6 + "c0ff", "GROQ_API_KEY": "gsk_a1B2c3D4e5F6g7H8i9J0"}
    rows = f"--data.source.train={csv_file}"
    with AnnotationServer(key=keys["GROQ_API_KEY"]) as server:
        asked = {"model": "tiny", "provider": "groq", "base_url": server.url}
        annotator = json.dumps({"class_path": "APIAnnotator", "init_args": asked})
        words = ["annotate", f"--annotator={annotator}", rows, f"--root={root}", "--name=said"]
        process = start(*words, **keys)
        output = process.communicate()[0]
        assert (process.returncode, server.requests) == (0, 36), output
    words = ["fit", f"--model.student.path={make_model()}", rows, *TINY]
    words += ["--model.objectives={privileged: PrivilegedKD}", "--trainer.logger=WandbLogger"]
    words += [f"--data.rationales.path={root / 'said'}", "--trainer.max_epochs=1"]
    process = start(*words, f"--run.root={root}", **keys)
    output += process.communicate()[0]
    assert process.returncode == 0, output
    files = [path for path in root.rglob("*") if path.is_file()]
    assert [path for path in files if path.suffix == ".wandb"]
    assert [path for path in files if path.name == "rationales.json"]
    for key in keys.values():
        assert not [path for path in files if key.encode() in path.read_bytes()]
        assert key not in output


@pytest.mark.slow
def test_ranks_with_and_without_rationales_train_together(
    root: Path, csv_file: Path, make_model: MakeModel
) -> None:
    """Every fifth row is explained, so that many batches of a rank have none."""
    said = explained(csv_file)
    said.write_text("\n".join(said.read_text().splitlines()[::5]) + "\n")
    terms = "{labels: HardLabel, privileged: PrivilegedKD, words: RationaleWordsKD}"
    words = ["fit", f"--model.student.path={make_model()}", f"--data.source.train={csv_file}"]
    words += [f"--run.root={root}", f"--model.objectives={terms}", *TINY, "--data.batch_size=2"]
    words += [f"--data.rationales.path={said}", "--trainer.max_epochs=1"]
    process = start(*words, "--trainer.strategy=ddp", "--trainer.devices=2")
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    logged = metrics(root / "run/version_0")["train/privileged"]
    assert 0.0 in logged
    assert max(logged) > 0.0


@pytest.mark.slow
def test_two_ranks_share_one_directory_and_count_every_row_once(
    root: Path, make_model: MakeModel, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    texts = [f"{text} {number}" for number in range(4) for text in TEXTS]
    rows.write_text(
        "text,label\n"
        + "".join(f'"{text}",{LABELS[place % 8 < 4]}\n' for place, text in enumerate(texts))
    )
    odd = tmp_path / "odd.csv"
    odd.write_text("".join(rows.read_text().splitlines(keepends=True)[:18]))  # 17 rows on 2 ranks
    student = make_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    values = []
    for name, more in (("one", []), ("two", ["--trainer.strategy=ddp", "--trainer.devices=2"])):
        words = ["fit", f"--model.student.path={student}", f"--data.source.train={rows}"]
        words += [f"--data.source.validation={odd}", f"--run.root={root}", f"--run.name={name}"]
        process = start(*words, "--trainer.max_epochs=2", *TINY, *more)
        output = process.communicate()[0]
        assert process.returncode == 0, output
        assert [path.name for path in (root / name).iterdir()] == ["version_0"]
        run = root / name / "version_0"
        assert read_manifest(run)["status"] == "finished"
        values.append(metrics(run))
    one, two = values
    for key in ("val/accuracy", "val/f1", "val/loss"):
        assert two[key] == pytest.approx(one[key], abs=1e-4), key
    assert one["val/accuracy"][0] * 17 == pytest.approx(round(one["val/accuracy"][0] * 17))


@pytest.mark.slow
def test_two_ranks_share_the_filling_and_answer_as_one(
    root: Path, csv_file: Path, make_model: MakeModel
) -> None:
    """Also a loss that reads no logits: under DDP every weight of the student needs a gradient.

    And variants, judged by the teacher: both ranks must come to the same rows.
    """
    student = make_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    given = [f"--model.student.path={student}", f"--data.source.train={csv_file}", *TINY]
    given += [taught(make_model, initializer_range=0.5)[0], "--trainer.max_epochs=2"]
    given += [DROPS, "--data.augment.variants=2", "--data.augment.flip_confidence=0.5"]
    given += ["--model.objectives.hidden={class_path: HiddenKD, init_args: {layers: {1: 2}}}"]
    losses, answers, rows = [], [], []
    for name, more in (("one", []), ("two", ["--trainer.strategy=ddp", "--trainer.devices=2"])):
        words = ["fit", *given, f"--run.root={root / name}", "--run.name=run", *more]
        process = start(*words)
        output = process.communicate()[0]
        assert process.returncode == 0, output
        assert output.count("cache = ") == 1, "rank 0 alone speaks"
        assert output.count(" asked of the teacher in ") == 1
        run = root / name / "run" / "version_0"
        losses.append(metrics(run)["val/objective"])
        assert json.loads((run / "augmentation.json").read_text())["flipped"] > 0
        rows.append(read_manifest(run)["data"]["train"])
        (folder,) = (path for path in (root / name / ".cache").iterdir() if path.name != "variants")
        shards, notes = read_shards(folder, folder.name)
        assert not notes
        found = {}
        for shard in shards:
            for row, key in enumerate(map(tuple, shard.keys.tolist())):
                assert key not in found, "no text is asked about twice"
                found[key] = [shard.answer(field, row) for field in sorted(shard.fields)]
        answers.append((len(shards), found))
    (_, one), (parts, two) = answers
    assert parts >= 2, "both ranks wrote"
    assert rows[0] == rows[1]
    assert one.keys() == two.keys()
    assert all(torch.equal(a, b) for key in one for a, b in zip(one[key], two[key], strict=True))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.slow
def test_a_killed_run_is_continued_by_resume_auto(
    root: Path, csv_file: Path, make_model: MakeModel
) -> None:
    words = ["fit", f"--model.student.path={make_model()}", f"--data.source.train={csv_file}"]
    words += [f"--run.root={root}", "--run.save_every=2", *TINY]
    process = start(*words, "--trainer.max_epochs=5000")
    saved = root / "run" / "version_0" / "checkpoints" / "resume.ckpt"
    deadline = time.monotonic() + 120
    while not saved.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert read_manifest(root / "run" / "version_0")["status"] == "running"
    step = torch.load(saved, weights_only=True)["global_step"]
    epochs = step // 5 + 3
    done = start(*words, f"--trainer.max_epochs={epochs}", "--run.resume=auto")
    output = done.communicate()[0]
    assert done.returncode == 0, output
    second = root / "run" / "version_1"
    assert read_manifest(second)["resumed_from"] == str(root / "run" / "version_0")
    assert trained_steps(second) == list(range(5 * epochs))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of every forward pass of a teacher."""
    from kd.teachers import ModelTeacher

    counted: list[int] = []
    answer = ModelTeacher.__call__

    def count(self, batch, needs):
        counted.append(len(batch))
        return answer(self, batch, needs)

    monkeypatch.setattr(ModelTeacher, "__call__", count)
    return counted


def taught(make_model: MakeModel, *more: str, **sizes: float) -> list[str]:
    path = make_model("t", **sizes)
    words = [f"--model.teacher={{class_path: ModelTeacher, init_args: {{path: {path}}}}}"]
    words += ["--model.objectives.labels=HardLabel", "--model.objectives.logits=LogitKD"]
    return [*words, *more]


def test_second_run_asks_the_teacher_nothing(
    root: Path, csv_file: Path, make_model: MakeModel, asked: list[int]
) -> None:
    teacher = taught(make_model)
    first = fit(root, csv_file, make_model(), *teacher)
    assert asked
    assert read_manifest(first)["keys"]["cache"].startswith(str(root / ".cache"))
    speed = read_manifest(first)["results"]["teacher"]["rows_per_second"]
    asked.clear()
    other = make_model("other", hidden_size=32, num_hidden_layers=2)
    for words in ([], ["--seed_everything=7"], ["--model.objectives.logits.temperature=4"]):
        second = fit(root, csv_file, other, *teacher, *words)
        assert not asked
        assert read_manifest(second)["results"]["teacher"]["rows_per_second"] == speed
    fit(root, csv_file, other, *teacher, "--model.cache=false")
    assert asked, "without a cache it is asked again"


def test_second_run_of_an_ensemble_asks_no_member(
    root: Path, csv_file: Path, make_model: MakeModel, asked: list[int]
) -> None:
    members = {
        name: {"class_path": "ModelTeacher", "init_args": {"path": str(make_model(name))}}
        for name in ("a", "b")
    }
    teacher = {"class_path": "EnsembleTeacher", "init_args": {"teachers": members}}
    words = [f"--model.teacher={json.dumps(teacher)}", *taught(make_model)[1:]]
    runs = []
    for name in ("student", "other"):
        asked.clear()
        runs.append(fit(root, csv_file, make_model(name), *words))
        assert bool(asked) == (name == "student")
    first, second = map(read_manifest, runs)
    folders = [str(path) for path in (root / ".cache").iterdir()]
    assert len(folders) == 2
    assert sorted(first["keys"]["cache"].split(", ")) == sorted(folders)
    assert second["keys"] == first["keys"]
    assert second["results"]["teacher"] == first["results"]["teacher"], "the speed is recalled"
    assert min(one["seconds"]["teacher"] for one in (first, second)) > 0


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "student" / "model.safetensors")


HIDDEN = "{class_path: HiddenKD, init_args: {layers: {1: 2, 3: 3}}}"


@pytest.mark.parametrize("objective", ["LogitKD", HIDDEN, "MiniLMKD"])
def test_with_and_without_a_cache_the_weights_are_equal_to_the_bit(
    root: Path, csv_file: Path, make_model: MakeModel, objective: str
) -> None:
    student, words = make_model(), [*taught(make_model), f"--model.objectives.more={objective}"]
    runs = [fit(root, csv_file, student, *words, f"--run.name={name}") for name in ("new", "warm")]
    runs.append(fit(root, csv_file, student, *words, "--run.name=off", "--model.cache=false"))
    first, *others = (weights_of(run) for run in runs)
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_cache_fills_ahead_lists_and_prunes(
    root: Path,
    csv_file: Path,
    make_model: MakeModel,
    asked: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    teacher = taught(make_model)
    words = [f"--model.student.path={make_model()}", f"--data.source.train={csv_file}"]
    words += [f"--run.root={root}", *TINY, *teacher]
    main(["cache", *words])
    assert asked
    assert [path.name for path in root.iterdir()] == [".cache"], "no run was made"
    asked.clear()
    fit(root, csv_file, make_model(), *teacher)
    assert not asked
    capsys.readouterr()
    main(["cache", "list", f"--root={root}"])
    told = capsys.readouterr().out
    (folder,) = (root / ".cache").iterdir()
    assert folder.name in told
    assert "/t " in told
    main(["cache", "prune", f"--root={root}"])
    assert folder.is_dir(), "it was used a moment ago"
    with pytest.raises(SystemExit):
        main(["cache", "prune", f"--root={root}", "--key=nothing"])
    assert "0 teachers" in capsys.readouterr().err
    main(["cache", "prune", f"--root={root}", f"--key={folder.name[:6]}"])
    assert not folder.exists()
    main(["cache", "list", f"--root={root}"])
    assert "nothing is kept" in capsys.readouterr().out


def test_augmented_run_tells_what_became_of_its_variants(
    root: Path,
    csv_file: Path,
    make_model: MakeModel,
    asked: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = taught(make_model, DROPS, "--data.augment.variants=3", initializer_range=0.5)
    words += ["--data.augment.flip_confidence=0.5"]
    student = make_model()
    run = fit(root, csv_file, student, *words)
    told = json.loads((run / "augmentation.json").read_text())
    reasons = ("unchanged", "duplicate", "held out", "flipped")
    assert told["made"] == 3 * 36 == told["kept"] + sum(told[reason] for reason in reasons)
    assert told["flipped"] > 0
    assert len(told["examples"]) == 10
    assert f"augment = 108 variants, made in 0.0 s: {told['kept']} kept" in capsys.readouterr().out
    assert "augmentation.json" in read_manifest(run)["checksums"]
    asked.clear()
    again = fit(root, csv_file, student, *words)
    assert "augment = 108 variants, read in" in capsys.readouterr().out
    assert not asked, "variants are texts like others to the cache"
    first, second = weights_of(run), weights_of(again)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert read_manifest(again)["data"] == read_manifest(run)["data"]
    other = fit(root, csv_file, student, *words, "--data.augment.seed=1")
    assert read_manifest(other)["data"]["train"] != read_manifest(run)["data"]["train"]
    assert read_manifest(other)["data"]["validation"] == read_manifest(run)["data"]["validation"]
    main(["cache", "list", f"--root={root}"])
    assert "(variants of training rows)" in capsys.readouterr().out


def test_augmenters_are_chained_and_mixed_in_a_recipe(
    root: Path, csv_file: Path, make_model: MakeModel
) -> None:
    chain = [
        {"class_path": "Mixed", "init_args": {"augmenters": [{"class_path": "WordSwap"},
            {"class_path": "Synonym", "init_args": {"thesaurus": "builtin"}}], "weights": [1, 2]}},
        {"class_path": "Keyboard"},
    ]  # fmt: skip
    run = fit(root, csv_file, make_model(), f"--data.augment={json.dumps({'augmenters': chain})}")
    assert json.loads((run / "augmentation.json").read_text())["kept"] > 20
    main(["fit", f"--config={run / 'config.yaml'}"])
    again = root / "run" / "version_1"
    assert read_manifest(again)["data"] == read_manifest(run)["data"]


def test_only_fit_makes_variants(
    root: Path, csv_file: Path, make_model: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(root, csv_file, make_model(), DROPS)
    shutil.rmtree(root / ".cache")
    capsys.readouterr()
    main(["validate", f"--config={run / 'config.yaml'}"])
    assert "augment" not in capsys.readouterr().out
    assert not (root / ".cache").exists()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--data.augment.augmenters=[{class_path: WordDrops}]", "did you mean WordDrop"),
        ("--data.augment.augmenters=[{class_path: os.system}]", "os.system"),
        ("--data.augment.augmenters=[{class_path: WordDrop, init_args: {p: 1}}]", "p is no option"),
        ("--data.augment.augmenters=[]", "augment.augmenters is empty"),
        ("--data.augment={augmenters: [WordDrop], labels: teacher}", "name a teacher"),
        (
            "--data.augment={augmenters: [WordDrop], class_variants: {joy: 1}}",
            "none of the classes",
        ),
    ],
)
def test_wrong_augmentation_is_one_sentence(
    root: Path,
    csv_file: Path,
    make_model: MakeModel,
    capsys: pytest.CaptureFixture[str],
    word: str,
    said: str,
) -> None:
    with pytest.raises(SystemExit):
        fit(root, csv_file, make_model(), word)
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_out_of_fold_teachers_are_trained_without_what_they_answer(
    root: Path, csv_file: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = root.parent / "teacher.yaml"
    student = {"class_path": "EncoderClassifier", "init_args": {"path": str(make_model("big"))}}
    data = {"source": {"train": str(csv_file)}, "batch_size": 8, "max_length": 16}
    trainer = {"max_epochs": 1, "accelerator": "cpu"}
    content = {"model": {"student": student}, "data": data, "trainer": trainer}
    recipe.write_text(yaml.safe_dump(content))
    monkeypatch.chdir(ROOT)
    path = root / "teacher"
    words = [
        f"--model.teacher={{class_path: OutOfFoldTeacher, "
        f"init_args: {{path: {path}, recipe: {recipe}, folds: 2}}}}",
        *taught(make_model)[1:],
    ]
    run = fit(root, csv_file, make_model(), *words)
    assert read_manifest(run)["status"] == "finished"
    for fold in (0, 1):
        teacher = root / f"teacher_fold{fold}of2" / "version_0"
        assert yaml.safe_load((teacher / "config.yaml").read_text())["data"]["fold"] == [fold, 2]
    digests = [
        read_manifest(root / f"teacher_fold{fold}of2" / "version_0")["data"]["train"]
        for fold in (0, 1)
    ]
    assert digests[0] != digests[1]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own compiler
@pytest.mark.parametrize("words", [["--model.compile=true"], ["--trainer.precision=bf16-mixed"]])
def test_options_for_speed_train(
    root: Path, csv_file: Path, make_model: MakeModel, words: list[str]
) -> None:
    run = fit(root, csv_file, make_model(), *taught(make_model), *words)
    assert all(name.split(".")[0] in ("bert", "classifier") for name in weights_of(run))
    assert read_manifest(run)["status"] == "finished"


def test_batches_of_tokens_train(root: Path, csv_file: Path, make_model: MakeModel) -> None:
    run = fit(root, csv_file, make_model(), "--data.tokens_per_batch=64")
    found = metrics(run)
    assert max(found["speed/padding_share"]) < 0.2
    assert min(found["speed/rows_per_second"]) > 0


def test_shrunk_student_fits(
    root: Path, csv_file: Path, make_model: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model.student.shrink.vocabulary=true", "--model.student.shrink.max_parameters=9000"]
    big = make_model("big", hidden_size=32, num_attention_heads=4)
    run = fit(root, csv_file, big, *taught(make_model), *words)
    assert "shape = " in capsys.readouterr().out
    assert sum(weight.numel() for weight in weights_of(run).values()) <= 9000
    main(["classify", f"--model={run / 'student'}", "i love it"])
