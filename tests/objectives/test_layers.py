from dataclasses import replace
from fractions import Fraction

import pytest

from kd.errors import ConfigError
from kd.objectives.layers import check_same_tokens, pair_layers, show_pairs
from kd.types import ModelInfo

INFO = ModelInfo(("a", "b"), 1, layers=1, width=8, heads=2, vocabulary="digest")
DEPTHS = [(few, many) for many in range(1, 26) for few in range(1, many + 1)]


def pairs(layers, few, many):
    return list(pair_layers("FooKD", layers, replace(INFO, layers=few), replace(INFO, layers=many)))


@pytest.mark.parametrize(
    ("few", "many", "expected"),
    [
        (4, 12, [(1, 3), (2, 6), (3, 9), (4, 12)]),  # TinyBERT's own
        (6, 12, [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12)]),
        (1, 12, [(1, 12)]),
        (2, 5, [(1, 3), (2, 5)]),  # 2.5, half up
        (4, 6, [(1, 2), (2, 3), (3, 5), (4, 6)]),  # 1.5 and 4.5
        (5, 12, [(1, 2), (2, 5), (3, 7), (4, 10), (5, 12)]),
        (3, 3, [(1, 1), (2, 2), (3, 3)]),
    ],
)
def test_uniform_spreads_over_the_teacher(few, many, expected):
    assert pairs("uniform", few, many) == expected


def test_uniform_is_the_nearest_layer_at_every_depth():
    for few, many in DEPTHS:
        found = pairs("uniform", few, many)
        assert [student for student, _ in found] == list(range(1, few + 1))
        teachers = [teacher for _, teacher in found]
        assert teachers == sorted(set(teachers)), "no two learn from one"
        assert teachers[-1] == many
        for student, teacher in found:
            gap = teacher - Fraction(student * many, few)
            assert Fraction(-1, 2) < gap <= Fraction(1, 2)


@pytest.mark.parametrize(
    ("few", "many", "expected"),
    [
        (6, 12, [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]),  # PKD-skip's own
        (3, 12, [(1, 4), (2, 8)]),
        (2, 12, [(1, 6)]),
        (5, 12, [(1, 2), (2, 4), (3, 6), (4, 8)]),
        (3, 3, [(1, 1), (2, 2)]),
    ],
)
def test_skip_takes_every_kth_and_leaves_out_the_last(few, many, expected):
    assert pairs("skip", few, many) == expected


@pytest.mark.parametrize(
    ("few", "many", "expected"),
    [
        (3, 12, [(1, 10), (2, 11), (3, 12)]),
        (1, 4, [(1, 4)]),
        (2, 2, [(1, 1), (2, 2)]),
    ],
)
def test_last_takes_the_teachers_last(few, many, expected):
    assert pairs("last", few, many) == expected


@pytest.mark.parametrize("rule", ["uniform", "skip", "last"])
def test_rules_name_layers_that_exist_once_each(rule):
    for few, many in DEPTHS:
        if rule == "skip" and few == 1:
            continue
        found = pairs(rule, few, many)
        assert found == sorted(found)
        for side, most in ((0, few), (1, many)):
            layers = [pair[side] for pair in found]
            assert len(set(layers)) == len(layers) > 0
            assert 1 <= min(layers) <= max(layers) <= most


def test_given_pairs_are_taken_by_rising_student_layer():
    assert pairs({2: 3, 0: 0, 1: 12}, 2, 12) == [(0, 0), (1, 12), (2, 3)]
    assert pairs({1: 4, 2: 4}, 2, 12) == [(1, 4), (2, 4)]
    assert pairs({4: 1}, 4, 2) == [(4, 1)], "a student may be deeper, if the pairs are given"


@pytest.mark.parametrize("layers", [{}, {3: 1}, {1: 13}, {-1: 1}, {1: -1}, {1: 1, 9: 9}])
def test_pairs_of_layers_that_do_not_exist_are_refused(layers):
    with pytest.raises(
        ConfigError,
        match=r"FooKD\.layers is \{.*\}, but the student has layers 0 to 2 and the teacher 0 to 12",
    ):
        pairs(layers, 2, 12)


@pytest.mark.parametrize("rule", ["uniform", "skip", "last"])
def test_rules_need_a_deeper_teacher(rule):
    with pytest.raises(
        ConfigError,
        match=rf"FooKD\.layers={rule} needs a teacher of at least as many layers as the student: "
        r"2 and 3; give the pairs, such as \{1: 1\}",
    ):
        pairs(rule, 3, 2)


def test_skip_needs_two_layers():
    with pytest.raises(ConfigError, match=r"FooKD\.layers=skip .* only one: use uniform or last"):
        pairs("skip", 1, 12)


def test_pairs_are_shown_with_an_arrow_from_the_teacher():
    assert show_pairs(((1, 4), (2, 8))) == "1←4,2←8"
    assert show_pairs(((0, 0),)) == "0←0"
    assert show_pairs(()) == ""


def test_same_tokens_are_those_of_equal_vocabularies():
    other = replace(INFO, layers=9, width=4, labels=("x", "y"))
    assert check_same_tokens("FooKD", INFO, other) is None
    with pytest.raises(ConfigError, match="^FooKD compares token by token, but .* different voc"):
        check_same_tokens("FooKD", INFO, replace(INFO, vocabulary="other"))
