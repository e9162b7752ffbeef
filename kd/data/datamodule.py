"""The data of a run: read, checked, split, encoded for each view, batched.

Rows are read and checked before any model loads. The module that trains tells, once its models are
loaded, which views to encode. This room knows no teacher and no objective.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray

from kd.data.annotations import Explained, Rationales, explain
from kd.data.collate import EncodedRows, EvaluationBatches, TrainingBatches
from kd.data.encode import View, encode
from kd.data.rows import Fields, Table, canonical_rows, report_rows, resolve_labels
from kd.data.sources import Source, available_roles, read
from kd.data.splits import fingerprint, hide_labels, select_rows, stratified_split
from kd.data.variants import Augmentation, Variants, judge, make_variants
from kd.errors import ConfigError, DataError
from kd.types import Row

__all__ = ["TextDataModule"]

_EVALUATED = {"validate": "validation", "test": "test", "predict": "predict"}


class TextDataModule(LightningDataModule):
    """Texts and labels, tokenised for every model that reads them, in batches of like length.

    Args:
        source: Where the rows are; null is the built-in corpus.
        text_column: Column of the text.
        pair_column: Column of the second text, for sentence pairs.
        label_column: Column of the label; null if there is none.
        label_map: Class name by raw label, such as ``{"0": negative, "4": positive}``.
        label_names: Class names in order; null takes those of the source.
        multi_label: Whether a row may have several labels: a list, or a text that is cut at
            ``label_separator``. An empty list, or the separator alone, is a row of no class.
        label_separator: Stands between the labels of a row in a text.
        weight_column: Column of how much a row counts in training, 0 or more; null where all count
            alike, as they do in validation.
        on_empty_label: Whether a row without a label is an error or an unlabelled row.
        on_bad_row: Whether a row that cannot be used is an error or left out.
        validation_fraction: Share of the training rows held out where there is no validation split.
        train_rows: How many training rows to use, a seeded choice; null is all.
        labelled_rows: How many of them keep their label, a seeded choice; null is all.
        batch_size: Rows per optimizer step, over all ranks, before accumulation.
        eval_batch_size: Rows per batch of a rank outside training.
        tokens_per_batch: Tokens per training batch of a rank, padding included, instead of
            ``batch_size`` rows: fills a GPU evenly. Those of explanations come on top.
        max_length: Tokens after which a text is cut.
        augment: How the training rows are multiplied; null is not at all.
        rationales: Explanations of the training rows, for what learns from them; null is none.
        fold: Number of a fold and of all folds: train without the rows of this fold, whose texts'
            digests say which rows they are. Out-of-fold teachers are trained like this.
        split_seed: Of the validation split and of the choices above; not of training.

    Raises:
        ConfigError: If a number is out of its range.
    """

    def __init__(
        self,
        source: Source | None = None,
        text_column: str = "text",
        pair_column: str | None = None,
        label_column: str | None = "label",
        label_map: dict[str, str] | None = None,
        label_names: list[str] | None = None,
        multi_label: bool = False,
        label_separator: str = "|",
        weight_column: str | None = None,
        on_empty_label: Literal["error", "unlabelled"] = "error",
        on_bad_row: Literal["error", "drop"] = "error",
        validation_fraction: float = 0.1,
        train_rows: int | None = None,
        labelled_rows: int | None = None,
        batch_size: int = 48,
        eval_batch_size: int = 128,
        tokens_per_batch: int | None = None,
        max_length: int = 128,
        augment: Augmentation | None = None,
        rationales: Rationales | None = None,
        fold: tuple[int, int] | None = None,
        split_seed: int = 0,
    ) -> None:
        super().__init__()
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size}
        sizes |= {"max_length": max_length - 2}  # the special tokens
        sizes |= {} if tokens_per_batch is None else {"tokens_per_batch": tokens_per_batch}
        for name, size in sizes.items():
            if size < 1:
                raise ConfigError(f"data.{name} is too small: nothing would be read.")
        if (train_rows is not None and train_rows < 1) or (labelled_rows or 0) < 0:
            raise ConfigError("data.train_rows must be positive, data.labelled_rows not negative.")
        if fold is not None and not 0 <= fold[0] < fold[1]:
            raise ConfigError(f"data.fold is {list(fold)}: give a number from 0 and that of all.")
        if not 0.0 < validation_fraction < 1.0:
            raise ConfigError(
                f"data.validation_fraction is {validation_fraction}: give a share between 0 and 1."
            )
        if not label_separator:
            raise ConfigError("data.label_separator is empty: give the text between two labels.")
        self.source = source or Source()
        self.fields = Fields(
            text_column=text_column,
            pair_column=pair_column,
            label_column=label_column,
            label_map=label_map,
            label_names=label_names,
            multi_label=multi_label,
            label_separator=label_separator,
            weight_column=weight_column,
            on_empty_label=on_empty_label,
            on_bad_row=on_bad_row,
        )
        self.multi_label = multi_label
        self.validation_fraction = validation_fraction
        self.train_rows = train_rows
        self.labelled_rows = labelled_rows
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.tokens_per_batch = tokens_per_batch
        self.max_length = max_length
        self.augment = augment
        self.rationales = rationales
        self.fold = fold
        self.split_seed = split_seed
        self.labels: tuple[str, ...] = ()
        self.rows: dict[str, list[Row]] = {}
        self.notes: list[str] = []
        self.variants: Variants | None = None
        self.variants_folder: Path | None = None
        self.explained: Explained | None = None
        self._views: dict[str, View] = {}
        self._unlabelled = True
        self._is_judged = False
        self._encoded: dict[str, EncodedRows] = {}
        self._training: TrainingBatches | None = None
        self._position = (0, 0)

    def read(self, stage: str) -> None:
        """Read and check the rows that a stage needs; a second call costs nothing.

        Args:
            stage: ``fit``, which alone needs variants, ``validate``, ``test`` or ``predict``.

        Raises:
            DataError: If a file, split, column or row cannot be used.
            ConfigError: If an augmenter lacks what it needs.
        """
        if "train" not in self.rows:
            self._read_training()
        if stage == "fit" and self.rationales is not None and self.explained is None:
            self._explain(self.rationales)
        if stage == "fit" and self.augment is not None and self.variants is None:
            train, held_out = self.rows["train"], self.rows["validation"]
            self.variants = make_variants(
                train, self.augment, self.labels, held_out, self.variants_folder
            )
            self.rows["train"] = train + self.variants.rows
        role = _EVALUATED.get(stage)
        if role and role not in self.rows:
            self.rows[role] = self._read_evaluated(role)

    def prepare_data(self) -> None:
        """Download what a hub source needs, once per node."""
        self.read("validate")

    def setup(self, stage: str) -> None:
        """Read the rows on this rank."""
        self.read(stage)

    def texts(self) -> Sequence[str]:
        """Return the training rows' texts, second texts and rationales; nothing of variants."""
        originals = (row for row in self.rows["train"] if row.origin is None)
        pieces = (text for row in originals for text in (row.text, row.pair))
        said = self.explained.said if self.explained else []
        return [text for text in pieces if text is not None] + said

    def connect(self, views: dict[str, View], unlabelled: bool) -> None:
        """Take the views to encode.

        Args:
            views: By name; ``student`` always. Those that are neither the student's nor a
                teacher's are made of training rows only.
            unlabelled: Whether any objective learns from rows without a label; else they are
                left out of training.
        """
        if (views, unlabelled) != (self._views, self._unlabelled):
            self._encoded.clear()
        self._views, self._unlabelled = views, unlabelled

    @property
    def needs_teacher(self) -> bool:
        """Whether variants have no label of their own."""
        return self.augment is not None and self.augment.labels != "keep"

    @property
    def asks_teacher(self) -> bool:
        """Whether a teacher decides about some training rows; see :meth:`judge`."""
        plan, found = self.augment, self.variants
        return plan is not None and plan.asks_teacher and bool(found) and not self._is_judged

    def judge(self, probabilities: NDArray[np.float32]) -> None:
        """Let the teacher decide about the variants, once.

        Args:
            probabilities: What it gives each row of ``encoded("train")``, `[rows, C]`.
        """
        assert self.augment is not None
        assert self.variants is not None
        encoded = self._encoded["train"]
        kept, flipped = judge(encoded.rows, probabilities, self.augment)
        known, gone = {row.index: row for row in kept}, {row.index for row in flipped}
        keep = np.array([row.index not in gone for row in encoded.rows])
        self._encoded["train"] = encoded.select(kept, keep)
        rows = [known.get(row.index, row) for row in self.rows["train"] if row.index not in gone]
        self.rows["train"], self.variants.flipped = rows, flipped
        self.variants.rows = [row for row in rows if row.origin is not None]
        self._is_judged = True

    def reports(self) -> dict[str, dict[str, Any]]:
        """Return what became of variants and of rationales, by the name of a file for it."""
        found = {}
        if self.variants is not None:
            found["augmentation"] = self.variants.as_plain(self.rows["train"])
        if self.explained is not None:
            found["rationales"] = self.explained.as_plain()
        return found

    def summary(self) -> str:
        """Return how many rows there are, and what was found amiss, a line each."""
        train = [row for row in self.rows["train"] if row.origin is None]
        unlabelled = sum(row.label is None for row in train)
        use = "" if self._unlabelled else ", left out: no objective learns from them"
        parts = [f"{len(train) - unlabelled} labelled"]
        parts += [f"{unlabelled} unlabelled{use}"] if unlabelled else []
        parts += [f"{len(self.rows['validation'])} validation rows"]
        classes = "any of the classes" if self.multi_label else "classes"
        counts = f"data = {', '.join(parts)}; {classes} {', '.join(self.labels)}"
        made = [str(self.variants)] if self.variants else []
        made += self.explained.lines() if self.explained else []
        return "\n".join([counts, *made, *(f"note: {note}" for note in self.notes)])

    def fingerprints(self) -> dict[str, str]:
        """Return a digest of the rows of each split that was read."""
        return {role: fingerprint(rows, self.labels) for role, rows in self.rows.items()}

    def encoded(self, role: str) -> EncodedRows:
        """Return a split as all views read it: what batches are cut from.

        Args:
            role: ``train``, ``validation``, ``test`` or ``predict``.

        Returns:
            The rows, on this rank's device; of training those that an objective learns from.
        """
        if role not in self._encoded:
            rows = self.rows[role]
            if role == "train" and not self._unlabelled:
                rows = [row for row in rows if row.label is not None]
            wanted = {
                name: view
                for name, view in self._views.items()
                if role == "train" or name.split(".")[0] in ("student", "teacher")
            }
            read = {view.key: view for view in wanted.values()}
            once = {key: encode(rows, view).on(self._device) for key, view in read.items()}
            views = {name: once[view.key] for name, view in wanted.items()}
            self._encoded[role] = EncodedRows(
                rows, views, len(self.labels) if self.multi_label else None
            )
        return self._encoded[role]

    def train_dataloader(self) -> TrainingBatches:
        """Return this rank's share of the training batches."""
        data, (rank, ranks) = self.encoded("train"), self._ranks
        if self.batch_size < ranks:
            raise ConfigError(
                f"data.batch_size is {self.batch_size} for {ranks} ranks: give each a row."
            )
        if not len(data):
            raise DataError("No row is left to train on: no objective learns from unlabelled rows.")
        dropout = 0.0 if self.rationales is None else self.rationales.dropout
        place, size, tokens = self._position, self.batch_size, self.tokens_per_batch
        found = TrainingBatches(data, size, self._seed, rank, ranks, place, tokens, dropout)
        self._training = found
        return found

    def val_dataloader(self) -> EvaluationBatches:
        """Return this rank's share of the validation rows."""
        return self._evaluation("validation")

    def test_dataloader(self) -> EvaluationBatches:
        """Return this rank's share of the test rows."""
        return self._evaluation("test")

    def predict_dataloader(self) -> EvaluationBatches:
        """Return this rank's share of the rows to predict."""
        return self._evaluation("predict")

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the training data: epoch and batches consumed."""
        epoch, batch = self.place
        if batch and self.trainer is not None and self.trainer.is_last_batch:  # by a limit, perhaps
            epoch, batch = epoch + 1, 0
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at a saved position; the training batches are made later."""
        self._position = (state_dict["epoch"], state_dict["batch"])

    @property
    def noise(self) -> int:
        """A seed for the batch given out last: of the run's seed, epoch, batch and rank alone."""
        words = [self._seed, *self.place, self._ranks[0]]
        return int(np.random.SeedSequence(words).generate_state(1)[0])

    @property
    def place(self) -> tuple[int, int]:
        """Epoch, and number in it, from 1, of the batch given out last."""
        return self._training.position if self._training else self._position

    @property
    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    @property
    def _seed(self) -> int:
        return int(os.environ.get("PL_GLOBAL_SEED", "0"))  # set by Lightning's seed_everything

    def _explain(self, plan: Rationales) -> None:
        source = Source(train=plan.path) if plan.path else self.source
        table, train = read(source, "train"), self.rows["train"]
        self.explained = explain(
            train, table, plan, self.labels, self.rows["validation"], self.split_seed
        )
        self.rows["train"] = self.explained.rows

    def _read_training(self) -> None:
        table = read(self.source, "train")
        self.labels = resolve_labels(table, self.fields)
        roles = available_roles(self.source)
        # where no label is kept there need not be a column of them
        labelled = self.labelled_rows != 0 or "validation" not in roles
        train = self._canonical(table, self.fields, labelled)
        if "validation" in roles:
            validation = self._read_evaluated("validation")
        else:
            train, validation = stratified_split(train, self.validation_fraction, self.split_seed)
            validation = [replace(row, weight=1.0) for row in validation]  # as one that was given
        if self.train_rows is not None:
            train = select_rows(train, self.train_rows, self.split_seed)
        if self.labelled_rows is not None:
            train = hide_labels(train, self.labelled_rows, self.split_seed)
        if "unlabelled" in roles:
            more = self._canonical(read(self.source, "unlabelled"), self.fields, labelled=False)
            first = 1 + max(row.index for row in train)
            train = train + [replace(row, index=first + row.index) for row in more]
        if self.fold is not None:
            train = [row for row in train if row.content % self.fold[1] != self.fold[0]]
        self.rows["train"], self.rows["validation"] = train, validation

    def _read_evaluated(self, role: str) -> list[Row]:
        table = read(self.source, role)
        fields = replace(self.fields, weight_column=None)  # training alone is weighted
        rows = self._canonical(table, fields, labelled=role != "predict")
        if role == "predict":
            return rows
        labelled = [row for row in rows if row.label is not None]
        if not labelled:
            raise DataError(f"No row of {table.origin} has a label: nothing can be measured on it.")
        return labelled

    def _canonical(self, table: Table, fields: Fields, labelled: bool = True) -> list[Row]:
        rows = canonical_rows(table, fields, self.labels, labelled=labelled)
        report = report_rows(table, fields, rows)
        for count, fate in ((report.dropped, "left out"), (report.repaired, "repaired")):
            if count:
                self.notes.append(f"{count} rows of {table.origin} were {fate}")
        return rows

    def _evaluation(self, role: str) -> EvaluationBatches:
        data, (rank, ranks) = self.encoded(role), self._ranks
        if len(data) < ranks:
            raise DataError(f"The {role} split has {len(data)} rows for {ranks} ranks: use fewer.")
        return EvaluationBatches(data, self.eval_batch_size, rank, ranks)
