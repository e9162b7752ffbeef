"""Teachers: sources of `Outputs` that a student learns from.

A teacher is a role, not a module: it stays out of checkpoints, of the optimizer and of DDP, and is
never in train mode. This room knows models, no objective and no data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd.classifiers import TextClassifier
from kd.data.collate import EncodedRows
from kd.data.encode import Reads, View
from kd.errors import ConfigError, ModelError
from kd.models import EncoderClassifier, choose_classifier
from kd.projections import PROJECTIONS
from kd.types import UNLABELLED, Batch, ModelInfo, Outputs
from kd.views import view_of

__all__ = ["AnnotationTeacher", "ModelTeacher", "Reference", "Teacher", "check_answers"]


@dataclass(frozen=True)
class Reference:
    """How to train a model that is not there yet.

    Args:
        recipe: File of the recipe.
        options: Of the command line, beside it.
    """

    recipe: str
    options: tuple[str, ...] = ()


class Teacher:
    """A source of `Outputs`; subclasses say which fields they can fill.

    The attribute ``provides`` holds the names of those fields; ``answers_everything`` tells whether
    it has an answer to any text, or to rows of training only.
    """

    provides: frozenset[str] = frozenset()
    answers_everything: bool = True

    def references(self) -> dict[str, Reference | None]:
        """Return the model paths, each with what would train it."""
        return {}

    def follow(self, paths: Mapping[str, str]) -> None:
        """Read models from other paths: those that the references stand for."""

    def keep_in(self, folder: Path | None) -> None:
        """Be told where a cache may keep answers; null is in memory."""

    def load(self, labels: Sequence[str], multi_label: bool = False) -> None:
        """Get ready to answer with logits in the order of these class names.

        Args:
            labels: Class names of the data.
            multi_label: Whether a row may have several of them.

        Raises:
            ModelError: If the teacher's classes are not these.
        """
        raise TypeError(f"{type(self).__name__} does not implement load.")

    def views(self, max_length: int) -> dict[str, View]:
        """Return what the teacher reads of a row, by view name.

        Args:
            max_length: Tokens after which a row is cut, unless a model reads fewer.

        Returns:
            One view, named ``teacher``, or several whose names begin with ``teacher.``.
        """
        raise TypeError(f"{type(self).__name__} does not implement views.")

    @property
    def info(self) -> ModelInfo:
        """Sizes and class names."""
        raise TypeError(f"{type(self).__name__} does not implement info.")

    @property
    def models(self) -> tuple[TextClassifier, ...]:
        """Models that work together to answer a text: what an answer costs."""
        return ()

    @property
    def parts(self) -> tuple[Teacher, ...]:
        """Teachers that are asked and cached each by itself: this one, or an ensemble's members."""
        return (self,)

    @property
    def key(self) -> str:
        """Digest of all that decides the answers to given token ids: the key of a cache."""
        raise TypeError(f"{type(self).__name__} does not implement key.")

    def wrapped(self, wrap: Callable[[Teacher], Teacher]) -> Teacher:
        """Return the teacher inside of another, or with its members inside of others."""
        return wrap(self)

    def prepare(
        self, splits: Sequence[EncodedRows], needs: frozenset[str], device: torch.device
    ) -> None:
        """Learn which rows are going to be asked about.

        Args:
            splits: The rows.
            needs: Fields that will be asked for, or single layers of them.
            device: Where the batches will lie.
        """

    def recall(self, fact: str, find: Callable[[], float]) -> float:
        """Return a figure about the teacher; a cache finds it once and keeps it."""
        return find()

    def lowered(self) -> AbstractContextManager[None]:
        """Return a context in which answers are computed in bfloat16 where that is safe."""
        return nullcontext()

    def __call__(self, batch: Batch, needs: frozenset[str]) -> Outputs:
        """Answer a batch with at least the fields named."""
        raise TypeError(f"{type(self).__name__} does not implement __call__.")


def check_answers(where: str, teacher: Teacher) -> None:
    """Refuse a teacher that has no answer to some texts, with a `ConfigError`.

    Args:
        where: What it is to be part of, for the message.
        teacher: The teacher.
    """
    if not teacher.answers_everything:
        raise ConfigError(
            f"{where} asks about any text, but {type(teacher).__name__} answers rows of training "
            "only: let it be model.teacher itself."
        )


class ModelTeacher(Teacher):
    """A frozen classifier that answers every batch: eval mode, no gradient, its own tokenizer.

    Its logits are put in the order of the data's classes by name.

    Args:
        path: Hub id, model folder or run reference of a fine-tuned classifier.
        recipe: Recipe that trains the teacher when ``path`` is a run that does not exist yet.
        label_names: Class names in the order of the teacher's logits, for a model that only
            says LABEL_0, LABEL_1.
        model_type: Family of a model whose ``config.json`` does not say it.
        revision: Branch, tag or commit on the hub.
        reads: What it is shown of a training row: with ``text and rationale`` it is a privileged
            teacher, which was trained by ``model.reads`` of the same value.
    """

    provides = frozenset({"logits", "hidden_states", "attentions", *PROJECTIONS})

    def __init__(
        self,
        path: str,
        recipe: str | None = None,
        label_names: list[str] | None = None,
        model_type: str | None = None,
        revision: str | None = None,
        reads: Literal["text", "text and rationale"] = "text",
    ) -> None:
        self.model: TextClassifier = EncoderClassifier(
            path=path, model_type=model_type, revision=revision
        )
        self.recipe = recipe
        self.label_names = label_names
        self.reads: Reads = reads

    def references(self) -> dict[str, Reference | None]:
        """Return the model's path and what would train it."""
        assert self.model.path is not None
        return {self.model.path: Reference(self.recipe) if self.recipe else None}

    def follow(self, paths: Mapping[str, str]) -> None:
        """Read the model from the path that its reference stands for."""
        assert self.model.path is not None
        self.model.path = paths.get(self.model.path, self.model.path)

    def load(self, labels: Sequence[str], multi_label: bool = False) -> None:
        """Read the model and put its classes in the order of the data's.

        Args:
            labels: Class names of the data.
            multi_label: Whether a row may have several of them.

        Raises:
            ModelError: If the teacher's classes are not these, or its head is untrained.
        """
        model = self.model
        kind = choose_classifier(str(model.path), model.model_type, model.revision)
        if not isinstance(model, kind):
            self.model = kind(path=model.path, model_type=model.model_type, revision=model.revision)
        self.model.load(labels, stored=self.label_names, fresh_head=False, multi_label=multi_label)
        self.model.eval().requires_grad_(False)

    def views(self, max_length: int) -> dict[str, View]:
        """Return how the teacher reads rows: one view, ``teacher``.

        Args:
            max_length: Tokens after which a row is cut, unless the model reads fewer.

        Returns:
            The view by its name.

        Raises:
            ModelError: If the teacher is not loaded.
        """
        return {"teacher": view_of(self.model, max_length, self.reads)}

    @property
    def info(self) -> ModelInfo:
        """Sizes and class names."""
        return self.model.info

    @property
    def models(self) -> tuple[TextClassifier, ...]:
        """The model."""
        return (self.model,)

    @property
    def key(self) -> str:
        """Digest of weights, configuration and tokenizer."""
        network = self.model.loaded
        # where it was read from and by which version decide nothing
        passing = ("_name_or_path", "transformers_version", "architectures", "dtype")
        config = {k: v for k, v in network.config.to_dict().items() if k not in passing}
        facts = json.dumps([self.info.vocabulary, config], sort_keys=True, default=str)
        state = hashlib.sha256(facts.encode())
        weights = network.state_dict()
        with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter to the others
            for name, digest in zip(weights, pool.map(_digest, weights.values()), strict=True):
                state.update(name.encode() + digest)
        return state.hexdigest()[:32]

    @contextmanager
    def lowered(self) -> Iterator[None]:
        """Multiply in bfloat16, the head in float32; the weights are put back afterwards."""
        network = self.model.loaded
        head = self.model.head
        layers = [m for m in network.modules() if isinstance(m, nn.Linear) and m is not head]
        kept = [(weight, weight.data) for layer in layers for weight in layer.parameters()]
        device = next(network.parameters()).device.type

        def full_precision(states: Tensor) -> Tensor:
            with torch.autocast(device, enabled=False):
                return functional.linear(states.float(), head.weight, head.bias)

        try:
            for weight, data in kept:
                weight.data = data.bfloat16()  # once, where autocast would do it for every batch
            head.forward = full_precision  # type: ignore[method-assign,assignment]
            with torch.autocast(device, dtype=torch.bfloat16):
                yield
        finally:
            for weight, data in kept:
                weight.data = data
            del head.forward

    @torch.no_grad()
    def __call__(self, batch: Batch, needs: frozenset[str]) -> Outputs:
        """Answer a batch; the model follows the batch to its device.

        Args:
            batch: Rows with a view named ``teacher``.
            needs: Fields, or single layers of them, which bring the whole field.

        Returns:
            Logits and the fields asked for.

        Raises:
            ModelError: If the teacher is in train mode.
        """
        if self.model.training:
            raise ModelError("The teacher is in train mode: its dropout would be on.")
        inputs = batch.views["teacher"]
        self.model.to(inputs["input_ids"].device)
        fields = frozenset(name.split(".")[0] for name in needs) - {"logits"}
        outputs: Outputs = self.model(inputs, fields)
        return outputs


class AnnotationTeacher(Teacher):
    """What an annotator said about the training rows, as soft labels: no gold label is needed.

    Its confidence is the probability of the class that it named, the rest is spread evenly over
    the others. A row that it did not answer counts nowhere, and nor does any row outside of
    training, so the student alone is measured.

    Args:
        lowest: Least probability of the class that was named: what models say of themselves is
            poorly calibrated.
        highest: Likewise the largest.
        missing: Probability where no confidence was given.
    """

    provides = frozenset({"logits"})
    answers_everything = False

    def __init__(self, lowest: float = 0.5, highest: float = 0.95, missing: float = 0.9) -> None:
        if not 0.0 < lowest <= missing <= highest < 1.0:
            raise ConfigError(
                f"AnnotationTeacher has lowest={lowest}, missing={missing} and highest={highest}: "
                "they are probabilities in this order, above 0 and below 1."
            )
        self.lowest = lowest
        self.highest = highest
        self.missing = missing
        self._labels: tuple[str, ...] = ()

    def load(self, labels: Sequence[str], multi_label: bool = False) -> None:
        """Take the class names.

        Args:
            labels: Class names of the data.
            multi_label: Whether a row may have several of them; then it is refused.

        Raises:
            ConfigError: If a row may have several classes.
        """
        if multi_label:
            raise ConfigError(
                "AnnotationTeacher knows one class a row: set data.multi_label=false."
            )
        self._labels = tuple(labels)

    def views(self, max_length: int) -> dict[str, View]:
        """Return no view: nothing is read, the answers are there already."""
        return {}

    @property
    def info(self) -> ModelInfo:
        """Class names, and no size."""
        return ModelInfo(self._labels, parameters=0, layers=0, width=0, heads=0, vocabulary="")

    def wrapped(self, wrap: Callable[[Teacher], Teacher]) -> Teacher:
        """Return the teacher itself: there is nothing to cache."""
        return self

    def __call__(self, batch: Batch, needs: frozenset[str]) -> Outputs:
        """Answer a batch of training rows.

        Args:
            batch: Rows with annotations.
            needs: Logits alone can be had.

        Returns:
            Logits, the logarithms of the soft labels, and a weight of 0 for rows without one.
        """
        labels, sure = batch.privileged["label"], batch.privileged["confidence"]
        sure = torch.nan_to_num(sure, nan=self.missing).clamp(self.lowest, self.highest)
        others = (1 - sure) / (len(self._labels) - 1)
        soft = others.unsqueeze(-1).repeat(1, len(self._labels))
        soft.scatter_(1, labels.clamp(min=0).unsqueeze(-1), sure.unsqueeze(-1))
        is_known = labels != UNLABELLED
        logits = soft.log() * is_known.unsqueeze(-1)  # no class is likelier where none was named
        return Outputs(logits, weights=is_known.float())


def _digest(weight: Tensor) -> bytes:
    return hashlib.sha256(weight.detach().cpu().contiguous().numpy().data).digest()
