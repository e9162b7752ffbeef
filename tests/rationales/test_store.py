import json
import resource
import subprocess
import sys
import tempfile
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.errors import RunError
from kd.rationales.annotators import Question, Reply
from kd.rationales.store import Store

FACTS = {"model": "m", "labels": ["bad", "good"]}
OK = Reply("ok", "good", "it shines", 0.9, "verbalised", ("a", "b"), "", '{"label": 1}', 12, 34)
FAILED = Reply("unparseable", reason="It is not JSON.", raw="hm")


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path, FACTS) as store:
        yield store


def reopened(store):
    store.__exit__(None, None, None)
    return store.__enter__()


def lines(store):
    return store.path.read_bytes().split(b"\n")


def test_reply_survives_to_the_last_field(store):
    store.add(Question("a"), OK)
    store.add(Question("b"), FAILED)
    for opened in (store, reopened(store)):
        assert opened.status(Question("a")) == "ok"
        assert opened.reply(Question("a")) == OK
        assert opened.status(Question("b")) == "unparseable"
        assert opened.reply(Question("b")) == FAILED
        assert opened.skipped == 0


def test_what_was_never_asked_has_no_reply(store):
    assert store.status(Question("a")) is None
    assert store.reply(Question("a")) is None


def test_sample_and_told_label_are_other_questions(store):
    questions = [Question("a"), Question("a", 1), Question("a", 0, "good"), Question("a", 0, "bad")]
    for number, question in enumerate(questions):
        store.add(question, replace(OK, prompt_tokens=number))
    replies = [reopened(store).reply(question) for question in questions]
    assert [reply.prompt_tokens for reply in replies] == [0, 1, 2, 3]


def test_composed_and_decomposed_text_are_one_question(store):
    store.add(Question("caf\u00e9"), OK)
    assert store.reply(Question("cafe\u0301")) == OK
    assert reopened(store).reply(Question("cafe\u0301")) == OK


def test_last_reply_counts(store):
    store.add(Question("a"), FAILED)
    store.add(Question("b"), FAILED)
    store.add(Question("a"), OK)
    for opened in (store, reopened(store)):
        assert opened.reply(Question("a")) == OK
        assert opened.status(Question("b")) == "unparseable"
    assert len(lines(store)) == 4


def test_order_of_lines_does_not_matter(tmp_path):
    replies = {Question(str(n)): replace(OK, prompt_tokens=n) for n in range(9)}
    for folder, questions in ("to", list(replies)), ("fro", list(replies)[::-1]):
        with Store(tmp_path / folder, FACTS) as store:
            for question in questions:
                store.add(question, replies[question])
        with store:
            assert {question: store.reply(question) for question in replies} == replies


def test_facts_name_the_file_and_can_be_read_beside_it(tmp_path):
    store = Store(tmp_path, FACTS)
    assert Store(tmp_path, dict(reversed(FACTS.items()))).key == store.key
    assert Store(tmp_path, {**FACTS, "model": "n"}).key != store.key
    with store:
        assert store.path == tmp_path / f"{store.key}.jsonl"
    assert json.loads((tmp_path / f"{store.key}.recipe.json").read_text()) == FACTS


@pytest.mark.parametrize("value", [object(), {1, 2}, float("nan"), Path("a")])
def test_facts_that_are_not_json_are_a_fault_of_the_program(tmp_path, value):
    with pytest.raises((TypeError, ValueError)):
        Store(tmp_path, {"value": value})


STRANGE = ["\u2028\u2029\x85\x0b", "🙂", "a\nb\r\nc", "\0", "x" * 50_000, '{"}', "\ud83d", ""]


@pytest.mark.parametrize("text", STRANGE, ids=range(len(STRANGE)))
def test_strange_texts_are_one_line_each(store, text):
    reply = replace(OK, rationale=text, raw=text, evidence=(text,))
    store.add(Question(text), reply)
    store.add(Question("after"), OK)
    assert len(lines(store)) == 3
    opened = reopened(store)
    assert opened.reply(Question(text)) == reply
    assert opened.reply(Question("after")) == OK
    assert opened.skipped == 0


def test_lines_can_be_read_by_people(store):
    store.add(Question("déjà vu 🙂"), OK)
    assert '{"text": "déjà vu 🙂", "sample": 0, "told": null' in store.path.read_text()


REPLIES = st.builds(
    Reply,
    st.sampled_from(["ok", "refused", "http_error"]),
    rationale=st.none() | st.text(st.characters()),
    confidence=st.none() | st.floats(0, 1),
    evidence=st.lists(st.text(st.characters())).map(tuple),
    raw=st.text(st.characters()),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(st.characters()), st.integers(0, 2), REPLIES), max_size=6))
def test_any_replies_come_back(rows):
    with tempfile.TemporaryDirectory() as folder:
        with Store(Path(folder), FACTS) as store:
            for text, sample, reply in rows:
                store.add(Question(text, sample), reply)
            now = [store.reply(Question(text, sample)) for text, sample, _ in rows]
        with store:
            assert [store.reply(Question(text, sample)) for text, sample, _ in rows] == now
            assert store.skipped == 0
        if rows:
            assert now[-1] == rows[-1][2]


@pytest.mark.fault(39)
@pytest.mark.parametrize("cut", [1, 2, 40, 200])
def test_torn_tail_is_passed_over_and_healed(store, cut):
    store.add(Question("a"), OK)
    store.add(Question("b"), OK)
    store.path.write_bytes(store.path.read_bytes()[:-cut])
    opened = reopened(store)
    torn = cut > 1  # a line that only lacks its end is whole
    assert opened.skipped == torn
    assert opened.reply(Question("b")) == (None if torn else OK)
    opened.add(Question("c"), FAILED)
    assert opened.reply(Question("c")) == FAILED
    opened = reopened(store)
    assert opened.skipped == torn
    assert opened.reply(Question("a")) == OK
    assert opened.reply(Question("c")) == FAILED


WRONG = {
    "status": ["fine", None, 1, ["ok"]],
    "text": [None, 3],
    "sample": ["0", 0.5, True],
    "told": [1],
    "label": [0],
    "confidence": ["high"],
    "evidence": ["quote", None, [1]],
    "raw": [None],
    "prompt_tokens": [1.5, "1"],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field in WRONG for value in WRONG[field]]
)
def test_line_with_a_wrong_field_is_skipped(store, field, value):
    store.add(Question("a"), FAILED)
    row = json.loads(lines(store)[0])
    with store.path.open("a") as file:
        file.write(json.dumps({**row, "status": "ok"}) + "\n")
        file.write(json.dumps({**row, "status": "ok", "raw": "last", field: value}) + "\n")
        del row[field]
        file.write(json.dumps(row) + "\n")
    opened = reopened(store)
    assert opened.skipped == 2
    assert opened.reply(Question("a")) == replace(FAILED, status="ok")


@pytest.mark.parametrize("line", [b"{", b"[]", b"null", b"1", b"\0" * 9, b"\xff\xfe{", b"[" * 9999])
def test_line_that_is_no_reply_is_skipped(store, line):
    store.add(Question("a"), OK)
    store.path.write_bytes(line + b"\n\n" + store.path.read_bytes() + line)
    opened = reopened(store)
    assert opened.skipped == 2  # an empty line is nothing
    assert opened.reply(Question("a")) == OK


@pytest.mark.fault(20)
def test_second_writer_is_refused(tmp_path):
    with Store(tmp_path, FACTS) as store:
        store.add(Question("a"), OK)
        with pytest.raises(RunError, match=r"\.jsonl is being written .* wait for its end"):
            Store(tmp_path, FACTS).__enter__()
        with Store(tmp_path, {"model": "other"}):
            pass
        store.add(Question("b"), OK)
    with Store(tmp_path, FACTS) as store:
        assert store.reply(Question("b")) == OK


WRITER = """
import sys
from pathlib import Path
from kd.rationales.annotators import Question, Reply
from kd.rationales.store import Store

with Store(Path(sys.argv[1]), {"model": "m"}) as store:
    for number in range(int(sys.argv[2]), 10**9):
        store.add(Question(str(number)), Reply("ok", "good", raw="x" * 300_000))
        print(number, flush=True)
"""


def test_kill_loses_at_most_the_line_being_written(tmp_path):
    told = -1
    for _ in range(4):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(told + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            first = told + 1
            while told < first + 20:
                told = int(writer.stdout.readline())
            with pytest.raises(RunError, match="another process"):
                Store(tmp_path, {"model": "m"}).__enter__()
            writer.kill()
            told = max([told, *map(int, writer.stdout.read().split(b"\n")[:-1])])
    with Store(tmp_path, {"model": "m"}) as store:
        assert store.skipped <= 4
        assert all(store.status(Question(str(number))) == "ok" for number in range(told + 1))
        assert len(store.reply(Question(str(told))).raw) == 300_000


def test_full_disk_is_one_sentence_and_loses_no_earlier_reply(store):
    store.add(Question("a"), OK)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    full = pytest.raises(RunError, match=r"cannot be written to .*\.jsonl: .*; the earlier ones")
    resource.setrlimit(resource.RLIMIT_FSIZE, (store.path.stat().st_size + 100, hard))
    try:
        for _ in range(3):  # first a part of the line fits, then nothing
            with full:
                store.add(Question("b"), OK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(lines(store)[1]) == 100
    assert store.status(Question("b")) is None
    assert store.reply(Question("a")) == OK
    store.add(Question("c"), FAILED)
    for opened in (store, reopened(store)):
        assert opened.reply(Question("a")) == OK
        assert opened.reply(Question("c")) == FAILED
    assert store.skipped == 1


def test_folder_that_cannot_be_made_is_told_of(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot be opened: .*; choose a folder"):
        Store(tmp_path / "file" / "store", FACTS).__enter__()


def test_memory_holds_no_replies(store):
    for number in range(3000):
        store.add(Question(str(number)), replace(OK, raw="x" * 5000))
    tracemalloc.start()
    opened = reopened(store)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert opened.status(Question("2999")) == "ok"
    assert held / 3000 < 400
    assert peak < 2_000_000  # the file has 15 MB
