import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid, pad

from kd.errors import ConfigError
from kd.objectives.labels import masked_binary_cross_entropy, masked_cross_entropy
from kd.objectives.logits import softened_kl
from kd.objectives.rationale import (
    PrivilegedKD,
    RationaleLM,
    RDrop,
    rationale_weights,
    symmetric_kl,
    token_cross_entropy,
)
from kd.objectives.schedules import Schedule
from kd.types import UNLABELLED, Batch, ModelInfo, Outputs

ROWS, CLASSES, LENGTH, VOCABULARY = 4, 3, 5, 11
NAMES = ("negative", "neutral", "positive")
INFO = ModelInfo(NAMES, 1, 1, 1, 1, "digest", tokens=VOCABULARY)
SEVERAL = replace(INFO, multi_label=True)
LABELS = torch.tensor([0, 2, UNLABELLED, 1])
PRESENT = torch.tensor([[1, 0, 1], [0, 0, 0], [UNLABELLED] * 3, [1, 1, 1]])
GIVEN = torch.tensor([1.0, 0.0, 1.0, 1.0])
WEIGHTS = torch.tensor([2.0, 5.0, 1.0, 0.5])
EVERY = [PrivilegedKD, RDrop, RationaleLM]
TWICE = [PrivilegedKD, RDrop]
INFOS = pytest.mark.parametrize("info", [INFO, SEVERAL], ids=["one", "several"])


def kl(p, q):
    """Σ p log(p/q) of each row in float64, of probabilities `[B, C]` or, of there and not, 2 C."""
    return (p * np.log(p / q)).sum(axis=-1)


def numpy_probabilities(logits, temperature=1.0, several=False):
    logits = np.asarray(logits.detach(), dtype=np.float64) / temperature
    if several:
        there = 1 / (1 + np.exp(-logits))
        return np.concatenate([there, 1 - there], axis=-1)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def numpy_entropy(logits, labels, several):
    """Minus log-likelihood of each row's labels; the mean over classes where there are several."""
    p = numpy_probabilities(logits, several=several)
    if several:
        there = labels.numpy() == 1
        chosen = np.where(there, p[:, :CLASSES], p[:, CLASSES:])
        return -np.log(chosen).mean(axis=-1)
    return -np.log(p[np.arange(len(p)), labels.numpy()])


def answer(dtype=torch.float32, size=1.0):
    def some(*shape):
        return (torch.randn(*shape) * size).to(dtype).requires_grad_()

    return Outputs(
        some(ROWS, CLASSES),
        privileged=Outputs(some(ROWS, CLASSES)),
        again=Outputs(some(ROWS, CLASSES)),
        rationale_logits=some(ROWS, LENGTH, VOCABULARY),
    )


def second(kind, student):
    """What the kind reads beside the logits."""
    if kind is RationaleLM:
        return student.rationale_logits
    return student.privileged.logits if kind is PrivilegedKD else student.again.logits


def batch_of(given=GIVEN, weights=None, labels=LABELS):
    torch.manual_seed(3)
    mask = torch.tensor([[1] * 5, [1] * 4 + [0], [1, 1, 0, 0, 0], [1] * 3 + [0] * 2])
    rationale = {"input_ids": torch.randint(VOCABULARY, mask.shape), "attention_mask": mask}
    return Batch(
        {"rationale": rationale},
        labels,
        torch.arange(len(labels)),
        weights=weights,
        privileged={} if given is None else {"weight": given},
    )


def some_rows(outputs, rows):
    """The same answers to some of the rows."""
    return Outputs(
        outputs.logits[rows],
        privileged=Outputs(outputs.privileged.logits[rows]),
        again=Outputs(outputs.again.logits[rows]),
        rationale_logits=outputs.rationale_logits[rows],
    )


def rows_of(batch, rows):
    inputs = {name: value[rows] for name, value in batch.views["rationale"].items()}
    weights = None if batch.weights is None else batch.weights[rows]
    privileged = {name: value[rows] for name, value in batch.privileged.items()}
    return Batch(
        {"rationale": inputs},
        batch.labels[rows],
        batch.index[rows],
        weights=weights,
        privileged=privileged,
    )


def bound(kind, info=INFO, **chosen):
    term = kind(**chosen)
    term.bind(info, None)
    term.advance(1.0)
    return term


# functions


def test_rows_with_a_rationale_count_by_their_weight():
    assert rationale_weights(batch_of()).tolist() == [1, 0, 1, 1]
    assert rationale_weights(batch_of(weights=WEIGHTS)).tolist() == [2, 0, 1, 0.5]
    assert rationale_weights(batch_of(given=GIVEN.long())).dtype == torch.float32


def test_symmetric_kl_by_hand():
    # 1/4 3/4 and 1/2 1/2: the gap is 1/4 for both classes
    first, other = torch.tensor([[0.0, math.log(3.0)]]), torch.zeros(1, 2)
    forth = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    back = 0.5 * math.log(2.0) + 0.5 * math.log(2 / 3)
    assert symmetric_kl(first, other).item() == pytest.approx((forth + back) / 2)
    # a sigmoid of log 3 is 3/4; the first class is the same on both sides
    assert symmetric_kl(first, other, True).item() == pytest.approx((forth + back) / 2)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(seed=st.integers(0, 10_000), size=st.sampled_from([0.1, 1.0, 5.0]), several=st.booleans())
def test_symmetric_kl_agrees_with_the_definition(seed, size, several):
    torch.manual_seed(seed)
    first, other = torch.randn(2, ROWS, CLASSES) * size
    p, q = (numpy_probabilities(logits, several=several) for logits in (first, other))
    value = symmetric_kl(first, other, several)
    np.testing.assert_allclose(value, (kl(p, q) + kl(q, p)) / 2, rtol=1e-3, atol=1e-6)


@INFOS
def test_symmetric_kl_is_symmetric_and_zero_at_equality_only(info):
    first, other = torch.randn(2, ROWS, CLASSES)
    several = info.multi_label
    assert not symmetric_kl(first, first, several).any()
    assert symmetric_kl(first, other, several).min() > 1e-3
    assert torch.equal(symmetric_kl(first, other, several), symmetric_kl(other, first, several))


@INFOS
def test_both_sides_of_symmetric_kl_have_the_gradient_of_the_definition(info):
    sides = [torch.randn(ROWS, CLASSES, requires_grad=True) for _ in range(2)]
    symmetric_kl(*sides, info.multi_label).sum().backward()
    found = [side.grad.clone() for side in sides]
    logs = [x.log_softmax(-1) for x in sides]
    if info.multi_label:
        logs = [torch.cat([logsigmoid(x), logsigmoid(-x)], -1) for x in sides]
    p, q = logs
    definition = ((p.exp() * (p - q)).sum() + (q.exp() * (q - p)).sum()) / 2
    torch.testing.assert_close(found, list(torch.autograd.grad(definition, sides)))


def test_symmetric_kl_does_not_see_a_shift_that_softmax_does_not():
    first, other = torch.randn(2, ROWS, CLASSES)
    torch.testing.assert_close(symmetric_kl(first + 5, other - 3), symmetric_kl(first, other))


@INFOS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits_are_apart_by_a_finite_number(info, dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype, requires_grad=True)
    value = symmetric_kl(logits, -logits.detach(), info.multi_label)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(2e4, rel=1e-2)
    value.sum().backward()
    assert logits.grad.isfinite().all()


def test_token_cross_entropy_by_hand():
    # probabilities of the tokens: 1/4, 4/5 and one that has no weight
    logits = torch.tensor([[[0.0, math.log(3.0)]] * 2, [[math.log(4.0), 0.0]] * 2])
    ids, weights = torch.tensor([[0, 1], [0, 1]]), torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    expected = (math.log(4) + 3 * math.log(5 / 4)) / 4
    assert token_cross_entropy(logits, ids, weights).item() == pytest.approx(expected)
    assert token_cross_entropy(logits, ids, torch.zeros(2, 2)).item() == 0


# every term


def settled(kind, info):
    """Return a term, its student and a batch of labels of the kind that the info tells of."""
    labels = PRESENT if info.multi_label else LABELS
    return bound(kind, info), answer(), batch_of(weights=WEIGHTS, labels=labels)


@INFOS
@pytest.mark.parametrize("kind", EVERY)
def test_value_and_gradient_are_there(kind, info):
    """The fault of a public re-implementation: a rationale loss that never ran."""
    term, student, batch = settled(kind, info)
    value = term(student, None, batch)
    assert value.shape == ()
    assert value.item() > 0.1
    value.backward()
    counted = 1 if kind is RDrop else (GIVEN > 0).sum()
    assert (second(kind, student).grad.flatten(1).abs().sum(1) > 0).sum() >= counted - 1


@INFOS
@pytest.mark.parametrize("kind", [PrivilegedKD, RationaleLM])
def test_rows_without_a_rationale_count_nowhere(kind, info):
    term, student, batch = settled(kind, info)
    value = term(student, None, batch)
    kept = torch.tensor([0, 2, 3])
    without = term(some_rows(student, kept), None, rows_of(batch, kept))
    assert value.item() == pytest.approx(without.item())
    value.backward()
    assert not second(kind, student).grad[1].any()
    assert student.logits.grad is None or not student.logits.grad[1].any()
    everywhere = replace(batch, privileged={"weight": torch.ones(ROWS)})
    assert term(student, None, everywhere).item() != pytest.approx(value.item())


@INFOS
@pytest.mark.parametrize("kind", EVERY)
def test_whole_row_weight_is_as_many_rows(kind, info):
    term, student, batch = settled(kind, info)
    copies = torch.tensor([2, 0, 3, 1])
    value = term(student, None, replace(batch, weights=copies.float()))
    rows = torch.arange(ROWS).repeat_interleave(copies)
    repeated = replace(rows_of(batch, rows), weights=None)
    assert value.item() == pytest.approx(term(some_rows(student, rows), None, repeated).item())
    assert value.item() != pytest.approx(term(student, None, replace(batch, weights=None)).item())


@INFOS
@pytest.mark.parametrize("kind", EVERY)
def test_batch_in_which_no_row_counts_is_zero_with_a_gradient_of_zero(kind, info):
    term, student, batch = settled(kind, info)
    empty = replace(batch, weights=torch.zeros(ROWS))
    if kind is not RDrop:
        empty = replace(batch, privileged={"weight": torch.zeros(ROWS)})
    value = term(student, None, empty)
    assert value.item() == 0
    value.backward()
    assert second(kind, student).grad is not None  # DDP waits for every parameter
    assert not second(kind, student).grad.any()


@INFOS
@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits_give_finite_numbers(kind, info, dtype):
    term, _, batch = settled(kind, info)
    student = answer(dtype, size=1e4)
    value = term(student, None, batch)
    assert value.dtype == torch.float32
    assert value.isfinite()
    value.backward()
    assert second(kind, student).grad.isfinite().all()
    assert second(kind, student).grad.dtype == dtype


@INFOS
@pytest.mark.parametrize("kind", EVERY)
def test_half_precision_is_computed_in_float32(kind, info):
    term, _, batch = settled(kind, info)
    student = answer(torch.bfloat16)
    exact = Outputs(
        student.logits.float(),
        privileged=Outputs(student.privileged.logits.float()),
        again=Outputs(student.again.logits.float()),
        rationale_logits=student.rationale_logits.float(),
    )
    value = term(student, None, batch)
    assert value.item() == pytest.approx(term(exact, None, batch).item(), rel=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert term(student, None, batch).item() == pytest.approx(value.item(), rel=1e-6)


@pytest.mark.parametrize("kind", EVERY)
def test_teacher_is_neither_asked_nor_heard(kind):
    term, student, batch = settled(kind, INFO)
    teacher = Outputs(torch.randn(ROWS, CLASSES), weights=torch.tensor([0.0, 1.0, 1.0, 9.0]))
    assert not kind.uses_teacher
    assert torch.equal(term(student, teacher, batch), term(student, None, batch))


@pytest.mark.parametrize("kind", EVERY)
def test_nothing_waits_for_the_device(kind):
    """The meta device has no values: reading one there is an error."""
    term, student, batch = settled(kind, INFO)
    there = Outputs(
        student.logits.to("meta"),
        privileged=Outputs(student.privileged.logits.to("meta")),
        again=Outputs(student.again.logits.to("meta")),
        rationale_logits=student.rationale_logits.to("meta"),
    )
    assert term(there, None, batch.to("meta")).device.type == "meta"


@pytest.mark.parametrize(
    ("kind", "needs", "reads", "labels"),
    [
        (PrivilegedKD, {"logits", "privileged"}, {"privileged"}, False),
        (RDrop, {"logits", "again"}, set(), False),
        (RationaleLM, {"logits", "rationale_logits"}, {"explain", "rationale"}, False),
    ],
)
def test_what_is_read_is_said(kind, needs, reads, labels):
    assert (kind.needs, kind.reads, kind.uses_labels) == (needs, reads, labels)


@pytest.mark.parametrize(
    ("term", "text"),
    [
        (PrivilegedKD(), "PrivilegedKD T=2 transfer=0→1"),
        (PrivilegedKD(temperature=Schedule(4.0, 1.0), transfer=0.5), "T=4→1 transfer=0.5"),
        (RDrop(), "RDrop transfer=0→1"),
        (RDrop(transfer=2.0), "RDrop transfer=2"),
        (RationaleLM(), "RationaleLM"),
    ],
)
def test_description_shows_the_settings(term, text):
    assert term.describe().removeprefix("PrivilegedKD ") == text.removeprefix("PrivilegedKD ")


@pytest.mark.parametrize("kind", EVERY)
def test_term_adds_nothing_to_a_checkpoint(kind):
    assert not bound(kind).state_dict()


# two readings


@pytest.mark.parametrize("kind", TWICE)
def test_transfer_rises_over_the_first_tenth_of_the_run(kind):
    term, seen = kind(), []
    for progress in (0.0, 0.05, 0.1, 1.0):
        term.advance(progress)
        seen.append(term.transfer)
    assert seen == pytest.approx([0.0, 0.5, 1.0, 1.0])
    assert kind(transfer=0.25).transfer == 0.25


@pytest.mark.parametrize("kind", TWICE)
def test_impossible_settings_are_refused(kind):
    with pytest.raises(ConfigError, match=rf"{kind.__name__}\.transfer is -1: give 0 or more"):
        kind(transfer=-1)
    with pytest.raises(ConfigError, match=r"PrivilegedKD\.temperature is 0: it must be positive"):
        PrivilegedKD(temperature=0)


@INFOS
def test_privileged_agrees_with_the_definition(info):
    term, student, batch = settled(PrivilegedKD, info)
    term.transfer, several = 0.7, info.multi_label
    sides = (student.privileged.logits, student.logits)
    apart = 4.0 * kl(*(numpy_probabilities(side, 2.0, several) for side in sides))
    entropy = numpy_entropy(sides[0][[0, 3]], batch.labels[[0, 3]], several)
    # the second row has no rationale, the third no label
    expected = (2 * entropy[0] + 0.5 * entropy[1]) / 2.5
    expected += 0.7 * (2 * apart[0] + apart[2] + 0.5 * apart[3]) / 3.5
    assert term(student, None, batch).item() == pytest.approx(expected, rel=1e-5)


@INFOS
def test_rdrop_agrees_with_the_definition(info):
    term, student, batch = settled(RDrop, info)
    term.transfer, several = 0.7, info.multi_label
    p, q = (numpy_probabilities(x.logits, several=several) for x in (student, student.again))
    apart = (kl(p, q) + kl(q, p)) / 2
    labelled = [0, 1, 3]
    entropy = numpy_entropy(student.again.logits[labelled], batch.labels[labelled], several)
    expected = (2 * entropy[0] + 5 * entropy[1] + 0.5 * entropy[2]) / 7.5
    expected += 0.7 * (2 * apart[0] + 5 * apart[1] + apart[2] + 0.5 * apart[3]) / 8.5
    assert term(student, None, batch).item() == pytest.approx(expected, rel=1e-5)


@INFOS
def test_rows_without_a_label_keep_the_divergence_and_lose_the_cross_entropy(info):
    term, student, batch = settled(PrivilegedKD, info)
    term(student, None, batch).backward()
    assert student.logits.grad[2].abs().min() > 0
    assert not student.privileged.logits.grad[2].any()
    student = answer()
    bare = replace(batch, labels=torch.full_like(batch.labels, UNLABELLED))
    value = term(student, None, bare)
    rows = softened_kl(student.logits, student.privileged.logits, 2.0, info.multi_label)
    expected = (rows * rationale_weights(bare)).sum() / 3.5
    torch.testing.assert_close(value, expected)


@INFOS
def test_student_is_taught_by_its_privileged_reading_and_not_the_other_way(info):
    term, student, batch = settled(PrivilegedKD, info)
    term(student, None, batch).backward()
    both = student.privileged.logits.detach().requires_grad_()
    entropy = masked_binary_cross_entropy if info.multi_label else masked_cross_entropy
    entropy(both, batch.labels, row_weights=rationale_weights(batch)).backward()
    torch.testing.assert_close(student.privileged.logits.grad, both.grad)
    assert student.logits.grad[[0, 2, 3]].abs().min() > 0


@pytest.mark.parametrize("kind", TWICE)
def test_without_transfer_the_text_alone_has_no_gradient(kind):
    student, batch = answer(), batch_of()
    value = bound(kind, transfer=0.0)(student, None, batch)
    weights = rationale_weights(batch) if kind is PrivilegedKD else None
    expected = masked_cross_entropy(second(kind, student), LABELS, row_weights=weights)
    assert torch.equal(value, expected)
    value.backward()
    assert not student.logits.grad.any()


@pytest.mark.parametrize("kind", TWICE)
def test_equal_readings_leave_the_cross_entropy_alone(kind):
    """As in eval mode, where there is no dropout."""
    logits, batch = torch.randn(ROWS, CLASSES), batch_of()
    student = Outputs(logits, privileged=Outputs(logits), again=Outputs(logits))
    values = [bound(kind, transfer=share)(student, None, batch).item() for share in (0.0, 9.0)]
    assert values[0] == pytest.approx(values[1])


@INFOS
def test_both_readings_of_rdrop_move(info):
    term, student, batch = settled(RDrop, info)
    term(student, None, replace(batch, labels=torch.full_like(batch.labels, -100))).backward()
    assert student.logits.grad.abs().max() > 1e-3
    assert student.again.logits.grad.abs().max() > 1e-3


def test_rdrop_reads_no_rationale():
    student = answer()
    first = bound(RDrop)(student, None, batch_of(given=None))
    assert torch.equal(first, bound(RDrop)(student, None, batch_of()))


# generated rationales


def test_tokens_are_counted_one_by_one():
    student, batch = answer(), batch_of(weights=WEIGHTS)
    p = numpy_probabilities(student.rationale_logits)
    rationale, total, shares = batch.views["rationale"], 0.0, 0.0
    for row, share in enumerate([2.0, 0.0, 1.0, 0.5]):
        for place in range(LENGTH):
            if rationale["attention_mask"][row, place]:
                total -= share * math.log(p[row, place, rationale["input_ids"][row, place]])
                shares += share
    value = bound(RationaleLM)(student, None, batch)
    assert value.item() == pytest.approx(total / shares, rel=1e-5)


def test_padding_of_a_rationale_changes_nothing():
    student, batch = answer(), batch_of()
    value = bound(RationaleLM)(student, None, batch)
    inputs = batch.views["rationale"]
    longer = {
        "input_ids": torch.cat([inputs["input_ids"], torch.ones(ROWS, 2).long()], 1),
        "attention_mask": torch.cat([inputs["attention_mask"], torch.zeros(ROWS, 2).long()], 1),
    }
    noise = 1e4 * torch.randn(ROWS, LENGTH + 2, VOCABULARY)
    hidden = longer["attention_mask"].unsqueeze(-1) == 0
    kept = pad(student.rationale_logits, (0, 0, 0, 2))
    other = replace(student, rationale_logits=torch.where(hidden, noise, kept))
    again = bound(RationaleLM)(other, None, replace(batch, views={"rationale": longer}))
    torch.testing.assert_close(again, value)
    value.backward()
    assert not student.rationale_logits.grad[inputs["attention_mask"] == 0].any()
