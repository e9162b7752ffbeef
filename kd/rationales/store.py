"""Replies for ever: one append-only file for each way of asking, found by the text asked about.

A reply costs money, so a line is written as soon as it is there and never changed; what a kill or
a full disk tears is one line, which is passed over from then on. This room knows neither who
answers nor what the answers are for.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from io import FileIO
from os import SEEK_END, fsync
from pathlib import Path
from types import NoneType, TracebackType
from typing import Any, Self, get_args
from unicodedata import normalize

from kd.errors import RunError
from kd.files import replacing
from kd.rationales.annotators import Question, Reply, Status

if sys.platform != "win32":
    import fcntl

__all__ = ["Store"]

_SYNC_ROWS = 64  # a power cut loses no more than these
_SYNC_SECONDS = 1.0

_STATUSES: dict[str, Status] = {status: status for status in get_args(Status)}

_KINDS: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "sample": (int,),
    "told": (str, NoneType),
    "status": (str,),
    "label": (str, NoneType),
    "rationale": (str, NoneType),
    "confidence": (float, int, NoneType),
    "confidence_source": (str, NoneType),
    "evidence": (list,),
    "reason": (str,),
    "raw": (str,),
    "prompt_tokens": (int,),
    "completion_tokens": (int,),
}


class Store:
    """Replies on disk, kept as they come; a context manager, and only one may be open on a file.

    The file is ``<key>.jsonl``, the key being the digest of the facts, which lie beside it in
    ``<key>.recipe.json``. A question is known by its text in Unicode's composed form (NFC), its
    number and the label that it tells; its last reply counts. Memory holds where a reply is, not
    the reply.

    Args:
        folder: Where the file is, or is made.
        facts: All that decides a reply but the question, as JSON has it.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        content = json.dumps(facts, sort_keys=True, allow_nan=False)
        self.key = hashlib.sha256(content.encode()).hexdigest()[:32]
        self.path = folder / f"{self.key}.jsonl"
        self.skipped = 0
        self._facts = facts
        self._places: dict[bytes, tuple[Status, int, int]] = {}  # status, offset, length
        self._torn = False
        self._unsynced = 0
        self._synced = time.monotonic()
        self._file: FileIO

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b", buffering=0)
            try:
                self._lock()
                self._load()
                recipe = self.path.with_suffix(".recipe.json")
                if not recipe.exists():
                    with replacing(recipe) as file:
                        file.write(json.dumps(self._facts, indent=2, ensure_ascii=False).encode())
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise RunError(
                f"The replies in {self.path} cannot be opened: {error.strerror}; choose a folder "
                "that can be read and written."
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._sync()
        except OSError as fault:
            raise self._unwritable(fault) from fault
        finally:
            self._file.close()

    def status(self, question: Question) -> Status | None:
        """Return what became of a question, null if it was never asked."""
        place = self._places.get(_digest(question))
        return place and place[0]

    def reply(self, question: Question) -> Reply | None:
        """Read the last reply to a question from the disk, null if it was never asked."""
        place = self._places.get(_digest(question))
        if place is None:
            return None
        _, offset, length = place
        self._file.seek(offset)
        return _parse(self._file.read(length))[1]

    def add(self, question: Question, reply: Reply) -> None:
        """Append a reply; once this returns, no kill of the program loses it.

        Args:
            question: What was asked.
            reply: What was answered; it replaces an earlier reply to the question.

        Raises:
            RunError: If the disk does not take it; all earlier ones are kept.
        """
        about = {"text": question.text, "sample": question.sample, "told": question.label}
        row = json.dumps(about | asdict(reply), ensure_ascii=False, allow_nan=False)
        line = row.encode("utf-8", "surrogatepass") + b"\n"  # models write half an emoji, too
        try:
            offset = self._file.seek(0, SEEK_END)
            line = rest = b"\n" * self._torn + line
            self._torn = True  # until all of it is written, whatever comes between
            while rest:
                rest = rest[self._file.write(rest) :]
            self._torn = False
            self._places[_digest(question)] = reply.status, offset, len(line)
            self._unsynced += 1
            if self._unsynced >= _SYNC_ROWS or time.monotonic() - self._synced >= _SYNC_SECONDS:
                self._sync()
        except OSError as error:
            raise self._unwritable(error) from error

    def _lock(self) -> None:
        if sys.platform != "win32":
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(
                    f"{self.path} is being written by another process; wait for its end or stop "
                    "it, then give the same command again."
                ) from error
            except OSError:  # a network disk without locks
                pass

    def _load(self) -> None:
        self._places.clear()
        self.skipped = offset = 0
        with self.path.open("rb") as file:
            for line in file:
                try:
                    question, reply = _parse(line)
                    self._places[_digest(question)] = reply.status, offset, len(line)
                except (KeyError, RecursionError, TypeError, ValueError):
                    self.skipped += bool(line.strip())
                offset += len(line)
                self._torn = not line.endswith(b"\n")

    def _sync(self) -> None:
        if self._unsynced:
            fsync(self._file)
        self._unsynced = 0
        self._synced = time.monotonic()

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(
            f"A reply cannot be written to {self.path}: {error.strerror}; the earlier ones are "
            "kept, so make room and give the same command again."
        )


def _digest(question: Question) -> bytes:
    identity = [normalize("NFC", question.text), question.sample, question.label]
    return hashlib.blake2b(json.dumps(identity).encode(), digest_size=16).digest()


def _parse(line: bytes) -> tuple[Question, Reply]:
    row = json.loads(line)
    strange = [name for name, kinds in _KINDS.items() if type(row[name]) not in kinds]
    if strange or not all(type(quote) is str for quote in row["evidence"]):
        raise ValueError("not a reply")
    row |= {"status": _STATUSES[row["status"]], "evidence": tuple(row["evidence"])}
    reply = Reply(**{field.name: row[field.name] for field in fields(Reply)})
    return Question(row["text"], row["sample"], row["told"]), reply
