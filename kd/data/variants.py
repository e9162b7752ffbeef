"""Variants of training rows: made once, kept on disk, judged by the teacher.

A variant follows from the text, its number and the seed alone, so that the order of the rows and
the number of processes change nothing. This room chooses no path, and knows the teacher only by
the probabilities that it is given.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kd.console import progress_bar
from kd.data.augment import Augmenter, vary_texts
from kd.errors import ConfigError, RunError
from kd.files import replacing
from kd.types import Row

__all__ = ["Augmentation", "Variants", "judge", "make_variants"]

_VERSION = 1  # of what the same settings make of a text
_CHUNK = 500  # texts that are changed, and kept, at once
_FEW = 4000  # variants that are sooner made here than by processes that must start
_EXAMPLES = 10

_Chunk = tuple[Sequence[str], Sequence[int]]  # texts, and how many variants of each


@dataclass
class Augmentation:
    """How the training rows are multiplied; validation and test rows stay as they are.

    Args:
        augmenters: What changes a text, one after the other; `Mixed` draws one of several.
        variants: How many variants each row gets.
        class_variants: How many the rows of some classes get, by class name.
        unlabelled_variants: How many rows without a label get; null is as many as others.
        labels: What becomes of a row's label in its variants: ``keep`` it, ``drop`` it, so that
            the teacher alone speaks, or take the ``teacher``'s class.
        flip_confidence: A variant to which the teacher gives another class than to the original,
            with at least this probability, is left out; null leaves none out.
        protect: Words and phrases that are never changed, beside those that never are.
        seed: Of the variants, not of training.
        processes: How many make them; null is one per core.

    Raises:
        ConfigError: If there is no augmenter, or a number is out of its range.
    """

    augmenters: list[Augmenter]
    variants: int = 1
    class_variants: dict[str, int] | None = None
    unlabelled_variants: int | None = None
    labels: Literal["keep", "drop", "teacher"] = "keep"
    flip_confidence: float | None = 0.8
    protect: list[str] = field(default_factory=list)
    seed: int = 0
    processes: int | None = None

    def __post_init__(self) -> None:
        if not self.augmenters:
            raise ConfigError("data.augment.augmenters is empty: name at least one, or no augment.")
        counts = {"variants": self.variants, "unlabelled_variants": self.unlabelled_variants or 0}
        counts |= {f"class_variants.{name}": n for name, n in (self.class_variants or {}).items()}
        for name, count in counts.items():
            if count < 0:
                raise ConfigError(f"data.augment.{name} is {count}: give 0 or more.")
        if self.flip_confidence is not None and not 0.0 < self.flip_confidence <= 1.0:
            raise ConfigError(
                f"data.augment.flip_confidence is {self.flip_confidence}: give a probability, or "
                "null."
            )
        if self.processes is not None and self.processes < 1:
            raise ConfigError("data.augment.processes must be positive.")

    @property
    def asks_teacher(self) -> bool:
        """Whether the teacher's answers decide about variants."""
        return self.flip_confidence is not None or self.labels == "teacher"

    def counts(self, rows: Sequence[Row], labels: Sequence[str]) -> list[int]:
        """Return how many variants each row gets."""
        known = self.class_variants or {}
        unknown = sorted(known.keys() - set(labels))
        if unknown:
            raise ConfigError(
                f"data.augment.class_variants names {unknown[0]}, which is none of the classes "
                f"{', '.join(labels)}."
            )
        by_class = [known.get(name, self.variants) for name in labels]
        without = self.variants if self.unlabelled_variants is None else self.unlabelled_variants
        return [_count(row.label, by_class, self.variants, without) for row in rows]


def _count(
    label: int | tuple[int, ...] | None, by_class: Sequence[int], none: int, without: int
) -> int:
    if label is None:
        return without
    if isinstance(label, int):
        return by_class[label]
    return max((by_class[one] for one in label), default=none)


@dataclass
class Variants:
    """What became of the variants that were asked for.

    Args:
        rows: Those that are trained on, after the originals.
        made: How many were asked for.
        left_out: How many of them are not trained on, by the reason.
        seconds: How long it took.
        is_known: Whether they were found on disk.
        flipped: Those that the teacher gives another class than their original.
    """

    rows: list[Row]
    made: int
    left_out: dict[str, int]
    seconds: float
    is_known: bool
    flipped: list[Row] = field(default_factory=list)

    def __str__(self) -> str:
        counts = self._left_out().items()
        left_out = "".join(f", {count:,} {reason}" for reason, count in counts if count)
        how = "read" if self.is_known else "made"
        told = f"augment = {self.made:,} variants, {how} in {self.seconds:.1f} s"
        return f"{told}: {len(self.rows):,} kept{left_out}"

    def _left_out(self) -> dict[str, int]:
        return {**self.left_out, "flipped": len(self.flipped)}

    def as_plain(self, originals: Sequence[Row]) -> dict[str, Any]:
        """Tell of the variants in plain values.

        Args:
            originals: The rows that the variants were made from.

        Returns:
            How many were made, kept and left out, by the reason; and ten examples.
        """
        texts = {row.index: row.text for row in originals}
        flipped = _some(self.flipped, _EXAMPLES // 3)
        shown = [*_some(self.rows, _EXAMPLES - len(flipped)), *flipped]
        refused = {row.index for row in flipped}
        examples = [
            {
                "text": texts[row.origin or 0],
                "variant": row.text,
                "fate": "flipped" if row.index in refused else "kept",
            }
            for row in shown
        ]
        kept = len(self.rows)
        counts = {"made": self.made, "kept": kept, "dropped": self.made - kept, **self._left_out()}
        return {**counts, "seconds": self.seconds, "examples": examples}


def _some(rows: Sequence[Row], count: int) -> list[Row]:
    """Return some rows from all over."""
    step = max(1, len(rows) // count)
    return list(rows[step // 2 :: step])[:count]


def make_variants(
    rows: Sequence[Row],
    plan: Augmentation,
    labels: Sequence[str],
    held_out: Sequence[Row] = (),
    folder: Path | None = None,
) -> Variants:
    """Make the variants of training rows, or read them where they were made before.

    Args:
        rows: Originals.
        plan: How many of which, and how.
        labels: Class names in the order of the logits.
        held_out: Rows whose texts must not be trained on.
        folder: Where variants are kept; null keeps none.

    Returns:
        New rows whose index goes on after the last and whose ``origin`` is that of their original;
        none is the text of another row. ``labels: teacher`` keeps labels until :func:`judge`.

    Raises:
        ConfigError: If ``class_variants`` names no class, or an augmenter lacks what it needs.
    """
    started = time.perf_counter()
    counts = plan.counts(rows, labels)
    wanted: dict[str, int] = {}
    for row, count in zip(rows, counts, strict=True):
        for text in (row.text, row.pair):
            if count and text is not None:
                wanted[text] = max(wanted.get(text, 0), count)
    texts = sorted(wanted)
    known, is_known = _known_or_made(texts, [wanted[text] for text in texts], plan, folder)
    fates: Counter[str] = Counter()
    taken = {(row.text, row.pair) for row in rows}
    forbidden = {(row.text, row.pair) for row in held_out}
    made: list[Row] = []
    index = 1 + max((row.index for row in rows), default=-1)
    for row, count in zip(rows, counts, strict=True):
        for number in range(count):
            text = known[row.text][number]
            pair = None if row.pair is None else known[row.pair][number]
            if (text, pair) == (row.text, row.pair):
                fates["unchanged"] += 1
            elif (text, pair) in forbidden:
                fates["held out"] += 1
            elif (text, pair) in taken:
                fates["duplicate"] += 1
            else:
                taken.add((text, pair))
                label = None if plan.labels == "drop" else row.label
                said = row.annotation and replace(row.annotation, evidence=())  # other characters
                place = index + len(made)
                made.append(Row(place, text, label, pair, row.index, row.weight, said))
    left_out = {reason: fates[reason] for reason in ("unchanged", "duplicate", "held out")}
    seconds = time.perf_counter() - started
    return Variants(made, sum(counts), left_out, seconds, is_known)


def _known_or_made(
    texts: Sequence[str], counts: Sequence[int], plan: Augmentation, folder: Path | None
) -> tuple[dict[str, list[str]], bool]:
    """Return the variants of each text, and whether all were found; a chunk is kept once made."""
    starts = range(0, len(texts), _CHUNK)
    chunks = [(texts[i : i + _CHUNK], counts[i : i + _CHUNK]) for i in starts]
    facts = _facts(plan) if folder else b""
    paths = [folder / f"{_key(*chunk, facts)}.parquet" if folder else None for chunk in chunks]
    found = [_read(path, chunk[1]) for path, chunk in zip(paths, chunks, strict=True)]
    missing = [number for number, variants in enumerate(found) if not variants]
    if missing:
        for augmenter in plan.augmenters:
            augmenter.prepare()
        wanted = [chunks[number] for number in missing]
        with progress_bar("variants", sum(sum(counts) for _, counts in wanted)) as advance:
            for number, variants in zip(missing, _made(wanted, plan), strict=True):
                found[number] = variants
                _write(paths[number], variants)
                advance(sum(chunks[number][1]))
        for augmenter in plan.augmenters:
            augmenter.release()
    return dict(zip(texts, chain.from_iterable(found), strict=True)), not missing


def _facts(plan: Augmentation) -> bytes:
    """Return all that decides about the variants of a text."""
    facts = {
        "version": _VERSION,
        "augmenters": [augmenter.describe() for augmenter in plan.augmenters],
        "protect": sorted(plan.protect),
        "seed": plan.seed,
    }
    return json.dumps(facts, sort_keys=True).encode()


def _key(texts: Sequence[str], counts: Sequence[int], facts: bytes) -> str:
    state = hashlib.sha256(facts)
    for text, count in zip(texts, counts, strict=True):
        state.update(f"{count}\0{text}\0".encode())
    return state.hexdigest()[:32]


def _read(path: Path | None, counts: Sequence[int]) -> list[list[str]]:
    """Return what was kept; nothing where it is missing, damaged or of other texts."""
    from pyarrow import ArrowException, parquet

    if path is None:
        return []
    try:
        table = parquet.read_table(path, page_checksum_verification=True)
        found: list[list[str]] = table["variants"].to_pylist()
    except (OSError, ArrowException, KeyError):
        return []
    os.utime(path)  # its last use, for who prunes
    return found if [len(variants) for variants in found] == list(counts) else []


def _write(path: Path | None, variants: Sequence[Sequence[str]]) -> None:
    from pyarrow import parquet, table

    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            parquet.write_table(table({"variants": variants}), file, write_page_checksum=True)
    except OSError as error:
        raise RunError(
            f"The variants cannot be written to {path.parent}: {error.strerror}; make room, or "
            "choose another run.root."
        ) from error


def _made(chunks: Sequence[_Chunk], plan: Augmentation) -> Iterator[list[list[str]]]:
    """Yield the variants of the texts of each chunk, in their order."""
    vary = partial(vary_texts, augmenters=plan.augmenters, protect=plan.protect, seed=plan.seed)
    processes = min(plan.processes or os.cpu_count() or 1, len(chunks))
    here = any(augmenter.loads_model for augmenter in plan.augmenters)
    few = sum(sum(counts) for _, counts in chunks) < _FEW and plan.processes is None
    if here or few or processes < 2:
        yield from (vary(*chunk) for chunk in chunks)
        return
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    working = Parallel(n_jobs=processes, return_as="generator")
    try:
        yield from working(delayed(vary)(*chunk) for chunk in chunks)
    except BrokenProcessPool as error:
        raise RunError(
            f"One of the {processes} processes that make variants was killed, as a full memory "
            "does: set data.augment.processes to a smaller number."
        ) from error
    get_reusable_executor().shutdown()  # else they keep their memory through training


def judge(
    rows: Sequence[Row], probabilities: NDArray[np.float32], plan: Augmentation
) -> tuple[list[Row], list[Row]]:
    """Let the teacher decide about variants.

    Args:
        rows: Originals and variants.
        probabilities: What the teacher gives each of them, `[rows, C]`.
        plan: What to do.

    Returns:
        The rows to train on, and the variants that are left out because the teacher gives them
        another class than their original.
    """
    several = any(isinstance(row.label, tuple) for row in rows)
    chosen = probabilities > 0.5 if several else _one_hot(probabilities)
    places = {row.index: i for i, row in enumerate(rows)}
    limit = plan.flip_confidence
    kept, flipped = [], []
    for i, row in enumerate(rows):
        if row.origin is None:
            kept.append(row)
            continue
        other = chosen[i] != chosen[places[row.origin]]
        sure = (
            probabilities[i] if not several else np.maximum(probabilities[i], 1 - probabilities[i])
        )
        if limit is not None and other.any() and sure[other].max() >= limit:
            flipped.append(row)
            continue
        if plan.labels == "teacher":
            classes = tuple(np.flatnonzero(chosen[i]).tolist())
            row = replace(row, label=classes if several else classes[0])
        kept.append(row)
    return kept, flipped


def _one_hot(probabilities: NDArray[np.float32]) -> NDArray[np.bool_]:
    choice = probabilities.argmax(axis=1)
    return np.asarray(np.arange(probabilities.shape[1]) == choice[:, None])
