"""Texts cut into words that may change and everything that may not.

A small change of the wrong word turns a label round: the "not" of "not good", a hashtag, a smiley.
They are found here, so that no augmenter has to know them. Pieces keep their position whatever is
done to a sentence, and put together they are the text, byte for byte. This room knows no label, no
model and no chance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import accumulate

__all__ = ["INTENSIFIERS", "NEGATIONS", "Sentence", "cut", "is_plain"]

NEGATIONS = frozenset(
    """
    not no non never none nobody nothing neither nor nowhere without cannot hardly scarcely barely
    rarely seldom lack lacks lacked lacking nope nah noone ain't aint arent cant couldnt didnt
    doesnt dont hadnt hasnt havent isnt mustnt neednt shouldnt wasnt werent wont wouldnt
    """.split()
)
"""Words that turn round what follows; those that end in n't are known by their end."""

INTENSIFIERS = frozenset(
    """
    very really so too extremely totally absolutely completely incredibly super quite rather pretty
    fairly somewhat slightly most more less least much many such just only even almost nearly
    utterly entirely highly deeply truly terribly awfully insanely ridiculously remarkably
    particularly especially barely mildly moderately overly
    """.split()
)
"""Words that make what follows stronger or weaker."""

_LOADED = NEGATIONS | INTENSIFIERS
_APOSTROPHE = re.compile(r"['’´`]|\\u2019")  # tweets of SemEval spell some as an escape
_TURNS = frozenset(
    "but however though although yet still because since while unless except and".split()
)
_SCOPE = 4  # words after a negation that it turns round, unless the clause ends before

_URL = re.compile(r"(https?://\S+)")  # found first: some begin in the middle of a word
_PIECES = re.compile(
    r"""
    (?P<kept>
        www\.\S+ | [\w.+-]+@[\w-]+\.[\w.]+                                        # addresses
      | (?<![\w.])[\w-]+\.(?:com|org|net|edu|gov|info|io|ly|co|tv|me|uk|de|fr)\b(?:/\S*)?
      | [@#$＠＃][\w·]+ (?: ['’]\w+ )?                                 # mentions, hashtags, shares
      | &\#?\w+;                                                       # HTML's
      | (?<!\w) (?: [:;=8][-^o'"]?[dDpPoO0sSxXcCbB3/\\|)(\]\[}{*@]+ | [xX]D+ | </?3+ | D[:=]
                  | [oO0][._][oO0] | [tT][._][tT] | [>-]_+[<-] | \^[._]*\^ ) (?!\w)
      | \w*[\d_]\w* (?: [.,:/'’-] \w*\d\w* )* %?                        # numbers, gr8, 2nd
    )
    | (?P<word> [^\W\d_]+ (?: (?: ['’´`-] | \\u2019 ) [^\W\d_]+ )* )
    | (?P<space> \s+ )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_BEFORE = frozenset("([{<\"'“‘«*~-–—,.;:!?/")
_AFTER = frozenset(")]}>\"'”’»*~-–—,.;:!?/…")
_CLAUSE_ENDS = frozenset('.,;:!?()[]"“”…\n')


@dataclass(frozen=True, slots=True)
class Sentence:
    """A text in pieces.

    Args:
        pieces: Words, blanks, marks; side by side they are the text. A piece that was taken out is
            empty, so that the others keep their positions.
        free: Positions of the words that may change, rising.
    """

    pieces: tuple[str, ...]
    free: tuple[int, ...]

    @property
    def text(self) -> str:
        """The text."""
        return "".join(self.pieces)

    @property
    def half(self) -> int:
        """Half of the pieces that are not blank: no more may be left out."""
        return sum(bool(piece) and not piece.isspace() for piece in self.pieces) // 2

    def are_neighbours(self, left: int, right: int) -> bool:
        """Tell whether nothing but a blank stands between two positions."""
        return all(piece.isspace() or not piece for piece in self.pieces[left + 1 : right])

    def with_words(self, words: Mapping[int, str]) -> Sentence:
        """Return the sentence with other words at some positions."""
        pieces = list(self.pieces)
        for position, word in words.items():
            pieces[position] = word
        return replace(self, pieces=tuple(pieces))

    def without(self, positions: AbstractSet[int]) -> Sentence:
        """Return the sentence without some words, and without the blank that each leaves over."""
        pieces, kept = list(self.pieces), list[int]()
        for position in range(len(pieces)):
            if position not in positions:
                kept += [position] if pieces[position] else []
                continue
            pieces[position] = ""
            before = kept[-1] if kept else None
            after = next((i for i in range(position + 1, len(pieces)) if pieces[i]), None)
            if all(side is None or pieces[side].isspace() for side in (before, after)):
                blank = after if before is None else kept.pop()
                if blank is not None:
                    pieces[blank] = ""
        return Sentence(tuple(pieces), tuple(p for p in self.free if p not in positions))


def is_plain(word: str) -> bool:
    """Tell whether a word neither turns round nor strengthens what follows."""
    folded = _APOSTROPHE.sub("'", word.casefold())
    parts = folded.replace("'", "-").split("-")
    return not (folded.endswith("n't") or any(part in _LOADED for part in (folded, *parts)))


def cut(text: str, protected: re.Pattern[str] | None = None) -> Sentence:
    """Cut a text into pieces and find the words that may change.

    URLs, addresses, mentions, hashtags, smileys, numbers, negations and up to four words after one
    in its clause, and intensifiers may not; nor may a word that touches anything but a blank or a
    punctuation mark.

    Args:
        text: Any text.
        protected: What else may not change, wherever it is found.

    Returns:
        The pieces of the text.
    """
    pieces: list[str] = []
    kinds: list[str | None] = []
    for number, part in enumerate(_URL.split(text)):
        found = [] if number % 2 else [*_PIECES.finditer(part)]
        pieces += [part] if number % 2 else [match[0] for match in found]
        kinds += ["kept"] if number % 2 else [match.lastgroup for match in found]
    starts = [0, *accumulate(map(len, pieces))]
    spans = [match.span() for match in protected.finditer(text)] if protected else []
    free: list[int] = []
    scope = 0
    for position, (piece, kind) in enumerate(zip(pieces, kinds, strict=True)):
        if kind != "word":
            if not _CLAUSE_ENDS.isdisjoint(piece):
                scope = 0
            continue
        folded = piece.casefold()
        if folded in _TURNS:
            scope = 0
        scope -= 1
        if not is_plain(piece):
            scope = scope if folded in INTENSIFIERS else _SCOPE
            continue
        if scope >= 0 or not _stands_alone(pieces, position):
            continue
        start, end = starts[position : position + 2]
        if not any(first < end and start < last for first, last in spans):
            free.append(position)
    return Sentence(tuple(pieces), tuple(free))


def _stands_alone(pieces: Sequence[str], position: int) -> bool:
    """Tell whether a word touches nothing but blanks and punctuation."""
    before = pieces[position - 1] if position else " "
    after = pieces[position + 1] if position + 1 < len(pieces) else " "
    return (before.isspace() or before in _BEFORE) and (after.isspace() or after in _AFTER)
