"""Explanations for the training texts: planned, asked, kept as they come, exported, reported.

Only the training split is asked about. What was answered lies in a store that all runs share, so
that the same command goes on where the last one stopped. This room knows no provider and no
model: an annotator answers, however it does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from kd.console import in_words, print_line, progress_bar
from kd.data.datamodule import TextDataModule
from kd.errors import ConfigError, DataError, PauseError, RunError
from kd.files import replacing
from kd.rationales.annotators import Annotator, Question, Reply
from kd.rationales.replies import vote
from kd.rationales.reports import Report
from kd.rationales.store import Store
from kd.runs import ANNOTATIONS, Run, annotations_folder, check_name, claim
from kd.types import Row

__all__ = ["annotate"]

_SCHEMA = pyarrow.schema(
    {
        "text": pyarrow.string(),
        "label": pyarrow.string(),
        "rationale": pyarrow.string(),
        "teacher_label": pyarrow.string(),
        "teacher_confidence": pyarrow.float64(),
        "status": pyarrow.string(),
        "rationale_source": pyarrow.string(),
        "confidence_source": pyarrow.string(),
        "evidence": pyarrow.list_(pyarrow.string()),
        "recipe": pyarrow.string(),
    }
)
_CHUNK = 2000  # rows of the export that are in memory at once


def annotate(
    annotator: Annotator,
    data: TextDataModule,
    recipe: str,
    name: str | None = None,
    root: str = "runs",
    limit: int | None = None,
    dry_run: bool = False,
    retry_refused: bool = False,
    max_cost: float | None = None,
    min_ok: float = 0.95,
) -> None:
    """Let an LLM explain the label of every training text; the same command resumes.

    Args:
        annotator: Who answers: an API or a local model, or a file of answers made elsewhere.
        data: Where the texts are; only those of the training split are asked about.
        recipe: The whole configuration, for the record.
        name: Name of the run; null is the recipe's file name.
        root: Folder of all runs; the answers are kept in ``root/.annotations``.
        limit: Ask about this many rows only, the first ones; null is all.
        dry_run: Tell how many tokens, how much money and time it would take; nothing is asked.
        retry_refused: Whether to ask again what was refused; other failures always are.
        max_cost: US dollars after which the run pauses; what is in flight then is still paid.
        min_ok: Share of rows that need an explanation, or the run counts as failed.

    Raises:
        ConfigError: If an option is out of its range, or rows have pairs or several labels.
        DataError: If no row can be asked about.
        PauseError: If ``max_cost`` is spent, or the annotator had better go on later.
        RunError: If too few rows have got an explanation.
    """
    name = check_name(name or "annotate")
    _check(annotator, limit, max_cost, min_ok)
    job = _Job(annotator, _training_rows(data, limit), data.labels)
    print_line(data.summary())
    questions = job.questions()
    if not questions:
        raise DataError("No training row has a label to explain: let the annotator find them.")
    store = Store(annotations_folder(root), annotator.facts(data.labels))
    is_new = dry_run and not store.path.exists()  # a store that is not opened leaves no file
    with nullcontext(store) if is_new else store:
        due = [question for question in questions if _is_due(store, question, retry_refused)]
        _print_plan(job, len(questions) - len(due), due, store)
        if dry_run:
            return
        run = claim(root, name, command="annotate")
        run.write_text("config.yaml", recipe)
        run.update(data=data.fingerprints(), keys={"annotations": store.key})
        print_line(f"run = {run.path}")
        tally = _Tally(annotator)
        with _recorded(run, tally):
            _ask(job, due, store, tally, max_cost)
            report = _export(job, store, run.path / ANNOTATIONS)
            facts = {**report.as_plain(), "run": tally.as_plain(), "recipe": store.key}
            run.write_text("report.json", json.dumps(facts, indent=2) + "\n")
            run.update(results={"ok": report.share}, seconds={"asking": tally.seconds})
    report.show()
    print_line(f"spent = {tally}")
    print_line(f"annotations = {run.path / ANNOTATIONS}")
    if report.share < min_ok:
        failures = ", ".join(f"{n:,} {status}" for status, n in report.failures.items())
        message = (
            f"Only {report.share:.1%} of {report.rows:,} rows are explained, less than min_ok "
            f"({min_ok:.1%}): {failures}; see {run.path / 'report.json'} for examples, then give "
            "the same command again to ask for the missing ones (those refused only with "
            "--retry_refused=true), or lower min_ok."
        )
        run.finish("failed", message)
        raise RunError(message)
    run.finish("finished")


def _check(annotator: Annotator, limit: int | None, max_cost: float | None, min_ok: float) -> None:
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}: give at least 1 row, or null for all.")
    if not 0.0 <= min_ok <= 1.0:
        raise ConfigError(f"min_ok is {min_ok}: give a share between 0 and 1.")
    if max_cost is not None and max_cost <= 0:
        raise ConfigError(f"max_cost is {max_cost}: give a sum above 0, or null for no limit.")
    if max_cost is not None and None in (annotator.input_price, annotator.output_price):
        raise ConfigError(
            "max_cost needs prices: set input_price and output_price of the annotator, in US "
            "dollars per million tokens."
        )


def _training_rows(data: TextDataModule, limit: int | None) -> list[Row]:
    """Return the rows to annotate: originals of the training split, with or without a label."""
    wrong = {"pair_column": data.fields.pair_column, "multi_label": data.multi_label}
    for key, value in wrong.items():
        if value:
            raise ConfigError(
                f"data.{key} is {value}: only single texts with one class each can be explained."
            )
    data.read("validate")  # no stage but fit makes variants
    return data.rows["train"][:limit]


def _is_due(store: Store, question: Question, retry_refused: bool) -> bool:
    status = store.status(question)
    return status != "ok" and (status != "refused" or retry_refused)


@dataclass(frozen=True)
class _Job:
    """What is to be annotated, and by whom."""

    annotator: Annotator
    rows: Sequence[Row]
    labels: Sequence[str]

    def gold(self, row: Row) -> str | None:
        """Return the class name of a row."""
        return self.labels[row.label] if isinstance(row.label, int) else None

    def questions_about(self, row: Row) -> list[Question]:
        """Return the questions about a row; none if its label is to be told, and there is none."""
        told = self.gold(row) if self.annotator.tells_labels else None
        if self.annotator.tells_labels and told is None:
            return []
        return [Question(row.text, sample, told) for sample in range(self.annotator.samples)]

    def questions(self) -> list[Question]:
        """Return each distinct question once, in the order of the rows."""
        return list(dict.fromkeys(q for row in self.rows for q in self.questions_about(row)))


@dataclass
class _Tally:
    """What this run has got and spent so far."""

    annotator: Annotator
    replies: int = 0
    ok: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    started: float = field(default_factory=time.perf_counter)
    ended: float | None = None

    def add(self, reply: Reply) -> None:
        """Count a reply."""
        self.replies += 1
        self.ok += reply.status == "ok"
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return (self.ended or time.perf_counter()) - self.started

    @property
    def dollars(self) -> float | None:
        """What it has cost."""
        return _dollars(self.annotator, self.prompt_tokens, self.completion_tokens)

    def __str__(self) -> str:
        spent = f"{self.prompt_tokens:,} tokens read and {self.completion_tokens:,} written"
        return (
            f"{self.replies:,} answers, {spent}{_money(self.dollars)} in {in_words(self.seconds)}"
        )

    def progress(self) -> str:
        """Return how it goes, in a few words."""
        words = [f"{self.replies / self.seconds:.1f} rows/s"]
        words += [f"{self.ok / self.replies:.1%} ok"] if self.replies else []
        words += [f"{self.prompt_tokens + self.completion_tokens:,} tokens{_money(self.dollars)}"]
        waiting = self.annotator.waiting
        words += [f"waiting {in_words(waiting)}"] if waiting > 0 else []
        return ", ".join(words)

    def as_plain(self) -> dict[str, Any]:
        """Return it all in plain values."""
        return {
            "answers": self.replies,
            "ok": self.ok,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "dollars": self.dollars,
            "seconds": round(self.seconds, 3),
        }


def _dollars(annotator: Annotator, read: int, written: int) -> float | None:
    if annotator.input_price is None or annotator.output_price is None:
        return None
    return (read * annotator.input_price + written * annotator.output_price) / 1e6


def _money(dollars: float | None) -> str:
    return "" if dollars is None else f", ${dollars:,.4f}" if dollars < 1 else f", ${dollars:,.2f}"


def _print_plan(job: _Job, kept: int, due: Sequence[Question], store: Store) -> None:
    """Print what there is to do and what it takes, as far as that can be known."""
    annotator = job.annotator
    texts = len({row.text for row in job.rows})
    without = sum(not job.questions_about(row) for row in job.rows)
    parts = [f"plan = {len(job.rows):,} rows, {texts:,} distinct texts"]
    parts += [f"{annotator.samples} answers each"] if annotator.samples > 1 else []
    parts += [f"{without:,} rows left out: no label to explain"] if without else []
    parts += [f"{kept:,} answers are kept, {len(due):,} to ask for"]
    print_line(", ".join(parts))
    if store.skipped:
        print_line(f"note: {store.skipped} lines of {store.path} are torn, and passed over")
    tokens = [annotator.tokens(question, job.labels) for question in due]
    read, written = (sum(pair[i] for pair in tokens) for i in (0, 1))
    if not read + written:
        return
    limit = annotator.tokens_per_minute
    takes = f", at least {in_words(60 * (read + written) / limit)}" if limit else ""
    money = _money(_dollars(annotator, read, written)) or ", prices unknown"
    print_line(
        f"estimate = {read:,} tokens to read and {written:,} to write (characters / 4 where there "
        f"is no tokenizer){money}{takes}"
    )


@contextmanager
def _recorded(run: Run, tally: _Tally) -> Iterator[None]:
    """Write into the manifest how the run ended, if it did so before its end."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        run.finish("interrupted")
        print_line(f"kept = {tally}; nothing is lost, the same command continues")
        raise
    except PauseError as error:
        run.finish("interrupted", str(error))
        print_line(f"kept = {tally}; nothing is lost, the same command continues")
        raise
    except BaseException as error:
        if isinstance(error, ConfigError) and not tally.replies:
            run.discard()  # nothing happened in it
        else:
            run.finish("failed", str(error) or type(error).__name__)
        raise


def _ask(
    job: _Job, due: Sequence[Question], store: Store, tally: _Tally, max_cost: float | None
) -> None:
    """Ask, and keep each reply as it comes."""

    def affordable() -> Iterator[Question]:
        for question in due:
            if max_cost is not None and (tally.dollars or 0.0) >= max_cost:
                return  # what is in flight is paid, and is waited for
            yield question

    def take(question: Question, reply: Reply) -> None:
        store.add(question, reply)
        tally.add(reply)
        advance(1)

    if not due:
        return
    with progress_bar("asking", len(due), detail=tally.progress) as advance:
        job.annotator.answer(affordable(), job.labels, take)
    tally.ended = time.perf_counter()
    if max_cost is not None and (tally.dollars or 0.0) >= max_cost and tally.replies < len(due):
        raise PauseError(
            f"max_cost of ${max_cost:,.2f} is spent and {len(due) - tally.replies:,} questions are "
            "left; the same command continues, for as much again."
        )


def _export(job: _Job, store: Store, path: Path) -> Report:
    """Write a row for each training row, in their order, and return what became of them."""
    report = Report(job.labels, len(job.rows))
    with replacing(path) as file, parquet.ParquetWriter(file, _SCHEMA) as writer:
        for start in range(0, len(job.rows), _CHUNK):
            told = [_exported(job, row, store, report) for row in job.rows[start : start + _CHUNK]]
            writer.write_table(pyarrow.Table.from_pylist(told, _SCHEMA))
    return report


def _exported(job: _Job, row: Row, store: Store, report: Report) -> dict[str, Any]:
    """Return a row of the export; what was not asked or not answered has no status."""
    told = {"text": row.text, "label": job.gold(row), "recipe": store.key}
    questions = job.questions_about(row)
    if not questions:
        return told
    replies = [reply for question in questions if (reply := store.reply(question))]
    reply = vote(replies) if replies else None
    report.add(row, reply)
    if reply is None:
        return told
    return told | {
        "rationale": reply.rationale,
        "teacher_label": reply.label,
        "teacher_confidence": reply.confidence,
        "status": reply.status,
        "rationale_source": "rationalised" if job.annotator.tells_labels else "free",
        "confidence_source": reply.confidence_source,
        "evidence": list(reply.evidence),
    }
