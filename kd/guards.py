"""What must not go on in a training, told in one sentence: NaN, no memory, weights of another.

This room looks at numbers and errors, and writes no file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from kd.errors import ConfigError, KDError, RunError
from kd.types import ModelInfo

__all__ = [
    "FiniteGuard",
    "check_finite",
    "check_identity",
    "clip",
    "explain_failure",
    "identity",
]

_SHOWN = 12  # rows that a sentence names
_MOST_SKIPPED = 20  # steps that a scaler of float16 may leave out in a row
_GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "gloo",
    "NCCL",
    "TCPStore",
)


def clip(
    module: LightningModule, optimizer: Optimizer, limit: float | None, algorithm: str | None
) -> Tensor:
    """Clip gradients as Lightning would; return their norm before it, a scalar."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    is_whole = isinstance(module.trainer.strategy, SingleDeviceStrategy | DDPStrategy)
    if limit and is_whole and algorithm in (None, "norm"):
        return nn.utils.clip_grad_norm_(weights, limit)
    norm = nn.utils.get_total_norm([one.grad for one in weights if one.grad is not None])
    module.clip_gradients(optimizer, limit, algorithm)
    return norm


def check_finite(weights: Mapping[str, Tensor], step: int) -> None:
    """Refuse to save weights that are not finite numbers."""
    if broken := _find_not_finite(weights.items()):
        raise RunError(
            f"Nothing was saved at step {step}, as {broken} is not finite: take a smaller "
            "model.learning_rate, and continue from the last checkpoint."
        )


def identity(info: ModelInfo) -> dict[str, Any]:
    """Return what a student's weights belong to."""
    return {
        "labels": list(info.labels),
        "vocabulary": info.vocabulary,
        "multi_label": info.multi_label,
        "parameters": info.parameters,
    }


def check_identity(saved: Mapping[str, Any] | None, info: ModelInfo) -> None:
    """Refuse weights that belong to other classes, another vocabulary or another size.

    Args:
        saved: The identity in their checkpoint, if it has one.
        info: Of the student that is to have them.

    Raises:
        RunError: If it is another one.
    """
    if saved is None:
        raise RunError("The checkpoint was not written by kd: give one of a kd run.")
    for name, ours in identity(info).items():
        if saved.get(name, ours) != ours:
            raise RunError(
                f"The checkpoint's {name} ({saved[name]}) are not this recipe's ({ours}): "
                "give the checkpoint of a run of this recipe and data."
            )


def _find_not_finite(tensors: Iterable[tuple[str, Tensor | None]]) -> str | None:
    """Return the name of the first tensor with a NaN or an infinity, or null."""
    for name, tensor in tensors:
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            return name
    return None


@dataclass
class FiniteGuard:
    """Sees every loss, and stops before the optimizer's step where one is not a finite number.

    All losses since the last step and the gradient's norm are looked at together, which costs one
    look at the device.
    """

    blamed: dict[str, object] | None = None
    """What was found: step, rate, terms and rows, to be written down."""
    _seen: list[tuple[Tensor, Mapping[str, Tensor], Tensor]] = field(default_factory=list)
    _skipped: int = 0

    def see(self, loss: Tensor, terms: Mapping[str, Tensor], rows: Tensor) -> None:
        """Take the loss of a batch, its terms, and the numbers of its rows `[B]`."""
        self._seen.append((loss.detach(), terms, rows))

    def check(
        self, norm: Tensor, network: nn.Module, step: int, rate: float, scaled: bool = False
    ) -> None:
        """Look at all that was seen since the last call.

        Args:
            norm: Of the gradient, a scalar.
            network: Whose gradients are searched if the losses are finite.
            step: Number of the step that would be made.
            rate: The learning rate.
            scaled: Whether a scaler of float16 leaves out such steps by itself, as some are.

        Raises:
            RunError: If something is not finite; with a scaler, if that was so too often.
        """
        seen, self._seen = self._seen, []
        losses = torch.stack([norm.float(), *(loss.float() for loss, _, _ in seen)])
        if bool(torch.isfinite(losses).all()):
            self._skipped = 0
            return
        self._skipped += 1
        if scaled and self._skipped < _MOST_SKIPPED:
            return
        terms, rows, found = _blame(seen)
        if not found:
            weights = ((name, one.grad) for name, one in network.named_parameters())
            name = _find_not_finite(weights)
            found = f"the gradient of {name}" if name else "the gradient's norm"
        self.blamed = {"step": step, "learning_rate": rate, "terms": terms, "rows": rows}
        often = f" for {self._skipped} steps in a row" if scaled else ""
        shown = ", ".join(map(str, rows[:_SHOWN])) + (" …" if len(rows) > _SHOWN else "")
        raise RunError(
            f"Step {step} was not made, as {found} is not a finite number{often}: learning rate "
            f"{rate:.3g}, rows {shown}; try a smaller model.learning_rate, or look at these rows. "
            "The checkpoints are from before."
        )


def _blame(
    seen: Sequence[tuple[Tensor, Mapping[str, Tensor], Tensor]],
) -> tuple[dict[str, float], list[int], str]:
    """Return terms and rows of the first loss that is not finite, and its name; else all rows."""
    for loss, terms, rows in seen:
        values = {name: float(value.detach()) for name, value in terms.items()}
        if not bool(torch.isfinite(loss)):
            bad = [f"{name} = {one}" for name, one in values.items() if not math.isfinite(one)]
            fine = [f"{name} = {one:.4g}" for name, one in values.items() if math.isfinite(one)]
            told = ", ".join(bad) or f"loss = {float(loss)}"
            return values, rows.tolist(), told + (f" ({', '.join(fine)})" if fine else "")
    return {}, [row for _, _, rows in seen for row in rows.tolist()], ""


def explain_failure(error: BaseException, sizes: Mapping[str, int]) -> KDError | None:
    """Return what an error of PyTorch means for a user, or null.

    Args:
        error: What was raised in training.
        sizes: ``batch_size``, ``eval_batch_size`` and ``accumulate_grad_batches``; the first is
            left out where evaluation, not training, was going on.

    Returns:
        The error to raise in its place.
    """
    told = str(error)
    no_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if no_memory or "can't allocate memory" in told:
        if "batch_size" not in sizes:
            half = max(1, sizes["eval_batch_size"] // 2)
            return ConfigError(
                f"Memory is full with data.eval_batch_size={sizes['eval_batch_size']}: try {half}."
            )
        batch, windows = sizes["batch_size"], sizes["accumulate_grad_batches"]
        return ConfigError(
            f"Memory is full with data.batch_size={batch}: try data.batch_size={max(1, batch // 2)}"
            f" with trainer.accumulate_grad_batches={windows * 2}, which learns the same, or a "
            "smaller data.max_length."
        )
    is_of_ranks = isinstance(error, RuntimeError) and any(word in told for word in _GONE)
    if is_of_ranks:
        return RunError(
            "Another process of this training has ended or cannot be reached, so this one cannot "
            "go on: what it said stands above; the checkpoints are kept "
            f"({told.partition(chr(10))[0]})."
        )
    return None
