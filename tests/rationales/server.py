"""A language model's server for tests: real HTTP, sensible answers, and every fault on order.

    with AnnotationServer(faults={"a bore": ["500"]}) as server:
        APIAnnotator("tiny", base_url=server.url, ...)
        assert server.requests == 2

It answers in the way of OpenAI: the label follows from the words of the text. What it saw is in
``requests``, ``texts`` and ``bodies``. As a process of its own, for a benchmark, it prints its URL:

    python -m tests.rationales.server --latency 0.01
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

WORDS = {
    "positive": "love great wonderful brilliant happy warm funny delight kind good joy best like",
    "negative": "hate awful terrible dull sad cold clumsy bore rude bad pain worst dislike",
}
"""Which words make a text of which class, by default."""

FAULTS = frozenset(
    "429 429_bare 429_no_credit 429_wait_300 401_echo 403 404 413 422 500 503 503_wait "
    "400_option 400_json 400_too_long 400_filtered 400_escaped_key html "
    "html_as_json no_choices null_choices no_content cut_body reset silent think unclosed_think "
    "fenced unknown_label length refusal no_usage reasoning echo_key echo_key_thought "
    "half_emoji prose".split()
)
"""What can be ordered in ``faults``."""

HTML = "<!doctype html><html><body><h1>502 Bad Gateway</h1></body></html>"
THOUGHTS = 'Hmm, maybe {"label": "negative"}? Let me look again.'


@dataclass
class Answer:
    """What goes back over the wire."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    is_cut: bool = False
    is_reset: bool = False
    is_silent: bool = False

    def encoded(self) -> bytes:
        body = (self.body if isinstance(self.body, str) else json.dumps(self.body)).encode()
        headers = {"content-type": self.content_type, "content-length": len(body), **self.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        if self.is_cut:
            body = body[: len(body) // 2]
        return f"HTTP/1.1 {self.status} -\r\n{lines}\r\n".encode() + body


class AnnotationServer:
    """A server that runs in a thread of its own while its ``with`` block does.

    Args:
        faults: What goes wrong, by text, ``*`` for each of the others: one name for every time
            that the text is asked, or a list, one for each time, after which all is well.
        words: The words of each class, by its name, with blanks between.
        reply: What is answered to a text, instead of JSON as the words say.
        quota: How many requests are answered in a window of how many seconds; the others get 429.
        latency: Seconds that an answer takes, drawn between the two numbers.
        seed: Of what is drawn.
        key: The only key that is let in; null lets in all. Others get a 401 that echoes theirs.
        model: The only model there is; null knows all. Others get a 404.
        forbidden: Fields of a request that get a 422 as FastAPI writes it.
        port: Where to listen; 0 takes a free one.
    """

    def __init__(
        self,
        faults: Mapping[str, str | Sequence[str]] | None = None,
        words: Mapping[str, str] = WORDS,
        reply: Callable[[str], str] | None = None,
        quota: tuple[int, float] | None = None,
        latency: tuple[float, float] = (0.0, 0.0),
        seed: int = 0,
        key: str | None = None,
        model: str | None = None,
        forbidden: Sequence[str] = (),
        port: int = 0,
    ):
        self.faults = dict(faults or {})
        ordered = {f for names in self.faults.values() for f in _listed(names)}
        assert ordered <= FAULTS, f"no such fault: {ordered - FAULTS}"
        self.labels = {w: label for label, group in words.items() for w in group.split()}
        self.names = list(words)
        self.reply = reply or self.explain
        self.quota, self.latency, self.random = quota, latency, Random(seed)
        self.key, self.model, self.forbidden, self.port = key, model, tuple(forbidden), port
        self.requests = 0
        self.rejected = 0
        self.most_in_flight = 0
        self.bodies: list[dict[str, Any]] = []
        self.texts: list[str] = []
        self.keeps = True
        self._turns: Counter[str] = Counter()
        self._window, self._used = 0.0, 0
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=self.run, daemon=True)
        self._is_up = threading.Event()
        self.connections: set[_Connection] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def answered(self) -> int:
        """How many requests were let in by the quota."""
        return self.requests - self.rejected

    def __enter__(self) -> AnnotationServer:
        self._thread.start()
        assert self._is_up.wait(10), "the server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Be gone, connections too; what was seen can still be looked at."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def run(self) -> None:
        """Serve until the loop is stopped."""
        self._loop = asyncio.new_event_loop()
        listening = self._loop.create_server(
            lambda: _Connection(self), "127.0.0.1", self.port, backlog=1024
        )
        server = self._loop.run_until_complete(listening)
        self.port = server.sockets[0].getsockname()[1]
        self._is_up.set()
        try:
            self._loop.run_forever()
        finally:
            server.close()
            for connection in list(self.connections):
                connection.transport.abort()
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.close()

    def delay(self) -> float:
        low, high = self.latency
        return self.random.uniform(low, high) if high else 0.0

    def answer(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Return what a request gets."""
        if path != "/v1/chat/completions":
            return _error(404, f"Unknown request URL: POST {path}.", "unknown_url")
        request = json.loads(body)
        text = read_text(request["messages"])
        self.requests += 1
        if self.keeps:
            self.bodies.append(request)
            self.texts.append(text)
        key = headers.get("authorization", "").removeprefix("Bearer ")
        if self.key is not None and key != self.key:
            return _error(401, f"Incorrect API key provided: {key}.", "invalid_api_key")
        if self.model is not None and request["model"] != self.model:
            name = request["model"]
            return _error(404, f"The model `{name}` does not exist.", "model_not_found")
        unknown = [{"loc": ["body", name], "msg": "Extra inputs are not permitted"}
                   for name in self.forbidden if name in request]  # fmt: skip
        if unknown:
            return Answer({"detail": unknown}, status=422)
        limits = self._limits()
        if "retry-after" in limits:
            self.rejected += 1
            return _error(429, "Rate limit reached.", "rate_limit_exceeded", limits)
        answer = self._respond(request, text, key, self._fault(text))
        return Answer(**{**vars(answer), "headers": {**limits, **answer.headers}})

    def explain(self, text: str) -> str:
        """Return the JSON that a good model writes about a text."""
        found = [word for word in re.findall(r"[\w']+", text) if word.lower() in self.labels]
        votes = Counter(self.labels[word.lower()] for word in found)
        label = votes.most_common(1)[0][0] if votes else self.names[len(text) % len(self.names)]
        quotes = list(dict.fromkeys(w for w in found if self.labels[w.lower()] == label))
        why = f"The writer speaks of {' and '.join(quotes) or 'nothing much'}."
        sure = 0.9 if quotes else 0.5
        return json.dumps(
            {"rationale": why, "evidence": quotes, "label": label, "confidence": sure}
        )

    def _fault(self, text: str) -> str | None:
        names = self.faults.get(text, self.faults.get("*"))
        turn = self._turns[text]
        if names is None or isinstance(names, str):
            return names
        self._turns[text] = turn + 1
        return names[turn] if turn < len(names) else None

    def _limits(self) -> dict[str, str]:
        """Return the headers of the quota, in Groq's words; with ``retry-after`` if used up."""
        if self.quota is None:
            return {}
        most, seconds = self.quota
        now = time.monotonic()
        if now >= self._window + seconds:
            self._window, self._used = now, 0
        self._used = min(self._used + 1, most + 1)
        left = self._window + seconds - now
        limits = {
            "x-ratelimit-limit-requests": "14400",
            "x-ratelimit-remaining-requests": "14370",
            "x-ratelimit-reset-requests": "2m59.56s",
            "x-ratelimit-limit-tokens": str(most * 100),
            "x-ratelimit-remaining-tokens": str(max(0, most - self._used) * 100),
            "x-ratelimit-reset-tokens": f"{left * 1000:.0f}ms" if left < 1 else f"{left:.2f}s",
        }
        return {**limits, "retry-after": f"{left:.3f}"} if self._used > most else limits

    def _respond(self, request: dict[str, Any], text: str, key: str, fault: str | None) -> Answer:
        content: str | None = self.reply(text)
        message: dict[str, Any] = {"role": "assistant", "content": content}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        read = sum(len(part["content"]) for part in request["messages"]) // 4
        usage = {"prompt_tokens": read, "completion_tokens": 40, "total_tokens": read + 40}
        body: dict[str, Any] = {
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1,
            "model": request["model"], "choices": [choice], "usage": usage,
        }  # fmt: skip
        if fault is None:
            return Answer(body)
        if fault[:3].isdecimal():
            return _failure(fault, key, request)
        if fault in ("html", "html_as_json"):
            return Answer(HTML, content_type="text/html" if fault == "html" else "application/json")
        if fault in ("no_choices", "null_choices"):
            body["choices"] = [] if fault == "no_choices" else None
        elif fault == "no_usage":
            del body["usage"]
        elif fault == "refusal":
            message |= {"content": None, "refusal": "I cannot help with that."}
        elif fault == "reasoning":
            message["reasoning"] = THOUGHTS
        elif fault == "echo_key_thought":
            message["reasoning_content"] = f"The key is {key}."
        elif fault == "length":
            choice["finish_reason"] = "length"
            message["content"] = (content or "")[:20]
        else:
            if fault == "half_emoji":
                message["reasoning"] = "Half an emoji: \ud83d."
            message["content"] = _garble(fault, content or "", key)
        is_cut, is_reset, is_silent = (fault == name for name in ("cut_body", "reset", "silent"))
        return Answer(body, is_cut=is_cut, is_reset=is_reset, is_silent=is_silent)


class _Connection(asyncio.Protocol):
    """One connection: HTTP/1.1, kept alive, one request after the other."""

    in_flight = 0

    def __init__(self, server: AnnotationServer):
        self.server, self.buffer = server, b""
        self.head: tuple[str, dict[str, str], int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.head is None:
            head, end, rest = self.buffer.partition(b"\r\n\r\n")
            if not end:
                return
            first, *lines = head.decode("latin-1").split("\r\n")
            pairs = (line.partition(":") for line in lines)
            headers = {name.lower(): value.strip() for name, _, value in pairs}
            self.head = first.split()[1], headers, int(headers.get("content-length", 0))
            self.buffer = rest
        path, headers, length = self.head
        if len(self.buffer) < length:
            return
        body, self.buffer, self.head = self.buffer[:length], self.buffer[length:], None
        server, loop = self.server, asyncio.get_running_loop()
        self.in_flight = 1
        server.most_in_flight = max(
            server.most_in_flight, sum(other.in_flight for other in server.connections)
        )
        answer, delay = server.answer(path, headers, body), server.delay()
        if delay:
            loop.call_later(delay, self.send, answer)
        else:
            self.send(answer)

    def send(self, answer: Answer) -> None:
        self.in_flight = 0
        if answer.is_reset:
            self.transport.abort()
        elif not answer.is_silent and not self.transport.is_closing():
            self.transport.write(answer.encoded())
            if answer.is_cut:
                self.transport.close()


def read_text(messages: Sequence[Mapping[str, str]]) -> str:
    """Return the text that the last message asks about."""
    content = messages[-1]["content"]
    found = re.search(r"<text>\n?(.*?)\n?</text>(?!.*</text>)", content, re.DOTALL)
    return found[1] if found else content


def _listed(names: str | Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names


def _error(
    status: int, message: str, code: str | None, headers: dict[str, str] | None = None
) -> Answer:
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": code}
    return Answer({"error": error}, status, headers or {})


def _failure(fault: str, key: str, request: dict[str, Any]) -> Answer:
    """Return an answer whose status is not 200."""
    status, model = int(fault[:3]), request["model"]
    if fault == "422":
        where = ["body", "reasoning_format"]
        return Answer({"detail": [{"loc": where, "msg": "Extra inputs are not permitted"}]}, 422)
    if fault == "400_escaped_key":
        return Answer(json.dumps([{"sent": key}]).replace("/", "\\/"), 400)
    message, code = {
        "400_json": ("Failed to generate JSON.", "json_validate_failed"),
        "400_option": ("Unsupported value: 'temperature'.", "unsupported_value"),
        "400_too_long": ("This model reads 8192 tokens at most.", "context_length_exceeded"),
        "401_echo": (f"Incorrect API key provided: {key}.", "invalid_api_key"),
        "403": (f"The key {key} may not use this.", None),
        "404": (f"The model `{model}` does not exist.", "model_not_found"),
        "413": ("Request too large.", "request_too_large"),
        "400_filtered": ("The prompt was stopped.", "content_filter"),
        "429_no_credit": ("You exceeded your current quota.", "insufficient_quota"),
    }.get(fault, ("Something went wrong.", None))
    short, long = {"retry-after": "0.05"}, {"retry-after": "300"}
    headers = {"429": short, "503_wait": short, "429_wait_300": long}
    return _error(status, message, code, headers.get(fault))


def _garble(fault: str, content: str, key: str) -> str | None:
    """Return what a bad model writes instead of good content."""
    answer = json.loads(content) if content.startswith("{") else {}
    return {
        "no_content": None,
        "think": f"<think>{THOUGHTS}</think>\n{content}",
        "unclosed_think": f"<think>{THOUGHTS}",
        "fenced": f"Here it is:\n```json\n{content}\n```",
        "unknown_label": json.dumps({**answer, "label": "mixed"}),
        "echo_key": json.dumps({**answer, "rationale": f"You sent {key}."}),
        "half_emoji": json.dumps({**answer, "rationale": "A half emoji: \ud83d."}),
        "prose": "It is a film that I would see again.",
    }.get(fault, content)


def main() -> None:
    """Serve until standard input is closed; the first line of output is the URL."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds an answer takes")
    options = parser.parse_args()
    with AnnotationServer(port=options.port, latency=(options.latency,) * 2) as server:
        server.keeps = False
        print(server.url, flush=True)  # noqa: T201
        with contextlib.suppress(KeyboardInterrupt):
            sys.stdin.read()


if __name__ == "__main__":
    main()
