import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from kd.errors import ConfigError
from kd.objectives.evidence import (
    EvidenceKD,
    RationaleEmbeddingKD,
    RationaleWordsKD,
    evidence_cross_entropy,
    rationale_words,
)
from kd.types import UNLABELLED, Batch, ModelInfo, Outputs

ROWS, TOKENS, WIDTH, VOCABULARY = 4, 5, 6, 12
PAD, OPENS, CLOSES = 0, 1, 2
INFO = ModelInfo(("a", "b"), 1, layers=2, width=WIDTH, heads=2, vocabulary="v", tokens=VOCABULARY)
EVERY = [RationaleEmbeddingKD, RationaleWordsKD, EvidenceKD]
MASK = torch.tensor([[1] * 5, [1] * 3 + [0] * 2, [1] * 5, [1] * 4 + [0]])
GIVEN = torch.tensor([1.0, 0.0, 1.0, 1.0])
WEIGHTS = torch.tensor([2.0, 5.0, 1.0, 0.5])
OFF = UNLABELLED
EVIDENCE = torch.tensor(
    [[OFF, 1, 1, 0, OFF], [OFF] * 5, [OFF, 0, 0, 1, OFF], [OFF, 1, 0, OFF, OFF]],
)


def inputs_of(*rows):
    length = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[*row, *[PAD] * (length - len(row))] for row in rows]),
        "attention_mask": torch.tensor([[1] * len(r) + [0] * (length - len(r)) for r in rows]),
    }


TEXTS = inputs_of([1, 5, 6, 7, 2], [1, 5, 2], [1, 8, 8, 9, 2], [1, 6, 4, 2])
RATIONALES = inputs_of([1, 9, 5, 9, 9, 2], [1, 2], [1, 11, 2], [1, 3, 8, 9, 2])


def answer(dtype=torch.float32, size=1.0, mask=MASK):
    def states():
        return (torch.randn(*mask.shape, WIDTH) * size).to(dtype).requires_grad_()

    return Outputs(torch.randn(len(mask), 2), hidden_states=(None, None, states()), mask=mask)


def batch_of(weights=None):
    torch.manual_seed(3)
    privileged = {"weight": GIVEN, "evidence": EVIDENCE, "embedding": torch.randn(ROWS, WIDTH)}
    return Batch(
        {"student": TEXTS, "rationale": RATIONALES},
        torch.zeros(ROWS, dtype=torch.long),
        torch.arange(ROWS),
        weights=weights,
        privileged=privileged,
    )


def some_rows(outputs, batch, rows):
    states = (None, None, outputs.hidden_states[-1][rows])
    views = {name: {k: v[rows] for k, v in view.items()} for name, view in batch.views.items()}
    fewer = replace(
        batch,
        views=views,
        labels=batch.labels[rows],
        index=batch.index[rows],
        weights=None,
        privileged={name: value[rows] for name, value in batch.privileged.items()},
    )
    return replace(outputs, hidden_states=states, mask=outputs.mask[rows]), fewer


def bound(kind, **chosen):
    term = kind(**chosen)
    term.bind(INFO, None)
    return term


def without_rationales(batch):
    gone = {"weight": torch.zeros(ROWS), "evidence": torch.full_like(EVIDENCE, UNLABELLED)}
    return replace(batch, privileged={**batch.privileged, **gone})


# words


def test_words_by_hand():
    words = rationale_words(RATIONALES, TEXTS, VOCABULARY)
    expected = torch.zeros(ROWS, VOCABULARY)
    expected[0, [5, 9]] = 1 / 2  # a word that comes three times is one word
    expected[2, 11] = 1.0
    expected[3, [3, 8, 9]] = 1 / 3
    assert torch.equal(words, expected)


def test_marks_of_the_tokenizer_are_no_words():
    words = rationale_words(RATIONALES, TEXTS, VOCABULARY)
    assert not words[:, [PAD, OPENS, CLOSES]].any()


def test_tokenizer_that_marks_the_end_alone_loses_that_mark():
    texts, rationales = inputs_of([5, 6, CLOSES], [7, CLOSES]), inputs_of([8, 9, 2], [8, 4, 3, 2])
    words = rationale_words(rationales, texts, VOCABULARY)
    assert [row.nonzero().flatten().tolist() for row in words] == [[8, 9], [3, 4, 8]]


def test_a_row_of_words_knows_no_other_row():
    """What is in every rationale of a batch would be all of it in a batch of one."""
    alone = [
        rationale_words(
            {name: value[[i]] for name, value in RATIONALES.items()},
            {name: value[[i]] for name, value in TEXTS.items()},
            VOCABULARY,
        )
        for i in range(ROWS)
    ]
    assert torch.equal(torch.cat(alone), rationale_words(RATIONALES, TEXTS, VOCABULARY))


def test_padding_is_no_word_whatever_stands_there():
    noisy = [
        {**view, "input_ids": torch.where(view["attention_mask"] > 0, view["input_ids"], 10)}
        for view in (RATIONALES, TEXTS)
    ]
    expected = rationale_words(RATIONALES, TEXTS, VOCABULARY)
    assert torch.equal(rationale_words(*noisy, VOCABULARY), expected)


def test_rationale_without_words_counts_nowhere():
    student, batch = answer(), batch_of()
    said = replace(batch, privileged={**batch.privileged, "weight": torch.ones(ROWS)})
    term = bound(RationaleWordsKD)
    assert term(student, None, said).item() == pytest.approx(term(student, None, batch).item())


# evidence


def test_evidence_by_hand():
    # probabilities 3/4 and 1/5: the first was quoted, the second not, the third does not count
    logits = torch.tensor([[math.log(3.0), math.log(0.25), 9.0], [1.0, 2.0, 3.0]])
    evidence = torch.tensor([[1, 0, OFF], [OFF, OFF, OFF]])
    expected = (math.log(4 / 3) + math.log(5 / 4)) / 2
    assert evidence_cross_entropy(logits, evidence).tolist() == pytest.approx([expected, 0.0])
    weighted = evidence_cross_entropy(logits, evidence, 3.0)
    assert weighted[0].item() == pytest.approx((3 * math.log(4 / 3) + math.log(5 / 4)) / 2)


def test_weight_of_what_was_quoted_is_not_ignored():
    torch.manual_seed(1)
    plain = bound(EvidenceKD)
    torch.manual_seed(1)
    term, student = bound(EvidenceKD, positive_weight=4.0), answer()
    assert term(student, None, batch_of()).item() > 1.1 * plain(student, None, batch_of()).item()


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_impossible_weight_of_what_was_quoted_is_refused(value):
    with pytest.raises(ConfigError, match=rf"EvidenceKD\.positive_weight is {value}: it must be"):
        EvidenceKD(positive_weight=value)


# every term


def numpy_rows(kind, term, student, batch):
    """The definitions, row by row in float64: an independent formulation."""
    weight, bias = (p.detach().double().numpy() for p in term.projection.parameters())
    states = student.hidden_states[-1].detach().double().numpy()
    rows = []
    for row in range(ROWS):
        mean = np.mean([s for s, there in zip(states[row], MASK[row], strict=True) if there], 0)
        if kind is RationaleEmbeddingKD:
            ours, theirs = weight @ mean + bias, batch.privileged["embedding"][row].double().numpy()
            rows.append(1 - ours @ theirs / np.sqrt((ours @ ours) * (theirs @ theirs)))
        elif kind is RationaleWordsKD:
            powers = np.exp(weight @ mean + bias)
            words = set(RATIONALES["input_ids"][row].tolist()) - {PAD, OPENS, CLOSES}
            rows.append(np.mean([-np.log(powers[v] / powers.sum()) for v in words] or [0.0]))
        else:
            losses = []
            for state, quoted in zip(states[row], EVIDENCE[row].tolist(), strict=True):
                if quoted != UNLABELLED:
                    there = 1 / (1 + np.exp(-(weight[0] @ state + bias[0])))
                    losses.append(-np.log(there if quoted else 1 - there))
            rows.append(np.mean(losses or [0.0]))
    return np.array(rows)


@pytest.mark.parametrize("kind", EVERY)
def test_term_agrees_with_the_definition(kind):
    term, student, batch = bound(kind), answer(), batch_of()
    rows = numpy_rows(kind, term, student, batch)
    value = term(student, None, batch)
    assert value.shape == ()
    assert value.item() == pytest.approx(rows[[0, 2, 3]].mean(), rel=1e-5)
    weighted = term(student, None, batch_of(WEIGHTS))
    assert weighted.item() == pytest.approx((2 * rows[0] + rows[2] + 0.5 * rows[3]) / 3.5, rel=1e-5)


@pytest.mark.parametrize("kind", EVERY)
def test_gradient_reaches_student_and_head_and_rows_that_count_alone(kind):
    term, student, batch = bound(kind), answer(), batch_of()
    value = term(student, None, batch)
    assert value.item() > 0.1
    value.backward()
    grad = student.hidden_states[-1].grad
    assert not grad[1].any()
    assert all(grad[row].abs().max() > 0 for row in (0, 2, 3))
    assert all(weight.grad.abs().max() > 0 for weight in term.parameters())
    silent = (EVIDENCE == UNLABELLED) if kind is EvidenceKD else MASK == 0
    assert not grad[silent].any()
    assert grad[~silent & (GIVEN > 0)[:, None]].abs().amax(-1).min() > 0


@pytest.mark.parametrize("kind", EVERY)
def test_rows_without_a_rationale_count_nowhere(kind):
    term, student, batch = bound(kind), answer(), batch_of()
    kept, fewer = some_rows(student, batch, torch.tensor([0, 2, 3]))
    without = term(kept, None, fewer)
    assert term(student, None, batch).item() == pytest.approx(without.item())


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("weights", [None, torch.zeros(ROWS)])
def test_batch_in_which_no_row_counts_is_zero_with_a_gradient_of_zero(kind, weights):
    term, student, batch = bound(kind), answer(), batch_of(weights)
    value = term(student, None, without_rationales(batch) if weights is None else batch)
    assert value.item() == 0
    value.backward()
    for grad in (student.hidden_states[-1].grad, *(w.grad for w in term.parameters())):
        assert grad is not None  # DDP waits for every parameter
        assert not grad.any()


@pytest.mark.parametrize("kind", EVERY)
def test_padding_changes_nothing(kind):
    term, student, batch = bound(kind), answer(), batch_of()
    value = term(student, None, batch)

    def longer(tensor, filling):
        return torch.nn.functional.pad(tensor, (0, 2), value=filling)

    views = {
        name: {
            "input_ids": longer(view["input_ids"], 7),
            "attention_mask": longer(view["attention_mask"], 0),
        }
        for name, view in batch.views.items()
    }
    evidence = longer(EVIDENCE, UNLABELLED)
    padded = replace(batch, views=views, privileged={**batch.privileged, "evidence": evidence})
    states = torch.nn.functional.pad(student.hidden_states[-1], (0, 0, 0, 2))
    mask = longer(MASK, 0)
    states = torch.where(mask.unsqueeze(-1) > 0, states, 1e4 * torch.randn(*mask.shape, WIDTH))
    noisy = replace(student, hidden_states=(None, None, states), mask=mask)
    torch.testing.assert_close(term(noisy, None, padded), value)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
def test_any_state_in_any_precision_gives_a_finite_float32(kind, dtype, size):
    term, student = bound(kind).to(dtype), answer(dtype, size)
    value = term(student, None, batch_of())
    assert value.dtype == torch.float32
    assert value.isfinite()
    value.backward()
    assert student.hidden_states[-1].grad.isfinite().all()


@pytest.mark.parametrize("kind", EVERY)
def test_mixed_precision_gives_about_the_same(kind):
    term, student, batch = bound(kind), answer(), batch_of()
    value = term(student, None, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = term(student, None, batch)
    assert mixed.dtype == torch.float32
    assert mixed.item() == pytest.approx(value.item(), rel=2e-2)


def test_what_a_head_of_half_precision_says_is_compared_in_float32():
    term, student, batch = bound(RationaleWordsKD).bfloat16(), answer(torch.bfloat16), batch_of()
    counted = MASK.unsqueeze(-1)
    mean = (student.hidden_states[-1].float() * counted).sum(1) / counted.sum(1)
    words = rationale_words(RATIONALES, TEXTS, VOCABULARY)
    rows = -(words * term.projection(mean.bfloat16()).float().log_softmax(-1)).sum(-1)
    assert term(student, None, batch).item() == pytest.approx(rows[[0, 2, 3]].mean().item())


def test_embedding_is_met_in_direction_alone_and_rests():
    term, student, batch = bound(RationaleEmbeddingKD), answer(), batch_of()
    target = batch.privileged["embedding"]
    value = term(student, None, batch)
    longer = replace(batch, privileged={**batch.privileged, "embedding": 9 * target})
    torch.testing.assert_close(term(student, None, longer), value)
    torch.nn.init.eye_(term.projection.weight)
    torch.nn.init.zeros_(term.projection.bias)
    there = replace(student, hidden_states=(target.unsqueeze(1).expand(ROWS, TOKENS, WIDTH),))
    assert term(there, None, batch).item() == pytest.approx(0, abs=1e-6)


def test_words_are_learnt_when_each_has_its_share():
    term, batch = bound(RationaleWordsKD), batch_of()
    torch.nn.init.zeros_(term.projection.weight)
    with torch.no_grad():
        term.projection.bias.fill_(-1e4)[[3, 8, 9]] = 0.0
    only = replace(batch, privileged={"weight": torch.tensor([0.0, 0.0, 0.0, 1.0])})
    assert term(answer(), None, only).item() == pytest.approx(math.log(3))


@pytest.mark.parametrize("kind", EVERY)
def test_teacher_is_neither_asked_nor_heard(kind):
    term, student, batch = bound(kind), answer(), batch_of()
    teacher = Outputs(torch.randn(ROWS, 2), weights=torch.tensor([0.0, 1.0, 1.0, 9.0]))
    assert not kind.uses_teacher
    assert not kind.uses_labels
    assert kind.needs == {"hidden_states"}
    assert torch.equal(term(student, teacher, batch), term(student, None, batch))


@pytest.mark.parametrize(
    ("kind", "weight", "reads", "shape"),
    [
        (RationaleEmbeddingKD, 0.25, {"rationale", "embedding"}, (WIDTH, WIDTH)),
        (RationaleWordsKD, 0.3, {"rationale"}, (VOCABULARY, WIDTH)),
        (EvidenceKD, 0.3, {"evidence"}, (1, WIDTH)),
    ],
)
def test_what_is_read_and_built_is_said(kind, weight, reads, shape):
    term = bound(kind)
    assert (term.weight, term.reads) == (weight, reads)
    assert tuple(term.projection.weight.shape) == shape
    assert set(term.state_dict()) == {"projection.weight", "projection.bias"}


@pytest.mark.parametrize("kind", EVERY)
def test_checkpoint_brings_the_term_back(kind):
    first, other, student, batch = bound(kind), bound(kind), answer(), batch_of()
    value = first(student, None, batch)
    assert not torch.equal(other(student, None, batch), value)
    other.load_state_dict(first.state_dict())
    assert torch.equal(other(student, None, batch), value)


@pytest.mark.parametrize("kind", EVERY)
def test_nothing_waits_for_the_device(kind):
    """The meta device has no values: reading one there is an error."""
    term, student = bound(kind).to("meta"), answer()
    states = (None, None, student.hidden_states[-1].to("meta"))
    there = replace(student, hidden_states=states, mask=MASK.to("meta"))
    assert term(there, None, batch_of(WEIGHTS).to("meta")).device.type == "meta"


def test_description_shows_the_settings():
    assert [kind().describe() for kind in EVERY] == [kind.__name__ for kind in EVERY]
    assert EvidenceKD(positive_weight=2.5).describe() == "EvidenceKD positive_weight=2.5"
