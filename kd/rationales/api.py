"""A language model behind HTTP: asks many questions at once, and outlives what servers do.

The key of a provider is read here, from the environment, and goes nowhere but into the client and
to what clears every response of it; no exception of the client gets out. This room knows no store
and no data set.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kd.console import print_line
from kd.errors import ConfigError, PauseError
from kd.rationales.annotators import Annotator, Question, Reply, Take, check_numbers
from kd.rationales.gate import Gate
from kd.rationales.prompts import Prompt, reply_schema
from kd.rationales.providers import PROVIDERS, ProviderName, Structured, response_format
from kd.rationales.responses import Response, ResponseReader

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["APIAnnotator"]

_VERSION = 1  # of how questions are sent: another number asks every text anew
_USUAL_ANSWER = 120  # tokens of two sentences, their quotes and a label, as JSON
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 8.0  # seconds between two tries
_NO_CREDIT = "insufficient_quota"


class APIAnnotator(Annotator):
    """A model behind an API that speaks the protocol of OpenAI.

    Args:
        model: Its name there.
        provider: Whose API it is; custom is any other, at ``base_url``.
        base_url: Where it answers, up to and with ``/v1``; null is the provider's own place, or on
            this machine the usual port.
        api_key_env: Name of the environment variable that holds the key; null is the provider's,
            such as GROQ_API_KEY; servers on your own machine need none.
        prompt: How it is asked; null asks in kd's own words.
        temperature: 0 takes the likeliest words; null leaves it to the server, as some models want.
        max_tokens: Most tokens of an answer, thoughts included; asked for twice as many, once,
            where an answer does not end.
        samples: Answers per text, each with a seed of its own; more than one needs a temperature.
        seed: Sent with each question; null sends none.
        structured: How the server is told to write JSON; null is what the provider is known to do.
        extra_body: More fields of each request, such as reasoning_effort, as the server knows them.
        concurrency: Most requests under way at once; fewer, where the provider rejects them.
        timeout_seconds: How long the server may be silent.
        retries: Tries after a failure that may pass; a rejection by a rate limit is none.
        max_wait_seconds: How long the provider may make us wait; beyond it the work pauses.
        input_price: US dollars per million tokens read.
        output_price: US dollars per million tokens written.
        tokens_per_minute: What the provider allows, to foresee the time.

    Raises:
        ConfigError: If a value is out of range, or several samples would all be the same.
    """

    def __init__(
        self,
        model: str,
        provider: ProviderName = "openai",
        base_url: str | None = None,
        api_key_env: str | None = None,
        prompt: Prompt | None = None,
        temperature: float | None = 0.0,
        max_tokens: int = 512,
        samples: int = 1,
        seed: int | None = 0,
        structured: Structured | None = None,
        extra_body: dict[str, Any] | None = None,
        concurrency: int = 16,
        timeout_seconds: float = 60.0,
        retries: int = 4,
        max_wait_seconds: float = 900.0,
        input_price: float | None = None,
        output_price: float | None = None,
        tokens_per_minute: int | None = None,
    ) -> None:
        numbers = {"max_tokens": (max_tokens, 1), "samples": (samples, 1)}
        numbers |= {"concurrency": (concurrency, 1), "retries": (retries, 0)}
        check_numbers("APIAnnotator", {**numbers, "temperature": (temperature, 0)})
        if provider not in PROVIDERS:
            raise ConfigError(
                f"APIAnnotator.provider is {provider!r}: give one of {', '.join(PROVIDERS)}."
            )
        place = PROVIDERS[provider]
        self.model = model
        self.provider = provider
        self.base_url = _checked(base_url or place.base_url)
        self.api_key_env = api_key_env or place.api_key_env
        self.prompt = prompt or Prompt()
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.max_tokens_field = place.max_tokens_field
        self.samples = samples
        self.seed = seed
        self.structured = structured or place.structured_for(model)
        self.extra_body = extra_body or {}
        self.concurrency = concurrency
        self.timeout_seconds = timeout_seconds
        self.retries = retries
        self.max_wait_seconds = max_wait_seconds
        self.input_price = input_price
        self.output_price = output_price
        self.tokens_per_minute = tokens_per_minute
        self._gate: Gate | None = None

    @property
    def tells_labels(self) -> bool:
        """Whether the prompt says which label is to be explained."""
        return self.prompt.source == "rationalised"

    @property
    def waiting(self) -> float:  # type: ignore[override]
        """For how many seconds the provider wants no question."""
        return self._gate.waiting if self._gate else 0.0

    def facts(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return the model, its provider, the prompt and the options; where it answers is none."""
        return {
            "annotator": type(self).__name__,
            "version": _VERSION,
            "provider": self.provider,
            "model": self.model,
            "prompt": self.prompt.facts(labels),
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "structured": self.structured,
            "extra_body": self.extra_body,
        }

    def tokens(self, question: Question, labels: Sequence[str]) -> tuple[int, int]:
        """Return an estimate: four characters are a token, and an answer is 120 of them.

        A model that thinks before it answers writes several times as many.
        """
        messages = self.prompt.messages(question, labels)
        characters = sum(len(message["content"]) for message in messages)
        return -(-characters // 4), min(self.max_tokens, _USUAL_ANSWER)

    def answer(self, questions: Iterable[Question], labels: Sequence[str], take: Take) -> None:
        """Answer all questions; the first goes alone, so that a wrong key costs one request.

        Args:
            questions: Taken one by one, as a request becomes free.
            labels: Class names.
            take: Receives each question with its reply; what it raises stops all requests.

        Raises:
            ConfigError: If the key, the model or an option is wrong, or nothing answers at the URL.
            PauseError: If the provider's limits, or the network, let us go on only later.
        """
        asyncio.run(self._answer(iter(questions), labels, take))

    async def _answer(
        self, questions: Iterator[Question], labels: Sequence[str], take: Take
    ) -> None:
        key = self._read_key()
        self._gate = Gate(self.concurrency, self.max_wait_seconds)
        async with self._connect(key) as client:
            session = _Session(self, labels, client, ResponseReader(labels, key), self._gate)
            for question in islice(questions, 1):
                take(question, await session.ask(question))

            is_paused = False

            async def work() -> None:
                nonlocal is_paused
                try:
                    for question in questions:
                        if is_paused:
                            return
                        take(question, await session.ask(question))
                except PauseError:  # what is in flight is paid for, and taken
                    is_paused = True
                    raise
                except BaseException:  # at once: an answer that is here already is not taken
                    for task in tasks:
                        task.cancel()
                    raise

            tasks = [asyncio.create_task(work()) for _ in range(self.concurrency)]
            try:
                await asyncio.gather(*tasks)
            finally:
                await asyncio.wait(tasks)

    def _read_key(self) -> str | None:
        """Return the key, which is kept in no attribute: those are printed, pickled and logged."""
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not (key and key.isascii() and key.isprintable()):
            fault = "holds no key: its characters are strange" if key else "is not set"
            raise ConfigError(
                f"The environment variable {self.api_key_env} {fault}: put the key of "
                f"{self.provider} there, or name another in APIAnnotator.api_key_env."
            )
        url = urlsplit(self.base_url)
        if url.scheme == "http" and not _is_here(url.hostname or ""):
            print_line(f"warning: the key in {self.api_key_env} is sent in clear: {self.base_url}")
        return key

    def _connect(self, key: str | None) -> AsyncOpenAI:
        try:
            import httpx2  # noqa: F401 - what openai sends by
            from openai import AsyncOpenAI
        except ImportError as error:
            raise ConfigError(
                "APIAnnotator needs the package openai: pip install openai."
            ) from error
        return AsyncOpenAI(
            api_key=key or "none",
            base_url=self.base_url,
            max_retries=0,  # the gate is shared by all requests, the client's waits are not
            timeout=self.timeout_seconds,
        )


class _Session:
    """All requests of one call: asks again where that may help, and keeps within the limits."""

    def __init__(
        self,
        annotator: APIAnnotator,
        labels: Sequence[str],
        client: AsyncOpenAI,
        reader: ResponseReader,
        gate: Gate,
    ) -> None:
        self.annotator, self.labels = annotator, labels
        self.client, self.reader, self.gate = client, reader, gate
        self._has_answered = False
        self._fields = {
            "model": annotator.model,
            annotator.max_tokens_field: annotator.max_tokens,
            **response_format(annotator.structured, reply_schema(labels)),
            **annotator.extra_body,
        }
        if annotator.temperature is not None:
            self._fields["temperature"] = annotator.temperature

    async def ask(self, question: Question) -> Reply:
        """Return the reply to a question, after as many requests as it takes."""
        body = self._body(question)
        cut: Reply | None = None  # by the limit of tokens
        tries = read = written = 0
        while True:
            async with self.gate:
                response = await self._post(body)
                if response.status == 429:
                    self._reject(response)
                    continue
                if response.status == 503 and "retry-after" in response.headers:
                    self.gate.reject(response.headers)
                if response.status == 200:
                    self.gate.accept(response.headers)
            reply = self.reader.read(response, question)
            if cut and 400 <= response.status < 500:  # so many tokens may not be asked for
                return cut
            if reply is None:
                raise self._hopeless(response)
            read, written = read + reply.prompt_tokens, written + reply.completion_tokens
            reply = replace(reply, prompt_tokens=read, completion_tokens=written)
            if reply.status == "truncated" and cut is None:
                cut = reply
                body[self.annotator.max_tokens_field] *= 2
            elif reply.status in ("empty", "http_error") and tries < self.annotator.retries:
                wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2**tries)
                tries += 1
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))
            elif response.is_away:
                raise self._away(response)
            else:
                return reply

    def _body(self, question: Question) -> dict[str, Any]:
        messages = self.annotator.prompt.messages(question, self.labels)
        body = {**self._fields, "messages": messages}
        if self.annotator.seed is not None:
            body["seed"] = self.annotator.seed + question.sample
        return body

    async def _post(self, body: dict[str, Any]) -> Response:
        """Send a request; all that goes wrong is a response, for exceptions may hold the key."""
        import httpx2
        from openai import APIConnectionError, APIStatusError

        try:
            found = await self.client.post("/chat/completions", cast_to=httpx2.Response, body=body)
        except APIStatusError as error:
            found = error.response
        except APIConnectionError as error:
            cause = error.__cause__
            is_away = isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout)
            return Response(0, f"{type(cause).__name__}: {cause}", is_away=is_away)
        self._has_answered = True
        return Response(found.status_code, found.text, found.headers)

    def _reject(self, response: Response) -> None:
        """Close the gate for a while, or stop where waiting does not help."""
        if _NO_CREDIT in response.text:
            raise PauseError(
                f"The account has no credit left ({self.reader.detail(response)}): add some, and "
                "the same command continues."
            )
        self.gate.reject(response.headers)

    def _hopeless(self, response: Response) -> ConfigError:
        """Return the error for what no question will get past."""
        annotator, status = self.annotator, response.status
        if status == 404:
            advice = f"check APIAnnotator.model={annotator.model} and base_url={annotator.base_url}"
        elif status not in (401, 403):
            advice = "change the option that it names, in APIAnnotator or its extra_body"
        elif annotator.api_key_env:
            advice = f"check the key in the environment variable {annotator.api_key_env}"
        else:
            advice = "name the environment variable of its key in APIAnnotator.api_key_env"
        detail = self.reader.detail(response)
        return ConfigError(f"The server answered {status}: {detail}; {advice}.")

    def _away(self, response: Response) -> ConfigError | PauseError:
        """Return the error for a server that is not there."""
        url, detail = self.annotator.base_url, self.reader.detail(response)
        if self._has_answered:
            return PauseError(f"{url} is out of reach ({detail}); the same command continues.")
        return ConfigError(
            f"Nothing answers at APIAnnotator.base_url={url} ({detail}): start the server, or say "
            "where it is."
        )


def _checked(url: str | None) -> str:
    """Return a URL that can be used and holds no secret."""
    if url is None:
        raise ConfigError("APIAnnotator.base_url is null: say where the provider custom answers.")
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good:
        raise ConfigError(
            "APIAnnotator.base_url is no address: write it like https://api.example.org/v1."
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            "APIAnnotator.base_url holds a user, a password or a query: put the key into an "
            "environment variable, and its name into api_key_env."
        )
    return url.rstrip("/")


def _is_here(host: str) -> bool:
    """Return whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
