"""Recipes: LightningCLI over module, data and trainer, in a fresh run directory each time.

Order of a fit: parse, claim a directory, construct, check the rows, find or train the teacher,
train, export, measure. What can fail without a model fails before one loads.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry

from kd import ensembles, tracking  # noqa: F401 - recipes name the ensembles' classes
from kd.callbacks import MetricsFile, Milestones, PredictionWriter, RunDirectory
from kd.checkpoints import MODEL_FOLDER, SafeCheckpointIO, requeued, resumable, sweep_after
from kd.checks.cheap import Checkup
from kd.classifiers import TextClassifier
from kd.console import print_line
from kd.data import generated, synonyms  # noqa: F401 - recipes name their classes
from kd.data.augment import Augmenter
from kd.data.datamodule import TextDataModule
from kd.delivery import deliver
from kd.errors import ConfigError, KDError, RunError
from kd.guards import explain_failure
from kd.models import EncoderClassifier
from kd.module import DistillationModule
from kd.objectives import Objective
from kd.origins import differences, essence, recipe_of
from kd.parsing import allow_imports, check_groups, explain, quieten
from kd.redaction import mask
from kd.references import find_annotations, find_models, find_student
from kd.runs import (
    Run,
    answers_folder,
    check_name,
    claim,
    global_rank,
    job_of_slurm,
    read_manifest,
    variants_folder,
)
from kd.saving import BestCheckpoint, ResumeCheckpoint
from kd.signals import StopSignals, end_processes, follow_launcher, requeue
from kd.teachers import Teacher
from kd.throughput import Throughput

__all__ = ["DDP_OPTIONS", "RecipeCLI", "RunOptions", "run_recipe"]

_TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": 3,
    "gradient_clip_val": 1.0,
    "use_distributed_sampler": False,  # the batches know their rank; Lightning's sampler pads
    "enable_model_summary": False,  # the box at the end says it
}

DDP_OPTIONS = {"gradient_as_bucket_view": True, "broadcast_buffers": False}
"""What ``ddp`` means: the gradient is not copied, nor are buffers sent, as none ever changes."""

_MONITORS = ("val/accuracy", "val/f1", "val/loss", "val/agreement", "val/objective")


@dataclass
class RunOptions:
    """Where a run lives.

    Args:
        name: Name of the run; null is the recipe's file name.
        root: Folder of all runs; each becomes ``root/name/version_N``.
        resume: Version folder to continue, or auto for the newest unfinished one of this name.
        monitor: Metric by which the best checkpoint is chosen.
        save_every: Training steps between two saves of the resume checkpoint.
        save_minutes: Minutes after which it is saved whatever the number of steps.
    """

    name: str | None = None
    root: str = "runs"
    resume: str | None = None
    monitor: str = "val/accuracy"
    save_every: int = 500
    save_minutes: float = 10.0


def run_recipe(args: Sequence[str], only_fill: bool = False) -> None:
    """Run fit, validate, test or predict.

    Args:
        args: Command line without the program.
        only_fill: Whether fit stops before the first step, once the teacher has answered.

    Raises:
        ConfigError: If Lightning refuses an option of the trainer.
    """
    allow_imports()
    quieten()
    how: dict[str, Any] = {"start_method": "popen", **DDP_OPTIONS}
    StrategyRegistry.register("ddp", DDPStrategy, override=True, **how)
    try:
        RecipeCLI(list(args), only_fill)
    except MisconfigurationException as error:
        raise ConfigError(" ".join(str(error).split())) from error


class RecipeCLI(LightningCLI):
    """LightningCLI whose every command has a run directory of its own.

    Args:
        args: Command line without the program.
        only_fill: Whether fit stops before the first step, and leaves no run.
    """

    def __init__(self, args: ArgsType, only_fill: bool = False) -> None:
        self.only_fill = only_fill
        self.found: dict[str, str] = {}
        self.run: Run | None = None
        self.directory: RunDirectory | None = None
        self.has_begun = False
        self.throughput = Throughput()
        self.signals = StopSignals()
        self.started = time.perf_counter()
        strict = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            DistillationModule,
            TextDataModule,
            args=args,
            trainer_defaults=_TRAINER_DEFAULTS,
            seed_everything_default=42,
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={**strict, **dict.fromkeys(self.subcommands(), strict)},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the run."""
        parser.add_class_arguments(RunOptions, "run")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and explain an error in one sentence."""
        assert isinstance(args, list)
        parsers = self._subcommand_parsers.values()
        keys = sorted({action.dest for subparser in parsers for action in subparser._actions})
        try:
            self.config = parser.parse_args(args)
        except Exception as error:
            raise explain(error, keys, (Objective, Teacher, TextClassifier, Augmenter)) from error
        check_groups(self.options, ("data", "model", "run", "trainer"))

    def _parse_ckpt_path(self) -> None:
        """Leave the command line as it is: a checkpoint holds no configuration."""

    @property
    def options(self) -> Namespace:
        """The parsed options of this command."""
        options: Namespace = self.config[self.config.subcommand]
        return options

    @cached_property
    def _recipe(self) -> str:
        """The options to the last default, as YAML."""
        parser = self._subcommand_parsers[self.config.subcommand]
        return str(parser.dump(self.options, skip_none=False))

    @cached_property
    def _essence(self) -> dict[str, Any]:
        return essence(yaml.safe_load(self._recipe))

    @property
    def _continued(self) -> Path | None:
        """The version folder that this run goes on with, if it does."""
        return self.resume_from and self.resume_from.parent.parent

    @property
    def _taken(self) -> dict[str, str]:
        """What the run that is continued took its references for."""
        manifest = read_manifest(self._continued) if self._continued else {}
        return manifest.get("references") or {}

    def before_instantiate_classes(self) -> None:
        """Claim the run directory on rank 0, and write down the recipe."""
        options = self.options
        options.run.name = check_name(options.run.name or _recipe_name(options))
        if "spawn" in str(options.trainer.strategy):
            raise ConfigError(
                "trainer.strategy: spawned processes lose the hidden states of transformers; "
                "use ddp."
            )
        if options.run.monitor not in _MONITORS:
            raise ConfigError(
                f"run.monitor is {options.run.monitor}: choose from {', '.join(_MONITORS)}."
            )
        self.resume_from = self._checkpoint_to_resume()
        tracking.check_key(options)
        if global_rank() == 0 and not (options.trainer.fast_dev_run or self.only_fill):
            self.run = claim(options.run.root, options.run.name, command=self.config.subcommand)
            self.run.update(seed=options.seed_everything, resumed_from=self._continued)
            print_line(f"run = {self.run.path}")
            self.run.write_text("config.yaml", mask(self._recipe))
            tracking.prepare(options, self.run, self._continued)

    def instantiate_classes(self) -> None:
        """Construct module, data and trainer; the models load later."""
        with self._recorded():
            try:
                super().instantiate_classes()
            except (KDError, MisconfigurationException):
                raise
            except Exception as error:  # what strange options raise has no common class
                if isinstance(error.__cause__, KDError):  # of an optional part, such as augment
                    raise error.__cause__ from None
                raise explain(error, (), ()) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Construct the trainer around the run directory."""
        given = self._get(self.config_init, "trainer")
        folder = self.run.path if self.run else Path(self.options.run.root)
        if given.enable_progress_bar is None:
            kwargs["enable_progress_bar"] = sys.stdout.isatty()
        if self.only_fill:
            kwargs |= {"max_steps": 0, "num_sanity_val_steps": 0}
            kwargs |= {"logger": False, "enable_checkpointing": False}
        elif not given.fast_dev_run:
            kwargs["logger"] = [MetricsFile(folder), *_as_list(given.logger)]
            kwargs["enable_checkpointing"] = self.config.subcommand == "fit"
        answers = None if given.fast_dev_run else answers_folder(self.options.run.root)
        self.directory = RunDirectory(self.run, {}, answers)
        callbacks = [self.directory, *_as_list(given.callbacks), Milestones(), self.throughput]
        if self.config.subcommand == "fit" and not (given.fast_dev_run or self.only_fill):
            callbacks.append(Checkup(self.options))
            callbacks.append(BestCheckpoint(self.options.run.monitor))
            every, minutes = self.options.run.save_every, self.options.run.save_minutes
            callbacks.append(ResumeCheckpoint(every, minutes, self.signals))
        if self.config.subcommand == "predict":
            callbacks.append(PredictionWriter(self.run))
        shows_bar = kwargs.get("enable_progress_bar", given.enable_progress_bar)
        if shows_bar and not any(isinstance(callback, ProgressBar) for callback in callbacks):
            callbacks.append(TQDMProgressBar(refresh_rate=20))  # each refresh waits for the device
        trainer = super().instantiate_trainer(
            callbacks=callbacks,
            plugins=[*_as_list(given.plugins), SafeCheckpointIO()],
            default_root_dir=str(folder),
            **kwargs,
        )
        # Lightning's handlers hang several ranks, and end them with 0; ours are in `signals`
        connector: Any = trainer._signal_connector
        connector.register_signal_handlers = lambda: None
        follow_launcher()
        return trainer

    def fit(
        self,
        model: DistillationModule,
        datamodule: TextDataModule,
        ckpt_path: str | None = None,
        **options: Any,
    ) -> None:
        """Train, export the best student, and show what it is worth."""
        with self._recorded():
            if not self.options.trainer.fast_dev_run:
                datamodule.variants_folder = variants_folder(self.options.run.root)
            plan = datamodule.rationales
            if plan is not None and plan.path is not None:
                self.found[plan.path] = plan.path = find_annotations(plan.path, self._taken)
            datamodule.read("fit")
            if self.resume_from is not None and isinstance(model.student, EncoderClassifier):
                model.student.keep_shape(self.resume_from.parent / MODEL_FOLDER.name)
            self._find_references(model, train_missing=True)
            self.has_begun = True
            resume = str(self.resume_from) if self.resume_from else ckpt_path or None
            self.trainer.fit(model, datamodule=datamodule, ckpt_path=resume, **options)
            if self.run is not None:
                deliver(self.run, self.trainer, self.throughput, self.started)

    def validate(self, **options: Any) -> None:
        """Measure on the validation split."""
        self._evaluate("validate", **options)

    def test(self, **options: Any) -> None:
        """Measure on the test split."""
        self._evaluate("test", **options)

    def predict(self, **options: Any) -> None:
        """Write the predictions of a split."""
        options["return_predictions"] = False
        self._evaluate("predict", **options)

    def _evaluate(
        self,
        verb: str,
        model: DistillationModule,
        datamodule: TextDataModule,
        ckpt_path: str | None = None,
        **options: Any,
    ) -> None:
        with self._recorded():
            datamodule.read(verb)
            if verb == "predict":
                model.teacher = None
            if not str(ckpt_path).endswith(".ckpt"):
                run = self.options.run
                model.student = find_student(ckpt_path or f"{run.root}/{run.name}")
                ckpt_path = None
            self._find_references(model, train_missing=False)
            self.has_begun = True
            command = getattr(self.trainer, verb)
            command(model, datamodule=datamodule, ckpt_path=ckpt_path, **options)
            if self.run is not None:
                self.run.finish("finished")

    def _checkpoint_to_resume(self) -> Path | None:
        root, name = self.options.run.root, self.options.run.name
        again = requeued(root, name, lambda version: recipe_of(version) == self._essence)
        wanted = again or self.options.run.resume
        if wanted is None:
            return None
        found = resumable(wanted, root=root, name=name)
        if global_rank() == 0:
            print_line(f"resume = {found or 'nothing to continue, so a fresh start'}")
        if global_rank() == 0 and found:
            sweep_after(found)
            for line in differences(recipe_of(found.parent.parent) or {}, self._essence):
                print_line(f"note: {mask(line)}")
        return found

    def _find_references(self, model: DistillationModule, train_missing: bool) -> None:
        """Find on rank 0 the models behind run references; the other ranks are told later."""
        if global_rank() != 0:
            return
        recipes = [Path(str(file)) for file in self.options.config or ()]
        found = find_models(model.references(), recipes, train_missing, self._taken)
        assert self.directory is not None
        self.directory.references = found
        if self.run is not None:
            self.run.update(references=self.found | found)

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Write into the manifest how the run ended, if it ended badly, and end it on all ranks."""
        code = 0
        with self.signals.handled():
            try:
                yield
            except BaseException as error:
                self.signals.ignore()
                code = int(error.code or 0) if isinstance(error, SystemExit) else 1
                known = None if isinstance(error, KDError) else explain_failure(error, self._sizes)
                try:
                    if self.run is not None and self.has_begun:
                        self.run.break_off(known or error)
                    elif self.run is not None:
                        self.run.discard()  # nothing happened in it
                except (OSError, RunError) as second:
                    print_line(f"note: {second}")
                if known is not None:
                    raise known from error
                raise
            finally:
                if self.has_begun:
                    launcher = self.trainer.strategy.launcher
                    end_processes(getattr(launcher, "procs", None) or [])
                job = job_of_slurm()
                if self.run is not None and job and self.signals.asks_to_requeue:
                    requeue(job)
                if self.has_begun:
                    tracking.finish(code)

    @property
    def _sizes(self) -> dict[str, int]:
        """What of the options takes memory now, for a sentence about it."""
        names = ["eval_batch_size"]
        if self.directory is not None and self.directory.was_training:
            names.append("batch_size")
        sizes = {name: int(self.options.data[name]) for name in names}
        return {**sizes, "accumulate_grad_batches": self.options.trainer.accumulate_grad_batches}


def _recipe_name(options: Namespace) -> str:
    files = options.config or []
    return Path(str(files[0])).stem if files else "run"


def _as_list(value: Any) -> list[Any]:
    """Return what was configured as a list; null, true and false mean nothing of one's own."""
    values = value if isinstance(value, list) else [value]
    return [item for item in values if item is not None and not isinstance(item, bool)]
