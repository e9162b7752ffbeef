"""The loss: a named sum of objectives, what it looks like, and whether it can work.

This room knows objectives and what a teacher provides, no model and no data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kd.data.encode import Reads
from kd.errors import ConfigError
from kd.objectives import Objective
from kd.teachers import Teacher
from kd.types import Batch, Outputs, Row

__all__ = ["check_rows", "check_terms", "equation", "weighted_sum"]


def equation(terms: Mapping[str, Objective]) -> str:
    """Return the loss as one line, such as ``loss = 0.5 * labels[HardLabel] + …``."""
    return "loss = " + " + ".join(
        f"{term.shown('weight')} * {name}[{term.describe()}]" for name, term in terms.items()
    )


def weighted_sum(
    terms: Mapping[str, Objective], student: Outputs, teacher: Outputs | None, batch: Batch
) -> tuple[dict[str, Tensor], Tensor]:
    """Return every term, unweighted, and the weighted sum."""
    values = {name: term(student, teacher, batch) for name, term in terms.items()}
    return values, torch.stack([term.weight * values[name] for name, term in terms.items()]).sum()


def check_terms(
    terms: Mapping[str, Objective], teacher: Teacher | None, reads: Reads, writes: bool
) -> None:
    """Refuse terms that can never work with each other, with the teacher or with the student.

    Args:
        terms: The objectives by name.
        teacher: Whom they learn from, if there is one.
        reads: What the student is shown in training.
        writes: Whether the student can write.

    Raises:
        ConfigError: If one cannot.
    """
    if not any(term.has_weight for term in terms.values()):
        raise ConfigError("model.objectives has no term with a weight: the loss would be zero.")
    for name, term in terms.items():
        where = f"model.objectives.{name} ({type(term).__name__})"
        if name in ("", "loss", "objective") or "." in name or hasattr(nn.ModuleDict(), name):
            raise ConfigError(
                f"{where}: a term's name must not be empty, 'loss', 'objective' or a word of "
                "PyTorch's, nor have a dot."
            )
        if term.reads and reads != "text":
            raise ConfigError(
                f"{where} teaches what a rationale says, but model.reads={reads!r} shows it to the "
                "student: remove one of the two."
            )
        if "rationale_logits" in term.needs and not writes:
            raise ConfigError(
                f"{where} teaches to write, which model.student cannot: take a Seq2SeqClassifier."
            )
        if not term.uses_teacher:
            continue
        if teacher is None:
            raise ConfigError(
                f"{where} needs a teacher, but model.teacher is null: set a teacher, or "
                f"--model.objectives.{name}=null."
            )
        lacking = sorted(term.needs - teacher.provides)
        if lacking:
            raise ConfigError(
                f"{where} needs {', '.join(lacking)}, which model.teacher "
                f"({type(teacher).__name__}) does not provide."
            )


def check_rows(
    terms: Mapping[str, Objective], teacher: Teacher | None, rows: Sequence[Row]
) -> None:
    """Refuse to train on explanations of which there are none: every step would be a zero.

    Args:
        terms: The objectives by name.
        teacher: Whom they learn from, if there is one.
        rows: Of training.

    Raises:
        ConfigError: If there are none.
    """
    said = [row.annotation for row in rows if row.annotation]
    for name, term in terms.items():
        where = f"model.objectives.{name} ({type(term).__name__})"
        reads_quotes = "evidence" in term.reads
        if reads_quotes and not any(one.evidence for one in said):
            raise ConfigError(
                f"{where} learns what is quoted, but no training row has a quote: set "
                "data.rationales.evidence_column to a column of them."
            )
        if term.reads and not reads_quotes and not any(one.rationale is not None for one in said):
            raise ConfigError(
                f"{where} learns from rationales, but no training row has one left: set "
                "data.rationales.rationale_column to a column of them."
            )
    if (
        teacher
        and not teacher.answers_everything
        and not any(one.label is not None for one in said)
    ):
        raise ConfigError(
            f"model.teacher ({type(teacher).__name__}) answers what was annotated, but no training "
            "row has a label of an annotator: name their file in data.rationales, and its "
            "label_column."
        )
