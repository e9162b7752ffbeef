"""Synonyms: other words of the same meaning, part of speech and inflection.

WordNet is nltk's, which fetches it where it is missing; a small thesaurus is built in for places
without a network. A sentence is tagged once for all its variants. This room knows no row, no label
and no model.
"""

from __future__ import annotations

import io
import socket
from functools import cache, lru_cache
from random import Random
from typing import Any, Literal

from kd.data.augment import Augmenter, pick, substitute
from kd.data.sentence import Sentence
from kd.data.thesaurus import SYNONYMS
from kd.errors import ConfigError

__all__ = ["Synonym"]

_RESOURCES = {
    "wordnet": "corpora/wordnet",
    "averaged_perceptron_tagger_eng": "taggers/averaged_perceptron_tagger_eng",
}
_TIMEOUT_SECONDS = 20.0
_SHORTEST = 3  # letters of a word that has synonyms
_SENTENCES = 1024  # remembered until all their variants are made
_PARTS = {"N": "n", "V": "v", "J": "a", "R": "r"}  # WordNet's, by the first letter of a tag
_ENDINGS = {"NNS": "s", "VBZ": "s", "VBD": "ed", "VBN": "ed", "VBG": "ing"}
_UNTOUCHED = {"NNP", "NNPS", "JJR", "JJS", "RBR", "RBS"}  # names; forms that are not built here
_VOWELS = frozenset("aeiou")

# They help others to their meaning, or have too many of their own.
_EVERYDAY = frozenset(
    """
    am are is was were be been being do does did doing done have has had having can could will
    would shall should may might must get gets got getting go goes going went gone make makes made
    making take takes took taking taken come comes came coming let lets put keep keeps kept say
    says said saying see sees saw seen seeing know knows knew known think thinks thought want wants
    wanted like likes liked need needs needed use used look looks looked looking feel feels felt
    good well better best bad worse worst new old now then here there way thing things time times
    lot one ones back again also ever yet else today tomorrow yesterday tonight day days week weeks
    year years monday tuesday wednesday thursday friday saturday sunday january february march april
    june july august september october november december first last next long right left still end
    ends even
    """.split()
)


class Synonym(Augmenter):
    """Replace words by synonyms of the same part of speech and inflection.

    WordNet's senses stand in the order of their frequency. Names and everyday words stay.
    Source: Zhang et al. 2015 (arXiv:1509.01626), section 2.4; Miller 1995 (WordNet).
    Near: `Contextual` asks a language model what fits the sentence.

    Args:
        share: Share of the words free to change that is changed, at least one of them.
        thesaurus: ``wordnet``, which nltk downloads once (to ``NLTK_DATA``, if that is set), or
            the small ``builtin`` one.
        senses: How many meanings of a word count, the most frequent first; of ``wordnet``.

    Raises:
        ConfigError: If a number is out of its range.
    """

    def __init__(
        self,
        share: float = 0.2,
        thesaurus: Literal["wordnet", "builtin"] = "wordnet",
        senses: int = 2,
    ) -> None:
        super().__init__(share)
        if senses < 1:
            raise ConfigError(f"Synonym.senses is {senses}: give 1 or more.")
        self.thesaurus = thesaurus
        self.senses = senses

    def prepare(self) -> None:
        """Download WordNet and the tagger if they are missing; an error says what to do."""
        if self.thesaurus == "wordnet":
            _fetch()

    def release(self) -> None:
        """Free the memory of WordNet's index."""
        _wordnet.cache_clear()

    def change(self, sentence: Sentence, draw: Random) -> Sentence:
        """Return the sentence with synonyms for some of its words."""
        if self.thesaurus == "builtin":
            known = _builtin(sentence.pieces)
        else:
            known = _wordnet().of_sentence(sentence.pieces, self.senses)

        def propose(position: int) -> str | None:
            found = known[position]
            return _cased(pick(found, draw), sentence.pieces[position]) if found else None

        return substitute(sentence, self.count(sentence), draw, propose)


def _fetch() -> None:
    import nltk

    missing = [name for name, place in _RESOURCES.items() if not _is_there(place)]
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    try:
        for name in missing:
            nltk.download(name, quiet=True, raise_on_error=True, print_error_to=io.StringIO())
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"Synonym needs nltk's {' and '.join(missing)}, not found here and not to be "
            f"downloaded ({reason}): run `python -m nltk.downloader {' '.join(_RESOURCES)}` where "
            "there is a network and set NLTK_DATA to its folder, or set thesaurus: builtin."
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _is_there(place: str) -> bool:
    import nltk

    for name in (place, f"{place}.zip"):
        try:
            nltk.data.find(name)
        except LookupError:
            continue
        return True
    return False


@lru_cache(maxsize=_SENTENCES)
def _builtin(pieces: tuple[str, ...]) -> list[list[str]]:
    """Return the synonyms of each piece."""
    found = [list(SYNONYMS.get(piece.lower(), ())) for piece in pieces]
    return [_with_article(pieces, i, words) for i, words in enumerate(found)]


@cache
def _wordnet() -> _WordNet:
    return _WordNet()


class _WordNet:
    """Synonyms by part of speech: one for all augmenters of a process, because it takes seconds."""

    def __init__(self) -> None:
        from nltk.corpus import wordnet
        from nltk.tag.perceptron import PerceptronTagger

        self._net: Any = wordnet
        self._tag: Any = PerceptronTagger().tag
        wordnet.ensure_loaded()
        self._irregular = {
            part: _by_lemma(wordnet._exception_map[part]) for part in ("n", "v")
        }  # private to nltk, and the only place that knows "bought"
        with wordnet.open("cntlist.rev") as lines:  # Lemma.count() seeks in this file each time
            self._seen = {line.partition(" ")[0] for line in lines}
        self.of_word = lru_cache(maxsize=200_000)(self._of_word)
        self.of_sentence = lru_cache(maxsize=_SENTENCES)(self._of_sentence)

    def _of_sentence(self, pieces: tuple[str, ...], senses: int) -> list[list[str]]:
        """Return the synonyms of each piece."""
        places = [i for i, piece in enumerate(pieces) if piece and not piece.isspace()]
        found: list[list[str]] = [[] for _ in pieces]
        tagged = self._tag([pieces[i] for i in places])
        for i, (word, tag) in zip(places, tagged, strict=True):
            words = self.of_word(word.lower(), tag, senses) if word.isalpha() else []
            found[i] = _with_article(pieces, i, words)
        return found

    def _of_word(self, word: str, tag: str, senses: int) -> list[str]:
        """Return the synonyms of a word, inflected as it is."""
        part = _PARTS.get(tag[0])
        if part is None or tag in _UNTOUCHED or word in _EVERYDAY or len(word) < _SHORTEST:
            return []
        lemma, ending = self._net.morphy(word, part), _ENDINGS.get(tag, "")
        if lemma is None or (lemma == word) == bool(ending):
            return []  # the tag and the form of the word do not agree
        names = {
            other.name(): None
            for sense in self._net.synsets(lemma, pos=part)[:senses]
            for other in sense.lemmas()
            if other.name() != lemma and self._is_common(other)
        }
        forms = [self._inflected(name, part, ending) for name in names]
        return [form for form in forms if form]

    def _is_common(self, lemma: Any) -> bool:
        """Tell whether it is one word, in small letters, that was ever seen in this meaning."""
        name: str = lemma.name()
        return name.isalpha() and name.islower() and lemma.key() in self._seen

    def _inflected(self, lemma: str, part: str, ending: str) -> str | None:
        """Return a form of a word, null where it has none or one that is not known."""
        if not ending:
            return lemma
        own = self._irregular[part].get(lemma, [])
        listed = [form for form in own if form.endswith(ending)]
        if listed:
            return listed[0]
        form = _regular(lemma, ending)
        is_known = (not own or ending == "ing") and self._net.morphy(form, part) == lemma
        return form if is_known else None


def _by_lemma(forms: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the irregular forms of each word."""
    found: dict[str, list[str]] = {}
    for form, lemmas in sorted(forms.items()):
        for lemma in lemmas:
            found.setdefault(lemma, []).append(form)
    return found


def _regular(lemma: str, ending: str) -> str:
    """Return a form as English spells it where nothing is irregular."""
    if ending == "ing":
        stem = lemma if lemma.endswith(("ee", "ye", "oe")) else lemma.removesuffix("e")
        return stem + ending
    if lemma.endswith("y") and lemma[-2:-1] not in _VOWELS:
        return lemma[:-1] + ("ies" if ending == "s" else "ied")
    if ending == "s":
        return lemma + ("es" if lemma.endswith(("s", "x", "z", "ch", "sh")) else "s")
    return lemma + ("d" if lemma.endswith("e") else "ed")


def _with_article(pieces: tuple[str, ...], position: int, words: list[str]) -> list[str]:
    """Return those words that go with the article before them."""
    before = pieces[position - 2].lower() if position > 1 and pieces[position - 1] == " " else ""
    if before not in ("a", "an"):
        return words
    return [word for word in words if (word[0] in _VOWELS) == (before == "an")]


def _cased(word: str, like: str) -> str:
    """Return a word in capitals, with one, or without, as another word is."""
    if len(like) > 1 and like.isupper():
        return word.upper()
    return word.capitalize() if like[0].isupper() else word
