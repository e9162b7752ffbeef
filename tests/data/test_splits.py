import itertools
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd.data.splits import hide_labels, leaking, select_rows, stratified_split
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


def test_leaking_counts_validation_texts():
    train = [Row(0, "a"), Row(1, "b", pair="x")]
    validation = [Row(0, "a"), Row(1, "a", 1), Row(2, "b"), Row(3, "b", pair="x"), Row(4, "A")]
    assert leaking(train, validation) == 3
    assert leaking(train, []) == 0


# Several labels


def mixed(count, seed=0):
    """Rows of a common class, rarer ones beside it, and one that is nearly always alone."""
    draw = random.Random(seed)
    shares = (0.7, 0.3, 0.1, 0.02)
    sets = [
        tuple(c for c, share in enumerate(shares) if draw.random() < share) for _ in range(count)
    ]
    return [Row(i, f"text {i}", labels) for i, labels in enumerate(sets)]


def classes_of(rows):
    return Counter(label for row in rows for label in row.label)


def test_a_split_of_several_labels_has_each_class_in_proportion():
    rows = mixed(1000)
    train, validation = stratified_split(rows, 0.2, seed=1)
    assert len(validation) == 200
    assert sorted(indices(train) + indices(validation)) == indices(rows)
    whole, part = classes_of(rows), classes_of(validation)
    assert whole[3] < 30
    for label in range(4):
        assert part[label] == pytest.approx(0.2 * whole[label], abs=1 + 0.1 * whole[label] * 0.2)
    none = [sum(row.label == () for row in some) for some in (rows, validation)]
    assert none[1] == pytest.approx(0.2 * none[0], abs=1)
    assert (train, validation) == stratified_split(rows, 0.2, seed=1)
    assert indices(validation) != indices(stratified_split(rows, 0.2, seed=2)[1])


@pytest.mark.parametrize("seed", range(5))
def test_a_rare_class_has_its_share_whatever_stands_beside_it(seed):
    sets = [(0,)] * 300 + [(0, 1)] * 10 + [(0, 1, 2)] * 10 + [(), None] * 20
    rows = [Row(i, "x", labels) for i, labels in enumerate(sets)]
    assert classes_of(stratified_split(rows, 0.1, seed)[1])[1] == 2
    chosen = counts(select_rows(rows, 36, seed))
    assert chosen[()] == chosen[None] == 2


def test_rows_whose_sets_of_labels_are_all_different_can_be_split():
    sets = [pair for size in (1, 2, 3) for pair in itertools.combinations(range(6), size)]
    rows = [Row(i, "x", labels) for i, labels in enumerate(sets)]
    train, validation = stratified_split(rows, 0.25, seed=0)
    assert len(validation) == round(0.25 * len(rows))
    assert set(classes_of(train)) == set(range(6))


LABEL_SETS = st.sets(st.integers(0, 4)).map(lambda labels: tuple(sorted(labels)))


@given(st.lists(st.none() | LABEL_SETS, min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_every_class_keeps_a_row_to_train_on(labels, fraction):
    rows = [Row(i, "x", label) for i, label in enumerate(labels)]
    try:
        train, validation = stratified_split(rows, fraction, seed=4)
    except DataError:
        return
    assert validation
    assert None not in counts(validation)
    kept = {label for row in train for label in row.label or ()}
    assert kept == {label for row in rows for label in row.label or ()}
    few = select_rows(rows, 1 + len(rows) // 3, seed=4)
    assert set(indices(few)) <= set(indices(select_rows(rows, 1 + len(rows) // 2, seed=4)))


def test_rows_of_one_label_are_chosen_alike_in_either_spelling():
    rows = rows_of(30, 20, 10)
    spelt = [replace(row, label=(row.label,)) for row in rows]
    for ours, theirs in zip(
        stratified_split(rows, 0.3, seed=2), stratified_split(spelt, 0.3, seed=2), strict=True
    ):
        assert indices(ours) == indices(theirs)


def test_weights_stay_with_their_rows():
    rows = [replace(row, weight=1.0 + row.index) for row in rows_of(10, 10)]
    chosen = [
        *select_rows(rows, 8, 0),
        *hide_labels(rows, 4, 0),
        *stratified_split(rows, 0.5, 0)[1],
    ]
    assert all(row.weight == 1.0 + row.index for row in chosen)
