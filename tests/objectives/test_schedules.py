import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.errors import ConfigError
from kd.objectives import Schedule

SHAPES = ["linear", "cosine", "constant"]


def course(steps=200, **settings):
    schedule = Schedule(**settings)
    return [schedule.at(step / steps) for step in range(steps + 1)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"start": 4.0}, [4.0, 3.0, 2.0, 1.0, 0.0]),
        ({"start": 1.0, "end": 3.0}, [1.0, 1.5, 2.0, 2.5, 3.0]),
        ({"start": 4.0, "until": 0.5}, [4.0, 2.0, 0.0, 0.0, 0.0]),
        ({"start": 4.0, "until": 0.0, "end": 2.0}, [2.0] * 5),
        ({"start": 4.0, "warmup": 0.5}, [0.0, 2.0, 4.0, 2.0, 0.0]),
        ({"start": 4.0, "warmup": 0.5, "until": 0.75, "end": 2.0}, [0.0, 2.0, 4.0, 2.0, 2.0]),
        ({"start": 4.0, "warmup": 0.5, "until": 0.5, "end": 1.0}, [0.0, 2.0, 1.0, 1.0, 1.0]),
        ({"start": 4.0, "shape": "constant"}, [4.0] * 5),
        ({"start": 4.0, "shape": "constant", "warmup": 0.5}, [0.0, 2.0, 4.0, 4.0, 4.0]),
        ({"start": 4.0, "shape": "constant", "warmup": 1.0}, [0.0, 1.0, 2.0, 3.0, 4.0]),
        ({"start": -2.0, "end": 2.0}, [-2.0, -1.0, 0.0, 1.0, 2.0]),
    ],
)
def test_values_by_hand(settings, expected):
    assert course(steps=4, **settings) == pytest.approx(expected)


def test_cosine_by_hand():
    values = course(steps=6, start=4.0, end=0.0, shape="cosine")
    half = math.sqrt(3)
    assert values == pytest.approx([4.0, 2 + half, 3.0, 2.0, 1.0, 2 - half, 0.0])
    values = course(steps=6, start=4.0, end=2.0, shape="cosine", warmup=1 / 3, until=2 / 3)
    assert values == pytest.approx([0.0, 2.0, 4.0, 3.0, 2.0, 2.0, 2.0])


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    start=st.floats(-5, 5),
    end=st.floats(-5, 5),
    shape=st.sampled_from(SHAPES),
    shares=st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0]), min_size=2, max_size=2),
)
def test_course_stays_within_what_is_promised(start, end, shape, shares):
    warmup, until = sorted(shares)
    values = course(start=start, end=end, shape=shape, warmup=warmup, until=until)
    lowest = Schedule(start, end, shape, warmup, until).lowest
    assert min(values) >= lowest - 1e-9
    known = [start, end, 0.0] if warmup else [start, end]
    assert max(values) <= max(known) + 1e-9
    assert values[-1] == (start if shape == "constant" else end)
    assert values[0] == (0.0 if warmup else values[0])


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_course_falls_without_a_jump(shape):
    values = course(start=4.0, end=1.0, shape=shape, warmup=0.1, until=0.9)
    steps = [later - value for value, later in pairwise(values)]
    assert max(abs(step) for step in steps) <= 0.2 + 1e-9  # the warm-up: 4 in 20 steps
    assert all(step > 0 for step in steps[:20])
    assert all(step < 0 for step in steps[20:180])
    assert steps[180:] == pytest.approx([0.0] * 20)


@pytest.mark.parametrize(
    ("settings", "lowest"),
    [
        ({"start": 2.0, "end": 1.0}, 1.0),
        ({"start": 1.0, "end": 2.0}, 1.0),
        ({"start": 2.0}, 0.0),
        ({"start": 2.0, "end": -1.0}, -1.0),
        ({"start": 2.0, "end": 1.0, "warmup": 0.1}, 0.0),
        ({"start": 2.0, "end": -1.0, "shape": "constant"}, 2.0),
        ({"start": 2.0, "shape": "constant", "warmup": 0.1}, 0.0),
    ],
)
def test_lowest_is_of_the_whole_course(settings, lowest):
    assert Schedule(**settings).lowest == lowest
    assert min(course(**settings)) == pytest.approx(lowest)


@pytest.mark.parametrize(
    "shares",
    [
        {"warmup": -0.1},
        {"until": 1.1},
        {"warmup": 0.6, "until": 0.5},
        {"warmup": math.nan},
        {"until": math.nan},
        {"warmup": 2.0, "until": 2.0},
    ],
)
def test_impossible_shares_are_refused(shares):
    with pytest.raises(ConfigError, match=r"schedule's warmup=.* and until=.* 0 <= warmup <= un"):
        Schedule(1.0, **shares)


@pytest.mark.parametrize(("start", "end"), [(math.inf, 0.0), (1.0, math.nan), (1.0, -math.inf)])
def test_impossible_ends_are_refused(start, end):
    with pytest.raises(ConfigError, match=r"A schedule goes from .* to .*: give numbers"):
        Schedule(start, end)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"start": 4.0, "end": 1.0}, "4→1"),
        ({"start": 0.5}, "0.5→0"),
        ({"start": 4.0, "end": 1.0, "warmup": 0.1}, "0→4→1"),
        ({"start": 4.0, "shape": "constant"}, "4"),
        ({"start": 4.0, "shape": "constant", "warmup": 0.1}, "0→4"),
    ],
)
def test_schedule_is_shown_as_its_course(settings, text):
    assert str(Schedule(**settings)) == text


def test_schedules_are_values():
    assert Schedule(1.0, 2.0) == Schedule(1.0, end=2.0) != Schedule(1.0)
    with pytest.raises(AttributeError):
        Schedule(1.0).start = 2.0
