import json
import random
import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kd.rationales.leaks import Audit, audit, mask
from kd.types import Annotation, Row

LABELS = ("negative", "positive")
GAP = "…"


@pytest.mark.parametrize(
    "word",
    ["positive", "Positive", "POSITIVE", "positively", "positivity", "positives", "**positive**",
     "_positive_", "'positive'", "label_positive", "positive's", "Negativity", "negatively"],
)  # fmt: skip
def test_class_names_and_what_is_made_of_them_are_hidden(word):
    masked = mask(f"The word warm has a {word} sense here.", LABELS)
    assert re.fullmatch(r"The word warm has a \S*…\S* sense here\.", masked)
    assert not re.search("positi|negati", masked, re.I)


@pytest.mark.parametrize(
    ("words", "hidden", "kept"),
    [
        (["joy"], "joy joys joyful joyfully joyous JOY", "joystick enjoy joint"),
        (["sad"], "sad sadly sadness sadder saddest", "saddle crusade sadistic"),
        (["hate"], "hate hates hated hating hateful hater", "hat hats heat chateau"),
        (["happy"], "happy happily happiness happier", "happen happened unhappy hap"),
        (["anger"], "anger angered angers", "danger ranger angry"),
        (["sports"], "sports sport sporting sportsman", "transport"),
        (["politics"], "politics political politician", "polite police"),
        (["spam"], "spam spammer spamming spams", "span wigspam"),
        (["toxic"], "toxic toxicity toxically", "intoxicating"),
        (["C++"], "C++ C", "Cold ABC"),
        (["1"], "1", "10 2011 x1"),
        (["très bon"], "TRÈS très-bon très_bon", "bonbon"),
        (["Sci/Tech"], "Sci/Tech sci-tech scitech tech techs", "science teach technology"),
        (["not helpful"], "helpful helpfully", "not help"),
        (["积极"], "很积极的", "极积"),
        ([":)"], ":) :)", ": )"),
        ([], "", "anything goes"),
    ],
)
def test_what_a_word_hides_and_what_not(words, hidden, kept):
    for word in hidden.split():
        masked = mask(f"warm {word} film", words)
        assert GAP in masked, word
        assert word.casefold() not in masked.casefold()
    for word in kept.split():
        assert mask(f"warm {word} film", words) == f"warm {word} film"


def test_a_name_of_several_words_is_hidden_whole():
    labels = ["very negative", "very positive"]
    assert mask("It has a very  positive tone, not very-negative.", labels) == (
        "It has a … tone, not …."
    )


@pytest.mark.parametrize(
    ("rationale", "masked"),
    [
        ("It praises the cast. The answer is positive.", "It praises the cast."),
        ("The sentiment is good. It praises the cast.", "It praises the cast."),
        ("Label: B\nIt praises the cast.", "It praises the cast."),
        ("It praises the cast. Overall, the final label would be favourable!",
         "It praises the cast."),
        ("It praises the cast. Overall: 5 stars", "It praises the cast."),
        ("It praises the cast. Overall, the text is a rave.", "It praises the cast."),
        ("So the answer is option a.1 because it praises it.", "because it praises it."),
        ("Therefore, the sentiment of this review can be seen as good, as it praises the cast.",
         "as it praises the cast."),
        ("It praises the cast Hence, the sentiment leans to the good side The plot is clever",
         "It praises the cast The plot is clever"),
        ("It mocks the sentiment The plot is clever", "It mocks the sentiment The plot is clever"),
        ("Overall, the film is a mess.", "Overall, the film is a mess."),
        ("A question whose answer is withheld for too long.",
         "A question whose answer is withheld for too long."),
        ("It has a sentiment that is hard to bear.", "It has a sentiment that is hard to bear."),
        ("The class of the acting shines.", "The class of the acting shines."),
    ],
)  # fmt: skip
def test_statements_of_the_answer_go_and_reasons_stay(rationale, masked):
    assert mask(rationale, LABELS) == masked


@pytest.mark.parametrize(
    ("rationale", "masked"),
    [
        ("<think>positive? The answer is B.</think>It praises.", "It praises."),
        ("It praises. <think>or", "It praises."),
        ("Surely B.</think>It praises.", "It praises."),
        ('{"rationale": "It {praises}.", "label": "B"}', "It {praises}."),
        ('```json\n{"label": "B", "rationale": "It praises."}\n```', "It praises."),
        ('{"label": "B", "rationale": null}', ""),
        ('{"label": "B"}', ""),
        ("{sic} It praises.", "{sic} It praises."),
        ("  It \n\n praises\u2028well. ", "It praises well."),
        ("", ""),
        (" \n", ""),
        ("Positive.", ""),
        ("Positive, negative: positive!", ""),
        ("The sentiment is positive.", ""),
        ("Positive. It praises.", "…. It praises."),
        ("It is positive positive negative or positive.", "It is … or …."),
    ],
)
def test_the_rest_is_readable_or_nothing(rationale, masked):
    assert mask(rationale, LABELS) == masked


TEXTS = st.lists(
    st.sampled_from(
        ["positive", "Negatively", "posi", "tive", " ", "\n", ".", ",", "The answer is", ":", "{",
         '{"rationale": "', '"}', "<think>", "</think>", GAP, "_", "overall", "because",
         "label", "```"]
    )
    | st.text(max_size=3),
    max_size=20,
).map("".join)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(TEXTS)
@example('{"rationale": "<think>positive</think> {\\"rationale\\": \\"positive\\"}"}')
def test_no_label_word_outlives_masking(text):
    masked = mask(text, LABELS)
    assert not re.search(r"(?<![^\W_])(positiv|negativ)[^\W\d_]*(?![^\W_])", masked, re.I)
    assert masked == " ".join(masked.split())
    assert masked == "" or re.search(r"\w", masked)


@pytest.mark.parametrize(
    "text",
    [" " * 50_000, "\n" * 50_000, "the " * 12_000, "the class " * 5000, "label: a " * 6000,
     GAP * 50_000, "…!" * 25_000, "the answer is " + "a.b" * 15_000, "overall " * 6000,
     "x" * 50_000, "{" * 50_000, "positive " * 6000],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_masking_a_long_text_is_fast(text):
    start = time.process_time()
    mask(text, LABELS)
    assert time.process_time() - start < 1


FILLER = "the film has a cast and a plot that one can follow in it with some patience".split()
SIGNS = {0: ["dull", "clumsy", "stale"], 1: ["warm", "clever", "fresh"]}


def made(count, tell=0.9, leak=None, gold=True):
    """Rows whose text tells the class in 60 of 100, and the rationale in ``tell``."""
    draw = random.Random(1)
    rows, raw = [], []
    for index in range(count):
        label = draw.randrange(2)

        def words(share, label=label):
            side = label if draw.random() < share else 1 - label
            return " ".join([*draw.sample(FILLER, 6), draw.choice(SIGNS[side])])

        text, came = words(0.6), words(tell)
        if leak:
            came += f" and it is {LABELS[label]}"
        note = Annotation(label, 0.9, came if leak == "left" else mask(came, LABELS))
        rows.append(Row(index, text, label if gold else None, annotation=note))
        raw.append(came)
    return rows, raw


def found(rows, raw, words=LABELS):
    result = audit(rows, LABELS, raw, words)
    assert result is not None
    return result


def test_accuracies_are_those_that_the_words_allow():
    result = found(*made(600))
    assert (result.rows, result.probed) == (600, 600)
    assert result.text == pytest.approx(0.6, abs=0.06)
    assert result.rationale == pytest.approx(0.9, abs=0.06)
    assert result.rationale - 0.03 < result.reader < 0.95
    assert not [line for line in result.lines() if "warning" in line]


def test_a_label_word_that_is_left_is_counted_and_warned_of():
    result = found(*made(300, leak="left"))
    assert (result.before, result.after) == (1.0, 1.0)
    assert result.rationale == result.reader == 1.0
    warnings = [line for line in result.lines() if line.startswith("warning:")]
    assert len(warnings) == 2
    assert "mask them" in warnings[0]
    assert "give the label away" in warnings[1]


def test_a_label_word_that_is_masked_is_counted_before_only():
    rows, raw = made(300, leak="masked")
    result = found(rows, raw)
    assert (result.before, result.after) == (1.0, 0.0)
    assert result.rationale < 0.97
    assert not [line for line in result.lines() if "warning" in line]
    raw[:150] = ["Nothing here."] * 150
    assert found(rows, raw).before == 0.5


def test_what_gives_the_label_away_in_other_words_is_warned_of():
    result = found(*made(300, tell=1.0))
    assert (result.after, result.rationale) == (0.0, 1.0)
    assert ["give the label away" in line for line in result.lines()].count(True) == 1
    spoken = found(*made(300, tell=1.0), words=[*LABELS, "warm"])
    assert "warning: label words are left in the rationales: mask them" in spoken.lines()


def test_agreement_and_confusion_count_rows_with_both_labels():
    rows, raw = made(30)
    rows = [Row(row.index, row.text, row.label, annotation=row.annotation) for row in rows]
    wrong = [row for row in rows if row.label == 1][:4]
    for row in wrong:
        note = Annotation(0, None, row.annotation.rationale)
        rows[row.index] = Row(row.index, row.text, 1, annotation=note)
    rows[wrong[0].index] = Row(0, "x", None, annotation=Annotation(0, None, "It is dull."))
    rows.append(Row(30, "y", 0, annotation=Annotation(1)))
    rows.append(Row(31, "z", 0, annotation=Annotation(None, None, "It is dull.")))
    rows.append(Row(32, "z", 0))
    result = found(rows, [*raw, None, None, None])
    own = [sum(row.label == label for row in rows[:30]) for label in (0, 1)]
    assert result.confusion == ((own[0], 1), (3, own[1] - 3))
    assert result.agreement == (own[0] + own[1] - 3) / 30
    assert result.rows == 31
    assert "agrees with 86.7% of 30 labels" in result.lines()[0]
    assert "negative for positive (3), positive for negative (1)" in result.lines()[1]


def test_rows_without_labels_are_told_by_the_annotator():
    told, untold = made(120), made(120, gold=False)
    result = found(*untold)
    assert (result.agreement, result.confusion) == (None, ((0, 0), (0, 0)))
    expected = found(*told)
    assert (result.text, result.rationale) == (expected.text, expected.rationale)
    assert not any("agrees" in line for line in result.lines())


def test_variants_count_for_nothing():
    rows, raw = made(60)
    copies = [
        Row(100 + row.index, row.text, row.label, origin=row.index, annotation=row.annotation)
        for row in rows
    ]
    assert found(rows + copies, raw + raw) == found(rows, raw)


def test_rows_of_several_labels_are_counted_under_the_annotators():
    rows, raw = made(60)
    several = [Row(row.index, row.text, (0, 1), annotation=row.annotation) for row in rows]
    assert found(several, raw).agreement is None


@pytest.mark.parametrize("per_class", [(0, 0), (9, 0), (9, 2), (2, 2)])
def test_too_few_rows_are_no_audit(per_class):
    labels = [label for label, count in enumerate(per_class) for _ in range(count)]
    rows = [
        Row(i, f"text {i}", label, annotation=Annotation(label, None, "why"))
        for i, label in enumerate(labels)
    ]
    assert audit(rows, LABELS, ["why"] * len(rows), LABELS) is None


def test_a_rare_class_does_not_hide_the_others():
    rows, raw = made(60)
    rows.append(Row(60, "text", 2, annotation=Annotation(2, None, "why")))
    result = audit(rows, [*LABELS, "odd"], [*raw, "why"], LABELS)
    assert result is not None
    assert (result.rows, result.probed) == (61, 60)


@pytest.mark.parametrize("text", ["!!!", "很积极", "a", "\N{SMILING FACE WITH SUNGLASSES}"])
def test_any_script_can_be_probed(text):
    rows = [Row(i, text, i % 2, annotation=Annotation(i % 2, None, text)) for i in range(12)]
    assert 0.0 <= found(rows, [text] * 12).text <= 1.0


def test_the_audit_is_plain_and_the_same_again():
    result = found(*made(90))
    assert result == found(*made(90))
    plain = result.as_plain()
    assert json.loads(json.dumps(plain)).keys() == plain.keys()
    assert plain["agreement"] == 1.0
    assert {type(plain[name]) for name in ("text", "rationale", "reader", "before")} == {float}


def test_many_rows_are_sampled_and_fast():
    rows, raw = made(10_500)
    start = time.process_time()
    result = found(rows, raw)
    assert time.process_time() - start < 5
    assert (result.rows, result.probed) == (10_500, 10_000)


def test_classes_that_are_alike_are_listed_by_how_often_they_are_confused():
    result = Audit(("a", "b", "c"), 9, ((5, 1, 2), (0, 5, 4), (3, 0, 5)), 0, 0, 9, 0.5, 0.5, 0.5)
    assert result.lines()[1] == "it says most often c for b (4), a for c (3), c for a (2)"
