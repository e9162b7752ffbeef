"""Rows: what becomes a text and a label, what is refused, and choices that repeat."""

import math
import time
from collections import Counter
from pathlib import Path

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd.data.rows import (
    Fields,
    RowReport,
    Table,
    canonical_rows,
    hide_labels,
    leaking,
    report_rows,
    resolve_labels,
    select_rows,
    stratified_split,
)
from kd.data.sources import Source, read
from kd.errors import ConfigError, DataError
from kd.types import Row

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
LABELS = ("negative", "positive")


def table(text=("a", "b", "c"), label_names=None, **columns):
    frame = pandas.DataFrame({"text": list(text), **columns}, dtype=object)
    numbers = [i + 2 for i in range(len(frame))]
    return Table(frame, "tweets.csv", numbers, "line", label_names or {})


def classes(values, labels=LABELS, label_names=None, **fields):
    raw = table(["x"] * len(values), label=list(values), label_names=label_names)
    return [row.label for row in canonical_rows(raw, Fields(**fields), labels)]


def refusal(raw, labels=LABELS, **fields):
    with pytest.raises(DataError) as raised:
        canonical_rows(raw, Fields(**fields), labels)
    return str(raised.value)


def names(values, own=None, **fields):
    raw = table(["x"] * len(values), label=list(values), label_names=own)
    return resolve_labels(raw, Fields(**fields))


OWN = {"label": ("no", "yes")}
MAP = {"0": "negative", "4": "positive"}


# Class names


def test_explicit_names_come_first():
    assert names(["0", "1"], OWN, label_names=["b", "a"]) == ("b", "a")


def test_then_the_names_of_the_source():
    assert names([1, 0], OWN) == ("no", "yes")
    own = {"label": ("bad", "awful", "good")}
    assert names([0], own, label_map={"awful": "bad"}) == ("bad", "good")
    assert names([0], OWN, label_map={"1": "b", "0": "a"}) == ("a", "b")


def test_then_the_values_of_the_map_in_order():
    assert names(["0"], label_map={"4": "pos", "2": "mid", "0": "neg", "3": "pos"}) == (
        "pos",
        "mid",
        "neg",
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["b", " a ", "b", ""], ("a", "b")),
        ([10, 9, 1], ("1", "9", "10")),
        (["10", "9", "1.0"], ("1", "9", "10")),
        ([2.0, math.nan, 0.0], ("0", "2")),
        ([None, "-1", "1"], ("-1", "1")),
        ([True, False], ("False", "True")),
        (["9" * 5000, "1"], ("1", "9" * 5000)),
    ],
)
def test_else_the_sorted_values(values, expected):
    assert names(values) == expected
    kept = classes(values, expected, on_empty_label="unlabelled")
    assert {label for label in kept if label is not None} == set(range(len(expected)))


@pytest.mark.parametrize("values", [["a", "a"], ["", None]])
def test_one_class_is_refused(values):
    with pytest.raises(DataError, match=r"tweets.csv: one class only.*data.label_column"):
        names(values)


def test_a_missing_label_column_is_named():
    with pytest.raises(DataError, match=r"no column 'target'.*data.label_column.*text, label"):
        names(["a", "b"], label_column="target")
    with pytest.raises(DataError, match=r"data.label_column"):
        names(["a", "b"], label_column=None)
    assert names([], label_column=None, label_names=["a", "b"]) == ("a", "b")


@pytest.mark.parametrize("given_names", [["a", "a"], ["a", "b"]])
def test_contradicting_names_are_refused(given_names):
    with pytest.raises(ConfigError, match=r"data.label_names"):
        names(["0"], label_names=given_names, label_map={"0": "c"})


# Labels


@pytest.mark.parametrize(
    "values",
    [
        ["negative", "positive"],
        [" Negative", "POSITIVE "],
        [0, 1],
        ["0", "1"],
        [0.0, 1.0],
        ["0.0", "1.0"],
    ],
)
def test_spellings_of_a_label(values):
    assert classes(values) == [0, 1]


def test_a_map_translates_raw_values():
    assert classes(["0", 4, 4.0, "4.0", "positive"], label_map=MAP) == [0, 1, 1, 1, 1]
    assert classes(["bad", "good"], label_map={"bad": "negative", "good": "positive"}) == [0, 1]


def test_with_a_map_a_position_is_no_label():
    text = refusal(table(label=[0, 4, 1]), label_map=MAP)
    assert "line 4" in text
    assert "label 1 " in text


def test_names_that_are_numbers_are_never_positions():
    assert classes(["4", 0], ("0", "4")) == [1, 0]
    assert "label 1 " in refusal(table(label=[0, 4, 1]), ("0", "4"))


def test_two_names_that_differ_in_case_only_need_the_exact_one():
    assert classes(["a", "A"], ("a", "A", "b")) == [0, 1]
    assert "'Ä'" in refusal(table(["x"], label=["Ä"]), ("a", "A"))
    assert "'POS'" in refusal(table(["x"], label=["POS"]), ("pos", "Pos"))


def test_positions_of_a_source_are_aligned_by_name():
    assert classes([0, 1], ("yes", "no"), OWN) == [1, 0]
    assert classes([0, 1], ("nope", "yep"), OWN) == [0, 1]  # renamed: other names, as many
    assert classes([0, 1], ("b", "a"), OWN, label_map={"0": "a", "yes": "b"}) == [1, 0]
    assert classes([0, 1], ("1", "0"), {"label": ("1", "0")}) == [0, 1]
    text = refusal(
        table(label=[0, 1, 2], label_names={"label": ("no", "yes", "maybe")}), OWN["label"]
    )
    assert "line 4" in text


def test_a_class_of_the_source_that_is_not_wanted_is_refused():
    own = {"label": ("maybe", "no", "yes")}
    assert "label 0 " in refusal(table(label=[1, 2, 0], label_names=own), OWN["label"])


@pytest.mark.parametrize("value", [-1, -100, 7, "7", "neutral", 0.5, 2.0, "nan", [1], b"0"])
def test_unknown_labels_are_refused(value):
    text = refusal(table(label=[0, value, value]))
    assert "tweets.csv, line 3" in text
    assert repr(value) in text
    assert "negative, positive" in text
    assert "1 more row" in text
    assert "data.label_map" in text


@pytest.mark.parametrize("value", [None, math.nan, "", "  "])
def test_empty_labels(value):
    text = refusal(table(label=[0, 1, value]))
    assert "tweets.csv, line 4: the label is empty" in text
    assert "data.on_empty_label=unlabelled" in text
    assert classes([0, value], on_empty_label="unlabelled") == [0, None]


def test_minus_one_is_hidden_where_the_source_names_classes():
    assert classes([-1, 0], OWN["label"], OWN, on_empty_label="unlabelled") == [None, 0]
    text = refusal(table(label=[0, 1, -1], label_names=OWN), OWN["label"])
    assert "the label is empty" in text


def test_the_word_none_is_not_an_empty_label():
    assert classes(["None", "some", None], ("None", "some"), on_empty_label="unlabelled") == [
        0,
        1,
        None,
    ]


def test_labels_can_be_left_unread():
    raw = table(label=[7, None, "x"])
    rows = canonical_rows(raw, Fields(), LABELS, labelled=False)
    assert [row.label for row in rows] == [None] * 3
    assert canonical_rows(table(), Fields(label_column=None), LABELS) == rows
    assert canonical_rows(table(), Fields(), LABELS, labelled=False) == rows


# Texts


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "holds no text:"),
        (math.nan, "holds no text:"),
        ("", "holds no text:"),
        (" \t\n", "holds no text:"),
        ("\0", "holds no text:"),
        (5, "holds no text but int 5:"),
        (b"x", "holds no text but bytes b'x':"),
    ],
)
def test_bad_texts(value, words):
    raw = table(["a", value, "c"], label=[0, 1, 7])
    text = refusal(raw)
    assert "tweets.csv, line 3: column 'text'" in text
    assert words in text
    assert "data.on_bad_row=drop" in text
    raw = table(["a", value, "c"], label=[0, 1, 1])
    fields = Fields(on_bad_row="drop")
    rows = canonical_rows(raw, fields, LABELS, start=10)
    assert rows == [Row(10, "a", 0), Row(12, "c", 1)]
    assert report_rows(raw, fields, rows, 10) == RowReport(3, 0, 1, 0)


@pytest.mark.parametrize("label", [7, None])
def test_the_label_of_a_dropped_row_does_not_matter(label):
    raw = table(["a", "", "c"], label=[0, label, 1])
    assert canonical_rows(raw, Fields(on_bad_row="drop"), LABELS)[1] == Row(2, "c", 1)


def test_several_bad_texts_are_counted():
    assert "2 more rows" in refusal(table(["", "", ""], label=[0, 0, 0]))
    assert "no usable row" in refusal(table(["", ""], label=[0, 0]), on_bad_row="drop")


def test_missing_columns_are_named():
    text = refusal(table(label=[0, 1, 0]), text_column="tweet")
    assert "no column 'tweet'" in text
    assert "data.text_column" in text
    assert "text, label" in text
    assert "data.pair_column" in refusal(table(label=[0, 1, 0]), pair_column="second")
    assert "data.label_column" in refusal(table())


def test_repairs():
    raw = table(["a\ud800", "b\0c", "\ud83d\ude00", "fine é"])
    rows = canonical_rows(raw, Fields(), LABELS, labelled=False)
    assert [row.text for row in rows] == ["a\ufffd", "bc", "😀", "fine é"]
    assert report_rows(raw, Fields(), rows) == RowReport(4, 4, 0, 3)


def test_pairs():
    raw = table(["a", "b"], label=[0, 1], second=["x\0", None])
    fields = Fields(pair_column="second", on_bad_row="drop")
    rows = canonical_rows(raw, fields, LABELS)
    assert rows == [Row(0, "a", 0, "x")]
    assert report_rows(raw, fields, rows) == RowReport(2, 0, 1, 1)
    text = refusal(raw, pair_column="second")
    assert "line 3: column 'second'" in text


def test_a_million_characters_pass():
    text = "é" * 1_000_000
    assert canonical_rows(table([text], label=[0]), Fields(), LABELS)[0].text == text


ANY_TEXT = st.text(st.characters(exclude_categories=()))
ANY_CELL = ANY_TEXT | st.none() | st.integers() | st.floats() | st.binary() | st.booleans()


@given(st.lists(st.tuples(ANY_CELL, ANY_CELL), max_size=5))
def test_any_cell_becomes_a_valid_row_or_a_data_error(cells):
    raw = table([text for text, _ in cells] + ["last"], second=[pair for _, pair in cells] + ["p"])
    fields = Fields(pair_column="second", on_bad_row="drop")
    for row in canonical_rows(raw, fields, LABELS, labelled=False):
        for text in (row.text, row.pair):
            assert text.strip()
            assert "\0" not in text
            text.encode("utf-8")


@given(st.lists(ANY_CELL, min_size=1, max_size=5))
def test_any_label_is_a_class_or_a_data_error(values):
    raw = table(["x"] * len(values), label=values)
    try:
        labels = resolve_labels(raw, Fields())
    except DataError:
        return
    rows = canonical_rows(raw, Fields(on_empty_label="unlabelled"), labels)
    assert all(row.label is None or 0 <= row.label < len(labels) for row in rows)


@given(ANY_TEXT)
def test_repair_changes_nothing_else(text):
    rows = canonical_rows(table([text + "."]), Fields(), LABELS, labelled=False)
    joined = (text + ".").replace("\0", "").encode("utf-16", "surrogatepass")
    assert rows[0].text == joined.decode("utf-16", "replace")
    if not any("\ud800" <= letter <= "\udfff" for letter in text):
        assert rows[0].text == text.replace("\0", "") + "."


# Choices


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
    with pytest.raises(DataError, match=rf"Cannot choose {count} rows of 4"):
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
        with pytest.raises(DataError, match="40 rows have one"):
            hide_labels(rows, keep, seed=5)


def test_leaking_counts_validation_texts():
    train = [Row(0, "a"), Row(1, "b", pair="x")]
    validation = [Row(0, "a"), Row(1, "a", 1), Row(2, "b"), Row(3, "b", pair="x"), Row(4, "A")]
    assert leaking(train, validation) == 3
    assert leaking(train, []) == 0


# Size


def test_seventy_thousand_rows_from_parquet_in_a_moment(tmp_path):
    path = tmp_path / "train.parquet"
    texts = [f"tweet number {i} says café" for i in range(70_000)]
    pandas.DataFrame({"text": texts, "label": [0, 1] * 35_000}).to_parquet(path)
    start = time.process_time()
    raw = read(Source(train=str(path)), "train")
    rows = canonical_rows(raw, Fields(), LABELS)
    seconds = time.process_time() - start
    assert len(rows) == 70_000
    assert seconds < 3  # about 0.3; the bound is loose for a busy machine


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")
def test_shared_sst2():
    source = Source(path=str(SHARED / "sst2"))
    fields = Fields(label_names=["negative", "positive"])
    raw = read(source, "train")
    rows = canonical_rows(raw, fields, resolve_labels(raw, fields))
    assert len(rows) == 67_349
    assert rows[0] == Row(0, "hide new secretions from the parental units", 0)
    validation = canonical_rows(read(source, "validation"), fields, fields.label_names)
    assert 0 < len(validation) == 872


def test_a_column_of_texts_is_no_label_column(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"text {n},{n % 2}\n" for n in range(1001)))
    table = read(Source(train=str(path)), "train")
    with pytest.raises(DataError, match="1,001 different values.*data.label_column"):
        resolve_labels(table, Fields(label_column="text"))
