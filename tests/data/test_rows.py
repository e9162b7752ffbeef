"""Rows: what becomes a text, labels and a weight, and what is refused."""

import math
import time
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
    report_rows,
    resolve_labels,
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


@pytest.mark.fault(27)
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


@pytest.mark.fault(33)
@pytest.mark.parametrize("value", [-1, -100, 7, "7", "neutral", 0.5, 2.0, "nan", (1,), b"0"])
def test_unknown_labels_are_refused(value):
    text = refusal(table(label=[0, value, value]))
    assert "tweets.csv, line 3" in text
    assert repr(value) in text
    assert "negative, positive" in text
    assert "1 more row" in text
    assert "data.label_map" in text


@pytest.mark.fault(28)
@pytest.mark.parametrize("value", [None, math.nan, "", "  "])
def test_empty_labels(value):
    text = refusal(table(label=[0, 1, value]))
    assert "tweets.csv, line 4: the label is empty" in text
    assert "data.on_empty_label=unlabelled" in text
    assert classes([0, value], on_empty_label="unlabelled") == [0, None]


@pytest.mark.fault(33)
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


# Several labels


def several(values, labels=("a", "b", "c"), label_names=None, **fields):
    return classes(values, labels, label_names, multi_label=True, **fields)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (["c", "a"], (0, 2)),
        ([2, 0.0, "B"], (0, 1, 2)),
        (["b", " B ", 1, "1"], (1,)),
        ([], ()),
        (" c | a ", (0, 2)),
        ("c||a|", (0, 2)),
        ("b", (1,)),
        (2, (2,)),
        ("|", ()),
        (" | ", ()),
    ],
)
def test_spellings_of_several_labels(cell, expected):
    assert several([cell, ["a"]]) == [expected, (0,)]


def test_a_map_translates_each_label():
    label_map = {"0": "a", "joy": "b", "delight": "b"}
    assert several([[0, "joy"], "delight|joy|c"], label_map=label_map) == [(0, 1), (1, 2)]


def test_a_list_of_the_positions_of_a_source_is_aligned_by_name():
    own = {"label": ("no", "yes", "maybe")}
    assert several([[0, 1], [2]], ("yes", "no", "maybe"), own) == [(0, 1), (2,)]
    assert several([[0], [2, 1]], ("yes", "maybe", "no"), own) == [(2,), (0, 1)]
    assert several([[-1]], own["label"], own, on_empty_label="unlabelled") == [None]


def test_the_separator_can_be_another():
    assert several(["a,c", "b", ","], label_separator=",") == [(0, 2), (1,), ()]
    assert several(["a|b :: c"], ("a|b", "c"), label_separator="::") == [(0, 1)]


@pytest.mark.parametrize("value", [None, math.nan, "", "  ", [None], ["a", " "]])
def test_rows_whose_labels_are_missing_have_not_none_of_the_classes(value):
    text = refusal(table(label=[["a"], [], value]), ("a", "b"), multi_label=True)
    assert "tweets.csv, line 4: the label is empty" in text
    assert "| alone is a row of no class" in text
    assert "data.on_empty_label=unlabelled" in text
    assert several([value, []], on_empty_label="unlabelled") == [None, ()]


@pytest.mark.fault(33)
@pytest.mark.parametrize("value", [["a", "d"], "a|d", ["d", "e", "a"], "d"])
def test_an_unknown_label_among_known_ones_is_named(value):
    text = refusal(table(label=[["a"], value, value]), ("a", "b"), multi_label=True)
    assert "tweets.csv, line 3: label 'd' is none of the classes a, b" in text
    assert "1 more row" in text
    assert "data.label_map" in text


def test_names_are_found_in_every_list():
    assert names([["b", " a "], [], None, "c|b"], multi_label=True) == ("a", "b", "c")
    assert names([[10], [9, 1.0]], multi_label=True) == ("1", "9", "10")
    assert names([[1], [0]], OWN, multi_label=True) == ("no", "yes")
    with pytest.raises(DataError, match="one class only"):
        names([["a"], [], "a|a"], multi_label=True)


def test_a_list_where_a_row_has_one_label_names_the_key():
    words = r"tweets.csv, line 3: the label is a list, \['a', 'b'\].*1 more row.*data.multi_label"
    values = ["a", ["a", "b"], ["b"]]
    with pytest.raises(DataError, match=words):
        names(values)
    with pytest.raises(DataError, match=words):
        canonical_rows(table(label=values), Fields(), ("a", "b"))
    assert names(["a|b", "c"]) == ("a|b", "c")


def test_files_of_every_kind_can_hold_several_labels(tmp_path):
    cells = [["joy", "love"], [], ["love"], ["fear", "joy"], ["fear"]]
    texts = [f"text {i}" for i in range(len(cells))]
    frame = pandas.DataFrame({"text": texts, "label": cells})
    frame.to_parquet(tmp_path / "rows.parquet")
    frame.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    frame["label"] = ["|".join(cell) or "|" for cell in cells]
    frame.to_csv(tmp_path / "rows.csv", index=False)
    fields = Fields(multi_label=True)
    for kind in ("parquet", "jsonl", "csv"):
        raw = read(Source(train=str(tmp_path / f"rows.{kind}")), "train")
        labels = resolve_labels(raw, fields)
        assert labels == ("fear", "joy", "love")
        found = [row.label for row in canonical_rows(raw, fields, labels)]
        assert found == [(1, 2), (), (2,), (0, 1), (0,)]


# Weights


def test_weights_are_numbers_in_any_spelling():
    raw = table("abcdef", label=[0] * 6, w=[0, 1, 2.5, " 3 ", "1e-2", "0.0"])
    rows = canonical_rows(raw, Fields(weight_column="w"), LABELS)
    assert [row.weight for row in rows] == [0.0, 1.0, 2.5, 3.0, 0.01, 0.0]
    assert {row.weight for row in canonical_rows(raw, Fields(), LABELS)} == {1.0}


@pytest.mark.parametrize(
    "value", [-1, "-0.5", math.nan, math.inf, "inf", None, "", "much", [1.0], 10**400]
)
def test_other_weights_are_refused_with_their_line(value):
    text = refusal(table(label=[0, 1, 0], w=[1, value, value]), weight_column="w")
    assert f"tweets.csv, line 3: the weight is {value!r:.60} (and so do 1 more rows)" in text
    assert "0 or more, in column 'w'" in text


def test_the_weight_of_a_dropped_row_does_not_matter():
    raw = table(["a", "", "c"], label=[0, 1, 1], w=[1, "much", 2])
    rows = canonical_rows(raw, Fields(weight_column="w", on_bad_row="drop"), LABELS)
    assert rows == [Row(0, "a", 0), Row(2, "c", 1, weight=2.0)]


def test_a_missing_weight_column_is_named():
    assert "no column 'w': set data.weight_column" in refusal(
        table(label=[0, 1, 0]), weight_column="w"
    )


# Texts


@pytest.mark.fault(29)
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


@pytest.mark.fault(27)
def test_missing_columns_are_named():
    text = refusal(table(label=[0, 1, 0]), text_column="tweet")
    assert "no column 'tweet'" in text
    assert "data.text_column" in text
    assert "text, label" in text
    assert "data.pair_column" in refusal(table(label=[0, 1, 0]), pair_column="second")
    assert "data.label_column" in refusal(table())


@pytest.mark.fault(30)
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


@given(st.lists(ANY_CELL | st.lists(ANY_CELL, max_size=3), min_size=1, max_size=5))
def test_any_cell_of_labels_is_rising_classes_or_a_data_error(values):
    raw = table(["x"] * len(values), label=values)
    fields = Fields(multi_label=True, on_empty_label="unlabelled")
    try:
        labels = resolve_labels(raw, fields)
    except DataError:
        return
    for row in canonical_rows(raw, fields, labels):
        assert row.label is None or list(row.label) == sorted(set(row.label))
        assert set(row.label or ()) <= set(range(len(labels)))


@pytest.mark.fault(30)
@given(ANY_TEXT)
def test_repair_changes_nothing_else(text):
    rows = canonical_rows(table([text + "."]), Fields(), LABELS, labelled=False)
    joined = (text + ".").replace("\0", "").encode("utf-16", "surrogatepass")
    assert rows[0].text == joined.decode("utf-16", "replace")
    if not any("\ud800" <= letter <= "\udfff" for letter in text):
        assert rows[0].text == text.replace("\0", "") + "."


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
