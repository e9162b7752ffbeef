"""Rationales that were made elsewhere."""

from __future__ import annotations

import csv
import json

import pyarrow
import pytest
from pyarrow import parquet

from kd.errors import ConfigError, DataError
from kd.rationales.annotators import Question
from kd.rationales.imported import ImportedAnnotator

LABELS = ("negative", "positive")
ROWS = [
    {"text": "a great film", "rationale": "It is praised.", "teacher_label": "positive",
     "teacher_confidence": 0.75, "evidence": ["great", "superb"]},
    {"text": "so dull, \"really\"\nso", "rationale": "It bores.", "teacher_label": "Negative",
     "teacher_confidence": None, "evidence": []},
    {"text": "so-so", "rationale": "It is both.", "teacher_label": "mixed",
     "teacher_confidence": 0.5, "evidence": []},
    {"text": "silence", "rationale": None, "teacher_label": "positive",
     "teacher_confidence": 0.5, "evidence": []},
]  # fmt: skip


def write(path, rows=ROWS):
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows({**row, "evidence": "".join(row["evidence"][:1])} for row in rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def answers(annotator, *texts, label=None):
    told = []
    questions = [Question(text, label=label) for text in texts]
    annotator.answer(questions, LABELS, lambda question, reply: told.append((question, reply)))
    assert [question for question, _ in told] == questions
    return [reply for _, reply in told]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_a_file_of_any_kind_answers_alike(tmp_path, kind):
    annotator = ImportedAnnotator(write(tmp_path / f"told.{kind}"))
    good, dull, mixed, silent, absent = answers(
        annotator, *(row["text"] for row in ROWS), "a text of which nobody spoke"
    )
    assert (good.status, good.label, good.rationale) == ("ok", "positive", "It is praised.")
    assert (good.confidence, good.evidence) == (0.75, ("great",)), "superb is not in the text"
    assert (dull.status, dull.label, dull.confidence) == ("ok", "negative", None)
    assert (mixed.status, mixed.label) == ("invalid_label", None)
    assert "mixed" in mixed.reason
    assert silent.status == "unparseable"
    assert absent.status == "empty"
    assert "not in" in absent.reason
    assert not annotator.tells_labels


def test_columns_may_have_other_names_and_some_may_be_missing(tmp_path):
    path = write(tmp_path / "chain.jsonl", [{"input": "a b", "why": "so", "class": "positive"}])
    annotator = ImportedAnnotator(path, "input", "why", "class")
    (reply,) = answers(annotator, "a b")
    assert (reply.status, reply.confidence, reply.evidence) == ("ok", None, ())


def test_without_a_column_of_labels_the_answer_is_of_the_label_that_was_told(tmp_path):
    path = write(tmp_path / "told.jsonl", [{"text": "a b", "rationale": "so"}])
    annotator = ImportedAnnotator(path, label_column=None)
    assert annotator.tells_labels
    assert answers(annotator, "a b", label="negative")[0].label == "negative"


def test_the_last_row_of_a_text_counts(tmp_path):
    rows = [{**ROWS[0], "rationale": why} for why in ("first", "last")]
    annotator = ImportedAnnotator(write(tmp_path / "told.jsonl", rows))
    assert answers(annotator, "a great film")[0].rationale == "last"


def test_the_facts_are_those_of_the_content_and_not_of_the_place(tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    facts = [ImportedAnnotator(write(path)).facts(LABELS) for path in (one, two)]
    assert facts[0] == facts[1]
    assert ImportedAnnotator(str(one), name="people").facts(LABELS) != facts[0]
    assert ImportedAnnotator(str(one)).facts(LABELS[::-1]) != facts[0]
    two.write_text(two.read_text() + "\n")
    assert ImportedAnnotator(str(two)).facts(LABELS) != facts[0]


@pytest.mark.parametrize(
    ("name", "content", "error", "expected"),
    [
        ("told.xlsx", "x", ConfigError, "ends with one of .jsonl, .parquet, .csv"),
        ("told.jsonl", "{", DataError, "told.jsonl cannot be read"),
        ("told.jsonl", "[1]", DataError, "no JSON object"),
        ("told.csv", 'text,rationale\n"a,b', DataError, "cannot be read"),
        ("told.parquet", "no parquet", DataError, "cannot be read"),
        ("told.csv", "review,rationale\na,b\n", DataError, "annotator.text_column"),
        ("told.csv", "text,rationale\na,b\n", DataError, "annotator.label_column"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, name, content, error, expected):
    (tmp_path / name).write_text(content)
    with pytest.raises(error, match=expected):
        answers(ImportedAnnotator(str(tmp_path / name)), "a")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere.jsonl"):
        ImportedAnnotator(str(tmp_path / "nowhere.jsonl")).facts(LABELS)
