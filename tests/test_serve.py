import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from kd.conversion import convert
from kd.errors import ConfigError
from kd.inference import Classifier
from kd.layout import ONNX, Facts, write_facts
from kd.models import choose_classifier
from kd.serve import Limits, create_app, serve
from tests.conftest import LABELS, SIZES, TEXTS

ROOT = Path(__file__).parents[1]
JSON = {"Content-Type": "application/json"}
HEAD = b"POST /predict HTTP/1.1\r\nHost: kd\r\nContent-Type: application/json\r\n"
MOST_MEGABYTES = 150  # that a server of small models may grow by, whatever it is sent


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A tiny student that ONNX Runtime answers for."""
    folder = tmp_path_factory.mktemp("shipped")
    config = AutoConfig.for_model(
        "bert",
        **SIZES | {"vocab_size": len(tokenizer), "initializer_range": 0.5},
        id2label=dict(enumerate(LABELS)),
        label2id={label: place for place, label in enumerate(LABELS)},
    )
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = choose_classifier(folder)(path=str(folder))
    model.load(fresh_head=False)
    (folder / ONNX).parent.mkdir()
    names = convert(model, folder / ONNX)
    write_facts(folder, Facts(LABELS, False, model.max_length, names))
    return folder


@contextmanager
def serving(folder, **options):
    """Start a server in a process of its own."""
    options = {"host": "127.0.0.1", "timeout_seconds": 30.0, "threads": 1} | options
    script = f"from kd.serve import serve; serve({str(folder)!r}, port=0, **{options!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        process.told = []
        while " answers at " not in (process.told or [""])[-1]:
            process.told.append(process.stdout.readline())
            assert process.told[-1], process.stderr.read()
        process.port = int(process.told[-1].split("/predict")[0].rpartition(":")[2])
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder) as process:
        yield process


@pytest.fixture
def client(server):
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60) as client:
        yield client


@pytest.fixture
def model(folder):
    return Classifier.from_pretrained(folder)


def megabytes(process):
    return psutil.Process(process.pid).memory_info().rss / 1e6


def send(port, *pieces, pause=0.0):
    """Send bytes as they are, piece by piece, and return all that comes back until the end."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        received = b""
        with suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
        with suppress(ConnectionError):
            while part := connection.recv(65536):
                received += part
        return received


async def crowd(port, clients):
    """Let many clients ask at once, each for texts of its own."""
    limits = httpx.Limits(max_connections=clients)
    asked = [[f"{TEXTS[n % 8]} {n}", f"{TEXTS[n % 7]} and {n}"] for n in range(clients)]
    url = f"http://127.0.0.1:{port}/predict"
    async with httpx.AsyncClient(limits=limits, timeout=60) as client:
        answers = await asyncio.gather(*[client.post(url, json={"texts": one}) for one in asked])
    return list(zip(asked, answers, strict=True))


def assert_right(model, texts, answer):
    for wanted, found in zip(model.predict(texts), answer.json()["predictions"], strict=True):
        assert found["label"] == wanted.label
        assert found["labels"] == [wanted.label]
        assert found["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-5)


# --- answers -------------------------------------------------------------------------------------


def test_texts_are_answered_in_their_order(client, model):
    texts = [*TEXTS, "great " * 40, "a 🎬 film"]
    answer = client.post("/predict", json={"texts": texts})
    assert answer.status_code == 200
    assert_right(model, texts, answer)
    assert {one["label"] for one in answer.json()["predictions"]} == set(LABELS)
    assert 0 < answer.json()["milliseconds"] < 30_000


def test_an_onnx_folder_is_served_without_torch(server):
    assert "libtorch" not in Path(f"/proc/{server.pid}/maps").read_text()
    assert "onnxruntime" in Path(f"/proc/{server.pid}/maps").read_text()


@pytest.mark.fault(44)
def test_it_listens_to_this_machine_alone_and_says_so_otherwise(server, folder):
    assert "127.0.0.1" in server.told[-1]
    assert not [line for line in server.told if "warning" in line]
    with serving(folder, host="0.0.0.0") as open_to_all:
        assert "warning: 0.0.0.0 is reached from other machines" in open_to_all.told[0]


def test_the_interface_is_described_without_a_request_to_others(client):
    assert client.get("/health").json() == {"status": "ok"}
    assert "/predict" in client.get("/openapi.json").json()["paths"]
    for page in ("/docs", "/redoc", "/"):
        answer = client.get(page)
        assert answer.status_code == 404
        assert answer.json()["error"].startswith("Nothing answers here: POST")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(folder, number):
    with serving(folder) as process:
        process.send_signal(number)
        said, complained = process.communicate(timeout=20)
        assert (process.returncode, said, complained) == (0, "", "")


# --- what is no question -------------------------------------------------------------------------

JUNK = random.Random(0).randbytes(5000)
NO_JSON = "The body is no JSON: POST"


@pytest.mark.fault(44)
@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (JUNK, 400, NO_JSON),
        (b"", 422, "body: Field required"),
        (b'{"texts": ["a"', 400, NO_JSON),
        (b'{"texts": ["\xff\xfe"]}', 400, NO_JSON),
        (b"[" * 500_000, 400, NO_JSON),
        (b'{"texts": ' + b"1" * 9000 + b"}", 400, NO_JSON),
        (b"null", 422, "valid dictionary"),
        (b'["a"]', 422, "valid dictionary"),
        (b'{"text": ["a"]}', 422, "body.texts: Field required"),
        (b'{"texts": "abc"}', 422, "body.texts: Input should be a valid list"),
        (b'{"texts": ["a", 1]}', 422, "body.texts.1: Input should be a valid string"),
        (b'{"texts": [' + b"1," * 400_000 + b"1]}", 422, "body.texts.0: Input should be a valid"),
        (b'{"texts": []}', 422, "There are no texts"),
        (b'{"texts": ["a", " \\n"]}', 422, "Text 2 of 2 is empty"),
        (b'{"texts": ["a\\u0000b"]}', 422, "Text 1 of 1 holds NUL or a lone surrogate"),
        (b'{"texts": ["a", "\\ud83d b"]}', 422, "Text 2 of 2 holds NUL or a lone surrogate"),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else "",
)
def test_what_is_no_question_is_refused_in_one_sentence(client, body, status, told):
    answer = client.post("/predict", content=body, headers=JSON)
    assert answer.status_code == status
    assert told in answer.json()["error"]
    assert len(answer.content) < 300


def test_json_must_be_declared_so_that_no_page_of_others_can_send_it(client):
    answer = client.post("/predict", content=b'{"texts": ["a"]}', headers={"Content-Type": "a/b"})
    assert answer.status_code == 422
    assert "as application/json" in answer.json()["error"]


def test_junk_that_is_no_http_is_answered(server):
    assert send(server.port, JUNK + b"\r\n\r\n").startswith(b"HTTP/1.1 400 ")


# --- too much ------------------------------------------------------------------------------------


@pytest.mark.fault(44)
@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["word " * 200_000], "The request has more than 1000000 bytes"),
        (["word " * 190_000], "Text 1 of 1 has 950000 characters: send 100000 at most"),
        (["hello"] * 10_000, "The request has 10000 texts: send 1000 at most"),
    ],
    ids=["a page of 1 MB", "a page of 0.95 MB", "10,000 texts"],
)
def test_too_much_is_refused_with_what_is_allowed(client, texts, told):
    answer = client.post("/predict", json={"texts": texts})
    assert answer.status_code == 413
    assert told in answer.json()["error"]


def test_a_long_text_within_the_limits_is_answered(client, model):
    texts = ["great film " * 9000, "sad"]
    assert_right(model, texts, client.post("/predict", json={"texts": texts}))


@pytest.mark.fault(44)
def test_a_body_without_an_end_is_refused_and_cut_off(folder):
    with serving(folder, timeout_seconds=1.0) as server:
        start, before = time.monotonic(), megabytes(server)
        chunks = [b"4000\r\n" + b"x" * 0x4000 + b"\r\n"] * 100_000
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
            received, sent = b"", 0
            with suppress(ConnectionError):
                for chunk in chunks:
                    connection.sendall(chunk)
                    sent += len(chunk)
                    if not received and sent > 4_000_000:  # the answer is there before the end
                        received = connection.recv(4096)
        assert received.startswith(b"HTTP/1.1 413 ")
        assert sent < len(chunks) * 0x4000
        assert time.monotonic() - start < 10
        assert megabytes(server) - before < MOST_MEGABYTES


# --- too slow ------------------------------------------------------------------------------------


@pytest.mark.fault(44)
def test_a_slow_client_is_cut_off(folder):
    with serving(folder, timeout_seconds=0.6) as server:
        body = send(server.port, HEAD + b"Content-Length: 90\r\n\r\n", *[b" "] * 30, pause=0.1)
        assert body.startswith(b"HTTP/1.1 408 ")
        assert b"The request took more than 0.6 s to arrive" in body
        start = time.monotonic()
        assert send(server.port, HEAD[:30], *[b"x"] * 60, pause=0.1) == b""
        assert send(server.port, b"") == b""
        again = b"GET /health HTTP/1.1\r\nHost: kd\r\n\r\n"
        twice = send(server.port, again, again, *[b"G"] * 60, pause=0.1)
        assert twice.count(b'{"status":"ok"}') == 2
        assert time.monotonic() - start < 9


class Slow:
    """A model that takes its time, and fails where it is told to."""

    backend, labels, multi_label, max_length = "torch", LABELS, False, 64

    def __init__(self, seconds):
        self.seconds, self.calls = seconds, []

    def logits(self, texts, pairs, batch_size):
        self.calls.append(len(texts))
        time.sleep(self.seconds)
        if "fail" in texts:
            raise ValueError("secret")
        return np.array([[0.0, float(len(text))] for text in texts], dtype=np.float32)


def asked(app, *requests, later=None, **options):
    """Return the answers of an endpoint in this process to requests sent at once, and to one later.

    The last answer is that of its health.
    """

    async def ask():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://kd", **options) as client,
        ):
            posts = [client.post("/predict", json={"texts": texts}) for texts in requests]
            answers = await asyncio.gather(*posts)
            if later:
                await asyncio.sleep(0.5)
                answers.append(await client.post("/predict", json={"texts": later}))
            return [*answers, await client.get("/health")]

    return asyncio.run(ask())


@pytest.mark.fault(44)
def test_an_answer_that_takes_too_long_is_given_up_and_costs_no_more():
    model = Slow(0.3)
    app = create_app(Classifier(model, batch_size=1), Limits(timeout_seconds=0.45))
    first, *given_up, later, health = asked(app, *[["a"]] * 5, later=["b"])
    assert (first.status_code, later.status_code, health.status_code) == (200, 200, 200)
    for answer in given_up:
        assert answer.status_code == 503
        assert answer.json()["error"] == "There was no answer within 0.45 s: come back soon."
        assert answer.headers["Retry-After"] == "1"
    assert len(model.calls) == 3  # the first, the one that was under way, and the last


def test_requests_that_wait_are_answered_together_and_apart():
    model = Slow(0.2)
    texts = [["x" * n, "y" * (n + 1)] for n in range(1, 21)]
    *answers, _ = asked(create_app(Classifier(model), Limits()), *texts)
    for pair, answer in zip(texts, answers, strict=True):
        assert_right(Classifier(Slow(0)), pair, answer)
    assert sum(model.calls) == 40
    assert len(model.calls) <= 3


def test_a_batch_is_no_larger_than_the_model_takes():
    model = Slow(0.05)
    asked(create_app(Classifier(model, batch_size=4), Limits()), *[["a", "b", "c"]] * 6)
    assert sum(model.calls) == 18
    assert max(model.calls) <= 6


def test_a_model_that_fails_does_so_for_one_batch():
    app = create_app(Classifier(Slow(0.1), batch_size=1), Limits())
    broken, whole, _ = asked(app, ["fail"], ["a"])
    assert (broken.status_code, whole.status_code) == (500, 200)
    assert broken.json() == {"error": "The server failed: see its log."}


# --- too many ------------------------------------------------------------------------------------


def test_200_clients_at_once_get_their_own_answers_in_bounded_memory(server, model):
    before = megabytes(server)
    answered = asyncio.run(crowd(server.port, 200))
    assert [answer.status_code for _, answer in answered] == [200] * 200
    for texts, answer in answered:
        assert_right(model, texts, answer)
    assert megabytes(server) - before < MOST_MEGABYTES


@pytest.mark.fault(44)
def test_beyond_the_queue_clients_are_told_to_come_back(folder, model):
    with serving(folder, max_queue=8) as server:
        answered = asyncio.run(crowd(server.port, 200))
        right = [pair for pair in answered if pair[1].status_code == 200]
        assert len(right) >= 8
        for texts, answer in right:
            assert_right(model, texts, answer)
        for _, answer in answered:
            if answer.status_code != 200:
                assert answer.status_code == 503
                assert answer.headers["Retry-After"] == "1"
                assert answer.json()["error"] == "Too many requests wait: come back soon."
        assert len(right) < 200
        assert asyncio.run(crowd(server.port, 1))[0][1].status_code == 200  # the places are free


def test_large_requests_at_once_stay_in_bounded_memory(server):
    before = megabytes(server)
    body = json.dumps({"texts": ["word " * 19_000] * 10}).encode()

    async def flood():
        async with httpx.AsyncClient(timeout=60) as client:
            url = f"http://127.0.0.1:{server.port}/predict"
            posts = [client.post(url, content=body, headers=JSON) for _ in range(100)]
            return await asyncio.gather(*posts)

    answers = asyncio.run(flood())
    told = {answer.json()["error"] for answer in answers if answer.status_code == 503}
    assert {answer.status_code for answer in answers} == {200, 503}
    assert told == {"Too many large requests wait: come back soon."}
    assert megabytes(server) - before < MOST_MEGABYTES


# --- the key, and what cannot be served ----------------------------------------------------------


@pytest.mark.fault(44)
@pytest.mark.parametrize(
    ("sent", "status"),
    [("Bearer right", 200), ("Bearer wrong", 401), ("right", 401), ("Bearer right\xe9", 401)],
)
def test_a_key_is_asked_for(sent, status):
    app = create_app(Classifier(Slow(0)), Limits(), key="right")
    answer, health = asked(app, ["a"], headers={"Authorization": sent.encode("latin-1")})
    assert (answer.status_code, health.status_code) == (status, 200)
    if status == 401:
        told = "The key is missing or wrong: send it as Authorization: Bearer KEY."
        assert answer.json() == {"error": told}


def test_a_key_is_read_from_the_environment(folder, monkeypatch):
    monkeypatch.setenv("KD_TEST_KEY", "right")
    with serving(folder, key_variable="KD_TEST_KEY") as server:
        url = f"http://127.0.0.1:{server.port}/predict"
        assert httpx.post(url, json={"texts": ["a"]}).status_code == 401
        key = {"Authorization": "Bearer right"}
        assert httpx.post(url, json={"texts": ["a"]}, headers=key).status_code == 200


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_texts": 0}, "max_texts is 0: give a number above 0"),
        ({"timeout_seconds": float("inf")}, "timeout_seconds is inf"),
        ({"key_variable": "KD_NO_SUCH_KEY"}, "KD_NO_SUCH_KEY is not set: put the key there"),
        ({"host": "no.such.host.invalid"}, "Cannot listen at no.such.host.invalid, port 0"),
        ({"port": 99_999}, "port is 99999: give a number from 0 to 65535"),
    ],
)
def test_what_cannot_be_served_is_said_before_a_model_is_loaded(options, told, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(ConfigError, match=told):
        serve("nowhere", **{"port": 0} | options)


def test_a_port_in_use_is_refused(monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(ConfigError, match="Address already in use"),
    ):
        serve("nowhere", port=other.getsockname()[1])


def test_a_missing_extra_is_named():
    script = "import sys; sys.modules['fastapi'] = None; import kd.serve"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert (
        "ConfigError: kd serve needs fastapi and uvicorn: pip install fastapi uvicorn"
        in done.stderr
    )


def test_importing_it_imports_no_torch():
    script = "import sys, kd.serve; print({'torch', 'transformers', 'gradio'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == "set()", done.stderr
