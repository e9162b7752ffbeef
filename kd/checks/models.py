"""Checks of the models: what they read of the texts, what the teacher is worth, and their modes.

This room knows models, teachers and rows, no trainer and no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from kd.answering import row_logits
from kd.calibration import choices, is_right, probabilities
from kd.checks.findings import Finding, attempt, graded
from kd.checks.sample import some
from kd.classifiers import TextClassifier
from kd.data.collate import EncodedRows, label_tensor
from kd.data.datamodule import TextDataModule
from kd.data.encode import View, encode
from kd.module import DistillationModule
from kd.slices import interval_of
from kd.teachers import Teacher
from kd.types import Row
from kd.views import view_of

__all__ = [
    "check_answers",
    "check_loading",
    "check_modes",
    "check_reading",
    "check_teacher",
]

_LONG = 10**6  # tokens: no text is cut
_ROUND = 8  # tokens that a proposed length is a multiple of
_TRUNCATED, _UNKNOWN = 0.05, 0.05  # shares of the texts, and of their tokens
_MEASURED, _FEW = 500, 30  # rows that a teacher is judged by, and too few of them
_BETTER = 0.1  # of the accuracy, that another order of the classes must win


def check_loading(module: DistillationModule, data: TextDataModule) -> list[Finding]:
    """Load student and teacher, and let the objectives look at them, each by itself.

    Args:
        module: Not set up yet, or only in part.
        data: Whose rows have been read.

    Returns:
        What cannot be loaded, or cannot work together; nothing where all can.
    """
    student, teacher, several = module.student, module.teacher, data.multi_label
    texts = data.texts() if student.wants_texts else ()
    told = attempt("student", partial(student.load, data.labels, texts, multi_label=several))
    if teacher is not None:
        told += attempt("teacher", partial(teacher.load, data.labels, several))
    if not told:
        infos = student.info, None if teacher is None else teacher.info
        for term in module.terms.values():
            told += attempt("objectives", partial(term.bind, *infos))
    return told


def check_modes(student: TextClassifier, teacher: Teacher | None) -> list[Finding]:
    """Look whether every part of the student is in train mode, and no part of the teacher.

    Args:
        student: In a training step.
        teacher: Likewise.

    Returns:
        What was found.
    """
    models = () if teacher is None else teacher.models
    still = [name for name, part in student.named_modules() if not part.training]
    lively = [name for model in models for name, part in model.named_modules() if part.training]
    told = []
    for who, parts, wrong, right, effect in (
        ("student", still, "eval", "train", "its dropout is off"),
        ("teacher", lively, "train", "eval", "its answers are noisy"),
    ):
        if parts:
            found = f"{len(parts)} parts of the {who} are in {wrong} mode"
            found += f", such as {parts[-1]}" if parts[-1] else ""
            advice = f"call {right}() where its class loads it, or {effect}"
            told.append(Finding("error", "modes", found, advice))
    fine = "the student is in train mode" + (", its teacher in eval mode" if models else "")
    return told or [Finding("ok", "modes", fine)]


def check_reading(rows: Sequence[Row], module: DistillationModule, length: int) -> list[Finding]:
    """Look how much of the texts is cut off, and how much of them is in no vocabulary.

    Args:
        rows: Some rows of training.
        module: Its models, loaded.
        length: Tokens after which a text is cut.

    Returns:
        What was found; models that read alike have one finding.
    """
    views, limits = _views(module, length), _views(module, _LONG)
    alike: dict[object, list[str]] = {}
    for name, view in views.items():
        alike.setdefault(view.key, []).append(name)
    told = []
    for names in alike.values():
        view, who = views[names[0]], " and ".join(names)
        whole = encode(rows, replace(view, max_length=_LONG))
        cut = float((whole.lengths > view.max_length).mean())
        found = f"{cut:.1%} of the texts are longer than {view.max_length} tokens, all that "
        found += f"{who} {'reads' if len(names) == 1 else 'read'}"
        limit = min(limits[name].max_length for name in names)
        # a run tells its tokenizer the length that it trains with: then that is no limit
        advice = _longer(whole.lengths, _LONG if limit == length else limit)
        told.append(graded("length", found, advice, warns=cut >= _TRUNCATED))
        place = view.tokenizer.unk_token_id
        unknown = 0.0 if place is None else float((whole.ids == place).mean())
        found = f"{unknown:.1%} of the tokens are in no vocabulary of {who}"
        advice = "take a model, or a tokenizer, that was made for such texts"
        told.append(graded("vocabulary", found, advice, warns=unknown >= _UNKNOWN))
    return told


def check_teacher(teacher: Teacher, rows: EncodedRows, labels: Sequence[str]) -> Finding:
    """Look at what a teacher answers to some validation rows; see :func:`check_answers`."""
    keep = np.zeros(len(rows), dtype=bool)
    keep[some(range(len(rows)), _MEASURED)] = True
    rows = rows.select([row for row, is_kept in zip(rows.rows, keep, strict=True) if is_kept], keep)
    found = probabilities(row_logits(teacher, rows), rows.classes is not None)
    return check_answers(found, label_tensor(rows.rows, rows.classes).numpy(), labels)


def check_answers(
    found: NDArray[np.float64], truth: NDArray[np.int64], labels: Sequence[str]
) -> Finding:
    """Look whether a teacher knows the task, and whether its classes are in the data's order.

    It must be right more often than labels that are dealt at random, as often as it deals each,
    and than the most frequent class; 95% intervals (Wilson 1927) decide.

    Args:
        found: Probabilities that it gives some rows, `[N, C]`.
        truth: Their classes `[N]`, or 1 and 0 for each class `[N, C]`.
        labels: Class names.

    Returns:
        What was found.
    """
    several, rows = truth.ndim == 2, len(truth)
    right = float(is_right(found, truth, several).mean())
    told = f"the teacher is right on {right:.1%} of {rows:,} validation rows"
    if rows < _FEW:
        return Finding("ok", "teacher", f"{told}, too few to tell what it is worth")
    names = np.arange(len(labels))
    chosen = choices(found, several)
    said, true = (x == 1 if several else x[:, None] == names for x in (chosen, truth))
    p, q = said.mean(axis=0), true.mean(axis=0)
    by_chance = float((p * q + (1 - p) * (1 - q)).mean() if several else (p * q).sum())
    always = float(np.maximum(q, 1 - q).mean() if several else q.max())
    share = interval_of(right, rows)
    low, high = share.low, share.high
    if not several:
        counts = said.T.astype(np.int64) @ true.astype(np.int64)
        _, order = linear_sum_assignment(counts, maximize=True)
        other = float(counts[names, order].sum() / rows)
        if interval_of(other, rows).low > max(high, always) and other > right + _BETTER:
            moved = [f"{labels[a]} for {labels[b]}" for a, b in enumerate(order) if a != b]
            told = f"classes look swapped: {told}, on {other:.1%} if it says {', '.join(moved)}"
            advice = "correct the order of model.teacher's label_names, or data.label_map"
            return Finding("error", "label order", told, advice)
    told += f" ({low:.1%} to {high:.1%})"
    if low <= by_chance:
        advice = "train it on these classes, or take another"
        return Finding("error", "teacher", f"{told}, chance on {by_chance:.1%}", advice)
    advice = "train it longer, or take another"
    told += f", the most frequent answer on {always:.1%}"
    return graded("teacher", told, advice, warns=low <= always, fails=high < always)


def _views(module: DistillationModule, max_length: int) -> dict[str, View]:
    """Return how loaded models read a text, by role."""
    views = {"student": view_of(module.student, max_length)}
    views |= module.teacher.views(max_length) if module.teacher else {}
    return {name: replace(view, reads="text") for name, view in views.items()}


def _longer(lengths: NDArray[np.int64], limit: int) -> str:
    """Return which length would do."""
    most, all_but_few = (
        -int(-np.quantile(lengths, share, method="higher") // _ROUND) * _ROUND
        for share in (0.95, 0.99)
    )
    told = f"data.max_length={most} fits 95% of them"
    told += f", {all_but_few} fits 99%" if all_but_few > most else ", and 99% too"
    return told if all_but_few <= limit else f"{told}, but the model reads {limit} at most"
