"""Whole examinations of recipes: a planted fault is found, and a good recipe has none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy

from kd.doctor import doctor
from kd.models import EncoderClassifier
from kd.teachers import ModelTeacher
from kd.vocabulary import train_wordpiece
from tests.conftest import LABELS, SIZES
from tests.test_recipes import RECIPES, TINY_T5, explained

ROOT = Path(__file__).parents[1]
SUBJECTS = "film song book game meal hotel phone city team story lamp train shop coat town".split()
WORDS = {"negative": "awful dull sad rude broken".split()}
WORDS["positive"] = "lovely bright happy kind clever".split()
ROWS = [
    (f"{word} are the {a} and the {b}", label)
    for a in SUBJECTS
    for b in SUBJECTS[:3]
    for label, words in WORDS.items()
    for word in words
    if a != b
]


class LivelyTeacher(ModelTeacher):
    """Forgets to leave train mode."""

    def load(self, labels, multi_label=False):
        super().load(labels, multi_label)
        self.model.train()

    def __call__(self, batch, needs):
        self.model.eval()
        found = super().__call__(batch, needs)
        self.model.train()
        return found


class StillStudent(EncoderClassifier):
    """Forgets to leave eval mode."""

    def load(self, *given, **named):
        super().load(*given, **named)
        self.eval()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A data set that is learnt in a second, a teacher that has learnt it, and other models."""
    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    write(folder / "rows.csv", ROWS)
    texts = [text for text, _ in ROWS] + ["it says"]
    train_wordpiece(texts, 300).save_pretrained(folder / "words")
    sizes = {**SIZES, "model_type": "bert", "num_hidden_layers": 6, "initializer_range": 0.1}

    def model(name, labels=LABELS, **changes):
        made = EncoderClassifier(config={**sizes, **changes}, tokenizer=str(folder / "words"))
        made.load(labels)
        made.save(folder / name)
        return made

    model("student")
    model("untrained")
    model("other_classes", labels=("bad", "good"))
    teacher = model("teacher", hidden_size=32)
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
    inputs = teacher.tokenizer([text for text, _ in ROWS], padding=True, return_tensors="pt")
    truth = torch.tensor([LABELS.index(label) for _, label in ROWS])
    for _ in range(15):
        loss = cross_entropy(teacher(inputs).logits, truth)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (teacher.eval()(inputs).logits.argmax(-1) == truth).float().mean() > 0.95
    teacher.save(folder / "teacher")
    return folder


def write(path, rows):
    path.write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in rows))
    return path


@pytest.fixture
def examine(world, tmp_path, monkeypatch, capsys):
    """Return a function that examines a recipe and returns what was found, by level and check."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KD_ALLOW_IMPORTS", "tests.test_doctor")
    monkeypatch.setattr("kd.doctor._STEPS", 4)

    def run(*words):
        code = 0
        try:
            doctor([word.replace("WORLD", str(world)) for word in words])
        except SystemExit as stop:
            code = stop.code
        told = capsys.readouterr().out
        found = [(line[:9].strip(), line[9:22].strip(), line[22:]) for line in told.splitlines()]
        levels = [level for level, _, _ in found]
        assert code == (2 if "error" in levels else 0), told
        assert list(tmp_path.iterdir()) == []
        return [finding for finding in found if finding[0] in ("ok", "warning", "error")]

    return run


TINY = ["--trainer.accelerator=cpu", "--data.batch_size=16", "--data.max_length=16"]
GOOD = [
    "--model.student.path=WORLD/student",
    "--model.teacher={class_path: ModelTeacher, init_args: {path: WORLD/teacher}}",
    "--model.objectives={labels: HardLabel, logits: LogitKD}",
    "--data.source.train=WORLD/rows.csv",
    *TINY,
]


def test_a_good_recipe_is_found_good_and_leaves_nothing(examine):
    found = examine(*GOOD)
    assert {level for level, _, _ in found} == {"ok"}
    checks = [check for _, check, _ in found]
    assert checks == (
        "classes duplicates leaks memory modes length vocabulary teacher options disk time".split()
    )


FAULTS = {
    "untrained teacher": ("teacher", "error", ["--model.teacher.path=WORLD/untrained"]),
    "classes in another order": (
        *("label order", "error"),
        ["--model.teacher.label_names=[positive, negative]"],
    ),
    "classes that the teacher does not know": (
        *("teacher", "error"),
        ["--model.teacher.path=WORLD/other_classes"],
    ),
    "teacher in train mode": (
        *("modes", "error"),
        ["--model.teacher={class_path: tests.test_doctor.LivelyTeacher, "
        "init_args: {path: WORLD/teacher}}"],
    ),
    "student in eval mode": (
        *("modes", "error"),
        ["--model.student={class_path: tests.test_doctor.StillStudent, "
        "init_args: {path: WORLD/student}}"],
    ),
    "another vocabulary under an objective of tokens": (
        *("objectives", "error"),
        ["--model.student={class_path: EncoderClassifier, init_args: {path: null, vocabulary_size: "
        "120, config: {model_type: bert, hidden_size: 16, num_hidden_layers: 2, "
        "num_attention_heads: 2}}}", "--model.objectives.hidden=HiddenKD"],
    ),
    "layer map that does not fit": (
        *("objectives", "error"),
        ["--model.objectives.hidden={class_path: HiddenKD, init_args: {layers: {2: 9}}}"],
    ),
    "objective without its teacher": ("recipe", "error", ["--model.teacher=null"]),
    "texts that are cut": ("length", "warning", ["--data.max_length=6"]),
    "more labels than rows": ("data", "error", ["--data.labelled_rows=100000"]),
    "weight of 0": (
        *("options", "warning"),
        ["--model.objectives.mse={class_path: LogitMSE, init_args: {weight: 0}}"],
    ),
    "teacher of no use": ("options", "warning", ["--model.objectives.logits=null"]),
    "option that another overrules": ("options", "warning", ["--data.tokens_per_batch=200"]),
    "student without a folder": ("student", "error", ["--model.student.path=WORLD/none"]),
    "teacher without a recipe": (
        *("references", "error"),
        ["--model.teacher.path=runs/none", "--model.teacher.recipe=none.yaml"],
    ),
    "rationales that are not there": ("data", "error", ["--data.rationales.path=runs/none"]),
    "no validation before the end": ("validation", "error", ["--trainer.max_steps=2"]),
    "unknown key": ("recipe", "error", ["--model.objectives.logits.temprature=2"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, examine):
    check, level, words = FAULTS[fault]
    told = examine(*GOOD, *words)
    found = [(told_level, name) for told_level, name, _ in told if told_level != "ok"]
    assert (level, check) in found
    assert len(found) == 1, "and no other"


def test_one_fault_does_not_hide_another(examine, tmp_path_factory):
    torn = ROWS + [(text, LABELS[label == "negative"]) for text, label in ROWS[:100]]
    rows = write(tmp_path_factory.mktemp("torn") / "rows.csv", torn)
    words = ["--model.student.path=WORLD/none", "--model.teacher.path=WORLD/other_classes"]
    found = examine(*GOOD, *words, f"--data.source.train={rows}")
    wrong = {(level, check) for level, check, _ in found if level != "ok"}
    assert {("warning", "labels"), ("error", "student"), ("error", "teacher")} <= wrong
    found = examine(*GOOD, "--model.teacher=null", f"--data.source.train={rows}")
    wrong = {(level, check) for level, check, _ in found if level != "ok"}
    assert {("warning", "labels"), ("error", "recipe")} <= wrong


def test_what_fit_would_fetch_and_cannot_is_found(examine, monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    found = examine(*GOOD, "--data.augment.augmenters=[Synonym]")
    assert [check for level, check, _ in found if level == "error"] == ["augment"]
    assert "NLTK_DATA" in found[-1][2]


@pytest.mark.usefixtures("wandb_without_key")
def test_a_key_that_is_missing_is_found(examine):
    found = examine(*GOOD, "--trainer.logger=WandbLogger")
    assert [check for level, check, _ in found if level == "error"] == ["recipe"]
    assert [check for _, check, _ in found][-1] == "time", "the rest is examined all the same"


def test_a_cache_that_will_be_too_small_is_found_by_some_of_the_rows(examine, monkeypatch):
    monkeypatch.setattr("kd.doctor._ROWS", 40)
    inner = "{class_path: ModelTeacher, init_args: {path: WORLD/teacher}}"
    words = ["--model.objectives.hidden={class_path: HiddenKD, init_args: {layers: uniform}}"]
    words += ["--data.batch_size=4", "--model.teacher={class_path: CachedTeacher, init_args: "]
    for limit, level in ((0.001, "error"), (0.01, "ok")):
        teacher = words[-1] + f"{{teacher: {inner}, limit_gb: {limit}}}}}"
        found = examine(*GOOD, *words[:-1], teacher)
        assert [check for told, check, _ in found if told != "ok"] == ["cache"] * (level != "ok")


def test_a_teacher_that_fit_will_train_is_no_fault(examine):
    found = examine("--config", str(ROOT / "configs" / "quickstart.yaml"), "--run.root=runs")
    assert {level for level, _, _ in found} == {"ok"}
    assert "runs/quickstart_teacher is not there yet; fit trains it first" in found[-1][2]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_no_recipe_gives_a_false_alarm(recipe, examine, world, tmp_path_factory):
    """The recipe's own model, objectives and trainer, in a world that is easily learnt."""
    content = yaml.safe_load(recipe.read_text())
    words = [f"--config={recipe}", *TINY, "--data.text_column=text", "--data.train_rows=null"]
    words += ["--data.labelled_rows=null", "--trainer.max_epochs=1", "--trainer.max_steps=-1"]
    words += ["--trainer.val_check_interval=1.0", "--trainer.check_val_every_n_epoch=1"]
    source = {"path": None, "name": None, "unlabelled": None, "train": str(world / "rows.csv")}
    words += [f"--data.source={json.dumps(source)}"]
    student, data = content["model"]["student"], content["data"]
    if student["class_path"] == "Seq2SeqClassifier":
        student["init_args"] = {"path": None, "config": TINY_T5}
        words += [f"--model.student={json.dumps(student)}"]
    elif "path" in student["init_args"]:
        words += ["--model.student.path=WORLD/student", "--model.student.tokenizer=null"]
        words += ["--model.student.model_type=null"]
    if "path" in data.get("rationales", {}):
        rows = tmp_path_factory.mktemp("said") / "rows.csv"
        rows.write_text((world / "rows.csv").read_text())
        words += [f"--data.rationales.path={explained(rows)}"]
    elif "rationales" in data:
        words += ["--data.source={path: sample, train: train}", "--data.max_length=48"]
    teacher = content["model"].get("teacher", {})
    given = {"path": str(world / "teacher"), "label_names": None}
    if "teachers" in teacher.get("init_args", {}):
        members = {name: {**member, "init_args": given}
            for name, member in teacher["init_args"]["teachers"].items()}  # fmt: skip
        words += [f"--model.teacher.teachers={json.dumps(members)}"]
    elif "init_args" in teacher:
        words += ["--model.teacher.path=WORLD/teacher", "--model.teacher.label_names=null"]
    if "augment" in data:
        builtin = {"class_path": "Synonym", "init_args": {"thesaurus": "builtin"}}
        words += [f"--data.augment.augmenters={json.dumps([builtin])}"]
    found = examine(*words)
    assert [finding for finding in found if finding[0] != "ok"] == []
    assert "time" in [check for _, check, _ in found], "the steps were taken"
