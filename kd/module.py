"""Training: a student, perhaps a frozen teacher, and a loss that is a named sum.

:class:`DistillationModule` puts the rooms below together. Fine-tuning is the same module with no
teacher. It knows no files: paths are chosen by the runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from kd.data.encode import View
from kd.errors import ConfigError, RunError
from kd.metrics import agreement_metric, classification_metrics
from kd.models import EncoderClassifier
from kd.objectives import HardLabel, Objective, masked_cross_entropy
from kd.optim import Schedule, build_adamw, build_schedule
from kd.teachers import Teacher
from kd.types import Batch, Outputs

__all__ = ["DistillationModule"]


class _DataSource(Protocol):
    """What the module asks of a data module."""

    labels: tuple[str, ...]
    max_length: int

    def texts(self) -> Sequence[str]:
        """Return the training texts."""

    def connect(self, views: dict[str, View], unlabelled: bool) -> None:
        """Take the views to encode, and whether unlabelled rows are of use."""


class DistillationModule(LightningModule):
    """Train a student on a weighted sum of objectives.

        loss = Σ weight · objective(student, teacher, batch)

    Without a teacher and with one `HardLabel` this is fine-tuning. The teacher is frozen, in eval
    mode, and in no checkpoint.

    Args:
        student: The model to train.
        teacher: Where the soft targets come from; null for plain fine-tuning.
        objectives: Terms of the loss by name; null removes one. Null for all is one `HardLabel`.
        learning_rate: Peak rate of AdamW.
        weight_decay: Decay of matrices; biases and normalisation weights have none.
        warmup: Share of the steps over which the rate rises.
        schedule: Course of the rate after warm-up.

    Raises:
        ConfigError: If there is no objective, or one needs what the teacher cannot give.
    """

    def __init__(
        self,
        student: EncoderClassifier,
        teacher: Teacher | None = None,
        objectives: dict[str, Objective | None] | None = None,
        learning_rate: float = 2e-5,
        weight_decay: float = 0.01,
        warmup: float = 0.06,
        schedule: Schedule = "linear",
    ) -> None:
        super().__init__()
        chosen = {"labels": HardLabel()} if objectives is None else objectives
        kept = {name: term for name, term in chosen.items() if term is not None}
        _check_objectives(kept, teacher)
        if not 0.0 <= warmup <= 1.0:
            raise ConfigError(f"model.warmup is {warmup}: it is a share of the steps, from 0 to 1.")
        self.student = student
        self.teacher = teacher
        self.objectives = nn.ModuleDict(kept)
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.schedule: Schedule = schedule
        self.needs = frozenset[str]().union(*(term.needs for term in kept.values()))
        self.taught = any(term.uses_teacher for term in kept.values())
        self._is_ready = False
        self._remembered: dict[tuple[str, int], Tensor] = {}

    @property
    def terms(self) -> dict[str, Objective]:
        """The objectives by name."""
        return {name: term for name, term in self.objectives.items() if isinstance(term, Objective)}

    @property
    def equation(self) -> str:
        """The loss as one line, such as ``loss = 0.5 * labels[HardLabel] + …``."""
        return "loss = " + " + ".join(
            f"{term.weight:g} * {name}[{term.describe()}]" for name, term in self.terms.items()
        )

    def references(self) -> dict[str, str | None]:
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
        """Load the models now that the data's classes are known, and tell the data their views."""
        data: _DataSource = self.trainer.datamodule  # type: ignore[attr-defined]
        if not self._is_ready:
            self.student.load(data.labels, data.texts() if self.student.config else ())
            if self.teacher is not None:
                self.teacher.load(data.labels)
            teacher = self.teacher.info if self.teacher is not None else None
            for term in self.terms.values():
                term.bind(self.student.info, teacher)
            self._build_metrics(len(data.labels))
            self._is_ready = True
        self._remembered.clear()
        unlabelled = any(term.weight and not term.uses_labels for term in self.terms.values())
        data.connect(self._views(data.max_length), unlabelled)

    def _views(self, max_length: int) -> dict[str, View]:
        assert self.student.tokenizer is not None
        length = min(max_length, self.student.max_length)
        views = {"student": View(self.student.tokenizer, length, self.student.info.vocabulary)}
        if self.teacher is not None:
            views["teacher"] = self.teacher.view(max_length)
        return views

    def _build_metrics(self, classes: int) -> None:
        for stage in ("val", "test"):
            setattr(self, f"{stage}_loss", MeanMetric())  # Lightning's own mean rounds row counts
            setattr(self, f"{stage}_student", classification_metrics(classes, f"{stage}/"))
            if self.teacher is not None:
                name = f"{stage}/teacher_"
                setattr(self, f"{stage}_teacher", classification_metrics(classes, name))
                setattr(self, f"{stage}_agreement", agreement_metric(classes))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the weighted sum of the objectives on a batch."""
        student = self.student(batch.views["student"], self.needs - {"logits"})
        teacher = self.teacher(batch, self.needs) if self.teacher and self.taught else None
        values = {name: term(student, teacher, batch) for name, term in self.terms.items()}
        loss = torch.stack([term.weight * values[name] for name, term in self.terms.items()]).sum()
        size = len(batch)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=size)
        self.log_dict(
            {f"train/{name}": value.detach() for name, value in values.items()}, batch_size=size
        )
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure student and teacher on a batch of the validation split."""
        self._evaluate(batch, batch_idx, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure student and teacher on a batch of the test split."""
        self._evaluate(batch, batch_idx, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return ``index`` `[B]` and ``probabilities`` `[B, C]` of a batch."""
        logits = self.student(batch.views["student"]).logits
        return {"index": batch.index, "probabilities": logits.float().softmax(dim=-1)}

    def _evaluate(self, batch: Batch, batch_idx: int, stage: str) -> None:
        answer: Outputs = self.student(batch.views["student"])
        logits, size = answer.logits, len(batch)
        loss = getattr(self, f"{stage}_loss")
        loss.update(masked_cross_entropy(logits, batch.labels), weight=size)
        self.log(f"{stage}/loss", loss, batch_size=size)
        metrics = getattr(self, f"{stage}_student")
        metrics.update(logits, batch.labels)
        self.log_dict(metrics, batch_size=size, prog_bar=True)
        if self.teacher is None:
            return
        teacher = self._teacher_logits(batch, batch_idx, stage)
        teacher_metrics = getattr(self, f"{stage}_teacher")
        teacher_metrics.update(teacher, batch.labels)
        self.log_dict(teacher_metrics, batch_size=size)
        agreement = getattr(self, f"{stage}_agreement")
        agreement.update(logits, teacher.argmax(dim=-1))
        self.log(f"{stage}/agreement", agreement, batch_size=size)

    def _teacher_logits(self, batch: Batch, batch_idx: int, stage: str) -> Tensor:
        """Ask the teacher once per evaluation batch: those are the same in every epoch."""
        assert self.teacher is not None
        key = (stage, batch_idx)
        if key not in self._remembered:
            self._remembered[key] = self.teacher(batch, frozenset({"logits"})).logits.cpu()
        return self._remembered[key].to(batch.labels.device)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW over student and objectives, and its schedule."""
        optimizer = build_adamw(
            self.named_parameters(),
            self.learning_rate,
            self.weight_decay,
            # Lightning cannot clip gradients under a scaler that a fused step would unscale
            fused=self.trainer.precision != "16-mixed",
        )
        steps = self.trainer.estimated_stepping_batches
        schedule = build_schedule(optimizer, steps, self.warmup, self.schedule)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which classes and vocabulary the weights belong to."""
        info = self.student.info
        checkpoint["student"] = {"labels": list(info.labels), "vocabulary": info.vocabulary}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that were trained with other classes or another vocabulary.

        Args:
            checkpoint: What was saved.

        Raises:
            RunError: If the checkpoint is not of this student.
        """
        saved = checkpoint.get("student")
        info = self.student.info
        if saved is None:
            raise RunError("The checkpoint was not written by kd: give one of a kd run.")
        for name, ours in (("labels", list(info.labels)), ("vocabulary", info.vocabulary)):
            if saved[name] != ours:
                raise RunError(
                    f"The checkpoint's {name} ({saved[name]}) are not this recipe's ({ours}): "
                    "give the checkpoint of a run of this recipe and data."
                )


def _check_objectives(objectives: dict[str, Objective], teacher: Teacher | None) -> None:
    if not any(term.weight for term in objectives.values()):
        raise ConfigError("model.objectives has no term with a weight: the loss would be zero.")
    for name, term in objectives.items():
        where = f"model.objectives.{name} ({type(term).__name__})"
        if name in ("", "loss") or "." in name or hasattr(nn.ModuleDict(), name):
            raise ConfigError(
                f"{where}: a term's name must not be empty, 'loss' or a word of PyTorch's, nor "
                "have a dot."
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
