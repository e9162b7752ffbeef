"""Weights & Biases around a run: its key asked for early, what it is told, and that it stops none.

The logger itself is Lightning's. This room knows no model and computes nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.loggers import WandbLogger

from kd.checkpoints import BEST
from kd.console import print_line
from kd.errors import ConfigError
from kd.pictures import Picture
from kd.predictions import Predictions
from kd.redaction import mask, redact
from kd.runs import Run, read_manifest
from kd.signals import STOPPED

__all__ = [
    "RunLogger",
    "begin",
    "check_key",
    "finish",
    "is_wandb",
    "log_results",
    "prepare",
]

# that W&B is waited for, unless WANDB_INIT_TIMEOUT or WANDB_FINISH_TIMEOUT says otherwise
_SECONDS = {"init_timeout": 30.0, "finish_timeout": 60.0}


class RunLogger(WandbLogger):
    """Lightning's logger of W&B, which stops no training.

    Where W&B fails, the same run there goes on offline, in the run directory, and where that fails
    too, without W&B.
    """

    @property
    def experiment(self) -> Any:
        """The run at W&B, which starts at the first look."""
        if self._experiment is not None:
            return self._experiment
        given, sys.argv = sys.argv, [mask(word) for word in redact(sys.argv)]  # W&B writes it down
        try:
            return self.spared(lambda: super(RunLogger, self).experiment)
        finally:
            sys.argv = given

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log figures."""
        self.spared(lambda: super(RunLogger, self).log_metrics(metrics, step))

    def spared(self, log: Callable[[], Any]) -> Any:
        """Return what a function returns that logs; where W&B fails, call it once more without."""
        for mode in ("offline", "disabled"):
            try:
                return log()
            except Exception as error:
                self._fall_back(error, mode)
        return log()

    def _fall_back(self, error: Exception, mode: str) -> None:
        """Go on under the same id in another mode."""
        place = f"; `wandb sync --include-online {self.save_dir}/wandb/*run-*` sends it later"
        print_line(
            f"note: W&B fails ({_reason(error)}), so this run goes on without it"
            f"{place if mode == 'offline' else ''}"
        )
        _end()
        # Lightning has no other way to start anew
        self._wandb_init |= {"id": self.version, "mode": mode}
        self._experiment = None


def is_wandb(logger: object) -> bool:
    """Return whether a logger of Lightning is that of W&B."""
    return isinstance(logger, WandbLogger)


def check_key(options: Namespace) -> None:
    """Ask for W&B's key before a model loads; `ConfigError` where it is missing."""
    for spec in _specs(options):
        mode = spec.init_args.get("mode") or os.environ.get("WANDB_MODE", "online")
        if mode in ("offline", "disabled", "dryrun") or spec.init_args.get("offline"):
            continue
        import wandb

        if not wandb.api.api_key:
            raise ConfigError(
                "W&B has no key here: run `wandb login`, set WANDB_API_KEY, or set "
                "WANDB_MODE=offline to log into the run directory only."
            )


def prepare(options: Namespace, run: Run, old: Path | None = None) -> None:
    """Let W&B write into the run directory, beside its like, and go on with what is resumed.

    Args:
        options: Of the command; the loggers in there are changed.
        run: The run.
        old: Version folder that it goes on with; null is a fresh start.
    """
    for spec in _specs(options):
        spec.class_path = f"{RunLogger.__module__}.{RunLogger.__name__}"
        given = spec.init_args
        given.save_dir = str(run.path)
        given.resume = given.get("resume") or "allow"  # "must" fails if the first part was offline
        if old is not None and not (given.get("id") or given.get("version")):
            given.id = read_manifest(old).get("wandb_id")
        if not (given.get("group") or os.environ.get("WANDB_RUN_GROUP")):
            given.group = run.path.parent.name
        waits = {key: _SECONDS[key] for key in _SECONDS if f"WANDB_{key.upper()}" not in os.environ}
        given.settings = {**waits, "finish_timeout_raises": True, **(given.get("settings") or {})}


def begin(loggers: Iterable[Any], run: Run) -> str | None:
    """Start the run at W&B and tell it the recipe, without secrets.

    Args:
        loggers: Of the trainer.
        run: The run, with its config.yaml.

    Returns:
        Its id there; null without W&B.
    """
    found = None
    for logger in _of_runs(loggers):
        recipe = yaml.safe_load((run.path / "config.yaml").read_bytes())
        told = {**_masked(recipe), "directory": str(run.path)}
        logger.spared(partial(_tell, logger, told))
        found = logger.version
    return found


def log_results(
    loggers: Iterable[Any],
    run: Run,
    results: Mapping[str, Any],
    found: Predictions,
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    pictures: Sequence[Picture],
) -> None:
    """Show W&B what a fit has come to: figures, pictures, matrices, tables, and the student.

    Args:
        loggers: Of the trainer.
        run: The run, with the exported student in it.
        results: Figures; those of a model stand under its role.
        found: What student and teacher said of the validation rows.
        tables: Rows to look at, by name.
        pictures: Of the report; each is ``report/<name>``, its alternative text the caption.
    """
    for logger in _of_runs(loggers):
        with suppress(Exception):  # which was told; what is finished stays so
            logger.spared(partial(_log_results, logger, run, results, found, tables, pictures))


def finish(code: int = 0) -> None:
    """Let W&B send what it holds, for a limited time; the next run in this process is another one.

    Args:
        code: With which the process will end; unless it is 0, the run failed or was preempted.
    """
    wandb = sys.modules.get("wandb")
    if wandb is None or wandb.run is None:
        return
    folder = Path(wandb.run.dir).parent
    error = _end(code)
    if error is not None:
        print_line(
            f"note: W&B has not got all of this run ({_reason(error)}): "
            f"`wandb sync --include-online {folder}` sends it"
        )


def _specs(options: Namespace) -> list[Namespace]:
    """Return the part of a recipe's options that describes W&B's loggers."""
    loggers = options.trainer.logger
    return [
        spec
        for spec in (loggers if isinstance(loggers, list) else [loggers])
        if isinstance(spec, Namespace) and spec.class_path.endswith("WandbLogger")
    ]


def _end(code: int | None = None) -> Exception | None:
    """End W&B's run and its process; return what stood in the way."""
    import wandb

    failed = None
    try:
        # a sweep would start it again, though its agent ends runs by SIGTERM too
        if wandb.run is not None and code == STOPPED and not wandb.run.sweep_id:
            wandb.run.mark_preempting()
        wandb.finish(exit_code=code)
    except Exception as error:
        failed = error
    with suppress(Exception):
        wandb.teardown()  # a run that did not start would keep its id
    wandb.run = None  # what did not end would be gone on with
    return failed


def _of_runs(loggers: Iterable[Any]) -> Iterator[RunLogger]:
    return (logger for logger in loggers if isinstance(logger, RunLogger))


def _tell(logger: RunLogger, recipe: Mapping[str, Any]) -> None:
    logger.experiment.config.update(recipe, allow_val_change=True)


def _log_results(
    logger: RunLogger,
    run: Run,
    results: Mapping[str, Any],
    found: Predictions,
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    pictures: Sequence[Picture],
) -> None:
    import wandb
    from PIL import Image

    models = {role: one for role, one in results.items() if isinstance(one, Mapping)}
    figures = {f"{role}/{name}": value for role in models for name, value in models[role].items()}
    logger.experiment.summary.update(figures)
    shown: dict[str, Any] = {f"confusion_{role}": _confusion(role, found) for role in models}
    for name, rows in tables.items():
        columns: list[str | int] = list(rows[0]) if rows else []
        shown[name] = wandb.Table(columns, [list(row.values()) for row in rows])
    for picture in pictures:
        image = Image.open(BytesIO(picture.png()))
        shown[f"report/{picture.name}"] = wandb.Image(image, caption=picture.alt)
    logger.experiment.log({name: one for name, one in shown.items() if one is not None})
    artifact = wandb.Artifact(run.path.parent.name, "model", metadata=dict(results))
    artifact.add_dir(str(run.path / "student"), skip_cache=True, policy="immutable")  # no copy
    is_best = (run.path / BEST).is_file()  # else it is the newest
    logger.experiment.log_artifact(artifact, aliases=["best"] * is_best + [run.path.name])


def _confusion(role: str, found: Predictions) -> Any:
    """Return W&B's picture of what a model takes for what; null where a row has several classes."""
    from wandb.plot import confusion_matrix

    logits = found.student if role == "student" else found.teacher
    if logits is None or found.multi_label:
        return None
    return confusion_matrix(
        y_true=found.truth.tolist(),
        preds=logits.argmax(axis=1).tolist(),
        class_names=list(found.labels),
        title=f"What the {role} takes for what",
    )


def _masked(value: Any, key: str = "") -> Any:
    """Return a part of a recipe without secrets."""
    if isinstance(value, Mapping):
        return {name: _masked(part, str(name)) for name, part in value.items()}
    if isinstance(value, list):
        return [_masked(part, key) for part in value]
    if isinstance(value, str):
        return mask(redact([f"{key}={value}"])[0].partition("=")[2])
    return value


def _reason(error: Exception) -> str:
    """Return the first line of what W&B says."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
