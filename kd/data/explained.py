"""Why a text of the built-in corpus has its label, as a language model would put it.

The corpus knows how it drew each text: here the rules and words are found again in the text as it
was tweeted, typos and all, and put into a sentence or two that name the words that decide and what
turns them round, never the class. One answer in twenty is wrong, as a model's is. This room knows
the derivation of a text, and no file, no gold label and no model.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from random import Random
from typing import Any, NamedTuple, TypeVar

from kd.data.lexicon import SIDED_WORDS
from kd.data.sample import LABELS, derive, generate

__all__ = ["MISTAKES", "Explanation", "columns", "explain"]

MISTAKES = 0.05
"""Share of the explanations that misread the text or say nothing, and name another class."""

_UNDECIDED = {"fact", "asked", "hearsay", "middling", "mixed"}
_SYMBOL = re.compile(r"\{(!?\w+)\}")
_PUNCTUATION = ".,:?!"
_Item = TypeVar("_Item")

_CUES = {  # the words of a rule itself that turn its statement, or seem to
    "negated": "don't|nobody|nothing|anything but|far from",
    "undenied": "can't|nobody|not only|not gonna lie|no doubt|don't|never",
    "feeling": "not|haven't|never|but",
    "contrast": "but|yet|still|even though|although|though|despite",
    "sarcastic": "/s|#sarcasm|#not|said nobody ever|just kidding|yeah right",
    "wished": "I wish|if only|could have been|was supposed to be|remember when|isn't",
    "unexpected": "not any more|it wasn't|turns out|it's not|now|before",
    "compared": "better than|worse than|beats|over|prefer|can't compete with",
    "hearsay": "let me know if|if",
    "middling": "isn't|neither|not",
    "mixed": "on the other hand|it's a draw|can't decide|you decide|mixed feelings|I am torn",
}
_SHOWING = {"cue", "loser", "rest", "winner", "word"}  # slots that are evidence, unlike an aside
_FLAT = ("plain_fact", "okay", "okay_mood")
_CUE_SYMBOLS = {"is_not", "do_not", "agrees", "differs", "unsure"}

_GLOSSES = {  # for words of blame, for words of praise
    "opinion": (
        ("a complaint", "criticism", "disapproval"),
        ("a compliment", "praise", "approval"),
    ),
    "mood": (("distress", "a rough time"), ("contentment", "a light heart")),
    "event": (("a mishap", "a setback", "trouble"), ("a stroke of luck", "a treat", "a success")),
}

_WORDINGS = {
    "opinion": (
        "it comes down to {word}",
        "what counts is {word}",
        "the judgement on the {noun} lies in {word}",
        "of the {noun}, the text says {word}",
        "choosing {word} amounts to {gloss}",
        "there is {gloss} in {word}",
    ),
    "mood": (
        "the feeling named is {word}",
        "what counts is {word}",
        "the author's mood shows in {word}",
        "with {word}, the author speaks of {gloss}",
        "there is {gloss} in {word}",
    ),
    "event": (
        "what happened decides: {word}",
        "the event speaks for itself: {word}",
        "the author reports {gloss}: {word}",
        "anyone would take {word} for {gloss}",
    ),
    "negated": (
        "{cue} denies {word}",
        "{cue} negates {word}",
        "{word} is denied by {cue}",
        "negated by {cue}, {word} means its reverse",
        "{word} would be {gloss}, but {cue} denies it",
    ),
    "undenied": (
        "{cue} denies nothing here",
        "{cue} only looks like a negation",
        "{cue} is a turn of phrase that negates nothing",
    ),
    "contrast": (
        "{cue} sets {aside} aside",
        "{cue} makes {aside} the minor point",
        "{aside} is outweighed, as {cue} shows",
        "{aside} is only conceded: see {cue}",
    ),
    "sarcastic": (
        "{cue} shows that {word} is ironic",
        "{cue} takes {word} back",
        "{word} is meant the other way round, as {cue} gives away",
        "{word} sounds like {gloss}, but {cue} makes a joke of it",
    ),
    "wished": (
        "{cue} says that {word} is what the {noun} lacks",
        "{cue} puts {word} out of reach",
        "{word} would be {gloss}, but {cue} says that it is missing",
    ),
    "unexpected": (
        "{cue} cancels {word}",
        "{word} does not hold, says {cue}",
        "{word} would be {gloss}, but {cue} cancels it",
    ),
    "agrees": (
        "{cue} makes the view of {person} the author's own",
        "{person} is quoted with consent: {cue}",
        "{cue} backs {person}",
    ),
    "heard": (
        "{cue} rejects {word} as {person} has it",
        "the author contradicts {person}: {cue} rejects {word}",
        "{person} is quoted with {word}, and {cue} rejects that",
    ),
    "compared": (
        "{cue} puts {winner} ahead of {loser}; the text is about {subject}",
        "between {winner} and {loser}, {cue} speaks for {winner}, and {subject} is the one at hand",
        "{winner} wins over {loser}, going by {cue}; the subject is {subject}",
    ),
    "fact": (
        "only information is passed on: {word}",
        "{word} can be checked and judges nothing",
        "the text reports {word} and stops there",
    ),
    "asked": (
        "the text asks about {word} and leaves the answer to others",
        "the question leaves {word} unanswered",
        "a question claims nothing, so it leaves {word} open",
        "there may be {gloss} in {word}, but it is only asked",
    ),
    "hearsay": (
        "{cue} leaves {word} open",
        "with {cue}, the author takes no stand on {word}",
        "{word} stays unconfirmed because of {cue}",
    ),
    "neither": (
        "{cue} denies {word} alike",
        "both {word} are denied by {cue}",
        "negated by {cue}, {word} cancel out",
    ),
    "middling": (
        "what remains is {word}",
        "{word} sits in the middle",
        "{word} is a shrug",
    ),
    "mixed": (
        "{word} and {rest} cancel out, hence {cue}",
        "{word} is weighed against {rest}: {cue}",
        "{word} and {rest} pull in opposite directions, and {cue} picks no winner",
    ),
    "overread": (
        "bringing up {word} sounds like {gloss}",
        "one hears {gloss} in {word}",
    ),
    "empty": (
        "it is hard to tell what is meant",
        "the wording leaves the matter open",
        "the text is too short to say what its author thinks",
    ),
    "strong": (", and {degree} makes it stronger", ", stressed by {degree}"),
    "soft": (", softened by {degree}", ", which {degree} tones down"),
}


class Explanation(NamedTuple):
    """What a language model might answer about a text.

    Args:
        rationale: One or two sentences, without the name of a class.
        evidence: Quotes from the text; none where the rationale says nothing.
        teacher_label: Name of the class that the rationale argues for.
        teacher_confidence: How sure it claims to be, from 0 to 1.
    """

    rationale: str
    evidence: list[str]
    teacher_label: str
    teacher_confidence: float


class _Node(NamedTuple):
    """A rule or a word of a derivation.

    Args:
        symbol: What was replaced.
        good: Whether it is of the pleased side.
        first: Position of its first word in the statement.
        last: The one after its last word.
        parts: What the symbols of its template became.
    """

    symbol: str
    good: bool
    first: int
    last: int
    parts: tuple[_Node, ...]

    def find(self, *symbols: str) -> list[_Node]:
        """Return the outermost nodes of these symbols in here, in their order."""
        if self.symbol in symbols:
            return [self]
        return [node for part in self.parts for node in part.find(*symbols)]

    @property
    def kind(self) -> str:
        """What a word that blames or praises speaks of."""
        return self.symbol if self.symbol in ("mood", "event") else "opinion"

    def sided(self) -> list[_Node]:
        """Return the words that blame or praise."""
        return self.find(*SIDED_WORDS, "event")


def _grown(symbol: str, good: bool, choices: Iterator[str], text: str = "") -> tuple[_Node, str]:
    """Return the derivation that some choices describe, and the text with its statement added."""
    first = text.count(" ")
    literal, *rest = _SYMBOL.split(next(choices))
    text += literal
    parts = []
    for name, literal in zip(rest[::2], rest[1::2], strict=True):
        part, text = _grown(name.lstrip("!"), good ^ (name[0] == "!"), choices, text)
        parts.append(part)
        text += literal
    node = _Node(symbol, good, first, text.count(" ") + 1, tuple(parts))
    return parts[0] if symbol == "clause" else node, text


@lru_cache(maxsize=4096)
def _letters(word: str) -> frozenset[str]:
    """Return what no typo of the corpus changes: it doubles letters and swaps them."""
    return frozenset(filter(str.isalnum, word.lower()))


class _Account:
    """What can be said of one text.

    Args:
        text: The text as it was tweeted.
        statement: The statement in it, as it was drawn.
    """

    def __init__(self, text: str, statement: str) -> None:
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        self.share = Random(int.from_bytes(digest, "big")).random
        self.drawn = [word.strip(_PUNCTUATION) for word in statement.split(" ")]
        words, size = text.split(" "), len(self.drawn)
        found, wanted = list(map(_letters, words)), list(map(_letters, self.drawn))
        start = max(
            range(len(words) - size + 1),
            key=lambda at: sum(map(frozenset.__eq__, found[at : at + size], wanted)),
        )
        self.tweeted = words[start : start + size]
        self.evidence: dict[int, str] = {}

    def pick(self, items: Sequence[_Item]) -> _Item:
        """Return one of the items."""
        return items[int(self.share() * len(items))]

    def quote(self, node: _Node) -> str:
        """Return the words of a node as the text has them."""
        return " ".join(self.tweeted[node.first : node.last]).rstrip(_PUNCTUATION)

    def cues(self, node: _Node) -> list[_Node]:
        """Return the words of a rule that turn its statement, or seem to."""
        found = [part for part in node.parts if part.symbol in _CUE_SYMBOLS]
        if found or node.symbol not in _CUES:
            return found
        inner = {at for part in node.parts for at in range(part.first, part.last)}
        places = range(node.first, node.last)
        own = " ".join("_" if at in inner else self.drawn[at] for at in places)
        match = re.search(rf"(?<!\S)({_CUES[node.symbol]})(?!\S)", own)
        if match is None:
            return []
        first, last = (node.first + own[:end].count(" ") for end in match.span())
        return [_Node("cue", node.good, first, last + 1, ())]

    def phrase(self, node: _Node) -> list[_Node]:
        """Return a clause from its first to its last word that matters."""
        marks = [*node.sided(), *self.cues(node)]
        first, last = min(mark.first for mark in marks), max(mark.last for mark in marks)
        return [_Node("phrase", node.good, first, last, ())]

    def say(self, kind: str, scope: _Node, **slots: Sequence[_Node]) -> str:
        """Return a sentence whose slots quote the text."""
        quotes = {name: dict.fromkeys(map(self.quote, nodes)) for name, nodes in slots.items()}
        for name in slots.keys() & _SHOWING:
            self.evidence |= {node.first: self.quote(node) for node in slots[name]}
        said = {name: " and ".join(f'"{quote}"' for quote in quotes[name]) for name in quotes}
        for node in scope.find("person", "noun")[::-1]:
            said[node.symbol] = " ".join(self.drawn[node.first : node.last])
        for word in slots.get("word", ())[:1]:
            said["gloss"] = self.pick(_GLOSSES[word.kind][word.good])
        wordings = [text for text in _WORDINGS[kind] if "noun" in said or "{noun}" not in text]
        return self.pick(wordings).format_map(said)

    def words(self, scope: _Node, nodes: Sequence[_Node]) -> list[str]:
        """Return sentences on words that mean what they say."""
        sentences = []
        for kind in dict.fromkeys(node.kind for node in nodes):
            said = self.say(kind, scope, word=[node for node in nodes if node.kind == kind])
            for degree in scope.find("degree") if kind != "event" else ():
                strength = "soft" if self.drawn[degree.first] in ("quite", "pretty") else "strong"
                said += self.say(strength, scope, degree=[degree])
            sentences.append(said)
        return sentences

    def decided(self, node: _Node) -> list[str]:
        """Return why a statement is of the side that it is of."""
        cue, sided = self.cues(node), node.sided()
        own = [word for word in sided if word.good == node.good]
        others = [word for word in sided if word.good != node.good]
        match node.symbol:
            case "contrast":
                aside, main = sorted(node.parts, key=lambda part: part.good == node.good)
                contrast = self.say("contrast", node, cue=cue, aside=self.phrase(aside))
                return [contrast, *self.decided(main)]
            case "compared":
                rivals = {part.symbol: [part] for part in node.find("winner", "loser")}
                subject = rivals["winner" if node.good else "loser"]
                result = self.say("compared", node, cue=cue, subject=subject, **rivals)
                return [result, *self.words(node, own)]
        if not own:
            negated = node.symbol == "feeling" or self.drawn[cue[0].first] == "isn't"
            return [self.say("negated" if negated else node.symbol, node, cue=cue, word=others)]
        sentences = self.words(node, own)
        if others:
            sentences.insert(0, self.say("contrast", node, cue=cue, aside=others))
        elif cue:
            kind = "agrees" if node.symbol == "heard" else "undenied"
            sentences.insert(0, self.say(kind, node, cue=cue))
        return sentences

    def undecided(self, node: _Node) -> list[str]:
        """Return why a statement is of no side."""
        cue, sided = self.cues(node), node.sided()
        match node.symbol:
            case "mixed":
                one, other = map(self.phrase, node.parts)
                return [self.say("mixed", node, word=one, rest=other, cue=cue)]
            case "middling":
                okay = node.find(*_FLAT[1:])
                neither = [self.say("neither", node, word=sided, cue=cue)] if sided else []
                return neither + ([self.say("middling", node, word=okay)] if okay else [])
        return [self.say(node.symbol, node, word=sided or node.find(*_FLAT), cue=cue)]

    def mistaken(self, node: _Node) -> tuple[list[str], int]:
        """Return a wrong reading, or an empty one, and its class."""
        if node.symbol in _UNDECIDED:
            flat = [word._replace(good=self.share() < 0.5) for word in node.find(*_FLAT)]
            word = self.pick(node.sided() or flat)
            return [self.say("overread", node, word=[word])], 2 * word.good
        others = [word for word in node.sided() if word.good != node.good]
        if others and self.share() < 0.75:
            word = self.pick(others)
            return [self.say(word.kind, node, word=[word])], 2 * word.good
        return [self.say("empty", node)], 1


def explain(text: str, origin: tuple[str, bool, Sequence[str]]) -> Explanation:
    """Explain a text; the same text is always explained in the same words.

    Args:
        text: A text of the corpus.
        origin: How it was drawn: what :func:`kd.data.sample.derive` returns for it.

    Returns:
        The explanation; in a share of :data:`MISTAKES` a wrong one.
    """
    rule, good, choices = origin
    root, statement = _grown(rule, good, iter(choices))
    account = _Account(text, statement)
    mistaken = account.share() < MISTAKES
    if mistaken:
        sentences, label = account.mistaken(root)
    elif rule in _UNDECIDED:
        sentences, label = account.undecided(root), 1
    else:
        sentences, label = account.decided(root), 2 * good
    confidence = (0.5 if mistaken else 0.7) + 0.25 * account.share()
    quotes = dict.fromkeys(quote for _, quote in sorted(account.evidence.items()))
    rationale = " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)
    return Explanation(rationale, list(quotes), LABELS[label], round(confidence, 2))


def columns(split: str) -> dict[str, Sequence[Any]]:
    """Return the columns of a split; those of :class:`Explanation` for `train` alone."""
    texts, labels = zip(*generate(split), strict=True)
    table: dict[str, Sequence[Any]] = {"text": texts, "label": labels}
    if split == "train":
        explanations = map(explain, texts, derive(split))
        table |= dict(zip(Explanation._fields, zip(*explanations, strict=True), strict=True))
    return table
