"""Terms in which the student's hidden states must tell what a rationale says, or where it looks.

Each has a linear head of its own, which is trained and saved beside the student and never
exported. This room knows states and token ids, no annotator and no tokenizer.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd.objectives.base import Objective, weighted_mean
from kd.objectives.rationale import rationale_weights
from kd.objectives.schedules import Schedule
from kd.types import UNLABELLED, Batch, Inputs, ModelInfo, Outputs

__all__ = [
    "EvidenceKD",
    "RationaleEmbeddingKD",
    "RationaleWordsKD",
    "evidence_cross_entropy",
    "rationale_words",
]


def rationale_words(rationale: Inputs, text: Inputs, tokens: int) -> Tensor:
    """Equal shares for the distinct tokens of each rationale; zeros where it has no word.

    What opens or closes the row's text counts nowhere: a tokenizer that marks the ends of a text,
    as with ``[CLS]`` and ``[SEP]``, marks every rationale with the same, which says nothing.

    Args:
        rationale: ``input_ids`` and ``attention_mask`` `[B, R]` of the rationales.
        text: Those of the texts, `[B, L]`, by the same tokenizer, padded at the end.
        tokens: Size of the vocabulary, V.

    Returns:
        `[B, V]`; a row adds up to 1 or 0.
    """
    last = text["attention_mask"].sum(dim=1, keepdim=True) - 1
    marks = text["input_ids"].gather(1, torch.cat([torch.zeros_like(last), last], dim=1))
    ids = torch.where(rationale["attention_mask"] > 0, rationale["input_ids"], marks[:, :1])
    words = torch.zeros(len(ids), tokens, device=ids.device)
    words.scatter_(1, ids, 1.0).scatter_(1, marks, 0.0)
    return words / words.sum(dim=1, keepdim=True).clamp(min=1.0)


def evidence_cross_entropy(
    logits: Tensor, evidence: Tensor, positive_weight: float = 1.0
) -> Tensor:
    """Binary cross-entropy of the tokens that count, mean over those of a row.

    Computed in float32 whatever the logits are.

    Args:
        logits: `[B, L]`, each read by a sigmoid.
        evidence: 1 for a token that was quoted, 0 for another, :data:`kd.types.UNLABELLED` for one
            that does not count, `[B, L]`.
        positive_weight: How much a quoted token counts.

    Returns:
        `[B]`; zero for a row in which no token counts.
    """
    counted = (evidence != UNLABELLED).float()
    targets = (evidence == 1).float()
    losses = functional.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    losses = losses * counted * (1.0 + (positive_weight - 1.0) * targets)
    return losses.sum(dim=-1) / counted.sum(dim=-1).clamp(min=1.0)


def _mean_state(outputs: Outputs) -> Tensor:
    """Return the mean over the tokens of the last hidden states, `[B, D]`, in float32."""
    assert outputs.hidden_states is not None
    assert outputs.mask is not None
    counted = outputs.mask.float().unsqueeze(-1)
    states = outputs.hidden_states[-1].float() * counted
    return states.sum(dim=1) / counted.sum(dim=1).clamp(min=1.0)


def _read(head: nn.Linear, states: Tensor) -> Tensor:
    """Return what a head makes of states, in the precision of its weights."""
    answer: Tensor = head(states.to(head.weight.dtype))
    return answer.float()


class RationaleEmbeddingKD(Objective):
    """One minus the cosine between the text's mean state and the rationale's embedding.

        1 - cos(P h, E), mean over the rows with a rationale, by their weights

    h is the mean of the last hidden states over the tokens, P a learnt linear map, E what the
    student's own encoder made of the rationale before training: it does not move. Zero for a
    batch without rationales. Part of what ARG-D does (Hu et al. 2024, arXiv:2309.12247), with
    angles for distances.
    Near: :class:`RationaleWordsKD` asks for the words instead of their sense.

    Args:
        weight: Multiplier in the total loss.
    """

    needs: frozenset[str] = frozenset({"hidden_states"})
    uses_teacher: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset({"rationale", "embedding"})
    projection: nn.Linear
    """P, built by `bind`."""

    def __init__(self, weight: float | Schedule = 0.25) -> None:
        super().__init__(weight)

    def bind(self, student: ModelInfo, teacher: ModelInfo | None) -> None:
        """Build the map."""
        super().bind(student, teacher)
        self.projection = nn.Linear(student.width, student.width)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return one minus the mean cosine."""
        ours = _read(self.projection, _mean_state(student))
        cosines = functional.cosine_similarity(ours, batch.privileged["embedding"].float(), dim=-1)
        return weighted_mean(1.0 - cosines, rationale_weights(batch))


class RationaleWordsKD(Objective):
    """Cross-entropy between the words of the rationale and what the text's mean state expects.

        -1/n Σ log softmax(W h)[v] over the n distinct tokens v of the rationale

    Mean over the rows with a rationale, by their weights; h is the mean of the last hidden states
    over the tokens, W a learnt linear map to the vocabulary. Least, but not zero, where each of
    the n tokens has a probability of 1 / n. Zero for a batch without rationales. That order says
    little follows Wadhwa et al. 2024 (arXiv:2406.14511).
    Near: :class:`RationaleEmbeddingKD` has a far smaller head; :class:`RationaleLM` writes them in
    order.

    Args:
        weight: Multiplier in the total loss.
    """

    needs: frozenset[str] = frozenset({"hidden_states"})
    uses_teacher: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset({"rationale"})
    projection: nn.Linear
    """W, built by `bind`."""

    def __init__(self, weight: float | Schedule = 0.3) -> None:
        super().__init__(weight)

    def bind(self, student: ModelInfo, teacher: ModelInfo | None) -> None:
        """Build the map to the vocabulary."""
        super().bind(student, teacher)
        self.projection = nn.Linear(student.width, student.tokens)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return the mean cross-entropy."""
        logits = _read(self.projection, _mean_state(student))
        words = rationale_words(batch.views["rationale"], batch.views["student"], logits.shape[-1])
        rows = functional.cross_entropy(logits, words, reduction="none")
        return weighted_mean(rows, rationale_weights(batch) * words.any(dim=-1))


class EvidenceKD(Objective):
    """Binary cross-entropy of each token: whether it was quoted as evidence for the label.

        -[e log σ(w·h) + (1 - e) log(1 - σ(w·h))], mean over the tokens of a row, then over rows

    h is the token's last hidden state, w a learnt vector, with a bias. Tokens that do not count,
    such as padding, are masked; so are rows without evidence. No target can give a label away: all
    of them stand in the text. That the best evidence need not make the best classifier, and that
    recall matters more, is found in Carton et al. 2022 (arXiv:2112.00071).
    Near: :class:`RationaleWordsKD` for rationales that quote nothing.

    Args:
        weight: Multiplier in the total loss.
        positive_weight: How much a quoted token counts: above 1 for more recall.

    Raises:
        ConfigError: If ``positive_weight`` is not positive.
    """

    needs: frozenset[str] = frozenset({"hidden_states"})
    uses_teacher: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset({"evidence"})
    projection: nn.Linear
    """w, built by `bind`."""

    def __init__(self, weight: float | Schedule = 0.3, positive_weight: float = 1.0) -> None:
        super().__init__(weight)
        self.positive_weight = self.scheduled("positive_weight", positive_weight, positive=True)

    def bind(self, student: ModelInfo, teacher: ModelInfo | None) -> None:
        """Build the vector."""
        super().bind(student, teacher)
        self.projection = nn.Linear(student.width, 1)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return the mean cross-entropy."""
        assert student.hidden_states is not None
        evidence = batch.privileged["evidence"]
        logits = _read(self.projection, student.hidden_states[-1]).squeeze(-1)
        rows = evidence_cross_entropy(logits, evidence, self.positive_weight)
        given = (evidence != UNLABELLED).any(dim=-1).float()
        weights = given if batch.weights is None else given * batch.weights
        return weighted_mean(rows, weights)

    def describe(self) -> str:
        """Return name and settings as the printed loss equation shows them."""
        shown = f" positive_weight={self.positive_weight:g}" * (self.positive_weight != 1.0)
        return f"EvidenceKD{shown}"
