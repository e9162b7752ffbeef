"""What models say of a whole split, before training: classes of rows, meanings of rationales.

Rows are asked in batches of like length. This room knows teachers and students, no objective.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from kd.classifiers import TextClassifier
from kd.data.collate import EncodedRows
from kd.layers import class_probabilities
from kd.teachers import Teacher

__all__ = ["rationale_embeddings", "row_logits", "row_probabilities"]

_ROWS = 256  # at once


def row_logits(teacher: Teacher, rows: EncodedRows) -> NDArray[np.float32]:
    """Return the logits that a teacher gives each row, `[rows, C]`."""
    found = np.zeros((len(rows), len(teacher.info.labels)), dtype=np.float32)
    for chosen in _batches(rows.lengths):
        with torch.inference_mode():
            logits = teacher(rows.batch(chosen), frozenset({"logits"})).logits
        found[chosen] = logits.float().cpu().numpy()
    return found


def row_probabilities(
    teacher: Teacher, rows: EncodedRows, multi_label: bool = False
) -> NDArray[np.float32]:
    """Return what a teacher gives each row.

    Args:
        teacher: Who is asked.
        rows: The rows.
        multi_label: Whether a row may have several classes.

    Returns:
        `[rows, C]`.
    """
    logits = torch.from_numpy(row_logits(teacher, rows))
    return class_probabilities(logits, multi_label).numpy()


@torch.no_grad()
def rationale_embeddings(model: TextClassifier, rows: EncodedRows) -> Tensor:
    """Return what a model makes of each rationale: the mean of its last states, of length 1.

    Args:
        model: An encoder, put back into train mode.
        rows: With a view named ``rationale``.

    Returns:
        `[rows, D]`.
    """
    found = torch.zeros(len(rows), model.info.width)
    model.eval()
    for chosen in _batches(rows.views["rationale"].lengths):
        inputs = rows.batch(chosen).views["rationale"]
        model.to(inputs["input_ids"].device)
        states = model(inputs, frozenset({"hidden_states"})).hidden_states[-1]
        mask = inputs["attention_mask"].unsqueeze(-1)
        means = (states * mask).sum(dim=1) / mask.sum(dim=1)
        found[torch.from_numpy(chosen)] = functional.normalize(means.float(), dim=-1).cpu()
    model.train()
    return found


def _batches(lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), _ROWS):
        yield order[start : start + _ROWS]
