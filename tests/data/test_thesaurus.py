import re
from itertools import chain

import pytest

from kd.data.lexicon import SIDED_WORDS, TOPICS
from kd.data.sample import generate
from kd.data.sentence import cut, is_plain
from kd.data.thesaurus import SYNONYMS

GROUPS = {frozenset((word, *others)) for word, others in SYNONYMS.items()}
PRAISE = {*chain(*(topic.good for topic in TOPICS), *(good for _, good in SIDED_WORDS.values()))}
BLAME = {*chain(*(topic.bad for topic in TOPICS), *(bad for bad, _ in SIDED_WORDS.values()))}


def test_words_are_single_and_plain_and_in_lower_case():
    assert not [word for word in SYNONYMS if not re.fullmatch("[a-z]+", word)]
    assert not [word for word in SYNONYMS if not is_plain(word)]


def test_a_word_has_others_once_each_and_never_itself():
    assert all(SYNONYMS.values())
    for word, others in SYNONYMS.items():
        assert len({word, *others}) == 1 + len(others), word


def test_words_replace_each_other_both_ways():
    pairs = {(word, other) for word, others in SYNONYMS.items() for other in others}
    assert pairs == {(other, word) for word, other in pairs}


def test_every_word_is_in_one_group():
    assert sum(map(len, GROUPS)) == len(SYNONYMS)


def test_no_group_mixes_praise_and_blame():
    praise, blame = ({*chain(*map(str.split, side))} for side in (PRAISE, BLAME))
    praise, blame = praise - blame, blame - praise  # "am" is in phrases of both
    assert not [group for group in GROUPS if group & praise and group & blame]


@pytest.mark.parametrize("side", [PRAISE, BLAME], ids=["praise", "blame"])
def test_opinions_of_the_built_in_corpus_are_known(side):
    words = {opinion for opinion in side if opinion.isalpha()}
    assert len(words & set(SYNONYMS)) > 0.4 * len(words)


def test_the_built_in_corpus_is_covered():
    sentences = [cut(text) for text, _ in generate("unlabelled")]
    known = [[s.pieces[p].casefold() in SYNONYMS for p in s.free] for s in sentences]
    assert sum(map(sum, known)) > 0.1 * sum(map(len, known))
    assert sum(map(any, known)) > 0.55 * len(known)


def test_a_replacement_leaves_the_other_words_as_free_as_they_were():
    for text, _ in generate("train"):
        sentence = cut(text)
        for position in sentence.free:
            for other in SYNONYMS.get(sentence.pieces[position].casefold(), ()):
                variant = sentence.with_words({position: other})
                assert cut(variant.text) == variant


def test_the_mapping_cannot_be_changed():
    with pytest.raises(TypeError, match="does not support item assignment"):
        SYNONYMS["film"] = ("picture",)
    assert all(isinstance(others, tuple) for others in SYNONYMS.values())
