"""Checks of the options: those that are given and change nothing.

Options that do not exist at all are refused by the parser. This room knows what was parsed, and
what became of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from jsonargparse import Namespace

from kd.checks.findings import Finding
from kd.data.datamodule import TextDataModule
from kd.data.sources import available_roles
from kd.models import EncoderClassifier
from kd.module import DistillationModule

__all__ = ["check_options"]


def check_options(
    options: Namespace, module: DistillationModule, data: TextDataModule
) -> list[Finding]:
    """Look for options of a fit that have no effect.

    Args:
        options: The command's, as parsed.
        module: What they made.
        data: Likewise, its rows read.

    Returns:
        What was found.
    """
    named = {name for name, spec in (options.model.objectives or {}).items() if spec is not None}
    told = [
        Finding("warning", "options", f"model.objectives.{name} has weight 0", "remove it")
        for name in sorted(named - set(module.terms))
    ]
    told += [
        Finding("warning", "options", found, advice)
        for found, advice in (*_unused(options, module, data), *_overruled(options, data))
    ]
    return told or [Finding("ok", "options", "every one has an effect")]


def _unused(
    options: Namespace, module: DistillationModule, data: TextDataModule
) -> Iterator[tuple[str, str]]:
    """Yield what is there for no objective."""
    teacher, plan, shown = module.teacher, data.augment, str(options.model.teacher)
    judges = plan is not None and plan.asks_teacher
    if teacher is not None and not module.taught and not judges:
        yield "no objective learns from model.teacher", "add LogitKD, or set it to null"
    unlabelled = sum(row.label is None and row.origin is None for row in data.rows["train"])
    if unlabelled and all(term.uses_labels for term in module.terms.values()):
        yield (
            f"{unlabelled:,} rows without a label are left out",
            "add an objective that needs none, or do not name them",
        )
    is_read = module.privileged or module.reads != "text" or "text and rationale" in shown
    is_read = is_read or (teacher is not None and not teacher.answers_everything)
    if data.rationales is not None and not is_read:
        yield "no objective reads data.rationales", "add PrivilegedKD, or set it to null"
    if plan is not None and not any(plan.counts(data.rows["train"], data.labels)):
        yield "data.augment makes no variant of any row", "raise its variants, or set it to null"


def _overruled(options: Namespace, data: TextDataModule) -> Iterator[tuple[str, str]]:
    """Yield options that were given, and that another one overrules."""
    student = options.model.student.init_args
    trains_words = student.get("config") is not None and student.get("tokenizer") is None
    splits = available_roles(data.source)
    data_options, words = (TextDataModule, "data"), (EncoderClassifier, "model.student.init_args")
    for (owner, prefix), name, is_idle, reason in (
        (data_options, "batch_size", data.tokens_per_batch, "tokens_per_batch decides"),
        (data_options, "label_separator", not data.multi_label, "multi_label is false"),
        (data_options, "validation_fraction", "validation" in splits, "that split is there"),
        (words, "vocabulary_size", not trains_words, "no vocabulary is trained here"),
    ):
        default = inspect.signature(owner).parameters[name].default
        if is_idle and options.get(f"{prefix}.{name}", default) != default:
            yield f"{prefix}.{name} has no effect, as {reason}", "remove it"
