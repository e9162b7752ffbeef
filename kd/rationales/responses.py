"""What a response of a server means: an answer, a failure that may pass, or one that will not.

Servers say things in many ways, and some repeat the key that they were sent: nothing leaves here
with it. This room knows no network, no option and no model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kd.rationales.annotators import Question, Reply, Status
from kd.rationales.replies import read_reply

__all__ = ["Response", "ResponseReader"]

_LONGEST_DETAIL = 300  # characters of what a server said
_PASSING = {408, 409, 425, 429, 498}  # of 400 to 499, where another try may help
_TOO_LONG = re.compile(r"context.?(length|size|window)", re.I)  # OpenAI and vLLM, llama.cpp, others
_FILTERED = re.compile(r"content.?(filter|policy)", re.I)
_SLIPPED = "json_validate_failed"  # Groq: the model broke out of the JSON that it was held to
_THOUGHTS = ("reasoning_content", "reasoning")


@dataclass(frozen=True, slots=True)
class Response:
    """What came back, as it came, so that it may hold the key.

    Args:
        status: Of HTTP, 0 if nothing came back.
        text: The body, or why there is none.
        headers: With names in any case.
        is_away: Whether the server could not even be reached.
    """

    status: int
    text: str
    headers: Mapping[str, str] = field(default_factory=dict)
    is_away: bool = False


class ResponseReader:
    """Make replies of responses.

    Args:
        labels: Class names.
        key: What is to appear nowhere.
    """

    def __init__(self, labels: Sequence[str], key: str | None) -> None:
        self._labels = labels
        self._key = key

    def read(self, response: Response, question: Question) -> Reply | None:
        """Return what a response says about a question.

        Args:
            response: Any at all.
            question: What was asked.

        Returns:
            An answer or a failure; null if every other question will fail like this one.
        """
        if response.status == 200:
            return self._answer(response.text, question)
        status = _failure(response)
        if status is None:
            return None
        said = f"The server answered {response.status}" if response.status else "No answer came"
        return Reply(status, reason=f"{said}: {self.detail(response)}.")

    def detail(self, response: Response) -> str:
        """Return what a server said of a fault, on one line and without a dot."""
        text = response.text
        match _loaded(text):
            case {"error": {"message": str(text)}} | {"error": str(text)} | {"detail": str(text)}:
                pass
            case dict() | list() as body:  # without escapes, which would hide the key
                text = json.dumps(body, ensure_ascii=False)
        return " ".join(self._clean(text).split())[:_LONGEST_DETAIL].rstrip(".")

    def _answer(self, text: str, question: Question) -> Reply:
        body = _loaded(text)
        match body:
            case {"choices": [{"message": {**message}, **choice}, *_]}:
                said = {name: self._clean(value) for name, value in message.items() if value}
            case {}:
                detail = self.detail(Response(200, text))
                return Reply("empty", reason=f"The server sent no choices: {detail}.")
            case _:
                detail = self.detail(Response(200, text))
                return Reply("http_error", reason=f"The server sent no JSON object: {detail}.")
        why = choice.get("finish_reason")
        reply = read_reply(
            said.get("content"),
            question,
            self._labels,
            finish_reason=why if isinstance(why, str) else None,
            refusal=said.get("refusal"),
        )
        thoughts = next((said[name] for name in _THOUGHTS if name in said), None)
        return replace(
            reply,
            raw=f"<think>{thoughts}</think>\n{reply.raw}" if thoughts else reply.raw,
            prompt_tokens=_count(body, "prompt_tokens"),
            completion_tokens=_count(body, "completion_tokens"),
        )

    def _clean(self, text: Any) -> str:
        """Return a text that UTF-8 can write, without the key."""
        clean = str(text).encode(errors="replace").decode()
        return clean.replace(self._key, "[key]") if self._key else clean


def _failure(response: Response) -> Status | None:
    """Return what a status other than 200 means, null if it means the same for all texts."""
    status, text = response.status, response.text
    if status == 413 or (status == 400 and _TOO_LONG.search(text)):
        return "too_long"
    if status == 400 and _FILTERED.search(text):
        return "refused"
    if status in _PASSING or (status == 400 and _SLIPPED in text) or not 400 <= status < 500:
        return "http_error"
    return None


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _count(body: Mapping[str, Any], name: str) -> int:
    """Return the tokens that a server reports, 0 if it does not."""
    usage = body.get("usage")
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) else 0
