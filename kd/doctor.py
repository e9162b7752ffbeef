"""``doctor``: every check that can be made of a recipe before it is trained.

The recipe is parsed and built as `fit` does it. Then some of its rows take a few real steps in the
real trainer, so that what would break does so now; all that these leave is thrown away.
"""

from __future__ import annotations

import io
import shutil
import sys
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningCLI

from kd.cache import CachedTeacher, Filling
from kd.checks.findings import Finding, attempt, errors_of
from kd.checks.machine import (
    SMALLER,
    check_disk,
    check_memory,
    check_time,
    course_of,
    free_memory,
    training_memory,
)
from kd.checks.models import check_loading, check_modes, check_reading, check_teacher
from kd.checks.options import check_options
from kd.checks.rows import check_balance, check_duplicates, check_leaks
from kd.checks.sample import Sample, some
from kd.console import print_line
from kd.data.datamodule import TextDataModule
from kd.data.rows import canonical_rows
from kd.data.sources import available_roles, read
from kd.errors import KDError, RunError
from kd.module import DistillationModule
from kd.parsing import allow_imports, quieten
from kd.recipes import RecipeCLI
from kd.references import find_annotations, find_models, find_recipe, is_trained
from kd.teachers import Reference

__all__ = ["doctor"]

_STEPS, _WARM = 20, 3  # taken, and of these not timed
_ROWS = 1000  # to take them with, or four batches
_MEASURED = 500  # validation rows
_READ = 2000  # rows whose tokens are counted
_LEVEL, _CHECK = 9, 13  # widths in the report


def doctor(arguments: Sequence[str]) -> None:
    """Examine a recipe: one line for each check, with what to do.

    Args:
        arguments: Options, those of `fit`.

    Raises:
        SystemExit: With 2 if there is an error.
    """
    allow_imports()
    quieten()
    report = _Report()
    try:
        _Examination(report, arguments)
    except (KDError, MisconfigurationException) as error:
        report.tell([Finding("error", "recipe", " ".join(str(error).split()))])
    levels = Counter(finding.level for finding in report.told)
    print_line(f"errors: {levels['error']}, warnings: {levels['warning']}, ok: {levels['ok']}")
    if levels["error"]:
        raise SystemExit(2)


class _Report:
    """Prints findings as they come, each once."""

    def __init__(self) -> None:
        self.told: list[Finding] = []

    def tell(self, findings: Iterable[Finding]) -> None:
        """Print findings, folded to the terminal's width; into a pipe, a line each."""
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10**6
        indent = " " * (_LEVEL + _CHECK)
        for finding in findings:
            if finding in self.told:
                continue
            self.told.append(finding)
            line = f"{finding.level:<{_LEVEL}}{finding.check:<{_CHECK}}{finding}"
            print_line(textwrap.fill(line, width, subsequent_indent=indent))


class _Examination(RecipeCLI):
    """A fit that stops after a few steps, and tells what it found.

    Args:
        report: Takes the findings.
        args: Options of `fit`.
    """

    def __init__(self, report: _Report, args: Sequence[str]) -> None:
        self.report = report
        self.watch = _Watch(self._begin)
        super().__init__(["fit", *args], only_fill=True)

    def before_instantiate_classes(self) -> None:
        """Check the options of the run; nothing is logged and nobody else is called back."""
        self.report.tell(attempt("recipe", super().before_instantiate_classes))
        self.options.trainer.logger = False
        self.options.trainer.callbacks = None

    def instantiate_classes(self) -> None:
        """Construct all or, where model and objectives contradict each other, at least the data."""
        self.failed = attempt("recipe", super().instantiate_classes)
        if self.failed:
            self.report.tell(self.failed)
            self.options.model.teacher = self.options.model.objectives = None
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Construct the recipe's trainer for a few steps on one device."""
        kwargs |= {"max_steps": _STEPS, "max_epochs": -1, "max_time": None, "min_epochs": None}
        kwargs |= {"limit_train_batches": 1.0, "limit_val_batches": 1.0, "overfit_batches": 0.0}
        kwargs |= {"val_check_interval": 1.0, "check_val_every_n_epoch": 10**9}  # it is apart
        kwargs |= {"devices": 1, "num_nodes": 1, "strategy": "auto", "fast_dev_run": False}
        kwargs |= {"enable_checkpointing": False, "enable_progress_bar": False}
        kwargs |= {"num_sanity_val_steps": 0, "callbacks": [self.watch]}
        return LightningCLI.instantiate_trainer(self, **kwargs)

    def fit(
        self,
        model: DistillationModule,
        datamodule: TextDataModule,
        ckpt_path: str | None = None,
        **options: Any,
    ) -> None:
        """Make the checks, from rows to machine; what cannot be had leaves the later ones out."""
        data = datamodule
        plan, data.augment = data.augment, None  # variants of some rows will do
        unread = attempt("data", partial(self._read, data))
        data.augment = plan
        self.report.tell(unread or self._check_rows(data))
        lacking = unread + self.failed + self._find(model)
        for augmenter in plan.augmenters if plan else ():
            lacking += attempt("augment", augmenter.prepare)
        self.report.tell(lacking)
        if not lacking:
            self._take_steps(model, data)

    def _read(self, data: TextDataModule) -> None:
        if data.rationales is not None and data.rationales.path is not None:
            data.rationales.path = find_annotations(data.rationales.path)
        data.read("fit")

    def _check_rows(self, data: TextDataModule) -> list[Finding]:
        train, validation = data.rows["train"], data.rows["validation"]
        told = check_balance(train, validation, data.labels)
        told += check_duplicates(train, data.labels)
        told += [check_leaks(train, validation, "validation")]

        def look_at_test() -> None:
            table = read(data.source, "test")
            fields = replace(data.fields, weight_column=None)
            rows = canonical_rows(table, fields, data.labels, labelled=False)
            told.append(check_leaks(train, rows, "test"))

        if "test" in available_roles(data.source):
            told += attempt("test", look_at_test)
        return told

    def _find(self, model: DistillationModule) -> list[Finding]:
        """Follow the references; return those to models that are not trained yet."""
        references = model.references()
        recipes = [Path(str(file)) for file in self.options.config or ()]
        told = [
            _untrained(path, reference, recipes)
            for path, reference in references.items()
            if reference is not None and not is_trained(path)
        ]
        if not told:
            told += attempt("references", lambda: model.follow(find_models(references, [], False)))
        return told

    def _take_steps(self, model: DistillationModule, data: TextDataModule) -> None:
        """Load the models, train and validate a little, and tell what that showed."""
        unlabelled = any(not term.uses_labels for term in model.terms.values())
        batch = data.batch_size * self.options.trainer.accumulate_grad_batches
        rows = min(_STEPS * batch, max(_ROWS, 4 * batch))
        self.sample = Sample(data, unlabelled, rows, _MEASURED)
        self.free = free_memory(self.trainer.strategy.root_device)
        for cache in _caches(model):
            if cache.over_limit == "ask":  # or not to: as it would with all rows
                cache.limit_gb /= self.sample.scale
        try:
            with redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*in eval mode.*")  # told by a check
                self.trainer.fit(model, datamodule=self.sample)
                self.trainer.validate(model, datamodule=self.sample, verbose=False)
        except KDError as error:
            known = errors_of(self.watch.told) or check_loading(model, data)
            known = known or errors_of(check_modes(model.student, model.teacher))
            self.report.tell(known or [Finding("error", "steps", str(error))])
        except torch.OutOfMemoryError:
            self.report.tell([Finding("error", "memory", "a step does not fit", SMALLER)])
        else:
            self.report.tell(self.watch.told)
            self._tell_of_models(model, data)
            self._tell_of_machine(model, data)

    def _begin(self, model: DistillationModule) -> list[Finding]:
        """Check the memory, once all is loaded and before it is filled."""
        if self.free is None:
            return []
        sample, rows = self.sample, self.sample.encoded("train")
        weights = sum(weight.numel() for weight in model.parameters())
        teacher = sum(one.info.parameters for one in model.teacher.models) if model.teacher else 0
        longest = int(rows.lengths.max())
        batch = (sample.whole.tokens_per_batch or sample.batch_size * longest) // longest
        needed = training_memory(model.student.info, weights, teacher, batch, longest)
        distinct = {id(view): view for view in rows.views.values()}.values()
        needed["texts"] = sample.scale * sum(view.ids.nbytes for view in distinct)
        if not model.cache:
            needed["answers"] = sample.scale * sum(one.size for one in model.fillings)
        where = str(self.trainer.strategy.root_device)
        return [check_memory(needed, self.free, where)]

    def _tell_of_models(self, model: DistillationModule, data: TextDataModule) -> None:
        originals = [row for row in data.rows["train"] if row.origin is None]
        self.report.tell(check_reading(some(originals, _READ), model, data.max_length))
        if model.measured_teacher is not None:
            rows = self.sample.encoded("validation")
            self.report.tell([check_teacher(model.measured_teacher, rows, data.labels)])
        self.report.tell(check_options(self.options, model, data))

    def _tell_of_machine(self, model: DistillationModule, data: TextDataModule) -> None:
        sample, watch = self.sample, self.watch
        validation = len(data.rows["validation"]) / len(sample.rows["validation"])
        more = validation
        if model.taught or (data.augment is not None and data.augment.asks_teacher):
            asked = len(sample.rows["validation"]) + len(sample.encoded("train"))
            more = (len(data.rows["validation"]) + sample.all_rows) / asked
        weights = sum(weight.numel() for weight in model.parameters())
        answers = more * sum(one.size for one in watch.fillings) if model.cache else 0.0
        self.report.tell([check_disk(weights, answers, Path(self.options.run.root))])
        self.report.tell(_too_large(_caches(model), more))
        course = course_of(self.options.trainer, sample.all_batches)
        fixed = _seconds(lambda: [part.key for part in _caches(model)])
        seconds = {"variants": sample.scale * sample.variants.seconds if sample.variants else 0.0}
        asking = sum(one.seconds for one in watch.fillings)
        seconds["teacher"] = fixed + more * max(0.0, asking - fixed)
        times = f"{course.validations:,.0f} validations"
        seconds[times] = course.validations * validation * watch.validation
        together = self.options.trainer.accumulate_grad_batches
        self.report.tell(check_time(seconds, course, watch.per_batch * together))


class _Watch(Callback):
    """Looks at a few steps.

    Args:
        begin: Called when all is loaded, before the first step.
    """

    def __init__(self, begin: Callable[[DistillationModule], list[Finding]]) -> None:
        self.begin = begin
        self.told: list[Finding] = []
        self.fillings: list[Filling] = []
        self.validation = 0.0
        self._ends: list[float] = []
        self._since = 0.0

    @property
    def per_batch(self) -> float:
        """Seconds of a training batch."""
        ends = self._ends[min(_WARM, len(self._ends) - 2) :]
        return (ends[-1] - ends[0]) / (len(ends) - 1)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take what the teacher did, and go no further where the memory is too small."""
        assert isinstance(pl_module, DistillationModule)
        self.fillings = pl_module.fillings
        self.told = self.begin(pl_module)
        if errors_of(self.told):
            raise RunError("No step was taken.")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the time, of a GPU too."""
        self._ends.append(_now())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the modes, as the steps have left them."""
        assert isinstance(pl_module, DistillationModule)
        self.told += check_modes(pl_module.student, pl_module.teacher)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = _now()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self.validation = _now() - self._since


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _caches(model: DistillationModule) -> list[CachedTeacher]:
    parts = model.teacher.parts if model.teacher else ()
    return [part for part in parts if isinstance(part, CachedTeacher)]


def _too_large(caches: Sequence[CachedTeacher], more: float) -> Iterator[Finding]:
    """Yield caches that will refuse, though they took what some of the rows needed."""
    for cache in caches:
        size = more * cache.filling.size / 1e9 if cache.filling else 0.0
        if size > cache.limit_gb and cache.over_limit == "error":
            found = f"the answers take about {size:,.3g} GB, more than limit_gb={cache.limit_gb:g}"
            advice = "raise CachedTeacher's limit_gb, or name fewer layers in the objectives"
            yield Finding("error", "cache", found, advice)


def _untrained(path: str, reference: Reference, recipes: Sequence[Path]) -> Finding:
    """Say by which recipe a model will be trained."""
    file = find_recipe(reference, recipes)
    if file is None:
        found = f"{path} is not trained yet, and its recipe {reference.recipe} is not there"
        return Finding("error", "references", found, "set model.teacher's recipe to a file")
    found = f"{path} is not there yet; fit trains it first, by {file}"
    advice = "examine that recipe now, and this one again when it is there"
    return Finding("ok", "references", found, advice)
