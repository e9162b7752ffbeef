"""What a language model answered: a label and its reasons, or why there is none.

Whatever a server sends becomes a :class:`~kd.rationales.annotators.Reply`; nothing is guessed: a
label that is none of the classes is a failure, never a default. This room knows no model, no
network and no store.
"""

from __future__ import annotations

import json
import re
import reprlib
import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from kd.rationales.annotators import Question, Reply, Status

__all__ = ["objects", "read_reply", "vote", "without_thoughts"]

_DECODER = json.JSONDecoder(strict=False)  # constrained decoding leaves raw line breaks in strings
_OBJECT = re.compile(r'\{(?=\s*["}])')
_THOUGHTS = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.I | re.S)
_UNSAFE = re.compile("[\ud800-\udfff\x00]")
_EDGES = string.whitespace + string.punctuation + "“”‘’«»…。！"


def read_reply(
    content: str | None,
    question: Question,
    labels: Sequence[str],
    finish_reason: str | None = None,
    refusal: str | None = None,
) -> Reply:
    """Read what a model wrote; nothing that it can write raises.

    Args:
        content: Its message: one JSON object, perhaps among thoughts and other words.
        question: What it was asked.
        labels: Class names.
        finish_reason: Why it stopped, such as ``length`` or ``content_filter``.
        refusal: What it said instead, where a server tells refusals apart.

    Returns:
        The label and its reasons, or the status that says why there are none.
    """
    raw = _repaired("" if content is None else str(content))

    def failed(status: Status, reason: str) -> Reply:
        return Reply(status, reason=_repaired(reason), raw=raw)

    if refusal:
        return failed("refused", f"The model refused: {str(refusal)[:200]!r}.")
    if finish_reason == "content_filter":
        return failed("refused", "The provider's content filter stopped the answer.")
    was_cut = finish_reason == "length"
    spoken = without_thoughts(raw)
    if not spoken.strip():
        if was_cut or _is_open(raw):
            return failed("truncated", "The answer ended before anything but thoughts was said.")
        return failed("empty", "The answer is blank.")
    found = next((one for one in objects(spoken) if one.get("label") is not None), None)
    if found is None:
        if was_cut:
            return failed("truncated", "The answer ended before its JSON object did.")
        return failed("unparseable", "The answer has no JSON object with a label.")
    label = _matched(found["label"], labels)
    if label is None:
        said = reprlib.repr(found["label"])  # whatever its size and depth
        return failed("invalid_label", f"The label {said} is none of the classes.")
    rationale = found.get("rationale")
    if not isinstance(rationale, str) or not rationale.strip():
        return failed("unparseable", "The answer has no rationale.")
    confidence = _share(found.get("confidence"))
    return Reply(
        "ok",
        label=label,
        rationale=_repaired(rationale.strip()),
        confidence=confidence,
        confidence_source=None if confidence is None else "verbalised",
        evidence=_quoted(found.get("evidence"), question.text),
        raw=raw,
    )


def vote(replies: Sequence[Reply]) -> Reply:
    """Make one reply of several to the same text.

    Args:
        replies: At least one, in the order of ``Question.sample``.

    Returns:
        The first of those that name the commonest label, the earliest label in a tie; its
        confidence is the share of usable replies that agree, its tokens are those of all. The first
        reply, if none can be used.
    """
    usable = [reply for reply in replies if reply.status == "ok"]
    chosen = replies[0]
    if len(replies) > 1 and usable:
        (label, count), *_ = Counter(reply.label for reply in usable).most_common(1)
        first = next(reply for reply in usable if reply.label == label)
        chosen = replace(first, confidence=count / len(usable), confidence_source="vote")
    return replace(
        chosen,
        prompt_tokens=sum(reply.prompt_tokens for reply in replies),
        completion_tokens=sum(reply.completion_tokens for reply in replies),
    )


def without_thoughts(text: str) -> str:
    """Return what is said outside of ``<think>`` tags; one that is not closed hides all after it.

    An answer that begins with its JSON object is left alone: what looks like a tag is a quote.
    """
    if text.lstrip().startswith(("{", "```")):
        return text
    # some chat templates open the tag in the prompt, so that only its end is in the answer
    return re.split("</think(?:ing)?>", _THOUGHTS.sub(" ", text), flags=re.I)[-1]


def objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield every JSON object in a text, outer ones before those in them."""
    for start in _OBJECT.finditer(text):
        try:
            found, _ = _DECODER.raw_decode(text, start.start())
        except ValueError:
            continue
        except RecursionError:  # garbage, and trying each of its braces would take long
            return
        yield found


def _is_open(raw: str) -> bool:
    return bool(raw.strip()) and not re.search("</think(?:ing)?>", raw, re.I)


def _matched(said: Any, labels: Sequence[str]) -> str | None:
    """Return the one class that is meant: as spelt, in any case, or but for quotes around it."""
    views: tuple[Callable[[str], str], ...] = (
        str,
        lambda name: name.strip().casefold(),
        lambda name: name.casefold().strip(_EDGES),
    )
    if isinstance(said, str | int | float):
        for view in views:
            wanted = view(str(said))
            found = [label for label in labels if view(label) == wanted]
            if wanted and len(found) == 1:
                return found[0]
    return None


def _share(value: Any) -> float | None:
    """Return a number from 0 to 1, also from its spelling; null for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    with suppress(ValueError, OverflowError):
        number = float(value)
        return number if 0 <= number <= 1 else None
    return None


def _quoted(evidence: Any, text: str) -> tuple[str, ...]:
    """Return the quotes that stand in the text, each once."""
    quotes = evidence if isinstance(evidence, list) else [evidence]
    spoken = [_repaired(quote.strip()) for quote in quotes if isinstance(quote, str)]
    return tuple(dict.fromkeys(quote for quote in spoken if quote and quote in text))


def _repaired(text: str) -> str:
    """Return a text that UTF-8 can write: halves of characters and NUL become U+FFFD."""
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text)
