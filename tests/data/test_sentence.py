import re
from pathlib import Path

import pytest

from kd.data.sample import SPLITS, generate
from kd.data.sentence import INTENSIFIERS, NEGATIONS, cut, is_plain

TWEETS = Path(__file__).resolve().parents[3] / "shared/data/tweeteval_sentiment/train.parquet"

AWKWARD = [
    "",
    " ",
    "\n\t ",
    "good",
    "😀😀🏳️‍🌈",
    "!!!",
    "مرحبا بالعالم الجميل",
    "हिन्दी में लिखा हुआ वाक्य",
    "東京は今日も雨です。",
    "x" * 10_000,
    "word " * 10_000,
    "\x01\x02 \ufffd junk\u200bjunk \u202etxet",
    "a\r\nb\x85c\u2028d",
    "<p>&amp; &#39; &notanentity",
    "a" + "\u0301" * 50 + " b",
]


def free_words(text, protected=None):
    sentence = cut(text, protected)
    return [sentence.pieces[position] for position in sentence.free]


def test_a_free_word_is_a_word_between_blanks_and_marks():
    assert free_words('Look: "a film (from France)", she said.') == [
        "Look", "a", "film", "from", "France", "she", "said",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "kept",
    [
        "https://t.co/aB3?x=1", "www.site.org/page", "site.com/page", "me@post.org", "@some_one",
        "@user's", "#tag", "#LoveIt", "$AAPL", "&amp;", ":D", "xD", ":-P", "<3", "D:", "T_T", "42",
        "3.5", "1,000", "50%", "2nd", "gr8", "10:30", "foo_bar", "not", "n't", "NEVER", "don't",
        "Don’t", "can\\u2019t", "dont", "non-fiction", "no-one", "nor'easter", "hardly",
        "very", "SO", "😀",
    ],
)  # fmt: skip
def test_what_carries_a_meaning_is_never_free(kept):
    sentence = cut(f"stone {kept} , river")
    assert [sentence.pieces[position] for position in sentence.free] == ["stone", "river"]
    assert sentence.text == f"stone {kept} , river"


def test_a_url_and_a_hashtag_are_one_piece_each():
    pieces = cut("see https://a.b/c?d=e#f and #one_two@x").pieces
    assert "https://a.b/c?d=e#f" in pieces
    assert "#one_two" in pieces


@pytest.mark.parametrize(
    ("text", "free"),
    [
        ("this is not good", ["this", "is"]),
        ("it is not at all what you think it is", ["it", "is", "think", "it", "is"]),
        ("not good, they say", ["they", "say"]),
        ("not good but fine", ["but", "fine"]),
        ("I don't like it. You do", ["I", "You", "do"]),
        ("never ever again\nhello there", ["hello", "there"]),
        ("not very good for anything or anyone", ["or", "anyone"]),
    ],
)
def test_a_negation_keeps_its_scope(text, free):
    assert free_words(text) == free


def test_a_url_begins_in_the_middle_of_a_word_too():
    assert "http://a.b/c" in cut("lookhttp://a.b/c").pieces
    assert "https://a.b" in cut("27https://a.b").pieces


def test_a_word_that_touches_something_odd_is_not_free():
    assert free_words("one two\\three fo\u0301ur five's six/seven") == [
        "one",
        "five's",
        "six",
        "seven",
    ]


def test_more_can_be_protected():
    found = free_words("New York is big, york too", re.compile("new york|BIG", re.IGNORECASE))
    assert found == ["is", "york"]


@pytest.mark.parametrize("text", AWKWARD, ids=lambda text: repr(text[:12]))
def test_the_pieces_are_the_text(text):
    sentence = cut(text)
    assert sentence.text == text
    assert sentence.without(set(sentence.free)).text in text or sentence.free


def test_every_text_of_the_corpus_survives_the_cut():
    texts = [text for split in SPLITS for text, _ in generate(split)]
    assert [cut(text).text for text in texts] == texts


@pytest.mark.skipif(not TWEETS.is_file(), reason="the shared data sets are not here")
def test_ten_thousand_real_tweets_survive_the_cut():
    from pyarrow import parquet

    texts = parquet.read_table(TWEETS)["text"].to_pylist()[:10_000]
    assert [cut(text).text for text in texts] == texts


def test_a_word_leaves_with_one_blank():
    sentence = cut("one two three")
    one, two, three = sentence.free
    assert sentence.without({two}).text == "one three"
    assert sentence.without({one}).text == "two three"
    assert sentence.without({three}).text == "one two"
    assert sentence.without({one, two}).text == "three"
    assert sentence.without({one, two, three}).text == ""
    assert sentence.without({two}).free == (one, three)


def test_a_word_at_a_mark_leaves_the_blank_that_keeps_others_apart():
    sentence = cut("see http://a.b good!!")
    assert sentence.without({sentence.free[-1]}).text == "see http://a.b !!"


def test_positions_hold_after_changes():
    sentence = cut("one two three four")
    two, four = sentence.free[1], sentence.free[3]
    changed = sentence.without({two}).with_words({four: "five"})
    assert changed.text == "one three five"
    assert changed.pieces[four] == "five"


def test_neighbours_have_only_blanks_between_them():
    sentence = cut("one two, three @x four")
    one, two, three, four = sentence.free
    assert sentence.are_neighbours(one, two)
    assert not sentence.are_neighbours(two, three)
    assert not sentence.are_neighbours(three, four)


def test_plain_words_are_neither_negations_nor_intensifiers():
    assert is_plain("film")
    assert is_plain("naïve")
    assert not any(map(is_plain, NEGATIONS | INTENSIFIERS))
    assert not is_plain("Wouldn’t")
