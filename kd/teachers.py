"""Teachers: sources of `Outputs` that a student learns from.

A teacher is a role, not a module: it stays out of checkpoints, of the optimizer and of DDP, and is
never in train mode. This room knows models, no objective and no data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch

from kd.data.encode import View
from kd.errors import ModelError
from kd.models import EncoderClassifier
from kd.types import Batch, ModelInfo, Outputs

__all__ = ["ModelTeacher", "Teacher"]


class Teacher:
    """A source of `Outputs`; subclasses say which fields they can fill.

    The class variable ``provides`` holds the names of those fields.
    """

    provides: ClassVar[frozenset[str]] = frozenset()

    def references(self) -> dict[str, str | None]:
        """Return the model paths, each with the recipe that would train it."""
        return {}

    def follow(self, paths: Mapping[str, str]) -> None:
        """Read models from other paths: those that the references stand for."""

    def load(self, labels: Sequence[str]) -> None:
        """Get ready to answer with logits in the order of these class names.

        Args:
            labels: Class names of the data.

        Raises:
            ModelError: If the teacher's classes are not these.
        """
        raise TypeError(f"{type(self).__name__} does not implement load.")

    def view(self, max_length: int) -> View:
        """Return how the teacher reads rows, cut after at most ``max_length`` tokens."""
        raise TypeError(f"{type(self).__name__} does not implement view.")

    @property
    def info(self) -> ModelInfo:
        """Sizes and class names."""
        raise TypeError(f"{type(self).__name__} does not implement info.")

    def __call__(self, batch: Batch, needs: frozenset[str]) -> Outputs:
        """Answer a batch with at least the fields named."""
        raise TypeError(f"{type(self).__name__} does not implement __call__.")


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
    """

    provides: ClassVar[frozenset[str]] = frozenset({"logits", "hidden_states", "attentions"})

    def __init__(
        self,
        path: str,
        recipe: str | None = None,
        label_names: list[str] | None = None,
        model_type: str | None = None,
        revision: str | None = None,
    ) -> None:
        self.model = EncoderClassifier(path=path, model_type=model_type, revision=revision)
        self.recipe = recipe
        self.label_names = label_names

    def references(self) -> dict[str, str | None]:
        """Return the model's path and the recipe that would train it."""
        assert self.model.path is not None
        return {self.model.path: self.recipe}

    def follow(self, paths: Mapping[str, str]) -> None:
        """Read the model from the path that its reference stands for."""
        assert self.model.path is not None
        self.model.path = paths.get(self.model.path, self.model.path)

    def load(self, labels: Sequence[str]) -> None:
        """Read the model and put its classes in the order of the data's.

        Args:
            labels: Class names of the data.

        Raises:
            ModelError: If the teacher's classes are not these, or its head is untrained.
        """
        self.model.load(labels, stored=self.label_names, fresh_head=False)
        self.model.eval().requires_grad_(False)

    def view(self, max_length: int) -> View:
        """Return how the teacher reads rows.

        Args:
            max_length: Tokens after which a row is cut, unless the model reads fewer.

        Returns:
            The view.

        Raises:
            ModelError: If the teacher is not loaded.
        """
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            raise ModelError("The teacher is not loaded yet: call load() first.")
        return View(tokenizer, min(max_length, self.model.max_length), self.info.vocabulary)

    @property
    def info(self) -> ModelInfo:
        """Sizes and class names."""
        return self.model.info

    @torch.no_grad()
    def __call__(self, batch: Batch, needs: frozenset[str]) -> Outputs:
        """Answer a batch; the model follows the batch to its device."""
        if self.model.training:
            raise ModelError("The teacher is in train mode: its dropout would be on.")
        inputs = batch.views["teacher"]
        self.model.to(inputs["input_ids"].device)
        outputs: Outputs = self.model(inputs, needs - {"logits"})
        return outputs
