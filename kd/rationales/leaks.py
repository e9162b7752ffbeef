"""What gives the label away: words taken out of a rationale, and a measure of what is left.

A student that is shown the answer learns to read the answer, and nothing about texts. This room
knows rows and strings, and no model but a bag of words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from random import Random
from typing import Any

from kd.rationales.replies import objects, without_thoughts
from kd.types import Row

__all__ = ["Audit", "audit", "mask"]

_GAP = "…"
_FOLDS = 3
_PROBED = 10_000  # rows, enough for an accuracy to half a per cent
_TOO_GOOD = 0.995
_LISTED = 3  # confusions, most frequent first
_UNSPACED = "\u2e80"  # from here on, scripts mostly put no spaces between words
_TOKEN = rf"[{_UNSPACED}-\U0010ffff]|\w+|[^\w\s]"
_LONG = 5  # letters of a stem that few other words begin with
_PART = 4  # letters of a part of a name that say something by themselves
_ENDING = "(?:e?[sdr]|est|ing|(?:ful|ous)?(?:ly|ness)?)"
# a clause that states the answer, in words of its own perhaps, up to where its reasons begin
_STATEMENT = re.compile(
    r"""
    (?: \b(?:so|hence|thus|therefore|overall|in\ (?:conclusion|short|summary))\b ,?\s )?
    (?<![^\W_])
    (?: (?: (?:the|this|its|my)\s | ^ | (?<=[.!?;]\s) ) (?:\w+\s){0,2}
        (?:answer|category|class|classification|label|polarity|prediction|sentiment|verdict)\b
        (?: (?!\s(?-i:[A-Z][a-z])) [^.!?;:,\n] ){0,60}?
      | overall ,? (?:\s(?: it | this | (?:the|this)\s(?:review|sentence|text|tone|tweet) ))?
    )
    (?: \s(?:is|are|was|were|be|seems|appears|leans)\b | \s?[:=] )
    \s?\S+? (?: [^.!?;\n] | [.!?;](?!\s|$) )*?
    (?: [.!?;]+(?=\s|$)
      | $
      | ,?(?=\s(?:because|since|due\sto|given|as\s(?:it|they|the|there))\b)
      | (?=\s(?-i:[A-Z][a-z]))  # a sentence whose full stop was lost
    )
    """,
    re.I | re.M | re.X,
)


@dataclass(frozen=True)
class Audit:
    """How far rationales give labels away, and how often their author agrees with the data.

    Accuracies are those of a bag of words under cross-validation.

    Args:
        labels: Class names.
        rows: Rows with a rationale; variants of other rows do not count.
        confusion: Rows by their own label, and then by the author's, where both are known.
        before: Share of the rationales that hold a label word as they came.
        after: Share of those that hold one as they are learnt from.
        probed: Rows that the accuracies are from.
        text: Accuracy from the text alone.
        rationale: Accuracy from the rationale alone.
        reader: Accuracy from both.
    """

    labels: tuple[str, ...]
    rows: int
    confusion: tuple[tuple[int, ...], ...]
    before: float
    after: float
    probed: int
    text: float
    rationale: float
    reader: float

    @property
    def agreement(self) -> float | None:
        """Share of the rows with both labels where they are the same; null without such rows."""
        known = sum(map(sum, self.confusion))
        same = sum(self.confusion[i][i] for i in range(len(self.labels)))
        return same / known if known else None

    def as_plain(self) -> dict[str, Any]:
        """Return all figures as plain values."""
        return asdict(self) | {"agreement": self.agreement}

    def lines(self) -> list[str]:
        """Return what to print: the figures, and a warning where a rationale is the answer."""
        known = sum(map(sum, self.confusion))
        lines = [f"rationales = {self.rows:,}"]
        if self.agreement is not None:
            lines[0] += f"; their author agrees with {self.agreement:.1%} of {known:,} labels"
        pairs = Counter(
            {
                f"{said} for {own}": count
                for own, counts in zip(self.labels, self.confusion, strict=True)
                for said, count in zip(self.labels, counts, strict=True)
                if said != own and count
            }
        )
        if pairs:
            most = pairs.most_common(_LISTED)
            lines.append("it says most often " + ", ".join(f"{pair} ({n:,})" for pair, n in most))
        lines.append(
            f"label words: in {self.before:.1%} of the rationales as they came, in {self.after:.1%}"
            " as they are learnt from"
        )
        lines.append(
            f"a bag of words tells the class of {self.probed:,} rows by the text in "
            f"{self.text:.1%}, by the rationale in {self.rationale:.1%}, by both in "
            f"{self.reader:.1%}"
        )
        if self.after:
            lines.append("warning: label words are left in the rationales: mask them")
        if max(self.rationale, self.reader) >= _TOO_GOOD:
            lines.append(
                "warning: the rationales give the label away, so that little can be learnt from "
                "them: add the words that do to the masked ones, or change the prompt"
            )
        return lines


def mask(rationale: str, words: Sequence[str]) -> str:
    """Return a rationale without what gives its label away; perhaps nothing is left.

    Thoughts go, a JSON object becomes its rationale, statements of the answer go, and label words
    become "…": one token of the usual vocabularies, which keeps the sentence whole and says only
    that a word stood there. A mask token would not do: a pretrained model guesses what it hides.

    Args:
        rationale: As it came.
        words: Class names and other words for them; of names of several words, the parts of four
            letters or more count too. A word of five letters, a final e or s not counted, hides
            all that begin with it (positive: positively, positivity): a word too many costs
            little, a leak costs all. A shorter one begins many others, and hides its regular
            inflections only (joy: joyful, not joystick).

    Returns:
        The rest, its blanks tidied.
    """
    text = without_thoughts(rationale)
    if text.lstrip().startswith(("{", "```")):
        told = next(objects(text), {"rationale": text}).get("rationale")
        text = told if isinstance(told, str) else ""
    text = "\n".join(" ".join(line.split()) for line in text.splitlines())
    text = _pattern(tuple(words)).sub(_GAP, _STATEMENT.sub(" ", text))
    text = re.sub(rf"{_GAP}(?:[^\w{_GAP}]*{_GAP})+", _GAP, text)
    text = " ".join(text.split()).lstrip(" ,;:.").rstrip(" ,;:")
    return text if re.search(r"[^\W_]", text) else ""


def audit(
    rows: Sequence[Row], labels: Sequence[str], raw: Sequence[str | None], words: Sequence[str]
) -> Audit | None:
    """Measure what annotations say and give away.

    A row without a label of its own, or with several, is counted under the annotator's.

    Args:
        rows: Annotated rows; their rationales as they are learnt from.
        labels: Class names.
        raw: The rationale of each row as it came, null where there is none.
        words: What gives a label away, as for :func:`mask`.

    Returns:
        The figures, or null if fewer than two classes have three rows with rationales. A class that
        has fewer is left out of the accuracies.
    """
    confusion = [[0] * len(labels) for _ in labels]
    explained: list[tuple[Row, str, int]] = []
    pattern, before = _pattern(tuple(words)), 0
    for row, came in zip(rows, raw, strict=True):
        note = row.annotation
        if note is None or row.origin is not None:
            continue
        if note.label is not None and isinstance(row.label, int):
            confusion[row.label][note.label] += 1
        truth = row.label if isinstance(row.label, int) else note.label
        if note.rationale and truth is not None:
            explained.append((row, note.rationale, truth))
            before += bool(pattern.search(came or note.rationale))
    sample = explained
    if len(explained) > _PROBED:
        sample = Random(0).sample(explained, _PROBED)
    counts = Counter(truth for *_, truth in sample)
    sample = [one for one in sample if counts[one[-1]] >= _FOLDS]
    if len({truth for *_, truth in sample}) < 2:
        return None
    text, rationale, reader = _accuracies(sample)
    return Audit(
        labels=tuple(labels),
        rows=len(explained),
        confusion=tuple(map(tuple, confusion)),
        before=before / len(explained),
        after=sum(bool(pattern.search(told)) for _, told, _ in explained) / len(explained),
        probed=len(sample),
        text=text,
        rationale=rationale,
        reader=reader,
    )


def _accuracies(sample: Sequence[tuple[Row, str, int]]) -> tuple[float, float, float]:
    """Return how well the class is told by the text, by the rationale and by both."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    truth = [truth for *_, truth in sample]
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)

    def bag(texts: list[str]) -> Any:
        return TfidfVectorizer(token_pattern=_TOKEN, sublinear_tf=True).fit_transform(texts)

    def accuracy(words: Any) -> float:
        model = LogisticRegression(C=10, solver="newton-cg", tol=1e-3)
        return float(cross_val_score(model, words, truth, cv=folds).mean())

    texts, told = bag([row.text for row, *_ in sample]), bag([told for _, told, _ in sample])
    return accuracy(texts), accuracy(told), accuracy(hstack([texts, told]).tocsr())


@lru_cache(maxsize=16)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    """Return what finds label words and their inflections."""
    spaced, unspaced = {"(?!)"}, {"(?!)"}  # which nothing matches
    for word in filter(str.strip, words):
        parts = re.findall(r"[^\W_]+", word.lower()) or [word.strip()]
        forms = {r"[\W_]*".join(map(re.escape, parts))}
        forms |= {_inflected(part) for part in parts if len(parts) == 1 or len(part) >= _PART}
        (unspaced if parts[0] >= _UNSPACED else spaced).update(forms)
    # an underscore is an edge as well: Markdown's emphasis and label_names have it
    whole = rf"(?<![^\W_])(?:{'|'.join(sorted(spaced))})(?![^\W_])"
    return re.compile(f"{whole}|{'|'.join(sorted(unspaced))}", re.I)


def _inflected(word: str) -> str:
    """Return the pattern of a word and what is made of it."""
    if not word.isalpha() or word >= _UNSPACED:
        return re.escape(word)
    stem = re.sub("[es]$", "", word)
    if len(stem) >= _LONG:
        return re.sub("y$", "[yi]", stem) + r"[^\W\d_]*"  # happy, happiness
    if word.endswith("e"):
        return f"{stem}(?:e{_ENDING}|ing)"  # hate, hateful, hating
    return f"{word}{word[-1]}?{_ENDING}"  # sad, sadder, sadly
