from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd.data.splits import hide_labels, select_rows, stratified_split
from kd.errors import DataError
from kd.types import Row


def rows_of(*sizes):
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    return [Row(i, f"text {i}", label) for i, label in enumerate(labels)]


def counts(rows):
    return Counter(row.label for row in rows)


def indices(rows):
    return [row.index for row in rows]


def test_split_is_stratified_and_complete():
    rows = rows_of(70, 20, 10)
    train, validation = stratified_split(rows, 0.2, seed=1)
    assert counts(validation) == {0: 14, 1: 4, 2: 2}
    assert sorted(indices(train) + indices(validation)) == indices(rows)
    assert indices(train) == sorted(indices(train))
    assert indices(validation) == sorted(indices(validation))
    assert (train, validation) == stratified_split(rows, 0.2, seed=1)
    assert indices(validation) != indices(stratified_split(rows, 0.2, seed=2)[1])


def test_split_spares_single_and_unlabelled_rows():
    rows = [*rows_of(20, 1), *(Row(100 + i, "x") for i in range(50))]
    train, validation = stratified_split(rows, 0.95, seed=0)
    assert counts(validation) == {0: 19}
    assert counts(train) == {0: 1, 1: 1, None: 50}


@pytest.mark.parametrize(("rows", "fraction"), [(rows_of(1, 1), 0.5), (rows_of(3, 3), 0.01)])
def test_an_empty_validation_set_is_refused(rows, fraction):
    with pytest.raises(DataError, match=r"empty.*data.source.validation"):
        stratified_split(rows, fraction, seed=0)


@given(st.lists(st.sampled_from([None, 0, 1, 2]), min_size=2, max_size=40), st.data())
def test_choices_are_nested_stratified_and_ordered(labels, data):
    rows = [Row(i, "x", label) for i, label in enumerate(labels)]
    large = data.draw(st.integers(1, len(rows)))
    small = data.draw(st.integers(1, large))
    chosen = select_rows(rows, large, seed=3)
    assert len(chosen) == large
    assert indices(chosen) == sorted(indices(chosen))
    assert set(indices(select_rows(rows, small, seed=3))) <= set(indices(chosen))
    for label, size in counts(rows).items():
        share = size * large / len(rows)
        assert abs(counts(chosen)[label] - share) < len(counts(rows))


def test_choices_depend_on_the_seed_alone():
    rows = rows_of(50, 50)
    assert select_rows(rows, 10, seed=0) == select_rows(rows, 10, seed=0)
    assert select_rows(rows, 10, seed=0) != select_rows(rows, 10, seed=1)
    assert counts(select_rows(rows, 10, seed=0)) == {0: 5, 1: 5}


@pytest.mark.parametrize("count", [0, -1, 5])
def test_impossible_choices_are_refused(count):
    with pytest.raises(DataError, match=rf"data.train_rows is {count}, but there are 4 rows"):
        select_rows(rows_of(2, 2), count, seed=0)


def test_hidden_labels_are_nested_and_nothing_else_changes():
    rows = [*rows_of(30, 10), Row(99, "x")]
    few, many = hide_labels(rows, 8, seed=5), hide_labels(rows, 20, seed=5)
    assert counts(few) == {0: 6, 1: 2, None: 33}
    assert [(row.index, row.text) for row in few] == [(row.index, row.text) for row in rows]
    kept = [row for row in few if row.label is not None]
    assert set(indices(kept)) <= {row.index for row in many if row.label is not None}
    assert kept == select_rows(rows[:-1], 8, seed=5)
    assert hide_labels(rows, 40, seed=5) == rows
    assert counts(hide_labels(rows, 0, seed=5)) == {None: 41}
    for keep in (41, -1):
        with pytest.raises(DataError, match="40 rows have a label"):
            hide_labels(rows, keep, seed=5)
