"""What became of the rows that were asked about."""

from __future__ import annotations

from kd.rationales.annotators import Reply
from kd.rationales.reports import Report
from kd.types import Row

LABELS = ("negative", "[positive]")


def report(count, **options):
    """Rows of both classes in turn, of which every fifth got no answer of use."""
    made = Report(LABELS, count, **options)
    for number in range(count):
        row = Row(number, f"text {number}", number % 2)
        good = Reply("ok", label=LABELS[number % 2], rationale=f"why {number % 7}")
        failed = Reply("truncated", reason=f"The answer to {number} was cut.")
        made.add(row, failed if number % 5 == 4 else good)
    return made


def test_every_row_is_counted():
    made = report(100)
    assert made.share == 0.8
    assert made.failures == {"truncated": 20}
    assert made.agreement == 1.0
    assert made.as_plain()["examples"] == {
        "truncated": {"text": "text 4", "reason": "The answer to 4 was cut."}
    }
    assert made.leaks.rows == 80


def test_a_wrong_label_lowers_the_agreement():
    made = report(4)
    made.add(Row(4, "text", 0), Reply("ok", label=LABELS[1], rationale="why"))
    assert made.agreement == 0.8
    assert made.as_plain()["confusion"] == {
        "negative": {"negative": 2, "[positive]": 1},
        "[positive]": {"negative": 0, "[positive]": 2},
    }


def test_rows_without_an_answer_or_a_label_are_no_agreement():
    made = Report(LABELS, 2)
    made.add(Row(0, "text", 0), None)
    made.add(Row(1, "text"), Reply("ok", label=LABELS[1], rationale="why"))
    assert made.share == 0.5
    assert made.failures == {"unanswered": 1}
    assert made.agreement is None
    assert made.leaks is None


def test_the_audit_of_many_rows_is_one_of_some_from_all_over():
    made = report(2000, audited=200)
    assert 100 < made.leaks.rows < 250, "and of both classes, though these take turns"


def test_it_is_printed_as_it_is(capsys):
    report(40).show()
    told = capsys.readouterr().out
    assert "said [positive]" in told
    assert "The answer to 4 was cut." in told
    assert "20.0%" in told
