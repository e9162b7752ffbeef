"""Augmenters: how a sentence becomes another one that means the same.

Each changes a share of the words that are free to change (see :mod:`kd.data.sentence`) and draws
chance from the generator that it is given, never from a global one: the same sentence and generator
give the same variant in any process. nlpaug brings the keyboard, the scanner's and the speller's
errors. This room knows no row, no label and no teacher.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from random import Random
from typing import Any, ClassVar, TypeVar

from kd.data.sentence import Sentence, cut, is_plain
from kd.errors import ConfigError

__all__ = [
    "OCR",
    "Augmenter",
    "Keyboard",
    "Mixed",
    "Spelling",
    "WordCrop",
    "WordDrop",
    "WordSwap",
    "pick",
    "substitute",
    "vary_texts",
]

_T = TypeVar("_T")
_TRIES = 3  # for a variant that is the text itself, or another variant of it
_SHORTEST = 4  # letters of a word that is still read with one of them wrong


class Augmenter:
    """Make variants of sentences; your own class defines :meth:`change`.

    Args:
        share: Share of the words free to change that is changed, at least one of them.

    Raises:
        ConfigError: If the share is not above 0 and at most 1.
    """

    loads_model: ClassVar[bool] = False
    """Whether sentences are changed many at once, by a model in this process."""

    def __init__(self, share: float = 0.2) -> None:
        if not 0.0 < share <= 1.0:
            raise ConfigError(
                f"{type(self).__name__}.share is {share}: give a share above 0, at most 1."
            )
        self.share = share

    def prepare(self) -> None:
        """Find or fetch what is needed; called before variants are made and any model loads."""

    def release(self) -> None:
        """Forget what was loaded; called when all variants are made, before training."""

    def change(self, sentence: Sentence, draw: Random) -> Sentence:
        """Change a sentence.

        Args:
            sentence: What to change.
            draw: Where chance comes from; only its ``random()`` is the same in every Python.

        Returns:
            A variant, or the sentence itself where there is none.
        """
        raise NotImplementedError

    def vary(self, sentences: Sequence[Sentence], draws: Sequence[Random]) -> list[Sentence]:
        """Return a variant of each sentence, drawn by its own generator."""
        return [self.change(*pair) for pair in zip(sentences, draws, strict=True)]

    def describe(self) -> dict[str, Any]:
        """Return what makes two augmenters the same: class and settings, as plain values."""
        settings = {name: _plain(value) for name, value in sorted(vars(self).items())}
        return {"class": f"{type(self).__module__}.{type(self).__qualname__}", **settings}

    def count(self, sentence: Sentence) -> int:
        """Return how many words to change."""
        return max(1, round(self.share * len(sentence.free)))


def vary_texts(
    texts: Sequence[str],
    counts: Sequence[int],
    augmenters: Sequence[Augmenter],
    protect: Sequence[str] = (),
    seed: int = 0,
) -> list[list[str]]:
    """Return variants of texts; each follows from its text, its number and the seed alone.

    Args:
        texts: What to vary.
        counts: How many variants of each.
        augmenters: Applied one after the other.
        protect: Words and phrases that stay, whatever their case.
        seed: Another one gives other variants.

    Returns:
        The variants of each text, all different; the text itself where there are no more.
    """
    phrases = "|".join(re.escape(phrase) for phrase in protect)
    protected = re.compile(rf"(?<!\w)(?:{phrases})(?!\w)", re.IGNORECASE) if phrases else None
    sentences = [cut(text, protected) for text in texts]
    found = [[text] * count for text, count in zip(texts, counts, strict=True)]
    todo = [(i, number) for i, count in enumerate(counts) for number in range(count)]
    for attempt in range(_TRIES):
        draws = [_draw(f"{seed}\0{number}\0{attempt}\0{texts[i]}") for i, number in todo]
        varied = [sentences[i] for i, _ in todo]
        for augmenter in augmenters:
            varied = augmenter.vary(varied, draws)
        again = []
        for (i, number), sentence in zip(todo, varied, strict=True):
            text = sentence.text
            if text.strip() and text not in found[i]:
                found[i][number] = text
            else:
                again.append((i, number))
        todo = again
    return found


def _draw(name: str) -> Random:
    return Random(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big"))


def _plain(value: Any) -> Any:
    if isinstance(value, Augmenter):
        return value.describe()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def pick(items: Sequence[_T], draw: Random) -> _T:
    """Return one of some items, all alike likely."""
    return items[int(draw.random() * len(items))]


def _shuffled(items: Sequence[_T], draw: Random) -> list[_T]:
    order = [draw.random() for _ in items]
    return [items[i] for i in sorted(range(len(items)), key=order.__getitem__)]


def substitute(
    sentence: Sentence, count: int, draw: Random, propose: Callable[[int], str | None]
) -> Sentence:
    """Replace some of the free words.

    Args:
        sentence: Where they are.
        count: How many to replace, if so many have a replacement.
        draw: Chooses them.
        propose: Returns the new word for a position, null where there is none.

    Returns:
        The sentence with new words; none of them turns round or strengthens what follows.
    """
    words: dict[int, str] = {}
    for position in _shuffled(sentence.free, draw):
        word = propose(position)
        if word and word != sentence.pieces[position] and is_plain(word):
            words[position] = word
            if len(words) == count:
                break
    return sentence.with_words(words) if words else sentence


class WordDrop(Augmenter):
    """Leave out words here and there, at most half of those that the text has.

    Source: Wei & Zou 2019 (arXiv:1901.11196), section 2, random deletion.
    Near: `WordCrop` leaves out words side by side.
    """

    def change(self, sentence: Sentence, draw: Random) -> Sentence:
        """Return the sentence without a share of its free words."""
        count = min(self.count(sentence), sentence.half)
        return sentence.without(set(_shuffled(sentence.free, draw)[:count]))


class WordCrop(Augmenter):
    """Leave out words that stand side by side, at most half of those that the text has.

    Near: `WordDrop` leaves out words here and there.
    """

    def change(self, sentence: Sentence, draw: Random) -> Sentence:
        """Return the sentence without a run of its free words."""
        count = min(self.count(sentence), sentence.half)
        if not sentence.free or not count:
            return sentence
        first = int(draw.random() * len(sentence.free))
        run = [sentence.free[first]]
        for following in sentence.free[first + 1 : first + count]:
            if not sentence.are_neighbours(run[-1], following):
                break
            run.append(following)
        return sentence.without(set(run))


class WordSwap(Augmenter):
    """Exchange words with the word after them.

    Source: Wei & Zou 2019 (arXiv:1901.11196), section 2; there any two words change places.
    """

    def change(self, sentence: Sentence, draw: Random) -> Sentence:
        """Return the sentence with pairs of neighbours exchanged, no word twice."""
        following = zip(sentence.free, sentence.free[1:], strict=False)
        pairs = [pair for pair in following if sentence.are_neighbours(*pair)]
        words: dict[int, str] = {}
        for left, right in _shuffled(pairs, draw):
            if left not in words and right not in words:
                words |= {left: sentence.pieces[right], right: sentence.pieces[left]}
            if len(words) >= 2 * self.count(sentence):
                break
        return sentence.with_words(words)


class Keyboard(Augmenter):
    """Hit the key beside the right one, once in a word of four letters or more.

    The neighbours of a key are nlpaug's.
    """

    def change(self, sentence: Sentence, draw: Random) -> Sentence:
        """Return the sentence with typing errors."""
        return _mistyped(sentence, self.count(sentence), draw, _keys())


class OCR(Augmenter):
    """Read a letter as one that looks like it, as a scanner does; once in a word of four or more.

    What looks alike is nlpaug's.
    """

    def change(self, sentence: Sentence, draw: Random) -> Sentence:
        """Return the sentence with a scanner's errors."""
        return _mistyped(sentence, self.count(sentence), draw, _likenesses())


class Spelling(Augmenter):
    """Misspell words as people do, by nlpaug's list of English misspellings."""

    def change(self, sentence: Sentence, draw: Random) -> Sentence:
        """Return the sentence with spelling errors."""
        known = _misspellings()

        def propose(position: int) -> str | None:
            found = known.get(sentence.pieces[position])
            return pick(found, draw) if found else None

        return substitute(sentence, self.count(sentence), draw, propose)


class Mixed(Augmenter):
    """Change each variant by one of several augmenters.

    Args:
        augmenters: Which.
        weights: How often each is taken; null takes all alike.

    Raises:
        ConfigError: If there is no augmenter, or not one positive weight for each.
    """

    def __init__(self, augmenters: list[Augmenter], weights: list[float] | None = None) -> None:
        super().__init__()
        if not augmenters:
            raise ConfigError("Mixed.augmenters is empty: name at least one.")
        if weights is not None and (len(weights) != len(augmenters) or min(weights) <= 0):
            raise ConfigError(
                f"Mixed.weights are {weights}: give {len(augmenters)} positive numbers."
            )
        self.augmenters = augmenters
        self.weights = weights

    @property
    def loads_model(self) -> bool:  # type: ignore[override]
        """Whether any of the augmenters does."""
        return any(augmenter.loads_model for augmenter in self.augmenters)

    def prepare(self) -> None:
        """Let each find or fetch what it needs."""
        for augmenter in self.augmenters:
            augmenter.prepare()

    def release(self) -> None:
        """Let each forget what it loaded."""
        for augmenter in self.augmenters:
            augmenter.release()

    def change(self, sentence: Sentence, draw: Random) -> Sentence:
        """Return a variant made by the augmenter that the generator draws."""
        return self.vary([sentence], [draw])[0]

    def vary(self, sentences: Sequence[Sentence], draws: Sequence[Random]) -> list[Sentence]:
        """Return a variant of each sentence, made by the augmenter that its generator draws."""
        weights = self.weights or [1.0] * len(self.augmenters)
        chosen = [_weighted(weights, draw) for draw in draws]
        varied = list(sentences)
        for number, augmenter in enumerate(self.augmenters):
            mine = [i for i, choice in enumerate(chosen) if choice == number]
            changed = augmenter.vary([sentences[i] for i in mine], [draws[i] for i in mine])
            for i, sentence in zip(mine, changed, strict=True):
                varied[i] = sentence
        return varied


def _weighted(weights: Sequence[float], draw: Random) -> int:
    rest = draw.random() * sum(weights)
    for number, weight in enumerate(weights):
        rest -= weight
        if rest < 0:
            return number
    return len(weights) - 1


def _mistyped(
    sentence: Sentence, count: int, draw: Random, errors: Mapping[str, Sequence[str]]
) -> Sentence:
    def propose(position: int) -> str | None:
        word = sentence.pieces[position]
        wrong = [i for i, letter in enumerate(word) if letter in errors]
        if len(word) < _SHORTEST or not wrong or not word.isalpha():
            return None
        at = pick(wrong, draw)
        return word[:at] + pick(errors[word[at]], draw) + word[at + 1 :]

    return substitute(sentence, count, draw, propose)


@cache
def _keys() -> dict[str, list[str]]:
    from nlpaug.augmenter.char import KeyboardAug

    aug = KeyboardAug(include_special_char=False, include_numeric=False, include_upper_case=False)
    lower = {key: sorted(filter(str.isalpha, near)) for key, near in aug.model.model.items()}
    upper = {key.upper(): [one.upper() for one in near] for key, near in lower.items()}
    return {key: near for key, near in {**upper, **lower}.items() if near and key.isalpha()}


@cache
def _likenesses() -> dict[str, list[str]]:
    from nlpaug.augmenter.char import OcrAug

    found = {key: sorted(set(near) - {key}) for key, near in OcrAug().model.model.items()}
    return {key: near for key, near in found.items() if near and key.isalpha()}


@cache
def _misspellings() -> dict[str, list[str]]:
    from nlpaug.augmenter.word import SpellingAug

    known = SpellingAug(include_reverse=False).model.dict
    return {
        right: sorted(wrong for wrong in set(found) if wrong.isalpha())  # nlpaug's order is chance
        for right, found in known.items()
    }
