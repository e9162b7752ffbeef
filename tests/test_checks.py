"""Each check by itself: what it finds, at which level, and what it lets pass."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from jsonargparse import Namespace
from lightning import Trainer

from kd.checks.cheap import Checkup, cheap_findings
from kd.checks.findings import Finding
from kd.checks.machine import (
    Course,
    check_disk,
    check_memory,
    check_time,
    course_of,
    free_memory,
    training_memory,
)
from kd.checks.models import check_answers, check_modes, check_reading
from kd.checks.options import check_options
from kd.checks.rows import check_balance, check_duplicates, check_leaks
from kd.checks.sample import Sample, some
from kd.data.augment import WordDrop
from kd.data.datamodule import TextDataModule
from kd.data.sources import Source
from kd.data.variants import Augmentation
from kd.models import EncoderClassifier
from kd.module import DistillationModule
from kd.objectives import HardLabel, LogitKD
from kd.teachers import ModelTeacher
from kd.types import ModelInfo, Row
from tests.conftest import LABELS, TEXTS

LETTERS = ("a", "b", "c", "d")


def rows(*labels, origin=None):
    return [Row(i, f"text {i}", label, origin=origin) for i, label in enumerate(labels)]


def told(findings):
    findings = [findings] if isinstance(findings, Finding) else findings
    return [(finding.level, finding.check) for finding in findings]


def test_texts_that_repeat_and_contradict_are_found_whatever_their_case_and_spaces():
    train = [
        Row(0, "so Good", 1),
        Row(1, " so  good ", 0),
        Row(2, "SO GOOD", None),
        Row(3, "no", 0),
    ]
    found = check_duplicates(train, LABELS)
    assert told(found) == [("warning", "duplicates"), ("warning", "labels")]
    assert "2 of 4 training texts repeat another, such as 'so Good'" in str(found[0])
    assert "2 of 3 labelled rows contradict" in str(found[1])
    assert "(negative and positive)" in str(found[1])


def test_a_few_repeated_texts_are_told_and_no_more():
    train = [Row(i, f"text {i % 99}", i % 99 % 2) for i in range(100)]
    assert told(check_duplicates(train, LABELS)) == [("ok", "duplicates")]
    variants = [Row(200 + i, f"text {i}", i % 2, origin=i) for i in range(99)]
    assert "1 of 100" in str(check_duplicates(train + variants, LABELS)[0]), "variants do not count"


def test_pairs_repeat_only_together():
    train = [Row(0, "a", 0, pair="b"), Row(1, "a", 0, pair="c"), Row(2, "a b", 0), Row(3, "x", 0)]
    assert "0 of 4" in str(check_duplicates(train, LABELS)[0])


@pytest.mark.parametrize(("shared", "level"), [(0, "ok"), (1, "ok"), (5, "warning"), (40, "error")])
def test_leaks_are_graded_by_their_share(shared, level):
    held_out = [Row(i, f"TEXT  {i}", 0) for i in range(200 - shared, 400 - shared)]
    train = [Row(i, f"text {i}", 0) for i in range(200)]
    assert told(check_leaks(train, held_out, "test")) == [(level, "leaks")]


def test_rare_and_unmeasured_classes_are_found():
    train = rows(*[0] * 500, *[1] * 500, *[2] * 9)
    found = check_balance(train, rows(0, 1, 2), ("a", "b", "c"))
    assert told(found) == [("warning", "classes")]
    assert "c (9)" in str(found[0])
    found = check_balance(train, rows(0, 2), ("a", "b", "c"))
    assert "no validation row is b" in str(found[1])
    assert told(check_balance(rows(*[0] * 50, *[1] * 50), rows(0, 1), LABELS)) == [
        ("ok", "classes")
    ]
    several = rows(*[(0, 1)] * 20, *[()] * 20)
    assert told(check_balance(several, several, LABELS)) == [("ok", "classes")]
    assert told(check_balance(rows(None, None), rows(0, 1), LABELS)) == [("ok", "classes")]


def test_many_classes_are_not_all_rare():
    names = [str(i) for i in range(150)]
    even = rows(*(list(range(150)) * 20))
    assert told(check_balance(even, even, names)) == [("ok", "classes")]


def answers(chosen, classes):
    return np.eye(classes)[np.asarray(chosen)] * 0.9 + 0.05


def noisy(truth, share, classes=4, seed=0):
    """Return choices, a share of which is the truth and the others any class."""
    draw = np.random.default_rng(seed)
    return np.where(draw.random(len(truth)) < share, truth, draw.integers(0, classes, len(truth)))


def test_a_teacher_is_judged_by_what_it_answers():
    truth = np.arange(400) % 4
    swapped = np.array([1, 0, 2, 3])[noisy(truth, 0.8)]
    cases = [
        (noisy(truth, 0.8), ("ok", "teacher")),
        (noisy(truth, 0.3), ("ok", "teacher")),  # weak, but no accident
        (noisy(truth, 0.0), ("error", "teacher")),
        (np.full(400, 2), ("error", "teacher")),  # says always the same
        (swapped, ("error", "label order")),
        ((truth + 1) % 4, ("error", "label order")),
    ]
    for chosen, expected in cases:
        found = check_answers(answers(chosen, 4), truth, LETTERS)
        assert told(found) == [expected], found
    assert "a for b, b for a" in str(check_answers(answers(swapped, 4), truth, LETTERS))


def test_a_teacher_of_uneven_classes_is_held_against_the_most_frequent():
    truth = np.array([0] * 450 + [1] * 50)
    some_of_them = np.array([0] * 430 + [1] * 20 + [1] * 25 + [0] * 25)
    assert told(check_answers(answers(some_of_them, 2), truth, LABELS)) == [("warning", "teacher")]
    too_often = np.array([0] * 300 + [1] * 150 + [1] * 45 + [0] * 5)
    assert told(check_answers(answers(too_often, 2), truth, LABELS)) == [("error", "teacher")]
    never = np.array([2] * 500)  # and no order of the classes would make it better than nothing
    truth3 = np.array([0] * 300 + [1] * 150 + [2] * 50)
    assert told(check_answers(answers(never, 3), truth3, LETTERS[:3])) == [("error", "teacher")]
    always = np.zeros(500, dtype=int)
    assert told(check_answers(answers(always, 2), truth, LABELS)) == [("error", "teacher")]


def test_a_teacher_of_several_classes_a_row_is_judged_too():
    truth = np.random.default_rng(0).integers(0, 2, (200, 3))
    good = np.abs(truth - 0.1)
    assert told(check_answers(good, truth, LETTERS[:3])) == [("ok", "teacher")]
    chance = np.random.default_rng(1).random((200, 3))
    assert told(check_answers(chance, truth, LETTERS[:3])) == [("error", "teacher")]


def test_few_rows_say_nothing_of_a_teacher():
    truth = np.arange(20) % 2
    found = check_answers(answers(1 - truth, 2), truth, LABELS)
    assert told(found) == [("ok", "teacher")]
    assert "too few" in str(found)


@pytest.fixture
def loaded(make_model, csv_file):
    """Return a function that makes a module, its models loaded, and its data, its rows read."""

    def make(teacher=True, objectives=None, **options):
        data = TextDataModule(Source(train=str(csv_file)), **{"max_length": 32, **options})
        data.read("fit")
        taught = ModelTeacher(str(make_model("teacher"))) if teacher else None
        module = DistillationModule(EncoderClassifier(str(make_model())), taught, objectives)
        module.student.load(data.labels)
        if module.teacher:
            module.teacher.load(data.labels)
        return module, data

    return make


def test_modes_are_looked_at_in_every_part(loaded):
    module, _ = loaded()
    assert told(check_modes(module.student, module.teacher)) == [("ok", "modes")]
    module.student.network.classifier.eval()
    module.teacher.models[0].network.bert.encoder.train()
    found = check_modes(module.student, module.teacher)
    assert told(found) == [("error", "modes")] * 2
    assert "1 parts of the student are in eval mode, such as network.classifier" in str(found[0])


def test_cut_texts_are_counted_and_a_length_proposed(loaded, tmp_path):
    module, data = loaded()
    train = data.rows["train"]
    assert told(check_reading(train, module, 32))[0] == ("ok", "length")
    (length, _) = check_reading(train, module, 8)
    assert length.level == "warning"
    assert "student and teacher read: data.max_length=24 fits 95% of them, and 99% too" in str(
        length
    )
    module.student.describe(tmp_path / "described", 8)  # as a run does, before it is looked at
    assert "at most" not in str(check_reading(train, module, 8)[0])
    module, data = loaded()
    long = [Row(0, "film " * 70, 0)]
    assert "but the model reads 64 at most" in str(check_reading(long, module, 128)[0])


@pytest.mark.fault(31)
def test_unknown_tokens_are_counted(loaded):
    module, _ = loaded(teacher=False)
    found = check_reading([Row(0, TEXTS[0], 0)], module, 32)
    assert told(found) == [("ok", "length"), ("ok", "vocabulary")]
    found = check_reading([Row(0, "Ωμέγα ψυχή λόγος", 0)], module, 32)
    assert told(found)[1] == ("warning", "vocabulary")


def options(objectives=None, teacher=None, **data):
    student = Namespace(init_args=Namespace(path="x", config=None, tokenizer=None))
    model = Namespace(objectives=objectives, teacher=teacher, student=student)
    return Namespace(model=model, data=Namespace(**data))


def test_options_without_effect_are_found(loaded):
    logits = {"logits": LogitKD()}
    cases = [
        ({"teacher": False}, {}, None),
        ({"objectives": logits}, {}, None),
        ({"teacher": True}, {}, "no objective learns from model.teacher"),
        ({"teacher": False, "tokens_per_batch": 99}, {"batch_size": 7}, "data.batch_size has no"),
        ({"teacher": False, "tokens_per_batch": 99}, {"batch_size": 48}, None),  # the default
        ({"teacher": False}, {"batch_size": 7}, None),
        ({"teacher": False}, {"label_separator": ";"}, "data.label_separator has no effect"),
        ({"teacher": False, "labelled_rows": 9}, {}, "27 rows without a label are left out"),
        ({"objectives": logits, "labelled_rows": 9}, {}, None),
    ]
    for made, given, expected in cases:
        module, data = loaded(**made)
        found = check_options(options(**given), module, data)
        assert told(found) == [("warning" if expected else "ok", "options")], made
        assert expected is None or expected in str(found[0])
    module, data = loaded(teacher=False, objectives={"a": HardLabel(), "b": HardLabel(weight=0)})
    found = check_options(options({"a": Namespace(), "b": Namespace(), "c": None}), module, data)
    assert [str(one) for one in found] == ["model.objectives.b has weight 0: remove it"]
    module, data = loaded(teacher=False)
    data.augment = Augmentation([WordDrop()], variants=0)
    assert "no variant" in str(check_options(options(), module, data)[0])


def test_disk_and_memory_are_compared_with_what_is_free(tmp_path):
    assert told(check_disk(10, 0.0, tmp_path / "not" / "there")) == [("ok", "disk")]
    assert told(check_disk(10, 1e18, tmp_path)) == [("error", "disk")]
    for needed, level in ((0.5, "ok"), (0.9, "warning"), (1.1, "error")):
        found = check_memory({"a batch": needed * 1e9, "teacher": 0.0}, 1e9, "cpu")
        assert told(found) == [(level, "memory")]
        assert "teacher" not in str(found), "nothing is told of nothing"
    assert 1e8 < free_memory(torch.device("cpu")) < 1e14


def test_memory_of_training_is_about_what_bert_takes():
    base = ModelInfo(LABELS, 110_000_000, layers=12, width=768, heads=12, vocabulary="")
    needed = training_memory(base, 110_000_000, 0, rows=32, tokens=128)
    assert needed["weights, gradients and AdamW"] == 16 * 110e6
    assert 2.5e9 < needed["a batch"] < 4e9  # as measured with PyTorch: 3 GB


TRAINER = {"max_steps": -1, "max_epochs": 3, "accumulate_grad_batches": 1}
TRAINER |= {"limit_train_batches": None, "val_check_interval": 1.0, "check_val_every_n_epoch": 1}


@pytest.mark.parametrize(
    ("changes", "steps", "validations"),
    [
        ({}, 30, 3),
        ({"max_steps": 25}, 25, 2),
        ({"max_steps": 9}, 9, 0),
        ({"max_epochs": -1}, math.inf, math.inf),
        ({"max_epochs": -1, "max_steps": 40}, 40, 4),
        ({"accumulate_grad_batches": 4}, 9, 3),
        ({"limit_train_batches": 5}, 15, 3),
        ({"limit_train_batches": 0.5}, 15, 3),
        ({"val_check_interval": 0.25}, 30, 12),
        ({"val_check_interval": 5}, 30, 6),
        ({"check_val_every_n_epoch": 4}, 30, 0),
        ({"val_check_interval": 8, "check_val_every_n_epoch": None}, 30, 3),
        ({"val_check_interval": 31, "check_val_every_n_epoch": None}, 30, 0),
    ],
)
def test_the_course_of_a_training_is_foreseen(changes, steps, validations):
    found = course_of(Namespace(**{**TRAINER, **changes}), 10)
    assert found.steps == steps
    assert math.isnan(found.validations) or found.validations == validations


def test_time_is_told_by_what_takes_it():
    (found,) = check_time({"teacher": 130.0, "variants": 0.1}, Course(2000, 5), 0.05)
    assert str(found) == "about 4 min (teacher 3 min, 2,000 steps 100 s, 50.0 ms a step)"
    assert told(check_time({}, Course(20, 0), 0.05)) == [("ok", "time"), ("error", "validation")]
    assert "no end" in str(check_time({}, Course(math.inf, math.inf), 0.05)[0])


def test_a_sample_stands_for_the_whole(csv_file):
    whole = TextDataModule(Source(train=str(csv_file)), batch_size=4, train_rows=36)
    whole.read("fit")
    every = Sample(whole, True, 1000, 1000)
    assert every.scale == 1.0
    assert sorted(row.index for row in every.rows["train"]) == [
        row.index for row in whole.rows["train"]
    ]
    few = Sample(whole, True, 9, 2)
    assert (few.scale, len(few.rows["validation"])) == (4.0, 2)
    assert list(few.texts()) == list(whole.texts()), "a vocabulary is made of all"
    assert some(range(9), 3) == some(range(9), 3)


def test_fit_is_told_of_what_costs_nothing(loaded, tmp_path, capsys):
    module, data = loaded(objectives={"logits": LogitKD()}, max_length=6, validation_fraction=0.8)
    trainer = Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        limit_val_batches=0, default_root_dir=tmp_path, callbacks=[Checkup(options())],
        use_distributed_sampler=False,
    )  # fmt: skip
    module = DistillationModule(
        EncoderClassifier(module.student.path), module.teacher.teacher, {"logits": LogitKD()}
    )
    trainer.fit(module, datamodule=data)
    lines = capsys.readouterr().out.splitlines()
    warned = [line for line in lines if line.startswith(("warning: ", "error: "))]
    assert any("longer than 6 tokens" in line for line in warned)
    assert not any("reads 6 at most" in line for line in warned), "the recipe says so"
    assert any("the teacher is right on" in line for line in warned), "an untrained one"
    assert not any(line.startswith("ok") for line in lines)


def test_a_hundred_thousand_rows_are_looked_at_in_about_a_second(loaded):
    module, data = loaded(teacher=False)
    data.rows["train"] = [Row(i, f"{TEXTS[i % 8]} number {i}", i % 2) for i in range(100_000)]
    started = time.process_time()
    found = cheap_findings(options(), module, data)
    assert time.process_time() - started < 3.0  # on a machine that others use too
    assert {"classes", "duplicates", "leaks", "modes", "length", "options"} <= {
        finding.check for finding in found
    }
