"""Training: a student, perhaps a frozen teacher, and a loss that is a named sum.

:class:`DistillationModule` puts the rooms below together. Fine-tuning is the same module with no
teacher. It knows no files: paths are chosen by the runs.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from kd.answering import rationale_embeddings, row_probabilities
from kd.cache import CachedTeacher, Filling
from kd.classifiers import TextClassifier
from kd.data.collate import EncodedRows
from kd.data.encode import Reads, View
from kd.errors import ConfigError
from kd.guards import FiniteGuard, check_finite, check_identity, clip, identity
from kd.layers import class_probabilities
from kd.loss import check_rows, check_terms, equation, weighted_sum
from kd.metrics import StageMetrics
from kd.models import EncoderClassifier
from kd.objectives import (
    HardLabel,
    Objective,
    masked_binary_cross_entropy,
    masked_cross_entropy,
)
from kd.optim import RateSchedule, build_adamw, build_schedule
from kd.seq2seq import Seq2SeqClassifier
from kd.teachers import Reference, Teacher
from kd.timing import Stopwatch
from kd.types import Batch, Outputs
from kd.views import view_of

__all__ = ["DistillationModule"]

_IN_BAR = ("val/accuracy", "val/f1")
_ASKED_APART = frozenset({"logits", "again", "privileged", "rationale_logits"})


class _DataSource(Protocol):
    """What the module asks of a data module."""

    labels: tuple[str, ...]
    max_length: int
    multi_label: bool
    needs_teacher: bool
    asks_teacher: bool
    rationales: object | None

    def texts(self) -> Sequence[str]:
        """Return the training texts."""

    def connect(self, views: dict[str, View], unlabelled: bool) -> None:
        """Take the views to encode, and whether unlabelled rows are of use."""

    def encoded(self, role: str) -> EncodedRows:
        """Return a split as all views read it."""

    def judge(self, probabilities: NDArray[np.float32]) -> None:
        """Let the teacher decide about training rows."""


class DistillationModule(LightningModule):
    """Train a student on a weighted sum of objectives.

        loss = Σ weight · objective(student, teacher, batch)

    Without a teacher and with one `HardLabel` this is fine-tuning. The teacher is frozen, in eval
    mode, and in no checkpoint.

    Args:
        student: The model to train: an `EncoderClassifier` or a `Seq2SeqClassifier`.
        teacher: Where the soft targets come from; null for plain fine-tuning.
        objectives: Terms of the loss by name; null removes one. Null for all is one `HardLabel`.
        learning_rate: Peak rate of AdamW.
        weight_decay: Decay of matrices; biases and normalisation weights have none.
        warmup: Share of the steps over which the rate rises.
        schedule: Course of the rate after warm-up.
        cache: Whether the teacher's answers are kept on disk for the next run; if not, they are
            kept in memory for this one. Either way it is asked once about each text.
        compile: Whether the student is compiled, which pays for itself on a GPU only.
        reads: What the student is shown in training. One that reads rationales too is a teacher to
            be; it is measured on texts alone, as there is nothing else to show it.

    Raises:
        ConfigError: If there is no objective, or one needs what the teacher cannot give.
    """

    def __init__(
        self,
        student: EncoderClassifier | Seq2SeqClassifier,
        teacher: Teacher | None = None,
        objectives: dict[str, Objective | None] | None = None,
        learning_rate: float = 2e-5,
        weight_decay: float = 0.01,
        warmup: float = 0.06,
        schedule: RateSchedule = "linear",
        cache: bool = True,
        compile: bool = False,
        reads: Literal["text", "text and rationale"] = "text",
    ) -> None:
        super().__init__()
        chosen = {"labels": HardLabel()} if objectives is None else objectives
        named = {name: term for name, term in chosen.items() if term is not None}
        check_terms(named, teacher, reads, writes=isinstance(student, Seq2SeqClassifier))
        kept = {name: term for name, term in named.items() if term.has_weight}
        if not 0.0 <= warmup <= 1.0:
            raise ConfigError(f"model.warmup is {warmup}: it is a share of the steps, from 0 to 1.")
        self.student: TextClassifier = student
        self.teacher = teacher.wrapped(_cached) if teacher else None
        self.objectives = nn.ModuleDict(kept)
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.schedule: RateSchedule = schedule
        self.cache = cache
        self.compiled = compile
        self.reads: Reads = reads
        self.needs = frozenset[str]().union(*(term.needs for term in kept.values()))
        self.taught = any(term.uses_teacher for term in kept.values())
        self.privileged = frozenset[str]().union(*(term.reads for term in kept.values()))
        self.answers_folder: Path | None = None
        self.teacher_time = Stopwatch(torch.device("cpu"))
        self.guard = FiniteGuard()
        self.measured = nn.ModuleDict()
        self.multi_label = False
        self._teacher_needs = frozenset({"logits"})
        self._steps = 1.0
        self._is_ready = False

    @property
    def terms(self) -> dict[str, Objective]:
        """The objectives by name."""
        return {name: term for name, term in self.objectives.items() if isinstance(term, Objective)}

    @property
    def equation(self) -> str:
        """The loss as one line, such as ``loss = 0.5 * labels[HardLabel] + …``."""
        return equation(self.terms)

    @property
    def fillings(self) -> list[Filling]:
        """What the teacher's caches did before training."""
        parts = self.teacher.parts if self.teacher else ()
        return [part.filling for part in parts if isinstance(part, CachedTeacher) and part.filling]

    def references(self) -> dict[str, Reference | None]:
        """Return the paths of student and teacher, each with the recipe that would train it."""
        student = {self.student.path: None} if self.student.path else {}
        return {**student, **(self.teacher.references() if self.teacher else {})}

    def follow(self, paths: Mapping[str, str]) -> None:
        """Read models from other paths: those that the references stand for."""
        if self.student.path:
            self.student.path = paths.get(self.student.path, self.student.path)
        if self.teacher:
            self.teacher.follow(paths)

    def setup(self, stage: str) -> None:
        """Load the models now that the data's classes are known; let the teacher answer."""
        data: _DataSource = self.trainer.datamodule  # type: ignore[attr-defined]
        if not self._is_ready:
            self._load(data)
            self._is_ready = True
        views = self._views(data.max_length)
        if stage == "fit":
            self._check(data, views)
        unlabelled = any(not term.uses_labels for term in self.terms.values())
        data.connect(views, unlabelled)
        roles = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",)}
        judges = stage == "fit" and data.asks_teacher
        asked = [role for role in roles.get(stage, ()) if self.taught or judges or role != "train"]
        if self.teacher is not None and asked:
            device = self.trainer.strategy.root_device
            self.teacher.keep_in(self.answers_folder if self.cache else None)
            splits = [data.encoded(role) for role in asked]
            self.teacher.prepare(splits, self._teacher_needs, device)
            self.teacher_time = Stopwatch(device)
            if judges:
                data.judge(row_probabilities(self.teacher, data.encoded("train"), self.multi_label))
        if stage == "fit":
            check_rows(self.terms, self.teacher, data.encoded("train").rows)
            if "embedding" in self.privileged:
                rows = data.encoded("train")
                rows.learn(rationale_embeddings(self.student, rows))

    def _check(self, data: _DataSource, views: Mapping[str, View]) -> None:
        """Refuse data that lack what the loss reads."""
        if data.needs_teacher and self.measured_teacher is None:
            raise ConfigError(
                "data.augment.labels takes labels from variants, but model.teacher gives them no "
                "others: set it to keep, or name a teacher that answers any text."
            )
        for name, view in views.items():
            if view.reads != "text" and data.rationales is None:
                raise ConfigError(
                    f"The view {name!r} of the loss ({self.equation}) shows what annotators said, "
                    "but data.rationales is null: name their file there, or a run of kd annotate."
                )

    def _load(self, data: _DataSource) -> None:
        texts = data.texts() if self.student.wants_texts else ()
        self.multi_label = data.multi_label
        self.student.load(data.labels, texts, multi_label=data.multi_label)
        if self.teacher is not None:
            self.teacher.load(data.labels, data.multi_label)
        teacher = self.teacher.info if self.teacher is not None else None
        for term in self.terms.values():
            term.bind(self.student.info, teacher)
        self.needs = self.needs.union(*(term.needs for term in self.terms.values()))
        asking = [term.teacher_needs() for term in self.terms.values() if term.uses_teacher]
        self._teacher_needs = self._teacher_needs.union(*asking)
        if self.compiled:
            self.student.loaded.compile(dynamic=True)  # in place: torch.compile renames the weights
        self._build_metrics(len(data.labels), data.multi_label)

    def _views(self, max_length: int) -> dict[str, View]:
        text = view_of(self.student, max_length)
        views = {
            "student": replace(text, reads=self.reads),
            "privileged": replace(text, reads="text and rationale"),
            "rationale": replace(text, prefix="", reads="rationale"),
            "explain": replace(text, prefix=self.student.explain_prefix),
            "evidence": replace(text, reads="evidence"),
        }
        wanted = {name: views[name] for name in views if name in {"student", *self.privileged}}
        return {**wanted, **(self.teacher.views(max_length) if self.teacher else {})}

    def _build_metrics(self, classes: int, multi_label: bool) -> None:
        evaluated = tuple(self._evaluated) if self.taught else ()
        means = ("loss", *(("objective", *evaluated) if evaluated else ()))
        has_teacher = self.measured_teacher is not None
        for stage in ("val", "test"):
            self.measured[stage] = StageMetrics(stage, classes, multi_label, means, has_teacher)

    @property
    def measured_teacher(self) -> Teacher | None:
        """The teacher, if it has answers outside of training too."""
        return self.teacher if self.teacher and self.teacher.answers_everything else None

    @property
    def _evaluated(self) -> dict[str, Objective]:
        """The terms that have all they need outside of training too."""
        return {
            name: term
            for name, term in self.terms.items()
            if not term.reads and (self.measured_teacher or not term.uses_teacher)
        }

    def _answer(self, batch: Batch) -> Outputs:
        """Return what the student answers to all that the objectives ask of it."""
        outputs: Outputs = self.student(batch.views["student"], self.needs - _ASKED_APART)
        if "again" in self.needs:
            again = self.student(batch.views["student"]) if self.training else outputs
            outputs = replace(outputs, again=again)
        if "privileged" in batch.views:
            outputs = replace(outputs, privileged=self.student(batch.views["privileged"]))
        if "explain" in batch.views:
            written = self.student.explain(batch.views["explain"], batch.views["rationale"])
            outputs = replace(outputs, rationale_logits=written)
        return outputs

    def on_train_start(self) -> None:
        """Note how long the run is, for what is scheduled."""
        self._steps = self.trainer.estimated_stepping_batches

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Draw what is random in a batch, such as dropout, from its place in the run alone.

        So a run that was cut off goes on exactly, whatever has been drawn before.
        """
        seed = self.trainer.datamodule.noise  # type: ignore[attr-defined]
        random.seed(seed)
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # a hundred times faster
        else:
            torch.manual_seed(seed)

    def on_validation_start(self) -> None:
        """Measure by what is scheduled for the next step, not by what the last one left behind."""
        self._advance()

    def _advance(self) -> None:
        for term in self.terms.values():
            term.advance(min(1.0, self.global_step / max(1, self._steps - 1)))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the weighted sum of the objectives on a batch."""
        self._advance()
        student = self._answer(batch)
        teacher = None
        if self.teacher is not None and self.taught:
            with self.teacher_time:
                teacher = self.teacher(batch, self._teacher_needs)
        values, loss = weighted_sum(self.terms, student, teacher, batch)
        if "logits" not in self.needs:
            loss = loss + 0.0 * student.logits.sum()  # DDP waits for a gradient of every weight
        self.guard.see(loss, values, batch.index)
        interval: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (self.global_step + 1) % interval == 0:  # each costs a step of a small student dear
            self._log_step({"loss": loss, **values})
        return loss

    def _log_step(self, values: Mapping[str, Tensor]) -> None:
        """Log now: Lightning would wait until after the save that may follow this step."""
        told = torch.stack([value.detach() for value in values.values()])
        means = self.trainer.strategy.reduce(told, reduce_op="mean")  # of the whole batch
        plain = dict(zip((f"train/{name}" for name in values), means.tolist(), strict=True))
        for name, value in plain.items():
            self.log(name, value, prog_bar=name == "train/loss", logger=False)
        for logger in self.loggers:
            logger.log_metrics({**plain, "epoch": self.current_epoch}, step=self.global_step)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient, and refuse the step where loss or gradient is not a finite number."""
        norm = clip(self, optimizer, gradient_clip_val, gradient_clip_algorithm)
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        rate = optimizer.param_groups[0]["lr"]
        self.guard.check(norm, self, self.global_step + 1, rate, scaled)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure student and teacher on a batch of the validation split."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure student and teacher on a batch of the test split."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return ``index`` `[B]` and ``probabilities`` `[B, C]` of a batch."""
        logits = self.student(batch.views["student"]).logits
        return {"index": batch.index, "probabilities": self._probabilities(logits)}

    def _evaluate(self, batch: Batch, stage: str) -> None:
        student, asked = self._answer(batch), self.measured_teacher
        teacher = asked(batch, self._teacher_needs) if asked else None
        logits = student.logits
        entropy = masked_binary_cross_entropy if self.multi_label else masked_cross_entropy
        means = {"loss": entropy(logits, batch.labels)}
        if self.taught and (terms := self._evaluated):
            values, objective = weighted_sum(terms, student, teacher, batch)
            means |= {**values, "objective": objective}
        measured = self.measured[stage]
        assert isinstance(measured, StageMetrics)
        targets = None if teacher is None else self._probabilities(teacher.logits)
        measured.update(means, batch.labels, self._probabilities(logits), targets)
        for name, metric in measured.logged(teacher is not None):
            self.log(name, metric, batch_size=len(batch), prog_bar=name in _IN_BAR)

    def _probabilities(self, logits: Tensor) -> Tensor:
        return class_probabilities(logits, self.multi_label)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW over student and objectives, and its schedule."""
        optimizer = build_adamw(self.named_parameters(), self.learning_rate, self.weight_decay)
        steps = self.trainer.estimated_stepping_batches
        schedule = build_schedule(optimizer, steps, self.warmup, self.schedule)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which classes and vocabulary the weights belong to; save no broken ones.

        Args:
            checkpoint: What will be saved.

        Raises:
            RunError: If a weight is not a finite number.
        """
        check_finite(checkpoint["state_dict"], self.global_step)
        checkpoint["student"] = identity(self.student.info)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that were trained with other classes or another vocabulary."""
        check_identity(checkpoint.get("student"), self.student.info)


def _cached(teacher: Teacher) -> Teacher:
    return CachedTeacher(teacher, over_limit="ask")
