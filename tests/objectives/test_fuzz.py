"""Random batches over every objective: finite, padding without effect, no gradient to the teacher.

The default run takes a few hundred batches of each; the slow one 100,000 in all.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from kd import objectives
from kd.objectives import Objective
from kd.types import UNLABELLED, Batch, ModelInfo, Outputs

CASES = {
    "HardLabel": [{}, {"label_smoothing": 0.1, "class_weights": {"a": 2.0, "b": 0.0}}],
    "LogitKD": [{}, {"standardise": True}, {"class_weights": {"c": 3.0}, "by_confidence": True}],
    "ReverseKD": [{"temperature": 0.5}],
    "JensenShannonKD": [{"teacher_share": 0.2}],
    "LogitMSE": [{}, {"centred": True}],
    "DecoupledKD": [{}, {"standardise": True}],
    "DistKD": [{}],
    "HiddenKD": [{}, {"layers": {0: 0, 2: 3}}],
    "CosineKD": [{}],
    "PatientKD": [{}, {"by_confidence": True}],
    "EmbeddingKD": [{}],
    "AttentionKD": [{}, {"matrices": "scores"}],
    "MiniLMKD": [{}, {"version": 1, "relation_heads": 4}, {"relations": ["values"]}],
    "RelationalKD": [{}, {"vectors": "logits"}],
    "SimilarityKD": [{}, {"pool": "mean"}],
    "ContrastiveKD": [{"width": 8}],
    "PrivilegedKD": [{}, {"transfer": 1.0, "temperature": 0.5}],
    "RDrop": [{"transfer": 1.0}],
    "RationaleEmbeddingKD": [{}],
    "RationaleWordsKD": [{}],
    "EvidenceKD": [{}, {"positive_weight": 3.0}],
    "RationaleLM": [{}],
}
TERMS = [(name, number) for name, cases in CASES.items() for number in range(len(cases))]
NAMES = ("a", "b", "c")
VOCABULARY = 7
STUDENT = ModelInfo(NAMES, 1, layers=2, width=8, heads=2, vocabulary="v", tokens=VOCABULARY)
TEACHER = ModelInfo(NAMES, 1, layers=4, width=12, heads=2, vocabulary="v")


def test_every_objective_is_fuzzed() -> None:
    named = {name for name in objectives.__all__ if isinstance(getattr(objectives, name), type)}
    assert {n for n in named if issubclass(getattr(objectives, n), Objective)} - {"Objective"} == {
        *CASES
    }


def outputs(info: ModelInfo, rows: int, mask: torch.Tensor, scale: float) -> Outputs:
    """Random answers; what stands at masked positions is as large as the rest."""
    length = mask.shape[1]

    def states(count: int) -> tuple[torch.Tensor, ...]:
        made = [torch.randn(rows, length, info.width) * scale for _ in range(count)]
        return tuple(state.requires_grad_() for state in made)

    scores = [torch.randn(rows, info.heads, length, length) for _ in range(info.layers)]
    hidden = (mask == 0)[:, None, None, :]
    return Outputs(
        logits=(torch.randn(rows, len(info.labels)) * scale).requires_grad_(),
        hidden_states=states(info.layers + 1),
        attentions=tuple(
            score.masked_fill(hidden, -1e9).softmax(-1).requires_grad_() for score in scores
        ),
        queries=states(info.layers),
        keys=states(info.layers),
        values=states(info.layers),
        mask=mask,
    )


def taught(student: Outputs, mask: torch.Tensor, scale: float) -> Outputs:
    """Add what a student answers in training alone; padding of the rationales is that of `mask`."""
    rows, length = mask.shape

    def some(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape) * scale).requires_grad_()

    return dataclasses.replace(
        student,
        privileged=Outputs(some(rows, len(NAMES))),
        again=Outputs(some(rows, len(NAMES))),
        rationale_logits=some(rows, length, VOCABULARY),
    )


def every_tensor(answer: Outputs) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for field in dataclasses.fields(answer):
        value = getattr(answer, field.name)
        if isinstance(value, Outputs):
            found += every_tensor(value)
        elif value is not None:
            found += list(value) if isinstance(value, tuple) else [value]
    return [tensor for tensor in found if tensor.requires_grad]


def some_batch(mask: torch.Tensor, weighted: bool) -> Batch:
    """Random rows, of which some have no label, some no rationale and some no evidence."""
    rows = len(mask)
    labels = torch.randint(0, 3, (rows,))
    labels[torch.rand(rows) < 0.3] = UNLABELLED
    weights = torch.rand(rows) if weighted else None
    content = torch.randint(0, 4, (rows,))
    evidence = torch.randint(0, 2, mask.shape).masked_fill(mask == 0, UNLABELLED)
    evidence[torch.rand(rows) < 0.3] = UNLABELLED
    given = (torch.rand(rows) < 0.7).float()
    views = {
        name: {"input_ids": torch.randint(0, VOCABULARY, mask.shape), "attention_mask": mask}
        for name in ("student", "rationale")
    }
    embedding = torch.randn(rows, STUDENT.width)
    return Batch(
        views,
        labels,
        torch.arange(rows),
        content=content,
        weights=weights,
        privileged={"weight": given, "evidence": evidence, "embedding": embedding},
    )


def stirred(answer: Outputs) -> Outputs:
    """Put other numbers at the masked positions."""
    assert answer.mask is not None
    gone = answer.mask == 0
    changes = {}
    for name in ("hidden_states", "queries", "keys", "values"):
        states = getattr(answer, name)
        changes[name] = tuple(s.detach().masked_fill(gone[..., None], 7.0) for s in states)
    pairs = gone[:, None, :, None] | gone[:, None, None, :]
    changes["attentions"] = tuple(
        a.detach().masked_fill(pairs, 0.3) for a in answer.attentions or ()
    )
    if answer.rationale_logits is not None:
        changes["rationale_logits"] = answer.rationale_logits.detach().masked_fill(
            gone[..., None], 7.0
        )
    return dataclasses.replace(answer, logits=answer.logits.detach(), **changes)


def fuzz(batches: int, seed: int) -> None:
    torch.manual_seed(seed)
    terms = []
    for name, number in TERMS:
        term = getattr(objectives, name)(**CASES[name][number])
        term.bind(STUDENT, TEACHER)
        terms.append((f"{name} {CASES[name][number]}", term))
    for turn in range(batches):
        named, term = terms[turn % len(terms)]
        rows, length = int(torch.randint(1, 7, ())), int(torch.randint(1, 9, ()))
        lengths = torch.randint(1, length + 1, (rows,))
        lengths[0] = length
        mask = (torch.arange(length) < lengths[:, None]).long()
        scale = float(10 ** torch.empty(()).uniform_(-3, 3))
        student, teacher = (outputs(info, rows, mask, scale) for info in (STUDENT, TEACHER))
        student, batch = taught(student, mask, scale), some_batch(mask, turn % 3 == 0)
        value = term(student, teacher, batch)
        told = f"{named}, batch {turn}"
        assert value.ndim == 0, told
        assert torch.isfinite(value), told
        assert value >= -1e-4 * max(1.0, scale**2), told
        if value.requires_grad:
            value.backward()
        for tensor in every_tensor(student):
            assert tensor.grad is None or torch.isfinite(tensor.grad).all(), told
        assert all(tensor.grad is None for tensor in every_tensor(teacher)), told
        other = term(stirred(student), stirred(teacher), batch)
        assert torch.allclose(other, value.detach(), rtol=1e-4, atol=1e-6 * max(1, scale**2)), told


def test_random_batches() -> None:
    fuzz(20 * len(TERMS), seed=0)


@pytest.mark.slow
def test_a_hundred_thousand_random_batches() -> None:
    fuzz(100_000, seed=1)
