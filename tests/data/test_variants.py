import json
import os
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from kd.data.augment import OCR, Augmenter, Keyboard, Mixed, Spelling, WordCrop, WordDrop, WordSwap
from kd.data.sample import LABELS, generate
from kd.data.synonyms import Synonym
from kd.data.variants import Augmentation, judge, make_variants
from kd.errors import ConfigError, RunError
from kd.types import Row

SHARED = Path(__file__).parents[3] / "shared"
ROWS = [Row(3 * i, text, label) for i, (text, label) in enumerate(generate("train")[:200])]


class Asks(Augmenter):
    """Makes a question of a text."""

    def change(self, sentence, draw):
        last = sentence.free[-1]
        return sentence.with_words({last: sentence.pieces[last] + "?"})


def plan_of(*augmenters, **options):
    return Augmentation(list(augmenters) or [WordDrop()], **{"processes": 1, **options})


def by_origin(variants):
    found = {}
    for row in variants.rows:
        found.setdefault(row.origin, []).append(row.text)
    return found


def test_variants_are_rows_of_their_own():
    rows = [replace(row, weight=1.0 + row.index) for row in ROWS]
    made = make_variants(rows, plan_of(variants=2), LABELS)
    origins = {row.index: row for row in rows}
    assert [row.index for row in made.rows] == list(range(598, 598 + len(made.rows)))
    assert len(made.rows) > 1.8 * len(rows)
    for row in made.rows:
        origin = origins[row.origin]
        assert (row.label, row.weight) == (origin.label, origin.weight)
        assert Counter(row.text) < Counter(origin.text)
    texts = [row.text for row in [*rows, *made.rows]]
    assert len(set(texts)) == len(texts)


def test_every_variant_is_accounted_for():
    rows = [Row(0, "one stone", 0), Row(1, "stone one", 1), Row(2, "a b", 0), Row(3, "😀", 1)]
    made = make_variants(rows, plan_of(WordSwap(), variants=2), LABELS, [Row(0, "b a", 1)])
    assert made.made == 8
    assert made.rows == []
    assert made.left_out == {"unchanged": 5, "duplicate": 2, "held out": 1}
    assert str(made).endswith("0 kept, 5 unchanged, 2 duplicate, 1 held out")


def test_labels_can_be_dropped():
    made = make_variants(ROWS, plan_of(labels="drop"), LABELS)
    assert {row.label for row in made.rows} == {None}


def test_a_class_can_have_more_variants():
    rows = [*ROWS, *(Row(1000 + i, f"some words here {i} times", None) for i in range(5))]
    plan = plan_of(variants=1, class_variants={"neutral": 3, "positive": 0}, unlabelled_variants=2)
    counts = dict(zip([row.label for row in rows], plan.counts(rows, LABELS), strict=True))
    assert counts == {0: 1, 1: 3, 2: 0, None: 2}
    made = make_variants(rows, plan, LABELS)
    assert {row.label for row in made.rows} == {0, 1, None}
    assert plan_of(variants=4).counts(rows[-1:], LABELS) == [4]
    several = [Row(0, "a", (0, 1)), Row(1, "b", ()), Row(2, "c", (2,))]
    assert plan.counts(several, LABELS) == [3, 1, 0]
    with pytest.raises(ConfigError, match="class_variants names joy"):
        make_variants(ROWS, plan_of(class_variants={"joy": 1}), LABELS)


def test_both_texts_of_a_pair_are_varied():
    rows = [Row(0, "we watched one more lovely film", 0, pair="they bought some small red apples")]
    (made,) = make_variants(rows, plan_of(WordDrop(0.3)), LABELS).rows
    assert len(made.text.split()) == 4
    assert len(made.pair.split()) == 4


def test_a_text_gives_the_same_variants_in_any_order_and_any_company():
    forwards = by_origin(make_variants(ROWS, plan_of(variants=2), LABELS))
    assert by_origin(make_variants(ROWS[::-1], plan_of(variants=2), LABELS)) == forwards
    few = by_origin(make_variants(ROWS[:5], plan_of(variants=2), LABELS))
    assert few == {row.index: forwards[row.index] for row in ROWS[:5]}


def test_another_seed_gives_other_variants():
    one, other = (make_variants(ROWS, plan_of(seed=seed), LABELS) for seed in (0, 1))
    same = {row.text for row in one.rows} & {row.text for row in other.rows}
    assert len(same) < 0.3 * len(ROWS)


def test_the_number_of_processes_changes_nothing():
    rows = [Row(i, text, label) for i, (text, label) in enumerate(generate("unlabelled")[:2500])]
    augmenters = [Mixed([WordDrop(), Keyboard()]), WordCrop()]
    one, two = (
        make_variants(rows, plan_of(*augmenters, variants=2, processes=n), LABELS) for n in (1, 2)
    )
    assert one.rows == two.rows
    assert len(one.rows) > 4500


def test_variants_are_made_once(tmp_path):
    first = make_variants(ROWS, plan_of(), LABELS, folder=tmp_path / "variants")
    again = make_variants(ROWS, plan_of(), LABELS, folder=tmp_path / "variants")
    assert (first.is_known, again.is_known) == (False, True)
    assert first.rows == again.rows
    assert len([*(tmp_path / "variants").iterdir()]) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1}, {"variants": 2}, {"protect": ["my phone"]},
        {"augmenters": [WordDrop(0.3)]}, {"augmenters": [WordDrop(), Keyboard()]},
        {"class_variants": {"neutral": 2}},
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_decides_about_variants_is_in_their_key(tmp_path, other):
    make_variants(ROWS, plan_of(), LABELS, folder=tmp_path)
    assert not make_variants(ROWS, replace(plan_of(), **other), LABELS, folder=tmp_path).is_known


def test_what_does_not_decide_about_texts_is_not_in_their_key(tmp_path):
    make_variants(ROWS, plan_of(), LABELS, folder=tmp_path)
    plan = plan_of(labels="drop", flip_confidence=None)
    assert make_variants(ROWS[::-1], plan, LABELS, ROWS[:1], folder=tmp_path).is_known


def test_a_damaged_file_is_made_anew(tmp_path):
    first = make_variants(ROWS, plan_of(), LABELS, folder=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for position in range(10, len(whole) - 2000, 997):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 255]) + whole[position + 1 :])
        again = make_variants(ROWS, plan_of(), LABELS, folder=tmp_path)
        assert again.rows == first.rows
    file.write_bytes(whole[:100])
    again = make_variants(ROWS, plan_of(), LABELS, folder=tmp_path)
    assert again.rows == first.rows
    assert not again.is_known


@pytest.mark.skipif(os.name != "posix", reason="folders are locked otherwise there")
def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"variants cannot be written to .*file"):
        make_variants(ROWS, plan_of(), LABELS, folder=tmp_path / "file" / "variants")


class Stops(WordDrop):
    """Is cut off once it has met some texts, as by a kill."""

    left = 0

    def change(self, sentence, draw):
        Stops.left -= 1
        if Stops.left == 0:
            raise KeyboardInterrupt
        return super().change(sentence, draw)


def test_what_was_made_before_a_kill_is_kept(tmp_path):
    rows = [Row(i, text, label) for i, (text, label) in enumerate(generate("unlabelled")[:1800])]
    Stops.left = 1300
    with pytest.raises(KeyboardInterrupt):
        make_variants(rows, plan_of(Stops()), LABELS, folder=tmp_path)
    assert len([*tmp_path.iterdir()]) == 2
    Stops.left = 0
    again = make_variants(rows, plan_of(Stops()), LABELS, folder=tmp_path)
    assert 800 <= -Stops.left < 900, "the first thousand were not made again"
    assert [row.text for row in again.rows] == [
        row.text for row in make_variants(rows, plan_of(WordDrop()), LABELS).rows
    ]


def test_your_own_augmenter_works_in_the_chain():
    made = make_variants(ROWS[:20], plan_of(WordDrop(), Asks()), LABELS)
    assert all("?" in row.text for row in made.rows)


def rows_and_variants():
    return [
        Row(0, "a", 0), Row(1, "b", None), Row(2, "a a", 0, origin=0), Row(3, "a b", 0, origin=0),
        Row(4, "b b", None, origin=1), Row(5, "a c", 0, origin=0),
    ]  # fmt: skip


PROBABILITIES = np.array(
    [
        [0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.1, 0.8, 0.1],
        [0.45, 0.55, 0.0],
    ],
    dtype=np.float32,
)  # fmt: skip


def test_a_variant_is_left_out_where_the_teacher_surely_changes_its_mind():
    kept, flipped = judge(rows_and_variants(), PROBABILITIES, plan_of(flip_confidence=0.8))
    assert [row.index for row in kept] == [0, 1, 2, 5]
    assert [row.index for row in flipped] == [3, 4]
    kept, flipped = judge(rows_and_variants(), PROBABILITIES, plan_of(flip_confidence=0.5))
    assert [row.index for row in flipped] == [3, 4, 5]
    kept, flipped = judge(rows_and_variants(), PROBABILITIES, plan_of(flip_confidence=None))
    assert (len(kept), flipped) == (6, [])


def test_originals_are_never_left_out():
    rows = [Row(0, "a", 1), Row(1, "b", 2)]
    kept, flipped = judge(rows, PROBABILITIES[:2], plan_of(flip_confidence=0.01))
    assert (kept, flipped) == (rows, [])


def test_the_teacher_can_label_variants():
    plan = plan_of(flip_confidence=None, labels="teacher")
    kept, _ = judge(rows_and_variants(), PROBABILITIES, plan)
    assert [row.label for row in kept] == [0, None, 0, 1, 1, 1]


def test_rows_of_several_labels_flip_by_any_of_them():
    rows = [Row(0, "a", (0, 1)), Row(1, "b", (0, 1), origin=0), Row(2, "c", (0, 1), origin=0)]
    probabilities = np.array([[0.9, 0.7, 0.1], [0.9, 0.3, 0.1], [0.9, 0.1, 0.6]], np.float32)
    kept, flipped = judge(rows, probabilities, plan_of(flip_confidence=0.8))
    assert [row.index for row in flipped] == [2]
    kept, _ = judge(rows, probabilities, plan_of(flip_confidence=None, labels="teacher"))
    assert [row.label for row in kept] == [(0, 1), (0,), (0, 2)]


def test_there_are_ten_examples_to_look_at():
    made = make_variants(ROWS, plan_of(), LABELS)
    made.rows, made.flipped = made.rows[20:], made.rows[:20]
    plain = json.loads(json.dumps(made.as_plain(ROWS)))
    fates = [example["fate"] for example in plain["examples"]]
    assert (fates.count("kept"), fates.count("flipped")) == (7, 3)
    assert plain["flipped"] == 20
    reasons = ("unchanged", "duplicate", "held out", "flipped")
    assert plain["made"] - plain["kept"] == plain["dropped"] == sum(plain[one] for one in reasons)
    texts = {row.text for row in ROWS}
    for example in plain["examples"]:
        assert example["text"] in texts
        assert Counter(example["variant"]) < Counter(example["text"])


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"augmenters": []}, "augment.augmenters"),
        ({"variants": -1}, "augment.variants"),
        ({"unlabelled_variants": -1}, "augment.unlabelled_variants"),
        ({"class_variants": {"positive": -2}}, "augment.class_variants.positive"),
        ({"flip_confidence": 1.5}, "augment.flip_confidence"),
        ({"processes": 0}, "augment.processes"),
    ],
)
def test_wrong_settings_are_one_sentence(options, key):
    with pytest.raises(ConfigError, match=key):
        Augmentation(**{"augmenters": [WordDrop()], **options})


EVERY = [WordDrop, WordCrop, WordSwap, Keyboard, OCR, Spelling]
EVERY.append(partial(Synonym, thesaurus="builtin"))
MARKS = re.compile(
    r"https?://\S+|(?<!\w)[@#]\w+|[\U0001F300-\U0001FAFF\u2600-\u27BF]|\d+"
    r"|\b(?:not|no|never|nothing|nobody|none|neither|nor|cannot|without)\b|\b\w+n['’]t\b",
    re.IGNORECASE,
)


def marks(text):
    """What may not change, found in another way than kd.data.sentence finds it."""
    return Counter(MARKS.findall(text.replace("\\u2019", "'")))


def assert_meaning_survives(texts, augmenter):
    augmenter.prepare()
    rows = [Row(i, text, 0) for i, text in enumerate(texts)]
    made = make_variants(rows, plan_of(augmenter), LABELS)
    for row in made.rows:
        assert marks(texts[row.origin]) <= marks(row.text)
    return made


@pytest.mark.parametrize("make", EVERY)
def test_meaning_of_the_corpus_survives(make):
    texts = [text for split in ("train", "validation", "test") for text, _ in generate(split)]
    assert len(assert_meaning_survives(texts, make(share=0.5)).rows) > 0.4 * len(texts)


@pytest.mark.skipif(not SHARED.is_dir(), reason="WordNet and the shared tweets are not here")
@pytest.mark.parametrize("make", [*EVERY, pytest.param(Synonym, marks=pytest.mark.slow)])
def test_meaning_of_ten_thousand_real_tweets_survives(make, monkeypatch):
    import nltk
    from pyarrow import parquet

    monkeypatch.setattr(nltk.data, "path", [str(SHARED / "nltk_data")])
    table = parquet.read_table(SHARED / "data/tweeteval_sentiment/train.parquet")
    texts = list(dict.fromkeys(table["text"].to_pylist()))[:10_000]
    made = assert_meaning_survives(texts, make(share=0.5))
    assert len(made.rows) > (8_000 if make is Synonym else 4_000)
