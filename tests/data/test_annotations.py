import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from kd.data.annotations import Rationales, explain
from kd.data.collate import EncodedRows, TrainingBatches
from kd.data.encode import View, encode
from kd.data.rows import Table
from kd.errors import ConfigError, DataError
from kd.types import UNLABELLED, Annotation, Row
from kd.vocabulary import digest

LABELS = ("negative", "positive")
ROWS = [
    Row(0, "i love this film", 1),
    Row(1, "a dull story", 0),
    Row(2, "what a wonderful day", 1),
    Row(3, "the food was awful", 0),
    Row(4, "i love this film", 1),
    Row(5, "no label here", None),
]
SAID = {
    "text": [row.text for row in ROWS[:4]] + ["no label here"],
    "rationale": [
        "love is warm",
        "dull says bored",
        "wonderful is praise",
        "awful food",
        "who knows",
    ],
    "teacher_label": ["positive", "negative", "Negative", " negative ", "positive"],
    "teacher_confidence": [0.9, None, 0.8, 0.7, 2],
    "evidence": [["love", "hate"], "dull", [], None, 7],
}


def table(**changes):
    return Table(pd.DataFrame({**SAID, **changes}, dtype=object), "said.jsonl")


def explained(rows=ROWS, held_out=(), said=None, **settings):
    return explain(rows, said or table(), Rationales(**settings), LABELS, held_out)


def rationales(result):
    return [row.annotation and row.annotation.rationale for row in result.rows]


def test_rows_get_what_was_said_of_their_text_and_stay_as_they_are_otherwise():
    found = explained()
    first, second, third, *_ = (row.annotation for row in found.rows)
    assert first == Annotation(1, 0.45 / 0.5 / 100, "love is warm", ((2, 6),))  # per cent: see 2
    assert second == Annotation(0, None, "dull says bored", ((2, 6),))
    assert third.label == 0
    assert found.rows[4].annotation == first  # an equal text
    assert found.rows[5].annotation == Annotation(1, 0.02, "who knows")
    assert [(row.index, row.text, row.label) for row in found.rows] == [
        (row.index, row.text, row.label) for row in ROWS
    ]


def test_confidences_from_0_to_1_stay_as_they_are():
    found = explained(said=table(teacher_confidence=[0.9, None, 0.8, "0.7", math.nan]))
    sure = [row.annotation.confidence for row in found.rows]
    assert sure == [0.9, None, 0.8, 0.7, 0.9, None]


def test_a_rationale_that_contradicts_the_label_is_not_taught_and_its_label_stays():
    found = explained()
    assert rationales(found)[2] is None
    assert found.rows[2].annotation.label == 0
    assert found.counts["contradicting the label"] == 1
    assert rationales(explained(agreement=False))[2] == "wonderful is praise"


def test_a_text_that_is_held_out_too_is_not_explained():
    found = explained(held_out=[Row(0, "a dull story", 0)])
    assert rationales(found)[1] is None
    assert found.counts["also held out"] == 1


def test_failures_and_blanks_explain_nothing():
    status = ["ok", "refused", "ok", "ok", "ok"]
    said = table(status=status, rationale=["  ", "x", None, "awful food", "y"])
    found = explained(said=said, agreement=False)
    assert rationales(found) == [None, None, None, "awful food", None, "y"]
    assert found.rows[1].annotation is None
    assert found.counts["without an annotation"] == 1
    assert found.counts["empty"] == 3


def test_a_class_that_there_is_not_is_no_class_at_all():
    said = table(teacher_label=["neutral", 0, 1, "0", -1])
    found = explained(said=said)
    assert [row.annotation.label for row in found.rows] == [None, 0, 1, 0, None, None]
    assert (
        rationales(found)
        == [None, "dull says bored", "wonderful is praise", "awful food"] + [None] * 2
    )
    assert found.counts["naming none of the classes"] == 3
    with pytest.raises(DataError, match=r"said\.jsonl: no teacher_label is one of the classes"):
        explained(said=table(teacher_label=["neutral"] * 5))


@pytest.mark.parametrize("cells", [[1, 2, 1], ["1", "2", "1"], [1.0, 2.0, 1.0]])
def test_classes_that_are_numbers_are_names_and_no_positions(cells):
    rows = [Row(n, f"text {n}", n % 2) for n in range(3)]
    said = {"text": [row.text for row in rows], "rationale": ["x"] * 3, "teacher_label": cells}
    frame = Table(pd.DataFrame(said, dtype=object), "x")
    found = explain(rows, frame, Rationales(), ("1", "2"))
    assert [row.annotation.label for row in found.rows] == [0, 1, 0]


def test_a_confidence_just_above_1_is_no_per_cent():
    found = explained(said=table(teacher_confidence=[0.9, 1.0000001, 0.8, 0.7, 0.6]))
    assert [row.annotation.confidence for row in found.rows][:2] == [0.9, 1.0]


def test_equal_texts_of_different_labels_have_one_fate():
    rows = [Row(0, "i love this film", 1), Row(1, "i love this film", 0), Row(2, "a dull story", 0)]
    assert rationales(explained(rows)) == [None, None, "dull says bored"]


def test_quotes_stay_where_nothing_is_left_of_a_rationale():
    found = explained(said=table(rationale=["positive", "x", "y", "z", "w"]))
    first = found.rows[0].annotation
    assert (first.label, first.rationale, first.evidence) == (1, None, ((2, 6),))


@pytest.mark.parametrize("change", [{"pair": "and more"}, {"label": (0, 1)}])
def test_pairs_and_rows_of_several_classes_are_refused(change):
    with pytest.raises(ConfigError, match="single texts with one class each"):
        explained([replace(ROWS[0], **change)])


def test_columns_other_than_text_and_rationale_may_be_missing():
    said = Table(pd.DataFrame({"text": SAID["text"], "why": SAID["rationale"]}), "said.jsonl")
    found = explained(said=said, rationale_column="why")
    assert found.rows[2].annotation == Annotation(rationale="wonderful is praise")


def test_a_quote_stands_where_it_is_a_word():
    rows = [Row(0, "@badger: a bad day", 0)]
    said = Table(
        pd.DataFrame({"text": [rows[0].text], "rationale": ["x"], "evidence": ["bad"]}), "x"
    )
    assert explained(rows, said=said).rows[0].annotation.evidence == ((11, 14),)


@pytest.mark.parametrize("key", ["text_column", "rationale_column"])
def test_a_missing_column_is_named(key):
    with pytest.raises(DataError, match=rf"no column 'none': set data\.rationales\.{key} to one"):
        explained(**{key: "none"})


def test_explanations_of_other_texts_are_refused():
    with pytest.raises(DataError, match=r"explains none of the 1 training texts"):
        explained(rows=[Row(0, "something else", 1)])


def test_dropout_is_a_share():
    with pytest.raises(ConfigError, match=r"data\.rationales\.dropout is 1\.0"):
        Rationales(dropout=1.0)


def test_label_words_are_masked_but_for_those_who_want_them():
    said = table(rationale=["positive, love is warm", "so bad, so dull", "x", "negative", "y"])
    assert rationales(explained(said=said, words=["bad"])) == [
        "…, love is warm",
        "so …, so dull",
        None,
        None,
        "…, love is warm",
        "y",
    ]
    assert rationales(explained(said=said, mask=False))[3] == "negative"


MANY = [Row(n, f"text {n} love" if n % 2 else f"text {n} awful", n % 2) for n in range(40)]


def many(**settings):
    said = {
        "text": [row.text for row in MANY],
        "rationale": [f"because of {row.text}" for row in MANY],
        "teacher_label": [LABELS[row.label] for row in MANY],
        "evidence": [row.text.split()[-1] for row in MANY],
    }
    return explained(MANY, said=Table(pd.DataFrame(said, dtype=object), "many.jsonl"), **settings)


def test_the_shuffled_control_changes_rationales_and_quotes_alone():
    real, shuffled = many(), many(control="shuffled")
    ours, theirs = rationales(real), rationales(shuffled)
    assert sorted(ours) == sorted(theirs)
    assert not any(a == b for a, b in zip(ours, theirs, strict=True))
    for a, b in zip(real.rows, shuffled.rows, strict=True):
        assert (a.index, a.text, a.label) == (b.index, b.text, b.label)
        assert (a.annotation.label, a.annotation.confidence) == (b.annotation.label, None)
        ((first, end),) = b.annotation.evidence
        assert 0 <= first < end <= len(b.text)
        assert end - first == len(b.text.split()[-1])
    assert shuffled.rows == many(control="shuffled").rows


def test_the_absent_control_keeps_rows_and_shows_nothing():
    assert rationales(many(control="absent")) == [""] * 40


def test_the_audit_sees_what_is_learnt_from():
    plain, shuffled = many().audit, many(control="shuffled").audit
    assert (plain.rows, plain.agreement) == (40, 1.0)
    assert plain.reader == 1.0
    assert shuffled.rationale < 0.8
    assert any("give the label away" in line for line in many().lines())


def view_of(tokenizer, reads, **changes):
    settings = {"max_length": 12, "vocabulary": digest(tokenizer), "reads": reads, **changes}
    return View(tokenizer, **settings)


def tokens_of(encoded, n):
    return encoded.ids[encoded.starts[n] : encoded.starts[n + 1]].tolist()


def test_a_rationale_stands_behind_its_text_as_a_second_segment(tokenizer):
    rows = explained().rows
    text = encode(rows, view_of(tokenizer, "text"))
    both = encode(rows, view_of(tokenizer, "text and rationale"))
    assert both.texts.tolist() == text.lengths.tolist()
    for n, row in enumerate(rows):
        mine, said = tokens_of(both, n), row.annotation.rationale
        assert mine[: text.lengths[n]] == tokens_of(text, n)
        kinds = both.types[both.starts[n] : both.starts[n + 1]].tolist()
        assert kinds == [0] * int(text.lengths[n]) + [1] * (len(mine) - int(text.lengths[n]))
        if said is None:
            assert mine == tokens_of(text, n)
        else:
            assert mine == tokenizer(row.text, said)["input_ids"]


def test_a_rationale_never_pushes_the_text_out(tokenizer):
    long = Row(
        0, "i love this film " * 9, 1, annotation=Annotation(rationale="it is a delight " * 9)
    )
    short = Row(1, "i love", 1, annotation=Annotation(rationale="it is a delight " * 9))
    plain = encode([long, short], view_of(tokenizer, "text"))
    whole = int(plain.lengths[1]) + 12 + 1
    for room, lengths in ((12, [12, 12]), (13, [12, 13]), (14, [14, 14]), (24, [24, whole])):
        both = encode([long, short], view_of(tokenizer, "text and rationale", room=room))
        assert both.lengths.tolist() == lengths
        assert tokens_of(both, 0)[:12] == tokens_of(plain, 0)
        assert tokens_of(both, 0)[-1] == tokenizer.sep_token_id


def test_no_view_shows_a_token_of_a_label_word(tokenizer):
    said = table(rationale=["it is a happy word: positive"] * 5)
    for mask, is_shown in ((True, False), (False, True)):
        rows = explained(said=said, mask=mask).rows
        for reads in ("text and rationale", "rationale"):
            ids = tokens_of(encode(rows, view_of(tokenizer, reads, max_length=40)), 0)
            assert ("positive" in tokenizer.decode(ids)) == is_shown


def test_one_who_was_told_the_label_is_read_by_no_model(tokenizer):
    told = Row(0, "i love", 1, annotation=Annotation(rationale="it is", is_told=True))
    both = encode([told], view_of(tokenizer, "text and rationale"))
    alone = encode([told], view_of(tokenizer, "rationale"))
    assert both.lengths.tolist() == both.texts.tolist()
    assert tokens_of(alone, 0) == tokenizer("it is")["input_ids"]


def test_quoted_tokens_are_marked_in_the_place_of_the_texts_tokens(tokenizer):
    rows = explained().rows
    text = encode(rows, view_of(tokenizer, "text"))
    marks = encode(rows, view_of(tokenizer, "evidence"))
    assert marks.starts.tolist() == text.starts.tolist()
    pieces = tokenizer.convert_ids_to_tokens(tokens_of(text, 0))
    quoted = [piece for piece, flag in zip(pieces, tokens_of(marks, 0), strict=True) if flag == 1]
    assert "".join(piece.removeprefix("##") for piece in quoted) == "love"
    assert tokens_of(marks, 0)[0] == tokens_of(marks, 0)[-1] == UNLABELLED
    assert set(tokens_of(marks, 0)[1:-1]) == {0, 1}
    assert set(tokens_of(marks, 3)) == {UNLABELLED}
    padded = marks.pad(np.array([0, 2]))["input_ids"]
    assert (padded[1] == UNLABELLED).all()


def test_quotes_move_with_a_prefix(tokenizer):
    rows = [Row(0, "i love", 1, annotation=Annotation(evidence=((0, 1),)))]
    view = view_of(tokenizer, "evidence", prefix="it is: ")
    ids = tokens_of(encode(rows, view_of(tokenizer, "text", prefix="it is: ")), 0)
    marks = tokens_of(encode(rows, view), 0)
    assert [tokenizer.decode([i]) for i, flag in zip(ids, marks, strict=True) if flag == 1] == ["i"]
    assert marks[1 : len(tokenizer("it is:")["input_ids"]) - 1] == [UNLABELLED] * (
        len(tokenizer("it is:")["input_ids"]) - 2
    )


def encoded(tokenizer):
    rows = many().rows
    names = {"student": "text", "privileged": "text and rationale", "teacher": "text and rationale"}
    names |= {"evidence": "evidence"}
    views = {name: encode(rows, view_of(tokenizer, reads)) for name, reads in names.items()}
    return EncodedRows(rows, views)


def test_a_batch_carries_what_is_known_in_training_only(tokenizer):
    data = encoded(tokenizer)
    batch = data.batch(np.array([0, 3]))
    assert "evidence" not in batch.views
    assert batch.privileged["evidence"].shape == batch.views["student"]["input_ids"].shape
    assert batch.privileged["weight"].tolist() == [1.0, 1.0]
    assert batch.privileged["label"].tolist() == [0, 1]
    assert batch.privileged["confidence"].isnan().all()
    plain = EncodedRows(MANY, {"student": data.views["student"]}).batch(np.array([0]))
    assert plain.privileged == {}
    assert set(plain.views) == {"student"}


def test_a_hidden_rationale_leaves_the_text_and_is_hidden_from_the_student_alone(tokenizer):
    data = encoded(tokenizer)
    chosen, hidden = np.array([0, 3, 5]), np.array([True, False, True])
    batch = data.batch(chosen, hidden)
    sizes = batch.views["privileged"]["attention_mask"].sum(dim=1).tolist()
    texts = data.views["student"].lengths[chosen].tolist()
    assert [size == text for size, text in zip(sizes, texts, strict=True)] == [True, False, True]
    ids = batch.views["privileged"]["input_ids"][0]
    assert ids[: texts[0]].tolist() == tokens_of(data.views["student"], 0)
    assert (ids[texts[0] :] == data.views["student"].padding).all()
    assert (
        batch.views["teacher"]["attention_mask"].sum(dim=1)
        > batch.views["student"]["attention_mask"].sum(dim=1)
    ).all()


def test_dropout_is_a_function_of_seed_epoch_and_batch_on_any_number_of_ranks(tokenizer):
    data = encoded(tokenizer)

    def shown(ranks, position=(0, 0), seed=1):
        found = {}
        for rank in range(ranks):
            batches = TrainingBatches(data, 8, seed, rank, ranks, position, dropout=0.5)
            for batch in batches:
                lengths = batch.views["privileged"]["attention_mask"].sum(dim=1)
                found |= dict(zip(batch.index.tolist(), lengths.tolist(), strict=True))
        return found

    once = shown(1)
    assert shown(2) == once
    assert shown(1, seed=2) != once
    assert shown(1, position=(0, 3)).items() <= once.items()
    hidden = sum(once[n] == data.views["student"].lengths[n] for n in range(40))
    assert 8 <= hidden <= 32
