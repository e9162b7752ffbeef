"""Weights & Biases around a run: its key asked for early, its pictures, its end.

The logger itself is Lightning's. This room knows no model and computes nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import Any

from jsonargparse import Namespace

from kd.errors import ConfigError
from kd.pictures import Picture
from kd.runs import Run

__all__ = ["check_key", "finish", "is_wandb", "log_pictures", "prepare", "wandb_specs"]


def is_wandb(logger: object) -> bool:
    """Return whether a logger of Lightning is that of W&B; tells without importing either."""
    return type(logger).__name__ == "WandbLogger"


def wandb_specs(options: Namespace) -> list[Namespace]:
    """Return the part of a recipe's options that describes W&B's loggers."""
    loggers = options.trainer.logger
    return [
        spec
        for spec in (loggers if isinstance(loggers, list) else [loggers])
        if isinstance(spec, Namespace) and spec.class_path.endswith("WandbLogger")
    ]


def check_key(options: Namespace) -> None:
    """Ask for W&B's key before a model loads; `ConfigError` where it is missing."""
    mode = os.environ.get("WANDB_MODE", "online")
    for spec in wandb_specs(options):
        if mode in ("offline", "disabled", "dryrun") or spec.init_args.get("offline"):
            continue
        import wandb

        if not wandb.api.api_key:
            raise ConfigError(
                "W&B has no key here: run `wandb login`, set WANDB_API_KEY, or set "
                "WANDB_MODE=offline to log into the run directory only."
            )


def prepare(options: Namespace, run: Run) -> None:
    """Let W&B write into the run directory."""
    for spec in wandb_specs(options):
        spec.init_args.save_dir = str(run.path)


def log_pictures(loggers: Iterable[Any], pictures: Sequence[Picture]) -> None:
    """Show pictures in W&B as ``report/<name>``, their alternative text being the caption."""
    from PIL import Image

    for logger in filter(is_wandb, loggers):
        for picture in pictures:
            image = Image.open(BytesIO(picture.png()))
            logger.log_image(f"report/{picture.name}", [image], caption=[picture.alt])


def finish() -> None:
    """Let W&B write what it holds; the next run in this process is another one there."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()
