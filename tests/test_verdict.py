from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from kd.verdict import judge

Right = NDArray[np.float64]


def students(
    draw: np.random.Generator, ease: NDArray[np.float64], seeds: int, skill: float, luck: float
) -> Right:
    """Return which rows students of one recipe get right; each has its luck in training."""
    skills = skill + luck * draw.normal(size=(seeds, 1))
    return (skills + ease + draw.normal(size=(seeds, ease.size)) > 0).astype(float)


def accuracy(skill: float, luck: float) -> float:
    """Return the accuracy of a recipe over all rows and seeds."""
    spread = np.sqrt(2 + luck**2)
    return float((skill + spread * np.random.default_rng(7).normal(size=1_000_000) > 0).mean())


@pytest.mark.parametrize(
    ("seeds", "luck", "effect"),
    [
        (2, 0.1, 0.0),
        (3, 0.0, 0.0),
        (8, 0.1, 0.0),
        *(
            pytest.param(*world, marks=pytest.mark.slow)
            for world in [(3, 0.1, 0.0), (3, 0.1, 0.4), (8, 0.0, 0.4)]
        ),
    ],
)
def test_interval_holds_the_true_difference_95_times_in_100(
    seeds: int, luck: float, effect: float
) -> None:
    draw, held, worlds = np.random.default_rng(1), 0, 250
    truth = accuracy(1 + effect, luck) - accuracy(1, luck)
    for _ in range(worlds):
        ease = draw.normal(size=400)
        found = judge(
            students(draw, ease, seeds, 1 + effect, luck), students(draw, ease, seeds, 1, luck)
        )
        held += found.low <= truth <= found.high
    assert 0.91 <= held / worlds <= 0.99  # of 95%, by 250 draws: 92 to 98


def test_rows_alone_would_miss_the_truth_of_the_recipe() -> None:
    draw, held, worlds = np.random.default_rng(1), 0, 100
    for _ in range(worlds):
        ease = draw.normal(size=400)
        found = judge(students(draw, ease, 1, 1, 0.3), students(draw, ease, 1, 1, 0.3))
        held += found.low <= 0 <= found.high
        assert not found.knows_training
    assert held / worlds < 0.8, "why one seed is told to be too few"


def test_equal_answers_differ_by_nothing() -> None:
    right = students(np.random.default_rng(0), np.zeros(300), 3, 0.5, 0.2)
    found = judge(right, right)
    assert found.difference == 0.0
    assert found.low < 0 < found.high
    assert found.words == "no difference"
    alone = judge(right[:1], right[:1])
    assert (alone.difference, alone.low, alone.high) == (0.0, 0.0, 0.0)
    assert alone.words == "no difference"


def test_verdict_turns_with_the_sides() -> None:
    draw = np.random.default_rng(0)
    ease = draw.normal(size=1000)
    good, bad = students(draw, ease, 3, 2.0, 0.1), students(draw, ease, 3, 1.0, 0.1)
    there, back = judge(good, bad), judge(bad, good)
    assert (there.words, back.words) == ("helps", "hurts")
    assert there.difference == -back.difference == pytest.approx(good.mean() - bad.mean())
    assert there.low == pytest.approx(-back.high, abs=0.005)


def test_difference_that_may_be_chance_is_none() -> None:
    draw = np.random.default_rng(0)
    ease = draw.normal(size=1000)
    one, other = students(draw, ease, 3, 1, 0.1), students(draw, ease, 3, 1, 0.1)
    there, back = judge(one, other), judge(other, one)
    assert there.difference == -back.difference != 0
    assert there.words == back.words == "no difference"


def test_larger_difference_moves_the_interval_up() -> None:
    base = np.zeros((3, 200))
    ends = []
    for count in (10, 40, 90):
        right = base.copy()
        right[:, :count] = 1
        found = judge(right, base)
        assert found.difference == pytest.approx(count / 200)
        ends.append((found.low, found.high))
    assert ends == sorted(ends)
    assert [low for low, _ in ends] == sorted(low for low, _ in ends)


def test_more_rows_and_more_seeds_make_it_narrower() -> None:
    def width(seeds: int, rows: int) -> float:
        widths = []
        for seed in range(20):
            draw = np.random.default_rng(seed)
            ease = draw.normal(size=rows)
            one, other = (students(draw, ease, seeds, 1, 0.1) for _ in range(2))
            found = judge(one, other)
            widths.append(found.high - found.low)
        return float(np.median(widths))

    assert width(8, 500) < width(3, 500) < width(2, 500)
    assert width(3, 2000) < width(3, 200)


def test_seeds_may_be_other_and_fewer() -> None:
    draw = np.random.default_rng(0)
    ease = draw.normal(size=500)
    one, other = students(draw, ease, 4, 1, 0.1), students(draw, ease, 2, 1, 0.1)
    found = judge(one, other)
    assert found.knows_training
    assert found.difference == pytest.approx(one.mean() - other.mean())
    assert judge(one[::-1], other) == found, "no seed has a partner"
    assert not judge(one, other[:1]).knows_training


def test_same_rows_are_compared_with_each_other() -> None:
    draw = np.random.default_rng(0)
    ease = draw.normal(size=1000) * 4  # what one gets right, the other mostly does
    one, other = students(draw, ease, 2, 1, 0), students(draw, ease, 2, 1, 0)
    paired, shuffled = judge(one, other), judge(one, other[:, draw.permutation(1000)])
    assert paired.high - paired.low < 0.8 * (shuffled.high - shuffled.low)


def test_shares_of_right_choices_count_too() -> None:
    draw = np.random.default_rng(0)
    one, other = draw.integers(0, 6, size=(2, 3, 400)) / 5  # of five classes each
    found = judge(one, other)
    assert found.low < found.difference < found.high


def test_room_starts_without_torch() -> None:
    code = "import sys, kd.verdict; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
