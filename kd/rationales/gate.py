"""When a request may be sent: the provider's limits, kept by all requests together.

This room knows response headers and the clock of the event loop; it sends nothing.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType

from kd.console import in_words
from kd.errors import PauseError

__all__ = ["Gate", "read_duration"]

_FIRST_BACKOFF = 0.5  # seconds, doubled by each rejection that follows
_LONGEST_BACKOFF = 60.0

_UNITS = {"h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(h|ms|m|s|[uµμ]s|ns)")
_PARTS = re.compile(f"(?:{_PART.pattern})+")

_ROUND: ContextVar[int] = ContextVar("round")  # in which a task's request was let through


class Gate:
    """Where requests wait until the provider has room for them; made inside its event loop.

    It keeps one instant before which none starts, and how many may be under way: half as many
    after a rejection, one more after as many successes as there may be. Requests that were
    under way together and are rejected together count as one rejection. Each request goes
    through ``async with gate:``, in the order of their coming, and its task then tells what
    became of it by `accept` or `reject`.

    Args:
        most: Requests under way at once, at least 1.
        max_wait: Seconds that the provider may let us wait; beyond it the work pauses.
    """

    def __init__(self, most: int, max_wait: float) -> None:
        self.most = most
        self.max_wait = max_wait
        self._loop = asyncio.get_running_loop()
        self._opens = 0.0
        self._limit = float(most)
        self._under_way = 0
        self._round = 0  # ends with a rejection
        self._rejections = 0  # since the last success
        self._turn = asyncio.Lock()
        self._left = asyncio.Event()

    @property
    def waiting(self) -> float:
        """Seconds until the gate opens, 0 if it is open."""
        return max(0.0, self._opens - self._loop.time())

    async def __aenter__(self) -> None:
        async with self._turn:
            while (wait := self.waiting) or self._under_way >= int(self._limit):
                if wait > self.max_wait:
                    raise self._pause(wait)
                if wait:
                    await asyncio.sleep(wait)
                else:
                    self._left.clear()
                    await self._left.wait()
            self._under_way += 1
            _ROUND.set(self._round)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._under_way -= 1
        self._left.set()

    def accept(self, headers: Mapping[str, str]) -> None:
        """Take note of a success; where it used up what may be used, the gate closes until then.

        A reset beyond `max_wait` is left to the next rejection to tell: providers count it to the
        moment when all may be used again, and some of it may be much earlier.

        Args:
            headers: Of the response, with names in lower case or of any case.
        """
        if self._is_of_this_round():
            self._rejections = 0
            self._limit = min(self.most, self._limit + 1 / self._limit)
        wait = _reset(headers, untold="?")
        if wait <= self.max_wait:
            self._close(wait)

    def reject(self, headers: Mapping[str, str]) -> None:
        """Close the gate after a response of 429 or 503.

        Args:
            headers: Of the response, with names in lower case or of any case.

        Raises:
            PauseError: If the provider wants us to wait for longer than `max_wait`.
        """
        if self._is_of_this_round():
            self._round += 1
            self._rejections += 1
            self._limit = max(1.0, self._limit / 2)
        wait = read_duration(headers.get("retry-after")) or _reset(headers, untold="0")
        self._close(wait or self._backoff())
        if wait > self.max_wait:
            raise self._pause(wait)

    def _is_of_this_round(self) -> bool:
        return _ROUND.get(self._round) == self._round

    def _close(self, seconds: float) -> None:
        self._opens = max(self._opens, self._loop.time() + seconds)

    def _backoff(self) -> float:
        longest = min(_LONGEST_BACKOFF, self.max_wait)
        doublings = min(self._rejections - 1, 16)
        return min(longest, _FIRST_BACKOFF * 2.0**doublings) * random.uniform(0.5, 1.0)

    def _pause(self, wait: float) -> PauseError:
        return PauseError(
            f"The provider wants us to wait for {in_words(wait)}, longer than max_wait_seconds "
            f"({in_words(self.max_wait)}); the same command continues."
        )


def read_duration(text: str | None) -> float | None:
    """Read how long to wait from a header.

    Args:
        text: Seconds (``1.5``), a duration as Go writes it (``2m59.56s``), or a date of HTTP.

    Returns:
        Seconds, 0 for a date that has passed; null if it is none of these.
    """
    text = (text or "").strip()
    go = text if text[-1:].isalpha() else f"{text}s"
    if _PARTS.fullmatch(go):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(go))
        return seconds if math.isfinite(seconds) else None
    try:
        date = parsedate_to_datetime(text)
    except (IndexError, OverflowError, TypeError, ValueError):
        return None
    if date.tzinfo is None:  # an old form without a zone is in UTC as well
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _reset(headers: Mapping[str, str], untold: str) -> float:
    """Return after how many seconds there is again of what is used up, 0 where nothing is."""
    waits = [
        read_duration(headers.get(f"x-ratelimit-reset-{what}")) or 0.0
        for what in ("requests", "tokens")  # on Groq of a day and of a minute
        if headers.get(f"x-ratelimit-remaining-{what}", untold) == "0"
    ]
    return max(waits, default=0.0)
