"""Terms in which a student's own answers learn from rationales, and their control without any.

A rationale is known in training only: what has been said about a row, or nothing. This room knows
answers and weights of rows, no annotator, no tokenizer and no hidden state.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from kd.objectives.base import Objective, weighted_mean
from kd.objectives.labels import masked_binary_cross_entropy, masked_cross_entropy
from kd.objectives.logits import softened_kl
from kd.objectives.schedules import Schedule
from kd.types import Batch, Outputs

__all__ = [
    "PrivilegedKD",
    "RDrop",
    "RationaleLM",
    "rationale_weights",
    "symmetric_kl",
    "token_cross_entropy",
]

# A reader that knows nothing yet has nothing to teach.
_RAMP = Schedule(1.0, shape="constant", warmup=0.1)


def rationale_weights(batch: Batch) -> Tensor:
    """Return how much each row counts whose rationale is learnt from, `[B]`; zero for the others.

    Args:
        batch: The rows, with the data's own weights.

    Returns:
        `[B]`.
    """
    weights = batch.privileged["weight"].float()
    return weights if batch.weights is None else weights * batch.weights


def symmetric_kl(first: Tensor, second: Tensor, multi_label: bool = False) -> Tensor:
    """Mean of the KL from one distribution to the other and of that back.

    Computed in float32 whatever the logits are, as half the sum of (p - q)(z_p - z_q): what
    normalises the logits cancels, because p - q adds up to zero. Both sides have a gradient.

    Args:
        first: Logits `[B, C]`.
        second: Logits `[B, C]`.
        multi_label: Whether each class is a distribution of its own; the divergences are then
            summed over the classes.

    Returns:
        `[B]`.
    """
    first, second = first.float(), second.float()
    if multi_label:
        gaps = first.sigmoid() - second.sigmoid()
    else:
        gaps = first.softmax(dim=-1) - second.softmax(dim=-1)
    return 0.5 * (gaps * (first - second)).sum(dim=-1)


def token_cross_entropy(logits: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of tokens, mean over all of them by weight; zero if no token has one.

    Computed in float32 whatever the logits are; those that are in float32 are not copied.

    Args:
        logits: `[B, R, V]`, of each token given those before it.
        ids: The tokens, `[B, R]`.
        weights: How much each counts, `[B, R]`.

    Returns:
        A scalar.
    """
    losses = functional.cross_entropy(logits.flatten(0, 1).float(), ids.flatten(), reduction="none")
    return weighted_mean(losses, weights.flatten())


def _label_entropy(
    logits: Tensor, batch: Batch, multi_label: bool, weights: Tensor | None
) -> Tensor:
    """Return the cross-entropy with the labels, mean over the labelled rows by weight."""
    entropy = masked_binary_cross_entropy if multi_label else masked_cross_entropy
    return entropy(logits, batch.labels, row_weights=weights)


class PrivilegedKD(Objective):
    """A reader of text and rationale learns the labels and teaches the reader of the text alone.

        CE(y, z_both) + transfer · T² · KL(softmax(z_both / T) ‖ softmax(z_text / T))

    Both readers are the student. Each part is a mean over the rows with a rationale whose author
    was not told the label, by their weights, the first over the labelled ones of them; the
    divergence has no gradient in z_both. Zero for a batch without rationales. Where a row may have
    several labels, each class has a sigmoid of its own. Generalised distillation (Lopez-Paz et al.
    2016, arXiv:1511.03643) from privileged and plain features together (Yang et al. 2022,
    arXiv:2209.08754, who found students the worse for features that predict the label too well:
    mask what gives it away).
    Near: :class:`RDrop` costs as much and reads no rationale: what is gained over it is due to
    the reasoning.

    Args:
        weight: Multiplier in the total loss.
        temperature: T > 0; larger softens both sides more.
        transfer: How much the divergence counts beside the cross-entropy; null: rises from 0 to 1
            over the first tenth of the run.

    Raises:
        ConfigError: If ``temperature`` is not positive or ``transfer`` is negative.
    """

    needs: frozenset[str] = frozenset({"logits", "privileged"})
    uses_teacher: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset({"privileged"})

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        temperature: float | Schedule = 2.0,
        transfer: float | Schedule | None = None,
    ) -> None:
        super().__init__(weight)
        self.temperature = self.scheduled("temperature", temperature, positive=True)
        self.transfer = self.scheduled("transfer", _RAMP if transfer is None else transfer)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return the reader's cross-entropy and what the student has yet to learn from it."""
        assert student.privileged is not None
        both, weights = student.privileged.logits, rationale_weights(batch)
        if "told" in batch.privileged:
            weights = weights * ~batch.privileged["told"]
        rows = softened_kl(student.logits, both, self.temperature, self.multi_label)
        taught = self.transfer * weighted_mean(rows, weights)
        return _label_entropy(both, batch, self.multi_label, weights) + taught

    def describe(self) -> str:
        """Return name and settings as the printed loss equation shows them."""
        return f"PrivilegedKD T={self.shown('temperature')} transfer={self.shown('transfer')}"


class RDrop(Objective):
    """The text is read twice, with other dropout: both learn the labels and agree.

        CE(y, z_again) + transfer · (KL(p ‖ p_again) + KL(p_again ‖ p)) / 2

    Mean over the rows of the batch, the first part over the labelled ones; both readings have a
    gradient. :class:`HardLabel` has the cross-entropy of the first reading. Without dropout the
    readings are equal and the divergence is zero. Where a row may have several labels, each class
    has a sigmoid of its own. R-Drop (Liang et al. 2021, arXiv:2106.14448, section 2).
    Near: :class:`PrivilegedKD`, whose control it is: the same cost, and no rationale.

    Args:
        weight: Multiplier in the total loss.
        transfer: How much the divergence counts beside the cross-entropy; null: rises from 0 to 1
            over the first tenth of the run.

    Raises:
        ConfigError: If ``transfer`` is negative.
    """

    needs: frozenset[str] = frozenset({"logits", "again"})
    uses_teacher: ClassVar[bool] = False

    def __init__(
        self, weight: float | Schedule = 1.0, transfer: float | Schedule | None = None
    ) -> None:
        super().__init__(weight)
        self.transfer = self.scheduled("transfer", _RAMP if transfer is None else transfer)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return the second reading's cross-entropy and how far the two are apart."""
        assert student.again is not None
        again = student.again.logits
        rows = symmetric_kl(student.logits, again, self.multi_label)
        apart = self.transfer * weighted_mean(rows, batch.weights)
        return _label_entropy(again, batch, self.multi_label, batch.weights) + apart

    def describe(self) -> str:
        """Return name and settings as the printed loss equation shows them."""
        return f"RDrop transfer={self.shown('transfer')}"


class RationaleLM(Objective):
    """A student that generates learns to write the rationale.

        -log softmax(z_t)[r_t], mean over all rationale tokens of the batch

    Rows without a rationale count nowhere; a token counts as much as its row. The mean is over
    these tokens alone, so that long rationales do not drown the labels: Distilling Step-by-Step
    (Hsieh et al. 2023, arXiv:2305.02301, section 3).
    Near: :class:`PrivilegedKD` and :class:`RationaleWordsKD` for a student that only classifies.

    Args:
        weight: Multiplier in the total loss.
    """

    needs: frozenset[str] = frozenset({"logits", "rationale_logits"})
    uses_teacher: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset({"explain", "rationale"})

    def __init__(self, weight: float | Schedule = 0.5) -> None:
        super().__init__(weight)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return the cross-entropy of the rationale's tokens."""
        assert student.rationale_logits is not None
        rationale = batch.views["rationale"]
        weights = rationale["attention_mask"] * rationale_weights(batch).unsqueeze(-1)
        return token_cross_entropy(student.rationale_logits, rationale["input_ids"], weights)
