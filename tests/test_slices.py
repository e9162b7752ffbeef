from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from kd.calibration import surety
from kd.predictions import Predictions
from kd.slices import cascade_curve, flips, share_of, slices

TEXTS = (
    "good",
    "not bad at all",
    "I don’t like the film of the year 😡",
    "a film",
    "so very good a film",
    "bad bad bad bad",
)
TRUTH = np.array([1, 1, 0, 0, 1, 0])


def logits(choices, sureness):
    """Return logits of two classes, of a choice and how much surer it is than the other."""
    signs = 2 * np.array(choices) - 1
    half = signs * np.array(sureness) / 2
    return np.stack([-half, half], axis=1).astype(np.float32)


@pytest.fixture
def answers():
    student = logits([1, 0, 0, 1, 1, 0], [3, 1, 2, 4, 5, 0.5])  # wrong about rows 1 and 3
    teacher = logits([1, 1, 0, 0, 0, 0], [9, 9, 9, 9, 1, 9])  # wrong about row 4
    return Predictions(("bad", "good"), False, TEXTS, None, TRUTH, student, teacher)


@pytest.fixture
def several():
    truth = np.array([[1, 0], [0, 0], [1, 1]])
    student = np.array([[3, -3], [-1, 2], [4, 4]], dtype=np.float32)
    teacher = np.array([[3, -3], [-1, -2], [-4, 4]], dtype=np.float32)
    return Predictions(("joy", "fear"), True, TEXTS[:3], None, truth, student, teacher)


@pytest.mark.parametrize(("right", "rows"), [(8, 10), (0, 3), (3, 3), (817, 1000)])
def test_an_interval_is_wilsons(right, rows):
    share = share_of(np.array([1.0] * right + [0.0] * (rows - right)))
    wanted = binomtest(right, rows).proportion_ci(method="wilson")
    assert (share.low, share.high) == pytest.approx((wanted.low, wanted.high), abs=1e-6)
    assert 0 <= share.low <= share.value == right / rows <= share.high <= 1


def test_slices_count_the_rows_of_each_kind(answers):
    found = {one.name: one for one in slices(answers)}
    assert found["class bad"].rows == found["class good"].rows == 3
    assert found["class bad"].student.value == pytest.approx(2 / 3)
    assert found["class bad"].teacher.value == 1
    assert found["with a negation (English)"].rows == 2  # "not", and "don’t" by its end
    assert found["without a negation"].rows == 4
    assert (found["with an emoji"].rows, found["without an emoji"].rows) == (1, 5)
    by_length = [one for one in found.values() if one.name.endswith(" words")]
    assert sum(one.rows for one in by_length) == len(TEXTS)
    assert by_length[0].name.startswith("up to ")
    assert by_length[-1].name.endswith("to 9 words")


def test_slices_need_no_teacher_and_no_variety(answers):
    alone = replace(answers, teacher=None, texts=("one word",) * 6, truth=np.zeros(6, dtype=int))
    found = slices(alone)
    assert [one.name for one in found] == [
        "up to 2 words", "class bad", "without a negation", "without an emoji"
    ]  # fmt: skip
    assert {one.teacher for one in found} == {None}


def test_slices_of_several_classes_hold_the_rows_that_have_each(several):
    found = {one.name: one for one in slices(several)}
    assert (found["class joy"].rows, found["class fear"].rows) == (2, 1)
    assert found["class joy"].student.value == 1
    assert found["class joy"].teacher.value == 0.75  # one of its four choices is wrong


def test_flips_are_the_mistakes_of_one_alone_surest_first(answers):
    student_errs = flips(answers, teacher_is_right=True)
    assert [one.text for one in student_errs] == ["a film", "not bad at all"]
    assert [(one.label, one.student, one.teacher) for one in student_errs] == [
        ("bad", "good", "bad"),
        ("good", "bad", "good"),
    ]
    assert student_errs[0].confidence > student_errs[1].confidence > 0.5
    assert [one.text for one in flips(answers, teacher_is_right=False)] == ["so very good a film"]


def test_flips_of_several_classes_need_all_right(several):
    (one,) = flips(several, teacher_is_right=True)
    assert (one.text, one.label, one.student, one.teacher) == (TEXTS[1], "none", "fear", "none")
    (other,) = flips(several, teacher_is_right=False)
    assert (other.label, other.student, other.teacher) == ("joy, fear", "joy, fear", "fear")


def test_flips_show_both_texts_of_a_pair(answers):
    paired = replace(answers, pairs=tuple("uvwxyz"))
    assert flips(paired, teacher_is_right=True)[0].text == "a film / x"


def test_the_surety_of_several_classes_is_that_of_the_least_sure():
    found = np.array([[0.9, 0.4], [0.2, 0.05]])
    assert surety(found, multi_label=True) == pytest.approx([0.6, 0.8])
    assert surety(found, multi_label=False) == pytest.approx([0.9, 0.2])


@pytest.mark.parametrize("kind", ["answers", "several"])
def test_the_curve_is_what_asking_below_each_threshold_gives(kind, request):
    from kd.calibration import cross_fitted

    p = request.getfixturevalue(kind)
    curve = cascade_curve(p)
    sure = surety(cross_fitted(p.student, p.truth, p.multi_label), p.multi_label)
    for threshold in [0.0, *sure, 0.77, 1.1]:
        asks = sure < threshold
        right = np.where(asks, p.is_right(p.teacher), p.is_right(p.student))
        assert curve.at(threshold) == pytest.approx((asks.mean(), right.mean()))
    assert curve.asked[0] == 0
    assert curve.asked[-1] == 1
    assert curve.accuracy[-1] == pytest.approx(p.accuracy(p.teacher))
    reached = curve.accuracy[0] + 0.9 * (curve.accuracy.max() - curve.accuracy[0])
    assert curve.accuracy[curve.chosen] >= reached > max(curve.accuracy[: curve.chosen], default=0)


def test_a_teacher_that_brings_nothing_is_not_asked(answers):
    assert cascade_curve(replace(answers, teacher=answers.student)).chosen == 0


def test_texts_of_one_confidence_are_asked_about_together(answers):
    same = replace(answers, student=logits([1, 0, 0, 1, 1, 0], [2] * 6))
    assert len(cascade_curve(same).asked) <= 3  # two halves, two temperatures, and all
