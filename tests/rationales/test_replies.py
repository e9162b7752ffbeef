import json
import time
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.rationales.annotators import Question, Reply
from kd.rationales.replies import objects, read_reply, vote, without_thoughts

LABELS = ("negative", "positive")
TEXT = 'I "loved" it: {warm}, \\funny\\ \N{SMILING FACE WITH SUNGLASSES}\u2028and short'
QUESTION = Question(TEXT)


def said(**fields):
    whole = {"rationale": "It is warm.", "evidence": ["{warm}"], "label": "positive"}
    fields = {**whole, "confidence": 0.9, **fields}
    return json.dumps({key: value for key, value in fields.items() if value is not ...})


def read(content, labels=LABELS, **more):
    return read_reply(content, QUESTION, labels, **more)


def test_a_whole_answer_is_read():
    assert read(said()) == Reply(
        "ok", "positive", "It is warm.", 0.9, "verbalised", ("{warm}",), raw=said()
    )


@pytest.mark.parametrize(
    "content",
    [
        f"```json\n{said()}\n```",
        f"Here it is: {said()} I hope that {{helps}}.",
        f"<think>Perhaps {said(label='negative')}?</think>{said()}",
        f"<THINK>Hm.</THINK>\n\n{said()}<think>Was it right?",
        f"It opened in the prompt. {said(label='negative')}</think>{said()}",
        f"{{not JSON}} {{}} {{'label': 1}} {said()}",
        f'{{"label": null}} {{"rationale": "No label."}} {said()}',
        f'{{"answer": {said()}}}',
        f"{said()}{said(label='negative')}",
        f"{said()} and then the limit",
    ],
)
def test_the_object_is_found_among_other_words(content):
    reply = read(content, finish_reason="length")
    assert (reply.status, reply.label, reply.rationale) == ("ok", "positive", "It is warm.")
    assert reply.raw == content


def test_raw_control_characters_are_let_pass():
    reply = read('{"rationale": "One\nline\tand\x01more", "label": "positive"}')
    assert reply.rationale == "One\nline\tand\x01more"


def test_a_quoted_tag_is_no_thought():
    question = Question("He wrote <think> and </think>.")
    content = said(rationale="It has <think>.", evidence=["<think> and </think>"])
    reply = read_reply(content, question, LABELS)
    assert (reply.rationale, reply.evidence) == ("It has <think>.", ("<think> and </think>",))


@pytest.mark.parametrize(
    ("spelling", "label"),
    [
        ("positive", "positive"),
        (" Positive\n", "positive"),
        ('"POSITIVE".', "positive"),
        ("**negative**", "negative"),
        ("“negative”", "negative"),
    ],
)
def test_a_label_is_known_in_any_dress(spelling, label):
    assert read(said(label=spelling)).label == label


@pytest.mark.parametrize(
    "label",
    ["neutral", "mostly positive", "positive/negative", "pos", "", "!", 0, 1.0, False, ["positive"],
     {"positive": 1}, "negative, positive", "positif"],
    ids=repr,
)  # fmt: skip
def test_an_unknown_label_is_a_failure_and_never_a_class(label):
    reply = read(said(label=label))
    assert (reply.status, reply.label, reply.rationale) == ("invalid_label", None, None)
    assert "none of the classes" in reply.reason


def test_an_unknown_label_is_told_in_brief():
    assert "'neutral'" in read(said(label="neutral")).reason
    assert len(read(said(label="long " * 10_000)).reason) < 100


@pytest.mark.parametrize(
    ("labels", "spelling", "label"),
    [
        (("0", "1"), 1, "1"),
        (("false", "true"), True, "true"),
        (("C", "C++"), "C++", "C++"),
        (("C", "C++"), "c++", "C++"),
        (("C", "C++"), "'C++'", None),
        (("us", "US"), "US", "US"),
        (("us", "US"), "Us", None),
        ((":)", "bad"), "!!", None),
        ((":)", "bad"), ":)", ":)"),
        (("Straße", "Weg"), "STRASSE", "Straße"),
    ],
)
def test_one_label_alone_must_be_meant(labels, spelling, label):
    assert read(said(label=spelling), labels).label == label


@pytest.mark.parametrize(
    ("confidence", "number"),
    [
        (0, 0.0), (1, 1.0), (0.25, 0.25), ("0.9", 0.9), (" 1 ", 1.0), (1.01, None), (-0.1, None),
        (90, None), ("90%", None), ("high", None), (True, None), (None, None), ([0.5], None),
        (float("nan"), None), (float("inf"), None), (10**400, None), ("1e999", None), (..., None),
    ],
    ids=str,
)  # fmt: skip
def test_a_confidence_is_a_share_or_nothing(confidence, number):
    reply = read(said(confidence=confidence))
    assert (reply.status, reply.confidence) == ("ok", number)
    assert reply.confidence_source == (None if number is None else "verbalised")


@pytest.mark.parametrize(
    ("evidence", "quotes"),
    [
        (["{warm}", " and short ", "{warm}"], ("{warm}", "and short")),
        (["I loved it", "Warm", "funny"], ("funny",)),
        ([TEXT], (TEXT,)),
        ("short", ("short",)),
        (["", " ", None, 3, ["short"]], ()),
        ({"short": 1}, ()),
        (None, ()),
        (..., ()),
    ],
    ids=repr,
)
def test_only_verbatim_quotes_are_evidence(evidence, quotes):
    assert read(said(evidence=evidence)).evidence == quotes


@pytest.mark.parametrize("rationale", [..., None, "", " \n", 5, ["It is."], {"a": 1}], ids=repr)
def test_no_answer_does_without_a_rationale(rationale):
    reply = read(said(rationale=rationale))
    assert (reply.status, reply.label, reply.rationale) == ("unparseable", None, None)


@pytest.mark.parametrize(
    ("content", "finish_reason", "status"),
    [
        (None, "stop", "empty"),
        (None, None, "empty"),
        ("", "length", "truncated"),
        (" \n\u2028", "stop", "empty"),
        ("<think>I wonder", "stop", "truncated"),
        ("<think>I wonder", "length", "truncated"),
        (f"<think>Perhaps {said()}", "stop", "truncated"),
        ("<think>Done.</think>\n", "stop", "empty"),
        ("<think>Done.</think>\n", "length", "truncated"),
        (said()[:-9], "length", "truncated"),
        (said()[:-9], "stop", "unparseable"),
        (said(label=...), "stop", "unparseable"),
        (said(label=None), "stop", "unparseable"),
        ("I'm sorry, but I cannot help with that.", "stop", "unparseable"),
        ("<html><body>502 Bad Gateway {nginx}</body></html>", None, "unparseable"),
        ('["positive"]', "stop", "unparseable"),
        ("positive", "stop", "unparseable"),
        (said(), "content_filter", "refused"),
        (None, "content_filter", "refused"),
    ],
)
def test_a_failure_has_its_status_a_reason_and_nothing_to_learn(content, finish_reason, status):
    reply = read(content, finish_reason=finish_reason)
    assert reply.status == status
    assert reply.reason.endswith(".")
    assert reply.raw == (content or "")
    assert reply == Reply(status, reason=reply.reason, raw=reply.raw)


def test_a_refusal_counts_whatever_else_is_there():
    reply = read(said(), refusal="I won't say.")
    assert (reply.status, reply.label) == ("refused", None)
    assert "I won't say." in reply.reason
    assert read(said(), refusal="").status == "ok"


def test_what_utf8_cannot_write_is_repaired():
    content = '{"rationale": "a\\ud800b\\u0000c \\ud83d\\ude0e", "label": "positive"} \ud800\x00'
    reply = read(content)
    assert reply.rationale == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c \U0001f60e"
    assert reply.raw.endswith("} \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}")


ANY_TEXT = st.text(st.characters())  # surrogates too
PIECES = st.sampled_from(
    ["{", "}", '"', ":", ",", "[", "]", "\\", "\\ud800", "\x00", "\ud800", "label", '"label":',
     '"positive"', '"rationale":', '"confidence":', '"evidence":', "1e999", "NaN", "null",
     "<think>", "</think>", "```", "```json", " ", "\n", said(), said(label="odd")]
)  # fmt: skip
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=6,
)
FIELD = ANY_JSON | st.sampled_from(["positive", "negative", "short", 0.5, "0.5", ["short"]])
ANSWERS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("rationale", "label", "confidence", "evidence", "other"), FIELD)
)


@settings(max_examples=400, deadline=None)
@given(
    st.none() | ANY_TEXT | st.lists(PIECES, max_size=25).map("".join) | ANSWERS.map(json.dumps),
    st.none() | st.sampled_from(["stop", "length", "content_filter", ""]) | ANY_TEXT,
    st.none() | ANY_TEXT,
    ANY_TEXT | st.just(TEXT),
)
def test_whatever_is_sent_becomes_a_reply(content, finish_reason, refusal, text):
    reply = read_reply(content, Question(text), LABELS, finish_reason, refusal)
    json.dumps(asdict(reply), ensure_ascii=False, allow_nan=False).encode()
    if reply.status == "ok":
        assert reply.label in LABELS
        assert reply.rationale.strip()
        assert reply.confidence is None or 0 <= reply.confidence <= 1
        assert all(quote in text for quote in reply.evidence)
        assert reply.reason == ""
    else:
        assert reply == Reply(reply.status, reason=reply.reason, raw=reply.raw)
        assert reply.reason.endswith(".")


def test_what_is_no_text_is_read_as_one():
    parts = [{"type": "text", "text": said()}]
    assert read(parts).status in {"ok", "unparseable"}
    assert read({"label": "positive"}).status == "unparseable"


@pytest.mark.parametrize(
    "content",
    [
        '{"a":' * 20_000,
        '{"label":' * 20_000,
        '{"label":' + "[" * 900 + "]" * 900 + "}",
        '{"label":' + "9" * 5000 + "}",
        '{"label":' + "9" * 4000 + "}",
        '{"a": "' + "{" * 100_000,
        '{"a":"b",' * 10_000,
        ("{" + " " * 50) * 2000,
        "<think>" * 20_000,
        "</think>" * 20_000,
        '{"label": "' + "!" * 100_000 + 'x"}',
    ],
    ids=lambda content: content[:12],
)
def test_garbage_costs_little(content):
    start = time.process_time()
    assert read(content).status != "ok"
    assert time.process_time() - start < 2


def test_objects_come_outer_first():
    assert list(objects('x {"a": {"b": 1}} {bad} {}')) == [{"a": {"b": 1}}, {"b": 1}, {}]


def test_thoughts_are_what_stands_in_tags():
    assert without_thoughts("Good. <think>No.</think>It shines.").split() == [
        *"Good. It shines.".split()
    ]
    assert without_thoughts("plain") == "plain"


def ok(label, confidence=0.6, tokens=(10, 5), **fields):
    read, written = tokens
    return Reply("ok", label, f"Why {label}.", confidence, "verbalised", prompt_tokens=read,
                 completion_tokens=written, **fields)  # fmt: skip


def test_one_answer_is_no_vote():
    assert vote([ok("positive")]) == ok("positive")
    failure = Reply("refused", reason="No.", prompt_tokens=3)
    assert vote([failure]) == failure


def test_the_commonest_label_wins_with_its_first_reasons():
    first = ok("positive", evidence=("a",), raw="first")
    reply = vote([ok("negative"), first, Reply("empty", prompt_tokens=10), ok("positive", 0.1)])
    assert reply.label == "positive"
    assert (reply.rationale, reply.evidence, reply.raw) == (first.rationale, ("a",), "first")
    assert (reply.confidence, reply.confidence_source) == (2 / 3, "vote")
    assert (reply.prompt_tokens, reply.completion_tokens) == (40, 15)


def test_a_tie_goes_to_the_earlier_answer():
    assert vote([ok("b"), ok("a"), ok("a"), ok("b")]).label == "b"
    assert vote([Reply("empty"), ok("a"), ok("b")]).label == "a"


def test_failures_alone_stay_the_first_failure():
    replies = [
        Reply("truncated", reason="Too long.", prompt_tokens=4, completion_tokens=9),
        Reply("refused", reason="No.", prompt_tokens=4, completion_tokens=1),
    ]
    reply = vote(replies)
    assert (reply.status, reply.reason, reply.confidence_source) == ("truncated", "Too long.", None)
    assert (reply.prompt_tokens, reply.completion_tokens) == (8, 10)
