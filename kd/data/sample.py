"""The built-in corpus: tweets of three classes, drawn from a small grammar and a seed.

Nothing is downloaded and nothing was copied: each text is put together here, from the rules below
and the words of `lexicon`, so that a quickstart can train a teacher and a student offline. Single
words say little: negations, contrasts, sarcasm, other people's opinions and comparisons turn them
round, so a bag of words stays under 85% where a small transformer passes 93%. This room knows no
file, no model and no tokenizer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import TypeVar

from kd.data.lexicon import SIDED_WORDS, TOPICS, WORDS, Topic
from kd.errors import DataError

__all__ = ["LABELS", "SPLITS", "TRAIN_NOISE", "derive", "generate"]

LABELS: tuple[str, ...] = ("negative", "neutral", "positive")
"""Class names, in the order of the classes."""

SPLITS: Mapping[str, int] = MappingProxyType(
    {"teacher": 20_000, "train": 600, "unlabelled": 8_000, "validation": 1_000, "test": 1_000}
)
"""Rows per split; no text occurs twice, in one split or in two."""

TRAIN_NOISE = 0.1
"""Share of the rows of `train` with a wrong label, as distant supervision has it; others: none."""

_RULES: Mapping[str, tuple[str, ...]] = {
    # Statements of one side: the author is pleased or not. `{!x}` is an `x` of the other side.
    "described": (
        "{determiner} {noun} {copula} {adjective}",
        "{determiner} {noun} {copula} {degree} {adjective}",
        "{determiner} {noun} {copula} {predicate}",
    ),
    "verdict": (
        "{described}",
        "{described}",
        "{described}",
        "I {verb} {thing}",
        "I {attitude} {thing}",
        "what a {adjective} {noun}",
        "such a {adjective} {noun}",
    ),
    "plain": ("{verdict}", "{verdict}", "{event}"),
    "negated": (
        "{thing} {is_not} {!adjective}",
        "{thing} {is_not} {scope} {!adjective}",
        "{thing} {is_not} {!adjective} at all",
        "I don't find {thing} {!adjective}",
        "I don't find {thing} {scope} {!adjective}",
        "nobody can call {thing} {!adjective}",
        "there is nothing {!adjective} about {thing}",
        "I {do_not} {!verb} {thing}",
        "I {do_not} {!verb} {thing}",
        "{thing} is anything but {!adjective}",
        "{thing} is far from {!adjective}",
    ),
    "undenied": (  # negations that deny nothing
        "can't believe how {adjective} {thing} is",
        "why does nobody mention how {adjective} {thing} is",
        "not only is {thing} {adjective}, it's also {adjective}",
        "not gonna lie, {plain}",
        "no doubt about it, {plain}",
        "don't care what anyone says, {plain}",
        "never seen a {noun} this {adjective}",
    ),
    "clause": ("{plain}",) * 7 + ("{negated}",),
    "contrast": (  # the later or the main clause decides
        "{!clause} but {clause}",
        "{!clause}, but {clause}",
        "{!clause}, but {clause}",
        "{!clause}, yet {clause}",
        "{!clause}. still, {clause}",
        "granted, {!clause}. but {clause}",
        "yes, {!clause}. {clause} though",
        "although {!clause}, {clause}",
        "even though {!clause}, {clause}",
        "{clause} although {!clause}",
        "{clause}, even though {!clause}",
        "{clause} despite the fact that {!described}",
    ),
    "sarcastic": (
        "{!verdict} /s",
        "{!verdict} /s",
        "{!verdict} #sarcasm",
        "{!verdict} #not",
        "{!verdict}, said nobody ever",
        "{!verdict}... just kidding",
        "yeah right, {!verdict}",
        "oh sure, {!verdict}. yeah right",
    ),
    "wished": (  # of the negative side only
        "I wish {thing} was {!adjective}",
        "if only {thing} were {!adjective}",
        "{thing} could have been {!adjective}",
        "{thing} was supposed to be {!adjective}",
        "remember when {thing} was {!adjective}? me too",
        "{thing} isn't {!adjective} enough",
    ),
    "unexpected": (
        "{thing} used to be {!adjective}, not any more",
        "expected {thing} to be {!adjective}. it wasn't",
        "thought {thing} would be {!adjective}, turns out it's {adjective}",
        "they said {thing} would be {!adjective}. well, it's not",
        "{thing} was {!adjective} last year, now it's {adjective}",
        "{thing} was {adjective} today, it was {!adjective} before",
    ),
    "compared": (  # which of the two wins is a matter of order
        "{winner} {much} better than {loser}",
        "{loser} {much} worse than {winner}",
        "{winner} beats {loser} {tail}",
        "I'd take {winner} over {loser} {tail}",
        "I prefer {winner} to {loser}",
        "{loser} can't compete with {winner}",
        "{winner} {much} better than {loser}. {plain}",
    ),
    "heard": (
        "{person} {says} {described}. {agrees}",
        "{person} {says} {described}, {agrees}",
        "{person} {says} {!described}. {differs}",
        "{person} {says} {!described}, {differs}",
    ),
    "feeling": (
        "I am {degree} {mood} {time}",
        "I'm {degree} {mood} {time}",
        "I feel {degree} {mood} {time}",
        "feeling {degree} {mood} {time}",
        "feeling {mood} and {mood} {time}",
        "not feeling {!mood} {time}",
        "I am not {!mood} at all {time}",
        "haven't been this {mood} in {number} weeks",
        "never been so {mood} {time}",
        "I was {!mood} all week but I am {degree} {mood} {time}",
        "{degree} {mood} {time} because {event}",
        "{event} and now I am {degree} {mood}",
    ),
    # Statements without a side; the words in them are of both.
    "fact": (
        "{plain_fact}",
        "just so you know: {plain_fact}",
        "reminder: {plain_fact}",
        "{plain_fact}, says the website",
    ),
    "asked": (
        "is {thing} {adjective}?",
        "is {thing} {adjective} or {!adjective}?",
        "anyone know if {thing} is {adjective}?",
        "how {adjective} is {thing} really?",
        "would you call {thing} {adjective}?",
        "who here thinks {thing} is {degree} {adjective}?",
        "what is your verdict on {thing}: {adjective} or {!adjective}?",
        "{plain_fact}. is {thing} {adjective}?",
    ),
    "hearsay": (
        "{person} {says} {described}. {unsure}",
        "{person} {says} {described}, {unsure}",
        "if {described} I will tell you on {day}",
        "let me know if {described}",
    ),
    "middling": (
        "{thing} is {okay}",
        "{thing} isn't {adjective} and isn't {!adjective} either",
        "{thing} is neither {adjective} nor {!adjective}, it's {okay}",
        "not {adjective}, not {!adjective}: {thing} is {okay}",
        "would not call {thing} {adjective} or {!adjective}",
        "{thing} was {okay}, {plain_fact}",
        "feeling neither {mood} nor {!mood} {time}",
        "not {mood}, not {!mood}, just {okay_mood} {time}",
    ),
    "mixed": (
        "on the one hand {clause}, on the other hand {!clause}",
        "{clause} and {!clause}, so it's a draw",
        "{clause} and {!clause}. can't decide",
        "plus: {clause}. minus: {!clause}. you decide",
        "{clause}, {!clause}. mixed feelings",
        "{clause}, {!clause}. I am torn",
    ),
    "thing": ("{determiner} {noun}",),
}
"""What each symbol may become: a template, whose symbols are replaced in turn."""

_SHARES: tuple[Mapping[str, int], ...] = (
    {
        "plain": 34,
        "feeling": 12,
        "negated": 10,
        "undenied": 2,
        "contrast": 22,
        "sarcastic": 7,
        "wished": 2,
        "unexpected": 3,
        "compared": 3,
        "heard": 6,
    },
    {"fact": 20, "asked": 22, "hearsay": 22, "middling": 18, "mixed": 18},
    {
        "plain": 36,
        "feeling": 12,
        "negated": 10,
        "undenied": 2,
        "contrast": 22,
        "sarcastic": 4,
        "unexpected": 4,
        "compared": 3,
        "heard": 7,
    },
)
"""How often a text of each class starts from which rule."""

_STARTS = tuple(
    tuple(rule for rule, share in shares.items() for _ in range(share)) for shares in _SHARES
)
_SYMBOL = re.compile(r"\{(!?)(\w+)\}")
_ARTICLE = re.compile(r"\ba (?=[aeio]|u(?!s))")
_Item = TypeVar("_Item")
_Origin = tuple[str, bool, Sequence[str]]


class _Draw:
    """Random choices that are the same in every process and every version of Python.

    Only `random.Random.random` is used: Python promises its sequence, and not that of `choice`.

    Args:
        seed: Start of the sequence.
    """

    def __init__(self, seed: int) -> None:
        self.share = random.Random(seed).random

    def pick(self, items: Sequence[_Item]) -> _Item:
        """Return one of the items."""
        return items[int(self.share() * len(items))]

    def chance(self, share: float) -> bool:
        """Return true in this share of the calls."""
        return self.share() < share


class _Statement:
    """One statement in the making: its topic, and what its author compares.

    Args:
        draw: Where the choices come from.
        topic: What the statement is about.
    """

    def __init__(self, draw: _Draw, topic: Topic) -> None:
        self.draw = draw
        self.topic = topic
        self.rivals = draw.pick(topic.rivals)
        self.choices: list[str] = []

    def expand(self, symbol: str, good: bool) -> str:
        """Return what a symbol becomes for an author who is pleased (true) or not (false)."""
        text = self.draw.pick(_RULES.get(symbol) or self._words(symbol, good))
        self.choices.append(text)
        if "{" not in text:
            return text
        return _SYMBOL.sub(lambda match: self.expand(match[2], good ^ bool(match[1])), text)

    def _words(self, symbol: str, good: bool) -> Sequence[str]:
        """Return the table of a symbol without a rule."""
        topic = self.topic
        if symbol == "adjective" and self.draw.chance(0.6):
            return topic.good if good else topic.bad
        if symbol in SIDED_WORDS:
            return SIDED_WORDS[symbol][good]
        match symbol:
            case "event":
                return topic.wins if good else topic.losses
            case "plain_fact":
                return topic.facts
            case "noun":
                return topic.nouns
            case "determiner":
                return topic.determiners
            case "winner" | "loser":
                return (self.rivals[good == (symbol == "loser")],)
        return WORDS[symbol]


def _misspelt(draw: _Draw, text: str) -> str:
    """Return the text with a longer vowel or two letters the wrong way round in one word."""
    words = text.split(" ")
    place = int(draw.share() * len(words))
    word = words[place]
    if not word.isalpha() or len(word) < 4:
        return text.replace(" so ", " soooo ", 1)
    if draw.chance(0.6):
        vowels = [at for at, letter in enumerate(word) if letter in "aeiou"]
        if vowels:
            at = vowels[-1]
            words[place] = word[:at] + word[at] * (2 + int(draw.share() * 3)) + word[at + 1 :]
    else:
        at = 1 + int(draw.share() * (len(word) - 2))
        words[place] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


def _marks(draw: _Draw, topic: Topic, label: int) -> str:
    """Return emoji, hashtags and a link; one in six of the telling ones misleads."""
    side = LABELS[label if draw.chance(0.75) else int(draw.share() * 3)]
    marks = ""
    if draw.chance(0.25):
        marks += " " + draw.pick(WORDS[f"{side}_emoji"]) * draw.pick((1, 1, 1, 2, 3))
    if draw.chance(0.2):
        marks += " #" + topic.name
    if draw.chance(0.12):
        marks += " #" + draw.pick(WORDS[f"{side}_tag"])
    if draw.chance(0.04):
        code = "".join(draw.pick("abcdefghkmnpqrstuvwxyz23456789") for _ in range(6))
        marks += f" https://t.co/{code}"
    return marks


def _tweeted(draw: _Draw, topic: Topic, label: int, text: str) -> str:
    """Return the statement as people type it: address, case, typos, punctuation, marks."""
    if draw.chance(0.12):
        text = f"{draw.pick(WORDS['opener'])} {text}"
    if draw.chance(0.08):
        text = f"{text} {draw.pick(WORDS['closer'])}"
    if draw.chance(0.08):
        text = _misspelt(draw, text)
    if draw.chance(0.25):
        text = text.replace("'", "")
    if draw.chance(0.45):
        text = text[0].upper() + text[1:]
    elif draw.chance(0.4):
        text = text.replace("I ", "i ").replace("I'", "i'")
    if text[-1].isalnum() and not text.endswith(("/s", "#sarcasm", "#not")):
        text += draw.pick(("", "", "", ".", ".", "!", "!!", "..."))
    if draw.chance(0.12):
        name = f"{draw.pick(WORDS['first_name'])}_{draw.pick(WORDS['last_name'])}"
        text = f"@{name} {text}"
    return text + _marks(draw, topic, label)


def _noisy(draw: _Draw, label: int) -> int:
    """Return the label, or in a share of :data:`TRAIN_NOISE` one of the wrong ones."""
    step = draw.pick((1, 2))
    return (label + step) % len(LABELS) if draw.chance(TRAIN_NOISE) else label


@lru_cache(maxsize=2)
def _corpus(seed: int) -> Mapping[str, tuple[tuple[str, int, _Origin], ...]]:
    """Return all splits: statements drawn until there are enough distinct ones, then dealt out."""
    draw = _Draw(seed)
    rows: list[tuple[str, int, _Origin]] = []
    known: set[str] = set()
    while len(rows) < sum(SPLITS.values()):
        label, topic = int(draw.share() * len(LABELS)), draw.pick(TOPICS)
        statement = _Statement(draw, topic)
        good = label == 2 or (label == 1 and draw.chance(0.5))
        text = _ARTICLE.sub("an ", statement.expand(rule := draw.pick(_STARTS[label]), good))
        if draw.chance(0.08):
            text = f"{statement.expand('plain_fact', good)}. {text}"
        if text not in known:  # before the marks: no test text is a train text with an emoji
            known.add(text)
            origin = rule, good, statement.choices
            rows.append((_tweeted(draw, topic, label, text), label, origin))
    rows.sort(key=lambda _: draw.share())  # short statements run out: the splits share them evenly
    splits: dict[str, tuple[tuple[str, int, _Origin], ...]] = {}
    for name, size in SPLITS.items():
        splits[name], rows = tuple(rows[:size]), rows[size:]
    noisy = ((text, _noisy(draw, label), origin) for text, label, origin in splits["train"])
    return splits | {"train": tuple(noisy)}


def generate(split: str, seed: int = 0) -> list[tuple[str, int]]:
    """Return the texts of a split and their classes, as positions in :data:`LABELS`.

    The same seed gives the same bytes on every machine. The classes are the true ones, of
    `unlabelled` too, but in `train` a share of :data:`TRAIN_NOISE` of them is wrong.

    Args:
        split: A key of :data:`SPLITS`.
        seed: Another seed, another corpus; texts of two seeds may coincide.

    Returns:
        Texts and classes.

    Raises:
        DataError: There is no such split.
    """
    if split not in SPLITS:
        raise DataError(f"The sample has no split {split!r}; take one of: {', '.join(SPLITS)}.")
    return [(text, label) for text, label, _ in _corpus(seed)[split]]


def derive(split: str, seed: int = 0) -> list[_Origin]:
    """Return the first rule of each text, whether it is pleased, and all choices in their order."""
    return [origin for *_, origin in _corpus(seed)[split]]
