"""The checks that cost a training nothing, as `fit` makes them before its first step.

What they warn of is said and no more: a run may be meant to be what they warn of.
"""

from __future__ import annotations

from jsonargparse import Namespace
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from kd.checks.findings import Finding
from kd.checks.models import check_modes, check_reading, check_teacher
from kd.checks.options import check_options
from kd.checks.rows import check_balance, check_duplicates, check_leaks
from kd.checks.sample import some
from kd.console import print_line
from kd.data.datamodule import TextDataModule
from kd.module import DistillationModule

__all__ = ["Checkup", "cheap_findings"]

_READ = 1000  # rows whose tokens are counted


def cheap_findings(
    options: Namespace, module: DistillationModule, data: TextDataModule
) -> list[Finding]:
    """Examine what a fit has read and loaded; no model answers anything.

    Args:
        options: Of the command, as parsed.
        module: Set up, so that its teacher has answered already.
        data: Likewise.

    Returns:
        What was found.
    """
    train, validation, labels = data.rows["train"], data.rows["validation"], data.labels
    originals = [row for row in train if row.origin is None]
    told = check_balance(train, validation, labels)
    told += check_duplicates(train, labels)
    told += [check_leaks(train, validation, "validation")]
    told += check_modes(module.student, module.teacher)
    told += check_reading(some(originals, _READ), module, data.max_length)
    if module.measured_teacher is not None:
        told += [check_teacher(module.measured_teacher, data.encoded("validation"), labels)]
    return told + check_options(options, module, data)


class Checkup(Callback):
    """Print a line for each warning of :func:`cheap_findings` before the first step.

    Args:
        options: Of the command, as parsed.
    """

    def __init__(self, options: Namespace) -> None:
        self.options = options

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, once models and data are there."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(pl_module, DistillationModule)
        assert isinstance(data, TextDataModule)
        for finding in cheap_findings(self.options, pl_module, data):
            if finding.level != "ok":
                print_line(f"{finding.level}: {finding}")
