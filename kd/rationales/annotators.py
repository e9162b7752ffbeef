"""Who explains labels: the contract between the `annotate` command and what answers it.

An annotator takes questions and gives each a :class:`Reply`, whatever happens. This room knows no
store, no network and no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kd.errors import ConfigError

__all__ = ["Annotator", "Question", "Reply", "Status", "Take", "check_numbers"]

Status = Literal[
    "ok",
    "refused",
    "truncated",
    "empty",
    "unparseable",
    "invalid_label",
    "too_long",
    "http_error",
]
"""What became of a question; only ``ok`` has a label."""


@dataclass(frozen=True, slots=True)
class Question:
    """One text that is to be explained.

    Args:
        text: The text.
        sample: Number of the answer to this text, from 0, where several are asked for.
        label: Its class name, if the annotator may be told; null leaves it to find out.
    """

    text: str
    sample: int = 0
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What was answered to a question.

    Args:
        status: Whether it can be used, and else why not.
        label: Class name, exactly as the data has it; null unless ``ok``.
        rationale: The explanation, as it came; null unless ``ok``.
        confidence: From 0 to 1, or null where nothing was said.
        confidence_source: Where it comes from: ``verbalised`` by the model, ``decision`` by its
            probabilities of the class names, ``vote`` of several answers.
        evidence: Quotes that are in the text, character by character.
        reason: Why it is not ``ok``, in one sentence.
        raw: The whole answer, with thoughts, for whoever looks into it.
        prompt_tokens: Tokens that were read, as billed.
        completion_tokens: Tokens that were written, thoughts included.
    """

    status: Status
    label: str | None = None
    rationale: str | None = None
    confidence: float | None = None
    confidence_source: str | None = None
    evidence: tuple[str, ...] = ()
    reason: str = ""
    raw: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


Take = Callable[[Question, Reply], None]
"""Receives each reply as it comes; what it raises stops the annotator."""


class Annotator:
    """Who answers questions about texts; subclasses implement `facts`, `answer` and `tokens`.

    The attribute ``samples`` is how many answers a text gets, ``input_price`` and
    ``output_price`` are US dollars per million tokens, null if unknown, and
    ``tokens_per_minute`` is what a provider allows, null if unknown. ``waiting`` is for how many
    seconds no question may be sent.
    """

    samples: int = 1
    input_price: float | None = None
    output_price: float | None = None
    tokens_per_minute: int | None = None
    waiting: float = 0.0

    @property
    def tells_labels(self) -> bool:
        """Whether questions say which label is to be explained."""
        return False

    def facts(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return all that decides an answer but the text, as plain values without a secret.

        Two annotators with equal facts share their answers; how fast one asks is no fact.

        Args:
            labels: Class names.

        Returns:
            What goes into the key of the store, and beside it for a reader.
        """
        raise TypeError(f"{type(self).__name__} does not implement facts.")

    def tokens(self, question: Question, labels: Sequence[str]) -> tuple[int, int]:
        """Return about how many tokens a question and its answer have, without asking anyone."""
        raise TypeError(f"{type(self).__name__} does not implement tokens.")

    def answer(self, questions: Iterable[Question], labels: Sequence[str], take: Take) -> None:
        """Answer all questions, in any order, and hand over each reply as soon as it is there.

        Args:
            questions: Taken one by one, as they can be worked on.
            labels: Class names.
            take: Receives each question with its reply, always in the thread of the caller.

        Raises:
            ConfigError: If no question can ever be answered: a wrong key, model or option.
            PauseError: If it is better to go on later.
        """
        raise TypeError(f"{type(self).__name__} does not implement answer.")


def check_numbers(where: str, numbers: Mapping[str, tuple[float | None, float]]) -> None:
    """Refuse options that are too small, and several samples where all would be the same.

    Args:
        where: Name of the annotator, for the message.
        numbers: Options by name, ``samples`` and ``temperature`` among them, each with its least
            value; null is the server's own.

    Raises:
        ConfigError: If one is too small, or ``samples`` is above 1 at temperature 0.
    """
    for name, (value, least) in numbers.items():
        if value is not None and value < least:
            raise ConfigError(f"{where}.{name} is {value}: give at least {least}.")
    samples = numbers["samples"][0]
    if samples != 1 and numbers["temperature"][0] == 0:
        raise ConfigError(
            f"{where}.samples is {samples}, but at temperature 0 all answers to a text are the "
            "same: give a temperature such as 0.7, or one sample."
        )
