from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence

import pytest

from kd.errors import ConfigError, KDError, PauseError
from kd.rationales.annotators import Question, Reply
from kd.rationales.api import APIAnnotator
from kd.rationales.prompts import Prompt
from kd.rationales.store import Store
from tests.conftest import LABELS, TEXTS
from tests.rationales.server import HTML, THOUGHTS, AnnotationServer

KEY = "sk-Secret/0123456789"
GOLD = dict(zip(TEXTS, ["positive"] * 4 + ["negative"] * 4, strict=True))


def annotator(server: AnnotationServer, **options) -> APIAnnotator:
    settings = {"model": "tiny", "provider": "custom", "base_url": server.url, "retries": 1}
    return APIAnnotator(**{**settings, **options})


def ask(
    server: AnnotationServer, texts: Sequence[str] = TEXTS, **options
) -> dict[tuple[str, int], Reply]:
    """Return the reply to each text and sample."""
    replies: dict[tuple[str, int], Reply] = {}
    one = annotator(server, **options)
    questions = (Question(text, sample) for text in texts for sample in range(one.samples))
    one.answer(questions, LABELS, lambda q, reply: replies.update({(q.text, q.sample): reply}))
    return replies


def ask_one(server: AnnotationServer, text: str = TEXTS[0], **options) -> Reply:
    return ask(server, [text], **options)[text, 0]


def statuses(replies: dict[tuple[str, int], Reply]) -> list[str]:
    return [reply.status for reply in replies.values()]


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    return "TEST_KEY"


def test_every_text_is_explained_by_its_own_words():
    with AnnotationServer() as server:
        replies = ask(server)
    assert {text: reply.label for (text, _), reply in replies.items()} == GOLD
    reply = replies[TEXTS[0], 0]
    assert reply.status == "ok"
    assert reply.rationale == "The writer speaks of love and delight."
    assert reply.evidence == ("love", "delight")
    assert (reply.confidence, reply.confidence_source) == (0.9, "verbalised")
    assert reply.prompt_tokens > 100
    assert reply.completion_tokens == 40
    assert sorted(server.texts) == sorted(TEXTS)


@pytest.mark.parametrize(
    "text", ["{brace} $text", 'a "quote"\nand line', "😀 \u2028 é", "x" * 50_000, "</text> no"]
)
def test_a_text_arrives_as_it_is(text):
    with AnnotationServer() as server:
        assert ask_one(server, text).status == "ok"
    assert server.texts == [text]


def test_a_request_holds_the_options_in_the_words_of_the_provider(key):
    with AnnotationServer() as server:
        for provider, model in [("groq", "qwen/qwen3-32b"), ("groq", "openai/gpt-oss-20b")]:
            ask_one(server, provider=provider, model=model, api_key_env=key, max_tokens=99)
        ask_one(server, temperature=None, seed=None, extra_body={"reasoning_effort": "low"})
    loose, strict, bare = server.bodies
    assert loose["response_format"] == {"type": "json_object"}
    assert strict["response_format"]["json_schema"]["strict"] is True
    assert loose["max_completion_tokens"] == 99
    assert (loose["temperature"], loose["seed"]) == (0.0, 0)
    assert bare.keys() == {"model", "max_tokens", "messages", "reasoning_effort"}


@pytest.mark.fault(39)
@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("think", "ok"),
        ("fenced", "ok"),
        ("no_usage", "ok"),
        ("half_emoji", "ok"),
        ("unclosed_think", "truncated"),
        ("unknown_label", "invalid_label"),
        ("refusal", "refused"),
        ("prose", "unparseable"),
        ("400_too_long", "too_long"),
        ("413", "too_long"),
        ("400_filtered", "refused"),
    ],
)
def test_an_answer_is_what_it_is_and_the_others_are_not_harmed(fault, status):
    with AnnotationServer(faults={TEXTS[5]: fault}) as server:
        replies = ask(server)
    assert replies.pop((TEXTS[5], 0)).status == status
    assert statuses(replies) == ["ok"] * 7
    assert server.requests == 8 + (status == "truncated")


@pytest.mark.fault(39)
@pytest.mark.parametrize(
    "fault",
    "500 503 503_wait html html_as_json no_choices null_choices no_content cut_body reset silent "
    "400_json".split(),
)
def test_what_may_pass_is_tried_again(fault):
    with AnnotationServer(faults={TEXTS[0]: [fault], TEXTS[3]: [fault]}) as server:
        replies = ask(server, timeout_seconds=1 if fault == "silent" else 30)
    assert statuses(replies) == ["ok"] * 8
    assert server.requests == 10


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [
        ("500", "http_error", "The server answered 500: Something went wrong."),
        ("html", "http_error", f"The server sent no JSON object: {HTML}."),
        ("no_choices", "empty", "The server sent no choices: "),
        ("cut_body", "http_error", "No answer came: RemoteProtocolError: "),
        ("silent", "http_error", "No answer came: ReadTimeout"),
        ("400_json", "http_error", "The server answered 400: Failed to generate JSON."),
    ],
)
def test_what_does_not_pass_is_a_failure_with_its_reason(fault, status, reason):
    with AnnotationServer(faults={TEXTS[5]: fault}) as server:
        replies = ask(server, timeout_seconds=1 if fault == "silent" else 30)
    failed = replies.pop((TEXTS[5], 0))
    assert failed.status == status
    assert failed.reason.startswith(reason)
    assert failed.label is failed.rationale is None
    assert statuses(replies) == ["ok"] * 7
    assert server.texts.count(TEXTS[5]) == 2


def test_an_answer_without_end_gets_twice_the_tokens_once():
    with AnnotationServer(faults={TEXTS[0]: ["length"], TEXTS[1]: "length"}) as server:
        replies = ask(server, TEXTS[:2], max_tokens=50)
    assert statuses(replies) == ["ok", "truncated"]
    assert [body["max_tokens"] for body in server.bodies] == [50, 100, 50, 100]
    assert [reply.completion_tokens for reply in replies.values()] == [80, 80]


def test_a_server_that_has_no_more_tokens_to_give_does_not_stop_the_work():
    with AnnotationServer(faults={TEXTS[0]: ["length", "400_option"]}) as server:
        replies = ask(server)
    assert statuses(replies) == ["truncated"] + ["ok"] * 7
    assert replies[TEXTS[0], 0].completion_tokens == 40


def test_thoughts_are_kept_in_the_raw_answer_only():
    with AnnotationServer(faults={TEXTS[0]: "reasoning", TEXTS[1]: "think"}) as server:
        for reply in ask(server, TEXTS[:2]).values():
            assert reply.status == "ok"
            assert reply.raw.startswith(f"<think>{THOUGHTS}</think>\n{{")
            assert THOUGHTS not in str(reply.rationale)


def test_half_an_emoji_can_be_kept(tmp_path):
    with AnnotationServer(faults={"*": "half_emoji"}) as server:
        one = annotator(server)
        with Store(tmp_path, one.facts(LABELS)) as store:
            one.answer([Question(TEXTS[0])], LABELS, store.add)
            reply = store.reply(Question(TEXTS[0]))
    assert reply is not None
    assert reply.raw.startswith("<think>Half an emoji: ?.</think>")


def test_tokens_of_all_tries_are_counted():
    with AnnotationServer(faults={TEXTS[0]: ["no_content", "no_usage"]}) as server:
        assert ask_one(server).completion_tokens == 40


@pytest.mark.fault(39)
def test_a_storm_of_rejections_loses_no_row():
    texts = [f"text {i}" for i in range(60)]
    with AnnotationServer(quota=(20, 0.4), latency=(0.0, 0.02)) as server:
        replies = ask(server, texts, concurrency=32, retries=0)
    assert len(replies) == 60
    assert set(statuses(replies)) == {"ok"}
    assert server.answered == 60
    assert 0 < server.rejected < 60


def test_rejections_are_no_tries_and_need_no_header():
    with AnnotationServer(faults={TEXTS[3]: ["429_bare", "429", "429"]}) as server:
        assert statuses(ask(server, retries=0)) == ["ok"] * 8
    assert server.requests == 11
    assert server.texts.count(TEXTS[3]) == 4


def test_a_wait_beyond_the_longest_pauses_with_all_answers_kept():
    texts = [f"text {i}" for i in range(40)]
    taken = []
    with AnnotationServer(faults={texts[20]: "429_wait_300"}, latency=(0.01, 0.2)) as server:
        one = annotator(server, concurrency=4, max_wait_seconds=100)
        started = time.monotonic()
        with pytest.raises(PauseError, match="same command"):
            one.answer(map(Question, texts), LABELS, lambda *pair: taken.append(pair))
        assert time.monotonic() - started < 5
    assert 17 <= len(taken) <= 23
    assert {reply.status for _, reply in taken} == {"ok"}
    assert server.requests == len(taken) + 1  # all that was answered, and the rejected one


def test_waiting_is_told_while_the_gate_is_closed():
    with AnnotationServer(quota=(1, 0.5)) as server:
        one = annotator(server, concurrency=2)
        assert one.waiting == 0
        waits = []
        one.answer(map(Question, TEXTS[:3]), LABELS, lambda *_: waits.append(one.waiting))
    assert max(waits) > 0.2


def test_an_account_without_credit_pauses_at_once():
    with (
        AnnotationServer(faults={TEXTS[3]: "429_no_credit"}) as server,
        pytest.raises(PauseError, match="no credit left"),
    ):
        ask(server)
    assert server.requests <= 8


@pytest.mark.parametrize(
    ("fault", "advice"),
    [
        ("401_echo", "answered 401: .*; check the key in the environment variable TEST_KEY"),
        ("403", "answered 403: .*; check the key"),
        ("404", "`tiny` does not exist.*; check APIAnnotator.model=tiny"),
        ("400_option", "Unsupported value: 'temperature'; change the option that it names"),
        ("422", "answered 422: .*reasoning_format.*; change the option that it names"),
    ],
)
def test_what_no_text_gets_past_stops_all_with_one_sentence(key, fault, advice):
    with AnnotationServer(faults={"*": fault}) as server:
        with pytest.raises(ConfigError, match=advice):
            ask(server, api_key_env=key)
        assert server.requests == 1
    with AnnotationServer(faults={TEXTS[6]: fault}) as server:
        with pytest.raises(ConfigError, match=advice):
            ask(server, api_key_env=key, concurrency=2)
        assert server.requests <= 8


def test_a_server_that_is_not_there_is_named():
    with AnnotationServer() as server:
        pass
    with pytest.raises(ConfigError, match=f"Nothing answers at APIAnnotator.base_url={server.url}"):
        ask(server)


def test_a_server_that_goes_away_pauses_the_work():
    with AnnotationServer() as server:
        one, taken = annotator(server), []

        def take(question: Question, reply: Reply) -> None:
            taken.append(reply)
            if len(taken) == 1:
                server.stop()

        with pytest.raises(PauseError, match="out of reach .*; the same command continues"):
            one.answer(map(Question, TEXTS), LABELS, take)
    assert statuses(dict(enumerate(taken))) == ["ok"]


@pytest.mark.parametrize("error", [RuntimeError("enough"), KeyboardInterrupt()])
def test_what_take_raises_stops_all_requests_at_once(error):
    taken = []

    def take(question: Question, reply: Reply) -> None:
        taken.append(question)
        if len(taken) == 10:
            raise error

    with AnnotationServer(latency=(0.01, 0.02)) as server:
        one = annotator(server, concurrency=4)
        with pytest.raises(type(error)) as caught:
            one.answer((Question(f"text {i}") for i in range(1000)), LABELS, take)
    assert caught.value is error
    assert len(taken) == 10
    assert server.requests <= 16


def test_questions_are_taken_as_they_can_be_sent():
    ahead, taken = [], []

    def questions():
        for i in range(80):
            ahead.append(i - len(taken))
            yield Question(f"text {i}")

    with AnnotationServer(latency=(0.02, 0.03)) as server:
        one = annotator(server, concurrency=8)
        one.answer(questions(), LABELS, lambda *pair: taken.append(pair))
    assert len(taken) == 80
    assert max(ahead) < 9
    assert 2 <= server.most_in_flight <= 8


def test_no_question_is_no_request():
    with AnnotationServer() as server:
        assert ask(server, []) == {}
    assert server.requests == 0


def test_answers_do_not_depend_on_latency_or_on_how_many_are_asked_at_once():
    found = []
    for seed, concurrency in [(0, 1), (1, 3), (2, 8)]:
        with AnnotationServer(latency=(0.0, 0.03), seed=seed) as server:
            found.append(ask(server, concurrency=concurrency))
    assert found[0] == found[1] == found[2]
    assert list(found[0]) != list(found[2])


def test_samples_have_seeds_of_their_own():
    with AnnotationServer() as server:
        replies = ask(server, TEXTS[:1], samples=3, temperature=0.7, seed=5)
    assert [sample for _, sample in sorted(replies)] == [0, 1, 2]
    assert sorted(body["seed"] for body in server.bodies) == [5, 6, 7]


@pytest.mark.parametrize(
    "fault", ["401_echo", "403", "400_escaped_key", "echo_key", "echo_key_thought"]
)
def test_the_key_is_nowhere(key, fault, tmp_path, capfd, caplog):
    caplog.set_level("DEBUG")
    with AnnotationServer(key=KEY, faults={"*": fault}) as server:
        one = annotator(server, api_key_env=key)
        seen = [repr(pickle.dumps(one)), json.dumps(one.facts(LABELS))]
        with Store(tmp_path, one.facts(LABELS)) as store:
            try:
                one.answer(map(Question, TEXTS[:2]), LABELS, store.add)
            except KDError as error:
                seen += [*traceback.format_exception(error), repr(error.__context__)]
    assert server.requests >= 1
    seen += [str(vars(one)), *(file.read_text() for file in tmp_path.iterdir())]
    assert "[key]" in "".join(seen)
    seen += [caplog.text, *capfd.readouterr()]
    assert "Secret" not in "".join(seen)


def test_a_key_that_is_not_set_is_named_before_any_request(monkeypatch):
    for value in ("", " \n"):
        monkeypatch.setenv("TEST_KEY", value)
        with AnnotationServer() as server, pytest.raises(ConfigError, match="TEST_KEY is not set"):
            ask(server, api_key_env="TEST_KEY")
        assert server.requests == 0
    monkeypatch.delenv("GROQ_API_KEY", raising=False)
    with AnnotationServer() as server, pytest.raises(ConfigError, match="GROQ_API_KEY is not set"):
        ask(server, provider="groq")


def test_a_key_with_strange_characters_is_refused_and_not_shown(monkeypatch):
    monkeypatch.setenv("TEST_KEY", "sk-Sécret")
    with AnnotationServer() as server, pytest.raises(ConfigError, match="holds no key") as caught:
        ask(server, api_key_env="TEST_KEY")
    assert "cret" not in str(caught.value)


def test_a_key_that_is_sent_in_clear_to_another_machine_is_warned_of(key, capsys):
    far = APIAnnotator("m", "custom", "http://far.invalid/v1", key, retries=0)
    with pytest.raises(ConfigError, match="Nothing answers"):
        far.answer([Question("a")], LABELS, lambda *_: None)
    assert capsys.readouterr().out.startswith("warning: the key in TEST_KEY is sent in clear")
    with AnnotationServer() as server:
        ask_one(server, api_key_env=key)
    assert capsys.readouterr().out == ""


def test_the_package_is_asked_for_where_it_is_missing():
    code = (
        "import sys; sys.modules['openai'] = None\n"
        "from kd.rationales.api import APIAnnotator\n"
        "from kd.rationales.annotators import Question\n"
        "APIAnnotator('m', 'vllm').answer([Question('a')], ('a', 'b'), print)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install openai" in done.stderr.splitlines()[-1]


def test_the_client_is_loaded_only_when_something_is_asked():
    code = "import sys, kd.rationales.api; print({'openai', 'httpx2', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_facts_are_what_decides_an_answer():
    base = {"model": "m", "provider": "groq"}
    facts = APIAnnotator(**base).facts(LABELS)
    assert json.loads(json.dumps(facts)) == facts
    same = {
        "base_url": "http://localhost:1/v1", "api_key_env": "OTHER", "concurrency": 1,
        "timeout_seconds": 1.0, "retries": 0, "max_wait_seconds": 1.0, "input_price": 1.0,
        "output_price": 2.0, "tokens_per_minute": 5,
    }  # fmt: skip
    for name, value in same.items():
        assert APIAnnotator(**base, **{name: value}).facts(LABELS) == facts, name
    other = {
        "model": "n", "provider": "vllm", "prompt": Prompt(question="JSON of $text"),
        "temperature": 0.5, "max_tokens": 9, "seed": 1, "structured": "none",
        "extra_body": {"top_p": 0.5},
    }  # fmt: skip
    for name, value in other.items():
        assert APIAnnotator(**{**base, name: value}).facts(LABELS) != facts, name
    assert APIAnnotator(**base).facts(("no", "yes")) != facts
    several = APIAnnotator(**base, temperature=0.5, samples=3).facts(LABELS)
    assert several == APIAnnotator(**base, temperature=0.5).facts(LABELS)


def test_tokens_are_about_a_quarter_of_the_characters():
    one = APIAnnotator("m", "vllm")
    short, long = one.tokens(Question("a"), LABELS), one.tokens(Question("a" * 4001), LABELS)
    assert long[0] - short[0] == 1000
    assert long[1] == 120
    assert APIAnnotator("m", "vllm", max_tokens=64).tokens(Question("a"), LABELS)[1] == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": None}, "say where the provider custom answers"),
        ({"base_url": "localhost:8000"}, "is no address"),
        ({"base_url": "ftp://a/v1"}, "is no address"),
        ({"base_url": "http://a:port/v1"}, "is no address"),
        ({"base_url": "https://me:hush@a/v1"}, "holds a user, a password or a query"),
        ({"base_url": "https://a/v1?key=hush"}, "holds a user, a password or a query"),
        ({"provider": "nobody"}, "give one of openai, groq"),
        ({"samples": 2}, "temperature 0 all answers to a text are the same"),
        ({"samples": 0}, "APIAnnotator.samples is 0"),
        ({"concurrency": 0}, "APIAnnotator.concurrency is 0"),
        ({"max_tokens": 0}, "APIAnnotator.max_tokens is 0"),
        ({"retries": -1}, "APIAnnotator.retries is -1"),
        ({"temperature": -1.0}, "APIAnnotator.temperature is -1.0"),
    ],
)
def test_values_that_cannot_work_are_refused(options, message):
    settings = {"model": "m", "provider": "custom", "base_url": "http://localhost:1/v1"}
    with pytest.raises(ConfigError, match=message) as caught:
        APIAnnotator(**{**settings, **options})
    assert "hush" not in str(caught.value)


def test_the_prompt_decides_whether_labels_are_told():
    with AnnotationServer() as server:
        one = annotator(server, prompt=Prompt(source="rationalised"))
        assert one.tells_labels
        one.answer([Question(TEXTS[0], label="positive")], LABELS, lambda *_: None)
    assert 'is "positive"' in server.bodies[0]["messages"][-1]["content"]
    assert not annotator(server).tells_labels
