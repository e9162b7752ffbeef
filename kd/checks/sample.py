"""Some rows of a data set, by which the whole is judged: enough for a few steps and a look.

This room knows data modules, no model.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TypeVar

from kd.data.collate import TrainingBatches
from kd.data.datamodule import TextDataModule

__all__ = ["Sample", "some"]

_Item = TypeVar("_Item")
_SAID = 8  # rows with a rationale, with a quote and with a label of an annotator, if there are any


class Sample(TextDataModule):
    """Some rows, read already, of a data module; a vocabulary is still made of all its texts.

    Args:
        whole: The data module, its rows read and without variants.
        unlabelled: Whether rows without a label are trained on.
        train: Rows that are enough, their variants included.
        validation: Likewise, to measure on.
    """

    def __init__(
        self, whole: TextDataModule, unlabelled: bool, train: int, validation: int
    ) -> None:
        vars(self).update(vars(whole))
        self._encoded = {}
        self.whole = whole
        usable = [row for row in whole.rows["train"] if unlabelled or row.label is not None]
        asked = 1 + (whole.augment.variants if whole.augment else 0)
        said = [row for row in usable if row.annotation]
        chosen = some(usable, train // asked)
        chosen += some([row for row in said if row.annotation and row.annotation.rationale], _SAID)
        chosen += some([row for row in said if row.annotation and row.annotation.evidence], _SAID)
        rows = {row.index: row for row in chosen}
        self.rows = {
            "train": list(rows.values()),
            "validation": some(whole.rows["validation"], validation),
        }
        self.scale = len(usable) / max(1, len(rows))
        """Rows of the whole for each that is here."""

    def texts(self) -> Sequence[str]:
        """Return all texts of the whole."""
        return self.whole.texts()

    @property
    def all_rows(self) -> float:
        """Rows that the whole trains on, variants included."""
        return self.scale * len(self.encoded("train"))

    @property
    def all_batches(self) -> float:
        """Batches in an epoch of the whole."""
        if self.whole.tokens_per_batch is not None:
            return self.scale * len(self.train_dataloader())
        return math.ceil(self.all_rows / self.batch_size)

    def train_dataloader(self) -> TrainingBatches:
        """Return batches as long as those of the whole, which sorts more rows by their length."""
        if self.scale > 1 and self.whole.tokens_per_batch is None:
            self.tokens_per_batch = int(self.batch_size * self.encoded("train").lengths.mean())
        return super().train_dataloader()


def some(items: Sequence[_Item], count: int) -> list[_Item]:
    """Return some items, always the same, in a random order."""
    return random.Random(0).sample(items, min(count, len(items)))
