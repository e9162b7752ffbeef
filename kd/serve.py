"""A small HTTP endpoint: an exported model answers texts, within limits of size, number and time.

FastAPI reads and describes the requests, uvicorn speaks HTTP. This room knows a
:class:`~kd.inference.Classifier` and no more of models; it starts without torch.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from secrets import compare_digest
from typing import Annotated, Any, Literal

from kd.console import print_line
from kd.errors import ConfigError
from kd.inference import Classifier, Prediction
from kd.texts import repaired

try:
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from pydantic import BaseModel, FailFast
    from starlette.exceptions import HTTPException as AnyHTTPException
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise ConfigError("kd serve needs fastapi and uvicorn: pip install fastapi uvicorn.") from error

__all__ = ["Answer", "Answers", "Limits", "Refusal", "Texts", "create_app", "serve"]

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]

_HOW = 'POST {"texts": ["...", "..."]} to /predict, as application/json'
_HEALTH = "/health"
_HELD = 16  # requests of the largest size that may wait: bounds the memory


class Texts(BaseModel):
    """What is asked."""

    texts: Annotated[list[str], FailFast()]  # else there is an error for each of a million


class Answer(BaseModel):
    """What the model says of one text; ``labels`` may be several where a text may have several."""

    label: str
    labels: list[str]
    probabilities: dict[str, float]


class Answers(BaseModel):
    """An answer for each text, in their order, and the time that the request took here."""

    predictions: list[Answer]
    milliseconds: float


class Refusal(BaseModel):
    """One sentence: what is wrong, and what to do."""

    error: str


@dataclass(frozen=True)
class Limits:
    """What a server takes; beyond it, a request is refused by one sentence.

    Args:
        max_bytes: Of a request's body.
        max_texts: Of a request.
        max_characters: Of a text.
        max_queue: Requests under way at once.
        timeout_seconds: For a request to arrive, and again for its answer.

    Raises:
        ConfigError: If one is not above 0.
    """

    max_bytes: int = 1_000_000
    max_texts: int = 1000
    max_characters: int = 100_000
    max_queue: int = 256
    timeout_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < math.inf:
                raise ConfigError(f"{name} is {value}: give a number above 0.")

    def check(self, texts: Sequence[str]) -> None:
        """Raise the `HTTPException` that says why texts are not answered, if they are not."""
        if not texts:
            raise HTTPException(422, f"There are no texts: {_HOW}.")
        if len(texts) > self.max_texts:
            raise HTTPException(
                413, f"The request has {len(texts)} texts: send {self.max_texts} at most."
            )
        for place, text in enumerate(texts, start=1):
            where = f"Text {place} of {len(texts)}"
            if len(text) > self.max_characters:
                told = f"{where} has {len(text)} characters: send {self.max_characters} at most."
                raise HTTPException(413, told)
            if not text.strip():
                raise HTTPException(422, f"{where} is empty: give it words.")
            if repaired(text) != text:
                raise HTTPException(422, f"{where} holds NUL or a lone surrogate: send text.")


def serve(
    model: str,
    backend: Literal["auto", "torch", "onnx", "int8"] = "auto",
    host: str = "127.0.0.1",
    port: int = 8000,
    max_bytes: int = Limits.max_bytes,
    max_texts: int = Limits.max_texts,
    max_characters: int = Limits.max_characters,
    max_queue: int = Limits.max_queue,
    timeout_seconds: float = Limits.timeout_seconds,
    threads: int | None = None,
    key_variable: str | None = None,
) -> None:
    """Answer texts over HTTP with an exported model: POST /predict, GET /health, /openapi.json.

    Args:
        model: Exported folder, run such as runs/quickstart, or hub id.
        backend: What computes; auto takes ONNX where the folder has it.
        host: Address to listen at; the default is reached from this machine alone.
        port: Port to listen at; 0 takes a free one.
        max_bytes: Most bytes of a request.
        max_texts: Most texts of a request.
        max_characters: Most characters of a text.
        max_queue: Most requests under way at once; the next one is told to come back.
        timeout_seconds: How long a request may take to arrive, and again to be answered.
        threads: Threads of a prediction; null leaves it to the backend.
        key_variable: Name of an environment variable with a key, which clients must send as
            Authorization: Bearer KEY.

    Raises:
        ConfigError: If a limit, the key or the address cannot be used.
    """
    limits = Limits(max_bytes, max_texts, max_characters, max_queue, timeout_seconds)
    key = _read_key(key_variable)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    with suppress(KeyboardInterrupt), _listen(host, port) as listening:
        classifier = Classifier.from_pretrained(model, backend=backend, threads=threads)
        classifier.predict(["the first text takes longer than the rest"])
        config = uvicorn.Config(
            create_app(classifier, limits, key),
            http=_Protocol,
            ws="none",
            log_level="error",
            server_header=False,
            timeout_keep_alive=math.ceil(timeout_seconds),
            timeout_graceful_shutdown=math.ceil(timeout_seconds),
        )
        address, port = listening.getsockname()[:2]
        if not ipaddress.ip_address(address).is_loopback:
            who = "any that has the key" if key else "and any may ask it: see --key_variable"
            print_line(f"warning: {address} is reached from other machines, {who}")
        url = f"http://{f'[{address}]' if ':' in address else address}:{port}/predict"
        told = f"{model} ({classifier.backend}) answers at {url}; Ctrl-C ends it"
        _Server(config, told).run(sockets=[listening])


def create_app(classifier: Classifier, limits: Limits, key: str | None = None) -> FastAPI:
    """Return the endpoint, for a server of your own.

    Args:
        classifier: What answers.
        limits: What it takes.
        key: What clients must send as ``Authorization: Bearer KEY``; null asks for none.

    Returns:
        An ASGI application.
    """
    worker = _Worker(classifier)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(worker.run())
        yield
        task.cancel()

    # the pages of documentation would load their scripts from a CDN
    app = FastAPI(title="kd", docs_url=None, redoc_url=None, lifespan=lifespan)

    @app.post("/predict", responses={code: {"model": Refusal} for code in (408, 413, 422, 503)})
    async def predict(asked: Texts) -> Answers:
        """Classify texts; the answers are in the order of the texts."""
        start = time.perf_counter()
        limits.check(asked.texts)
        try:
            async with asyncio.timeout(limits.timeout_seconds):
                predictions = await worker.predict(asked.texts)
        except TimeoutError:
            raise _busy(f"There was no answer within {limits.timeout_seconds:g} s") from None
        answers = [
            Answer(label=p.label, labels=list(p.labels), probabilities=p.probabilities)
            for p in predictions
        ]
        milliseconds = round(1000 * (time.perf_counter() - start), 3)
        return Answers(predictions=answers, milliseconds=milliseconds)

    @app.get(_HEALTH)
    async def health() -> dict[str, str]:
        """Tell that the server is there."""
        return {"status": "ok"}

    app.add_exception_handler(RequestValidationError, _refuse)
    app.add_exception_handler(AnyHTTPException, _refuse)
    app.add_exception_handler(Exception, _refuse)
    app.add_middleware(_Guard, limits=limits, key=key)
    return app


class _Worker:
    """Predicts in a thread, one call at a time; what waits meanwhile is answered in the next."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.waiting: asyncio.Queue[tuple[list[str], asyncio.Future[list[Prediction]]]]
        self.waiting = asyncio.Queue()  # no longer than the guard lets in

    async def predict(self, texts: list[str]) -> list[Prediction]:
        answer = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait((texts, answer))
        return list(await answer)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            together: list[str] = []
            answers: list[tuple[slice, asyncio.Future[list[Prediction]]]] = []
            while not together or (
                len(together) < self.classifier.batch_size and not self.waiting.empty()
            ):
                texts, answer = await self.waiting.get()
                if not answer.done():  # else it was given up
                    answers.append((slice(len(together), len(together) + len(texts)), answer))
                    together += texts
            found = loop.run_in_executor(None, self.classifier.predict, together)
            await asyncio.wait([found])
            error = found.exception()
            for places, answer in answers:
                if answer.done():
                    continue
                if error:
                    answer.set_exception(RuntimeError(f"The model failed: {error!r}"))
                else:
                    answer.set_result(found.result()[places])


class _Guard:
    """What no request gets past: the key, the bytes and time of a body, and those of all others."""

    def __init__(self, app: _App, limits: Limits, key: str | None) -> None:
        self.app, self.limits, self.key = app, limits, key
        self.requests = self.bytes = 0  # under way

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http" or scope["path"] == _HEALTH:
            return await self.app(scope, receive, send)
        sent = Request(scope).headers.get("authorization", "")
        if self.key and not compare_digest(sent.encode(), f"Bearer {self.key}".encode()):
            told = "The key is missing or wrong: send it as Authorization: Bearer KEY."
            return await _refusal(HTTPException(401, told))(scope, receive, send)
        if self.requests >= self.limits.max_queue:
            return await _refusal(_busy("Too many requests wait"))(scope, receive, send)
        taken, deadline = 0, asyncio.get_running_loop().time() + self.limits.timeout_seconds

        async def limited() -> _Message:
            nonlocal taken
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                told = f"The request took more than {self.limits.timeout_seconds:g} s to arrive."
                raise HTTPException(408, told) from None
            size = len(message.get("body", b""))
            taken, self.bytes = taken + size, self.bytes + size
            if taken > self.limits.max_bytes:
                told = f"The request has more than {self.limits.max_bytes} bytes: send less."
                raise HTTPException(413, told)
            if self.bytes > _HELD * self.limits.max_bytes:
                raise _busy("Too many large requests wait")
            return message

        self.requests += 1
        try:
            await self.app(scope, limited, send)
        finally:
            self.requests, self.bytes = self.requests - 1, self.bytes - taken


class _Protocol(H11Protocol):
    """HTTP that waits for a next request as long as it may, however slowly its bytes come in."""

    deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.deadline:
            self.deadline.cancel()

    def on_response_complete(self) -> None:
        self._expect_request()
        super().on_response_complete()

    def _expect_request(self) -> None:
        answered = self.cycle
        if self.deadline:
            self.deadline.cancel()

        def check() -> None:
            if self.cycle is answered:
                self.transport.abort()

        self.deadline = self.loop.call_later(self.config.timeout_keep_alive, check)


class _Server(uvicorn.Server):
    """A server that tells when it is there, and a signal ends it."""

    def __init__(self, config: uvicorn.Config, told: str) -> None:
        super().__init__(config)
        self.told = told

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print_line(self.told)


def _busy(told: str) -> HTTPException:
    return HTTPException(503, f"{told}: come back soon.", {"Retry-After": "1"})


async def _refuse(_: Request, error: Exception) -> JSONResponse:
    return _refusal(error)


def _refusal(error: Exception) -> JSONResponse:
    """Return an error as one sentence in JSON."""
    status, told, headers = 500, "The server failed: see its log.", None
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        status, told = 422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}; {_HOW}."
        if first["type"] == "json_invalid":
            status = 400
    elif isinstance(error, AnyHTTPException):
        status, told, headers = error.status_code, error.detail, error.headers
    if status == 400:  # FastAPI's for all that is no JSON
        told = f"The body is no JSON: {_HOW}."
    elif status in (404, 405):
        told = f"Nothing answers here: {_HOW}."
    return JSONResponse({"error": told}, status, headers)


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 1 << 16:
        raise ConfigError(f"port is {port}: give a number from 0 to 65535.")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = found[0]
        return socket.create_server((address[0], port), family=family)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"Cannot listen at {host}, port {port} ({error}): give another --host or --port."
        ) from error


def _read_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "")
    if not (key and key.isascii() and key.isprintable() and key == key.strip()):
        fault = "holds no key: its characters are strange" if key else "is not set"
        raise ConfigError(f"The environment variable {variable} {fault}: put the key there.")
    return key
