"""Teachers made of several: all asked about every text, or one that has not seen it.

Members keep their own tokenizers and are asked as if they were alone. This room knows no
objective and no data.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from kd.classifiers import TextClassifier
from kd.data.collate import EncodedRows
from kd.data.encode import View
from kd.errors import ConfigError, DataError, ModelError
from kd.teachers import ModelTeacher, Reference, Teacher, check_answers
from kd.types import Batch, ModelInfo, Outputs

__all__ = ["EnsembleTeacher", "OutOfFoldTeacher", "average_logits", "average_probabilities"]

_Read = TypeVar("_Read")


def average_logits(logits: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Return the weighted mean of logits, in float32.

    Args:
        logits: Of each teacher, `[B, C]`.
        shares: Of each teacher; their sum is 1.

    Returns:
        Logits `[B, C]`.
    """
    weighted = [share * each.float() for each, share in zip(logits, shares, strict=True)]
    return torch.stack(weighted).sum(dim=0)


def average_probabilities(
    logits: Sequence[Tensor], shares: Sequence[float], multi_label: bool = False
) -> Tensor:
    """Return logits whose probabilities are the weighted mean of the teachers', in float32.

    Args:
        logits: Of each teacher, `[B, C]`.
        shares: Of each teacher; their sum is 1.
        multi_label: Whether each class has a probability of its own, by a sigmoid.

    Returns:
        Logits `[B, C]`.
    """
    each = torch.stack(tuple(logits)).float()
    log_shares = each.new_tensor(shares).log()[:, None, None]
    if not multi_label:
        return (functional.log_softmax(each, dim=-1) + log_shares).logsumexp(dim=0)
    present = (functional.logsigmoid(each) + log_shares).logsumexp(dim=0)
    return present - (functional.logsigmoid(-each) + log_shares).logsumexp(dim=0)


class EnsembleTeacher(Teacher):
    """Answer with the mean of several teachers, of any family, tokenizer and order of classes.

        logits         z = Σ w_m z_m
        probabilities  z = log Σ w_m softmax(z_m)

    where the weights w sum to 1; where a row may have several classes, the second form is the
    logit of the mean of the sigmoids. The mean of logits is the geometric mean of the
    probabilities: a class that one member rules out is ruled out; the mean of probabilities keeps
    it (Hinton et al. 2015, arXiv 1503.02531, section 1).
    Near: :class:`OutOfFoldTeacher` asks one of its members about a text, not all.

    Args:
        teachers: Members by name. With ``model.cache`` the answers of each are kept by
            themselves, so that another ensemble, or other weights, ask none of them again.
        weights: Weight of a member by its name, in any unit; null, or a name left out, is 1. A
            member of weight 0 is not asked.
        average: What the mean is taken of.
        features: Member whose hidden states, attentions and the like are the ensemble's; null if
            none are wanted. Its logits count by its weight, which may be 0.

    Raises:
        ConfigError: If there is no member with a weight, or a name or a weight cannot be used.
    """

    def __init__(
        self,
        teachers: dict[str, Teacher],
        weights: dict[str, float] | None = None,
        average: Literal["logits", "probabilities"] = "logits",
        features: str | None = None,
    ) -> None:
        _check_members(teachers, weights or {}, features)
        every = {name: float((weights or {}).get(name, 1.0)) for name in teachers}
        self.shares = {name: each / sum(every.values()) for name, each in every.items() if each}
        self.teachers = {name: teachers[name] for name in every if every[name] or name == features}
        self.average = average
        self.features = features
        self.provides = teachers[features].provides if features else frozenset({"logits"})
        self._multi_label = False

    def references(self) -> dict[str, Reference | None]:
        """Return the model paths of all members, each with what would train it."""
        found: dict[str, Reference | None] = {}
        for teacher in self.teachers.values():
            found |= teacher.references()
        return found

    def follow(self, paths: Mapping[str, str]) -> None:
        """Read the members' models from other paths."""
        for teacher in self.teachers.values():
            teacher.follow(paths)

    def keep_in(self, folder: Path | None) -> None:
        """Tell every member where a cache may keep answers."""
        for teacher in self.teachers.values():
            teacher.keep_in(folder)

    def load(self, labels: Sequence[str], multi_label: bool = False) -> None:
        """Load all members; see :meth:`kd.teachers.Teacher.load`."""
        self._multi_label = multi_label
        for teacher in self.teachers.values():
            teacher.load(labels, multi_label)

    def views(self, max_length: int) -> dict[str, View]:
        """Return what the members read: ``teacher.a`` for the view ``teacher`` of member a."""
        return {
            f"teacher.{name}{view.removeprefix('teacher')}": how
            for name, teacher in self.teachers.items()
            for view, how in teacher.views(max_length).items()
        }

    @property
    def info(self) -> ModelInfo:
        """Those of the member that gives the features, or of the first; weights of all."""
        parameters = sum(teacher.info.parameters for teacher in self.teachers.values())
        return replace(self.teachers[self._lead].info, parameters=parameters)

    @property
    def models(self) -> tuple[TextClassifier, ...]:
        """Models of all members."""
        return tuple(model for teacher in self.teachers.values() for model in teacher.models)

    @property
    def parts(self) -> tuple[Teacher, ...]:
        """Parts of all members."""
        return tuple(part for teacher in self.teachers.values() for part in teacher.parts)

    @property
    def key(self) -> str:
        """Digest of the members' keys, of the weights and of how the mean is taken."""
        keys = {name: teacher.key for name, teacher in self.teachers.items()}
        members = [(keys[name], share) for name, share in self.shares.items()]
        return _digest("ensemble", self.average, members, self.features and keys[self.features])

    def wrapped(self, wrap: Callable[[Teacher], Teacher]) -> Teacher:
        """Return itself, every member inside of another teacher."""
        self.teachers = {name: teacher.wrapped(wrap) for name, teacher in self.teachers.items()}
        return self

    def prepare(
        self, splits: Sequence[EncodedRows], needs: frozenset[str], device: torch.device
    ) -> None:
        """Tell every member its own views of the rows; see :meth:`kd.teachers.Teacher.prepare`."""
        for name, teacher in self.teachers.items():
            own = [split.with_views(_views_of(name, split.views)) for split in splits]
            teacher.prepare(own, self._needs_of(name, needs), device)

    @contextmanager
    def lowered(self) -> Iterator[None]:
        """Let every member multiply in bfloat16 where that is safe."""
        with ExitStack() as stack:
            for teacher in self.teachers.values():
                stack.enter_context(teacher.lowered())
            yield

    def __call__(self, batch: Batch, needs: frozenset[str]) -> Outputs:
        """Answer a batch; each member sees its own views under the names that it gave them.

        Args:
            batch: Rows with the views of all members.
            needs: Fields, or single layers of them.

        Returns:
            The mean logits, and the other fields and the mask of one member.
        """
        answers = {
            name: teacher(
                replace(batch, views=_views_of(name, batch.views)), self._needs_of(name, needs)
            )
            for name, teacher in self.teachers.items()
        }
        logits, shares = [answers[name].logits for name in self.shares], [*self.shares.values()]
        if self.average == "logits":
            mean = average_logits(logits, shares)
        else:
            mean = average_probabilities(logits, shares, self._multi_label)
        return replace(answers[self._lead], logits=mean)

    @property
    def _lead(self) -> str:
        """Name of the member whose other fields are the ensemble's."""
        return self.features or next(iter(self.teachers))

    def _needs_of(self, name: str, needs: frozenset[str]) -> frozenset[str]:
        return needs if name == self.features else frozenset({"logits"})


class OutOfFoldTeacher(Teacher):
    """Answer each text with a model that was not trained on it, one of several of one recipe.

    A teacher that knows its training set by heart says little more about it than the labels do.
    Here one recipe is trained once for each fold, without the texts of that fold; the fold of a
    text is a digest of its content modulo ``folds``. So equal texts are in one fold, and exactly
    one member answers for a text of any split, unlabelled or not (cross-fitting: Dao et al. 2021,
    arXiv 2104.09732); a variant is in the fold of its original. Texts that only the tokenizer
    takes for equal may be in different folds.
    Near: :class:`EnsembleTeacher` asks all its members about every text.

    Args:
        path: Run reference: the members are the runs ``<path>_fold0of5`` and so on.
        recipe: Recipe that trains a member that is not there yet, with ``data.fold`` set.
        folds: Number of folds and of members.
        reads: What they are shown of a training row; see :class:`ModelTeacher`.

    Raises:
        ConfigError: If there are fewer than two folds.
    """

    provides = ModelTeacher.provides

    def __init__(
        self,
        path: str,
        recipe: str,
        folds: int = 5,
        reads: Literal["text", "text and rationale"] = "text",
    ) -> None:
        if folds < 2:
            raise ConfigError(f"OutOfFoldTeacher.folds is {folds}: give 2 or more.")
        self.recipe = recipe
        self.members = [
            ModelTeacher(f"{Path(path)}_fold{fold}of{folds}", recipe, reads=reads)
            for fold in range(folds)
        ]

    def references(self) -> dict[str, Reference | None]:
        """Return the members' paths, each with the recipe and the fold to leave out."""
        return {
            path: Reference(self.recipe, (f"--data.fold=[{fold},{len(self.members)}]",))
            for fold, member in enumerate(self.members)
            for path in member.references()
        }

    def follow(self, paths: Mapping[str, str]) -> None:
        """Read the members from the paths that their references stand for."""
        for member in self.members:
            member.follow(paths)

    def load(self, labels: Sequence[str], multi_label: bool = False) -> None:
        """Read all members, which must be alike; see :meth:`kd.teachers.Teacher.load`."""
        for member in self.members:
            member.load(labels, multi_label)
        kinds = {(member.info, member.model.max_length) for member in self.members}
        if len(kinds) > 1:
            paths = [str(member.model.path) for member in self.members]
            raise ModelError(
                f"The members of OutOfFoldTeacher ({', '.join(paths)}) differ in size or "
                "tokenizer: train all by one recipe, with a tokenizer that is not made of the "
                "training texts (model.student.tokenizer)."
            )

    def views(self, max_length: int) -> dict[str, View]:
        """Return what all members read alike: one view, ``teacher``."""
        return self.members[0].views(max_length)

    @property
    def info(self) -> ModelInfo:
        """Sizes and class names of one member: it alone answers a text."""
        return self.members[0].info

    @property
    def models(self) -> tuple[TextClassifier, ...]:
        """One member's model: it alone answers a text."""
        return self.members[0].models

    @property
    def key(self) -> str:
        """Digest of the members' keys, in the order of the folds."""
        return _digest("out of fold", *(member.key for member in self.members))

    def prepare(
        self, splits: Sequence[EncodedRows], needs: frozenset[str], device: torch.device
    ) -> None:
        """Move every member to the device: the first batch may not ask them all."""
        for member in self.members:
            member.model.to(device)

    @contextmanager
    def lowered(self) -> Iterator[None]:
        """Let every member multiply in bfloat16 where that is safe."""
        with ExitStack() as stack:
            for member in self.members:
                stack.enter_context(member.lowered())
            yield

    def __call__(self, batch: Batch, needs: frozenset[str]) -> Outputs:
        """Answer a batch, every row by the member that was trained without its fold.

        Args:
            batch: Rows with a view named ``teacher`` and their content.
            needs: Fields, or single layers of them.

        Returns:
            Logits and the fields asked for, in the order of the rows.

        Raises:
            DataError: If the batch does not say its rows' content.
        """
        if batch.content is None:
            raise DataError("A batch without content has no folds for OutOfFoldTeacher.")
        folds = (batch.content if batch.family is None else batch.family) % len(self.members)
        parts, places = [], []
        for fold, member in enumerate(self.members):
            rows = torch.nonzero(folds == fold)[:, 0]
            if len(rows):
                inputs = {name: value[rows] for name, value in batch.views["teacher"].items()}
                part = Batch({"teacher": inputs}, batch.labels[rows], batch.index[rows])
                parts.append(member(part, needs))
                places.append(rows)
        order = torch.cat(places).argsort()
        return Outputs(
            **{
                field.name: _joined([getattr(part, field.name) for part in parts], order)
                for field in fields(Outputs)
            }
        )


def _joined(parts: Sequence[Any], order: Tensor) -> Any:
    """Return one field of several answers as one, its rows in another order."""
    if parts[0] is None:
        return None
    if isinstance(parts[0], tuple):
        return tuple(_joined(layer, order) for layer in zip(*parts, strict=True))
    return torch.cat(tuple(parts))[order]


def _views_of(name: str, views: Mapping[str, _Read]) -> dict[str, _Read]:
    """Return the views of a member under the names that it gave them, and the student's."""
    first = f"teacher.{name}"
    own = {
        f"teacher{view.removeprefix(first)}": read
        for view, read in views.items()
        if view == first or view.startswith(f"{first}.")
    }
    return {"student": views["student"], **own}


def _digest(*facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _check_members(
    teachers: Mapping[str, Teacher], weights: Mapping[str, float], features: str | None
) -> None:
    known = ", ".join(teachers)
    if not teachers:
        raise ConfigError("EnsembleTeacher.teachers is empty: name at least one teacher.")
    for name, teacher in teachers.items():
        check_answers("EnsembleTeacher", teacher)
        if not name or "." in name:
            raise ConfigError(
                f"EnsembleTeacher.teachers has the name {name!r}: give one that is not empty and "
                "has no dot."
            )
    for name, weight in weights.items():
        if name not in teachers:
            raise ConfigError(
                f"EnsembleTeacher.weights names {name}, which is no teacher of it: choose from "
                f"{known}."
            )
        if not 0.0 <= weight < math.inf:
            raise ConfigError(f"EnsembleTeacher.weights.{name} is {weight}: give 0 or more.")
    if not any(weights.get(name, 1.0) for name in teachers):
        raise ConfigError("EnsembleTeacher.weights are all 0: give one teacher a weight above 0.")
    if features is not None and features not in teachers:
        raise ConfigError(
            f"EnsembleTeacher.features is {features}, which is no teacher of it: choose from "
            f"{known}."
        )
