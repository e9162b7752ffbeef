import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoModelForSequenceClassification

from kd.cache import CachedTeacher
from kd.data.collate import EncodedRows
from kd.data.encode import encode
from kd.ensembles import EnsembleTeacher
from kd.inference import Classifier
from kd.summary import Score, as_plain, measure, score, score_teacher, show, speed
from kd.teachers import ModelTeacher
from kd.types import Row
from tests.conftest import LABELS, TEXTS

THREE = ("negative", "neutral", "positive")
TRUTH = (2, 2, 0, 1, 0, 1, 0, 2)


@pytest.fixture
def rows():
    """Rows whose order is not that of their lengths, so that mixing them up shows."""
    texts = [f"{text} {'and ' * (place * 3 % 7)}" for place, text in enumerate(TEXTS)]
    return [Row(10 + place, text, TRUTH[place]) for place, text in enumerate(texts)]


def measured(folder, rows):
    _, scores = measure(folder, EncodedRows(rows, {}), THREE)
    return scores["student"]


@pytest.mark.parametrize("order", [THREE, ("positive", "negative", "neutral"), THREE[::-1]])
def test_figures_equal_those_of_sklearn_in_any_order_of_classes(make_model, rows, order):
    folder = make_model(labels=order, initializer_range=0.5)
    answers = Classifier.from_pretrained(folder).predict([row.text for row in rows])
    truth = [THREE[row.label] for row in rows]
    found = [answer.label for answer in answers]
    assert len(set(found)) > 1
    result = measured(folder, rows)
    assert result.accuracy == pytest.approx(accuracy_score(truth, found))
    wanted = f1_score(truth, found, labels=sorted({*truth, *found}), average="macro")
    assert result.f1 == pytest.approx(wanted)


def test_size_and_speed_are_those_of_the_model(make_model, rows):
    folder = make_model()
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    classifier = Classifier.from_pretrained(folder).model.classifier
    result = score(classifier, rows, 0.5, 0.25)
    assert (result.accuracy, result.f1) == (0.5, 0.25)
    assert result.parameters == network.num_parameters()
    assert result.megabytes == pytest.approx(network.num_parameters() * 4 / 1e6)
    assert result.rows_per_second > 0


def test_speed_is_measured_on_ever_more_rows_after_a_warm_up(make_model, rows, monkeypatch):
    asked = []
    model = Classifier.from_pretrained(make_model()).model.classifier

    def answering(seconds_per_row):
        def answer(self, texts, pairs):
            asked.append(len(texts))
            time.sleep(seconds_per_row * len(texts))

        monkeypatch.setattr(Classifier, "logits", answer)

    answering(0.0)
    assert speed(model, rows * 100) > 0
    assert asked == [8, 8, 32, 128, 512]
    asked.clear()
    speed(model, rows[:5])
    assert asked == [5, 5]
    asked.clear()
    answering(0.03)  # a large teacher is not kept for long
    assert 20 < speed(model, rows * 100) < 34
    assert asked == [8, 8]


def test_teacher_of_several_models_adds_up(make_model, rows):
    teachers = {name: ModelTeacher(str(make_model(name))) for name in ("a", "b")}
    together = EnsembleTeacher(teachers)
    together.load(LABELS)
    scored = score_teacher(together, rows, 0.9, 0.8)
    alone = teachers["a"].model
    assert scored.parameters == 2 * alone.info.parameters
    assert scored.rows_per_second < 0.9 * speed(alone, rows)


def test_speed_of_each_cached_member_is_measured_once(make_model, rows, tmp_path, monkeypatch):
    measured = []

    def timed(model, rows):
        measured.append(model.path)
        return speed(model, rows)

    monkeypatch.setattr("kd.summary.speed", timed)
    paths = {name: str(make_model(name)) for name in "abc"}

    def scored(*names):
        teacher = EnsembleTeacher(
            {name: CachedTeacher(ModelTeacher(paths[name])) for name in names}
        )
        teacher.keep_in(tmp_path / "answers")
        teacher.load(LABELS)
        encoded = {name: encode(rows, view) for name, view in teacher.views(32).items()}
        split = EncodedRows(rows, {"student": next(iter(encoded.values())), **encoded})
        teacher.prepare([split], frozenset({"logits"}), torch.device("cpu"))
        return score_teacher(teacher, rows, 0.9, 0.8).rows_per_second

    assert scored("a", "b") == scored("b", "a")
    assert measured == [paths["a"], paths["b"]]
    assert 1 / scored("a", "b") == pytest.approx(1 / scored("a") + 1 / scored("b"))
    scored("b", "c")
    assert measured == [paths["a"], paths["b"], paths["c"]]


def test_the_box_shows_every_figure(capsys, tmp_path):
    scores = {
        "teacher": Score(0.9312, 0.9001, 109_483_778, 437.9, 51.2),
        "student": Score(0.8754, 0.8611, 4_386_178, 17.5, 2345.6),
    }
    show(scores, tmp_path / "version_0", 1234, 67.8, "teacher 12.3 s")
    printed = capsys.readouterr().out
    for figure in ("93.1%", "90.0%", "109,483,778", "437.9", "51"):
        assert figure in printed
    for figure in (
        "87.5%",
        "86.1%",
        "4,386,178",
        "17.5",
        "2,346",
        "1,234",
        "68 s",
        "teacher 12.3 s",
    ):
        assert figure in printed
    teacher, student = (printed.index(role) for role in ("teacher", "student"))
    assert teacher < student
    assert "classify --model" in printed
    assert as_plain(scores)["student"]["accuracy"] == 0.8754


@pytest.mark.parametrize("order", [THREE, ("positive", "negative", "neutral")])
def test_figures_of_several_labels_equal_those_of_sklearn(make_model, rows, order):
    settings = {"initializer_range": 0.5, "problem_type": "multi_label_classification"}
    folder = make_model(labels=order, **settings)
    answers = Classifier.from_pretrained(folder).predict([row.text for row in rows])
    sets = ((0, 2), (), (1,), (0, 1, 2), (2,), (0,), (1, 2), ())
    rows = [replace(row, label=labels) for row, labels in zip(rows, sets, strict=True)]
    truth = np.array([[place in row.label for place in range(3)] for row in rows])
    found = np.array([[label in answer.labels for label in THREE] for answer in answers])
    result = measured(folder, rows)
    assert result.accuracy == pytest.approx(np.mean(truth == found))
    assert 0 < result.accuracy < 1
    assert result.f1 == pytest.approx(f1_score(truth, found, average="macro", zero_division=0))
