import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from kd.data.augment import (
    OCR,
    Augmenter,
    Keyboard,
    Mixed,
    Spelling,
    WordCrop,
    WordDrop,
    WordSwap,
    substitute,
    vary_texts,
)
from kd.data.sample import generate
from kd.data.sentence import cut
from kd.errors import ConfigError
from tests.data.test_sentence import AWKWARD

WORDS = [WordDrop, WordCrop, WordSwap]
LETTERS = [Keyboard, OCR, Spelling]
TEXT = "we watched another lovely film about their house because of the weather in March"


class Shout(Augmenter):
    def change(self, sentence, draw):
        return sentence.with_words({i: sentence.pieces[i].upper() for i in sentence.free})


def variants(augmenter, text=TEXT, count=200):
    sentence = cut(text)
    return [augmenter.change(sentence, Random(seed)).text for seed in range(count)]


def test_dropping_leaves_out_a_share_of_the_words():
    counts = {len(text.split()) for text in variants(WordDrop(share=0.3))}
    assert counts == {14 - 4}
    assert len(set(variants(WordDrop(share=0.3)))) > 100
    assert all(set(text.split()) < set(TEXT.split()) for text in variants(WordDrop()))


def test_cropping_leaves_out_words_side_by_side():
    words = TEXT.split()
    for text in variants(WordCrop(share=0.3)):
        left = text.split()
        start = next(
            (i for i, pair in enumerate(zip(words, left, strict=False)) if len(set(pair)) > 1),
            len(left),
        )
        assert 1 <= len(words) - len(left) <= 4
        assert words[:start] + words[start + len(words) - len(left) :] == left


def test_swapping_exchanges_neighbours():
    for text in variants(WordSwap(share=0.1)):
        moved = [
            i for i, (a, b) in enumerate(zip(TEXT.split(), text.split(), strict=True)) if a != b
        ]
        assert sorted(text.split()) == sorted(TEXT.split())
        assert len(moved) == 2
        assert moved[1] == moved[0] + 1


@pytest.mark.parametrize("augmenter", [Keyboard, OCR])
def test_a_typing_error_is_one_letter_of_a_long_word(augmenter):
    for text in variants(augmenter(share=0.1)):
        changed = [(a, b) for a, b in zip(TEXT.split(), text.split(), strict=True) if a != b]
        assert len(changed) == 1
        ((word, wrong),) = changed
        assert len(word) >= 4
        assert len(word) == len(wrong)
        assert sum(a != b for a, b in zip(word, wrong, strict=True)) == 1


def test_keys_are_beside_each_other_and_keep_their_case():
    found = set(variants(Keyboard(), "qqqq QQQQ", 400))
    assert {letter for text in found for letter in text} <= set("qwas QWAS12")
    assert any("W" in text for text in found)


def test_misspellings_are_those_of_people():
    found = {word for text in variants(Spelling(share=0.5)) for word in text.split()} - set(
        TEXT.split()
    )
    assert "becuase" in found or "becouse" in found or "beacuse" in found
    assert all(word.isalpha() for word in found)


@pytest.mark.parametrize("augmenter", [*WORDS, *LETTERS])
def test_meaning_survives_every_augmenter(augmenter):
    text = (
        "@ann I do not like it at all, 10 #fails http://t.co/x :( but this weather is very nice 😀"
    )
    for variant in variants(augmenter(share=1.0), text):
        for kept in (
            "@ann",
            "not like it at all",
            "10",
            "#fails",
            "http://t.co/x",
            ":(",
            "very",
            "😀",
        ):
            assert kept in variant


@pytest.mark.parametrize("augmenter", [*WORDS, *LETTERS])
@pytest.mark.parametrize("text", AWKWARD, ids=lambda text: repr(text[:12]))
def test_awkward_texts_come_through(augmenter, text):
    variant = augmenter(share=1.0).change(cut(text), Random(1)).text
    assert variant.strip() or not text.strip()
    assert len(variant) <= len(text) + text.count("word")


def test_half_of_the_words_stay():
    assert all(
        len(text.split()) == 2 for text in variants(WordDrop(share=1.0), "one two three four")
    )
    assert variants(WordDrop(share=1.0), "one", 1) == ["one"]


def test_a_new_word_never_turns_a_text_round():
    words = iter(["not", "NEVER", "very", "won't", "fine", "fine"])
    sentence = cut("one two three four five")
    changed = substitute(sentence, 1, Random(0), lambda position: next(words))
    assert changed.text.count("fine") == 1
    assert len(set(changed.text.split()) - set(sentence.text.split())) == 1


def test_a_mixture_draws_by_weight():
    mixed = variants(Mixed([Shout(), WordDrop()], weights=[3, 1]), count=1000)
    assert 0.7 < sum(map(str.isupper, mixed)) / 1000 < 0.8
    assert all(text.isupper() or len(text.split()) == 11 for text in mixed)
    sentences = [cut(text) for text in mixed[:50]]
    one_by_one = [
        Mixed([Shout(), WordDrop()]).change(s, Random(i)) for i, s in enumerate(sentences)
    ]
    together = Mixed([Shout(), WordDrop()]).vary(sentences, [Random(i) for i in range(50)])
    assert one_by_one == together


def test_augmenters_are_chained():
    ((text,),) = vary_texts([TEXT], [1], [WordDrop(share=0.3), Shout()])
    assert text.isupper()
    assert len(text.split()) == 10


def test_variants_of_a_text_differ_from_it_and_each_other():
    (found,) = vary_texts([TEXT], [20], [WordDrop()])
    assert len({*found, TEXT}) == 21


def test_there_are_no_more_variants_than_there_are():
    (found,) = vary_texts(["one two"], [5], [WordSwap()])
    assert sorted(found) == ["one two"] * 4 + ["two one"]


def test_variants_follow_from_text_number_and_seed_alone():
    texts = [text for text, _ in generate("train")[:50]]
    once = vary_texts(texts, [2] * 50, [WordDrop(), Keyboard()], seed=1)
    turned = vary_texts(texts[::-1], [2] * 50, [WordDrop(), Keyboard()], seed=1)[::-1]
    assert once == turned
    assert vary_texts(texts[7:8], [1], [WordDrop(), Keyboard()], seed=1) == [once[7][:1]]
    assert vary_texts(texts, [2] * 50, [WordDrop(), Keyboard()], seed=2) != once


def test_variants_are_the_same_in_another_process():
    code = (
        "import sys, json; from kd.data.augment import *; texts = json.load(sys.stdin);"
        "print(json.dumps(vary_texts(texts, [3] * len(texts), [Spelling(0.5), OCR(), Keyboard()])))"
    )
    texts = [text for text, _ in generate("train")[:30]]
    answers = [
        subprocess.run(
            [sys.executable, "-c", code], input=json.dumps(texts), text=True, check=True,
            capture_output=True, cwd=Path(__file__).parents[2], env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert answers[0] == answers[1]
    assert json.loads(answers[0]) == vary_texts(texts, [3] * 30, [Spelling(0.5), OCR(), Keyboard()])


def test_global_chance_is_left_alone():
    import random

    import numpy as np

    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    vary_texts([TEXT], [3], [augmenter() for augmenter in [*WORDS, *LETTERS]])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


def test_protected_phrases_stay():
    (found,) = vary_texts([TEXT], [50], [WordDrop(share=0.9)], protect=["Lovely Film", "march"])
    assert all("lovely film" in text and "March" in text for text in found)


def test_settings_tell_augmenters_apart():
    described = [
        json.dumps(augmenter.describe())
        for augmenter in (
            WordDrop(),
            WordDrop(0.3),
            WordCrop(),
            Mixed([WordDrop()]),
            Mixed([WordDrop(0.3)]),
        )
    ]
    assert len(set(described)) == 5
    assert WordDrop().describe() == WordDrop().describe()


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: WordDrop(share=0.0), "WordDrop.share"),
        (lambda: Keyboard(share=1.1), "Keyboard.share"),
        (lambda: Mixed([]), "Mixed.augmenters"),
        (lambda: Mixed([WordDrop()], weights=[1, 2]), "Mixed.weights"),
        (lambda: Mixed([WordDrop()], weights=[0]), "Mixed.weights"),
    ],
)
def test_wrong_settings_are_one_sentence(make, word):
    with pytest.raises(ConfigError, match=word):
        make()
