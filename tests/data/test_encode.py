import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.data.collate import EncodedRows
from kd.data.encode import View, encode
from kd.types import Row
from kd.vocabulary import digest, train_wordpiece
from tests.conftest import TEXTS

PAIRS = ["a film", "what a day, what a day", "no", "rude and cold and dull", "a", "b c", "d", "e"]


def view_of(tokenizer, max_length=64):
    return View(tokenizer, max_length, digest(tokenizer))


def rows_of(texts, pairs=None):
    return [Row(i, text, pair=pairs[i] if pairs else None) for i, text in enumerate(texts)]


def as_the_tokenizer_pads(tokenizer, rows, max_length=64):
    paired = rows[0].pair is not None
    return tokenizer(
        [row.text for row in rows],
        [row.pair for row in rows] if paired else None,
        padding=True,
        truncation=True,
        max_length=max_length,
        return_token_type_ids=paired,
        return_tensors="pt",
    )


def assert_same(inputs, wanted):
    assert set(inputs) == set(wanted)
    for name, values in wanted.items():
        assert inputs[name].dtype == torch.int64
        assert torch.equal(inputs[name], values), name


@pytest.mark.parametrize("chosen", [[0], [5, 0, 3], [7, 6, 5, 4, 3, 2, 1, 0]])
@pytest.mark.parametrize("pairs", [None, PAIRS], ids=["single", "pair"])
def test_rows_are_padded_as_the_tokenizer_pads_them(tokenizer, pairs, chosen):
    rows = rows_of(TEXTS, pairs)
    padded = encode(rows, view_of(tokenizer)).pad(chosen)
    assert_same(padded, as_the_tokenizer_pads(tokenizer, [rows[i] for i in chosen]))
    assert ("token_type_ids" in padded) == (pairs is not None)


@pytest.mark.parametrize("max_length", [4, 7, 11])
@pytest.mark.parametrize("pairs", [None, PAIRS], ids=["single", "pair"])
def test_rows_are_truncated_as_the_tokenizer_truncates_them(tokenizer, pairs, max_length):
    rows = rows_of([text * 2 for text in TEXTS], pairs)
    encoded = encode(rows, view_of(tokenizer, max_length))
    assert encoded.lengths.max() == max_length
    wanted = as_the_tokenizer_pads(tokenizer, rows, max_length)
    assert_same(encoded.pad(range(len(rows))), wanted)


@given(texts=st.lists(st.text(min_size=1), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_any_valid_text_is_encoded_as_by_the_tokenizer(tokenizer, texts):
    rows = rows_of(texts)
    padded = encode(rows, view_of(tokenizer, 16)).pad(range(len(rows)))
    assert_same(padded, as_the_tokenizer_pads(tokenizer, rows, 16))


def long_texts(characters):
    return {
        "words": "great film " * (characters // 11),
        "one word": "x" * characters,
        "emoji": "🎬" * characters,
        "no blanks": "great!film?" * (characters // 11),
        "blanks first": " " * characters + "great film",
        "long words": ("y" * 300 + " ") * (characters // 300),
        "ends in a word": "great film\n\n" * 40 + "z" * characters,
    }


@pytest.mark.parametrize("kind", long_texts(0))
def test_a_long_text_is_read_as_the_tokenizer_reads_all_of_it(tokenizer, kind):
    rows = rows_of([long_texts(50_000)[kind]])
    assert_same(encode(rows, view_of(tokenizer)).pad([0]), as_the_tokenizer_pads(tokenizer, rows))


def test_texts_of_a_million_characters_are_read_fast(tokenizer):
    rows = rows_of(list(long_texts(1_000_000).values()))
    start = time.perf_counter()
    encode(rows, view_of(tokenizer))
    assert time.perf_counter() - start < 3.0  # read whole, they take some twenty seconds


@pytest.mark.fault(30)
def test_many_long_texts_are_cut_before_they_are_tokenised(tokenizer):
    long = rows_of(["great film " * 20_000] * 20)
    short = rows_of(["great film " * 200] * 20)

    def seconds(rows):
        start = time.perf_counter()
        encode(rows, view_of(tokenizer))
        return time.perf_counter() - start

    assert seconds(long) < 10 * seconds(short) + 0.1


def test_rows_beyond_one_chunk_keep_their_order(tokenizer, monkeypatch):
    rows = rows_of(TEXTS)
    whole = encode(rows, view_of(tokenizer))
    monkeypatch.setattr("kd.data.encode._CHUNK", 3)
    cut = encode(rows, view_of(tokenizer))
    assert np.array_equal(whole.ids, cut.ids)
    assert np.array_equal(whole.starts, cut.starts)


def test_equal_views_share_one_encoding_and_the_tensors_of_a_batch(tokenizer):
    rows = rows_of(TEXTS)
    encoded = encode(rows, view_of(tokenizer))
    batch = EncodedRows(rows, {"student": encoded, "teacher": encoded}).batch(np.array([2, 0]))
    assert batch.views["student"] is batch.views["teacher"]
    moved = batch.to("cpu")
    assert moved.views["student"] is moved.views["teacher"]
    assert batch.index.tolist() == [2, 0]


def test_a_teacher_of_another_vocabulary_gets_its_own_ids(tokenizer):
    other = train_wordpiece(["completely other words, zebra xylophone", *TEXTS[:2]], 90)
    rows = rows_of(TEXTS)
    data = EncodedRows(
        rows,
        {"student": encode(rows, view_of(tokenizer)), "teacher": encode(rows, view_of(other))},
    )
    batch = data.batch(np.arange(len(rows)))
    for name, of in (("student", tokenizer), ("teacher", other)):
        wanted = as_the_tokenizer_pads(of, rows)
        assert_same(batch.views[name], wanted)
    student, teacher = (batch.views[name]["input_ids"] for name in ("student", "teacher"))
    assert not torch.equal(student, teacher)


def test_views_are_equal_by_vocabulary_and_length(tokenizer):
    again = train_wordpiece(TEXTS, 200)
    other = train_wordpiece(TEXTS[:2], 60)
    assert view_of(tokenizer).key == view_of(again).key
    assert view_of(tokenizer).key != view_of(other).key
    assert view_of(tokenizer, 32).key != view_of(tokenizer, 64).key


def test_a_call_with_other_padding_does_not_change_the_digest(tokenizer):
    before = digest(tokenizer)
    tokenizer(TEXTS, padding=True, truncation=True, max_length=5)
    assert digest(tokenizer) == before


def test_no_row_at_all_is_an_empty_encoding(tokenizer):
    assert len(encode([], view_of(tokenizer)).lengths) == 0
