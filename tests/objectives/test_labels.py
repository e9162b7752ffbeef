import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.errors import ConfigError
from kd.objectives.labels import (
    HardLabel,
    masked_binary_cross_entropy,
    masked_cross_entropy,
    order_class_weights,
)
from kd.types import UNLABELLED, Batch, ModelInfo, Outputs

CLASSES = ("negative", "neutral", "positive")
INFO = ModelInfo(CLASSES, 1, 1, 1, 1, "digest")
SEVERAL = ModelInfo(CLASSES, 1, 1, 1, 1, "digest", multi_label=True)
WEIGHTS = torch.tensor([0.0, 1.0, 2.0, 0.5, 3.0])
PRESENT = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [UNLABELLED] * 3, [0, 1, 0]])


def numpy_cross_entropy(logits, labels, weights=None, smoothing=0.0):
    """The definition, row by row in float64: an independent formulation."""
    logits = np.asarray(logits, dtype=np.float64)
    classes = logits.shape[1]
    weights = np.ones(classes) if weights is None else np.asarray(weights, dtype=np.float64)
    total = shares = 0.0
    for row, label in zip(logits, labels, strict=True):
        if label == UNLABELLED:
            continue
        log_probabilities = row - row.max() - math.log(np.exp(row - row.max()).sum())
        target = np.full(classes, smoothing / classes)
        target[label] += 1.0 - smoothing
        total -= (target * weights * log_probabilities).sum()
        shares += weights[label]
    return total / shares


def term_of(logits, labels, bind=True, **settings):
    term = HardLabel(**settings)
    if bind:
        term.bind(INFO, None)
    batch = Batch({}, torch.as_tensor(labels), torch.arange(len(labels)))
    return term(Outputs(logits), None, batch)


def test_hand_computed():
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(4.0), 0.0]])
    # probabilities 1/4 3/4 and 4/5 1/5
    value = masked_cross_entropy(logits, torch.tensor([1, 1]))
    assert value.item() == pytest.approx((math.log(4 / 3) + math.log(5)) / 2)
    value = masked_cross_entropy(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]))
    assert value.item() == pytest.approx(math.log(3))


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 6),
    classes=st.integers(2, 5),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    weighted=st.booleans(),
)
def test_agrees_with_the_definition(seed, rows, classes, smoothing, weighted):
    random = np.random.default_rng(seed)
    logits = random.normal(size=(rows, classes)) * 3
    labels = random.integers(0, classes, size=rows)
    labels[1:][random.random(rows - 1) < 0.4] = UNLABELLED  # one at least stays
    weights = random.uniform(0.1, 3.0, size=classes) if weighted else None
    value = masked_cross_entropy(
        torch.tensor(logits, dtype=torch.float32),
        torch.tensor(labels),
        None if weights is None else torch.tensor(weights, dtype=torch.float32),
        smoothing,
    )
    expected = numpy_cross_entropy(logits, labels, weights, smoothing)
    assert value.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_unlabelled_rows_count_nowhere():
    logits = torch.randn(4, 3, requires_grad=True)
    labels = [2, UNLABELLED, 0, UNLABELLED]
    value = term_of(logits, labels)
    assert value.item() == pytest.approx(term_of(logits[[0, 2]], [2, 0]).item())
    assert value.item() != pytest.approx(term_of(logits, [2, 0, 0, 0]).item())
    value.backward()
    assert not logits.grad[[1, 3]].any()
    assert logits.grad[[0, 2]].abs().min() > 0


@pytest.mark.parametrize(
    "settings", [{}, {"label_smoothing": 0.1}, {"class_weights": {"neutral": 2.0}}]
)
def test_batch_without_labels_is_zero_with_a_gradient_of_zero(settings):
    logits = torch.randn(3, 3, requires_grad=True)
    value = term_of(logits, [UNLABELLED] * 3, **settings)
    assert value.item() == 0.0
    value.backward()
    assert logits.grad is not None  # DDP waits for every parameter
    assert not logits.grad.any()
    assert math.isnan(torch.nn.functional.cross_entropy(logits, torch.tensor([-100] * 3)).item())


def test_class_weights_go_by_name():
    logits = torch.randn(5, 3)
    labels = [0, 1, 2, 2, 0]
    value = term_of(logits, labels, class_weights={"positive": 5.0, "negative": 0.5})
    expected = numpy_cross_entropy(logits.numpy(), labels, [0.5, 1.0, 5.0])
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert value.item() != pytest.approx(term_of(logits, labels).item(), rel=1e-3)


def test_class_weights_follow_the_order_of_the_student():
    logits = torch.randn(2, 3)
    term = HardLabel(class_weights={"positive": 5.0})
    batch = Batch({}, torch.tensor([0, 1]), torch.arange(2))
    values = []
    for labels in (CLASSES, ("positive", "negative", "neutral"), CLASSES):
        term.bind(ModelInfo(labels, 1, 1, 1, 1, "digest"), None)
        values.append(term(Outputs(logits), None, batch).item())
    assert values[0] == values[2] != values[1]


def test_class_without_weight_counts_like_no_label():
    """PyTorch divides by the sum of the weights: a batch of such a class alone would be nan."""
    logits = torch.randn(3, 3, requires_grad=True)
    value = term_of(logits, [0, 0, UNLABELLED], class_weights={"negative": 0.0})
    assert value.item() == 0.0
    value.backward()
    assert not logits.grad.any()
    mixed = term_of(logits, [0, 2, UNLABELLED], class_weights={"negative": 0.0})
    assert mixed.item() == pytest.approx(term_of(logits[1:2], [2]).item())


def test_unknown_class_weight_is_refused():
    term = HardLabel(class_weights={"positive": 2.0, "angry": 3.0, "Negative": 1.0})
    with pytest.raises(
        ConfigError,
        match=r"class_weights names Negative, angry, but the classes are negative, neutral",
    ):
        term.bind(INFO, None)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_impossible_class_weight_is_refused(value):
    with pytest.raises(ConfigError, match=r"HardLabel\.class_weights is .*: give 0 or more"):
        HardLabel(class_weights={"positive": value})


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_impossible_smoothing_is_refused(value):
    with pytest.raises(ConfigError, match=r"HardLabel\.label_smoothing is .*: give 0 to 1"):
        HardLabel(label_smoothing=value)


def test_smoothing_is_not_ignored():
    logits, labels = torch.randn(4, 3), [0, 1, 2, 0]
    value = term_of(logits, labels, label_smoothing=0.2)
    expected = numpy_cross_entropy(logits.numpy(), labels, smoothing=0.2)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert value.item() != pytest.approx(term_of(logits, labels).item(), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits_give_finite_numbers(dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
    value = term_of(logits, [1, 0])
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(2e4, rel=1e-2)
    value.backward()
    assert logits.grad.isfinite().all()
    assert logits.grad.dtype == dtype


def test_half_precision_is_computed_in_float32():
    logits = torch.randn(64, 3).bfloat16()
    labels = torch.randint(3, (64,)).tolist()
    expected = numpy_cross_entropy(logits.float().numpy(), labels)
    assert term_of(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_gradient_is_probability_minus_target():
    logits = torch.randn(4, 3, requires_grad=True)
    term_of(logits, [0, 1, 2, 0]).backward()
    target = torch.eye(3)[[0, 1, 2, 0]]
    torch.testing.assert_close(logits.grad, (logits.detach().softmax(-1) - target) / 4)


def test_teacher_is_not_asked():
    assert not HardLabel.uses_teacher
    assert HardLabel.uses_labels


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "HardLabel"),
        ({"label_smoothing": 0.1}, "HardLabel smoothing=0.1"),
        ({"class_weights": {"positive": 2.0}}, "HardLabel class-weighted"),
        (
            {"label_smoothing": 0.25, "class_weights": {"positive": 2.0}},
            "HardLabel smoothing=0.25 class-weighted",
        ),
    ],
)
def test_description_shows_the_settings(settings, text):
    assert HardLabel(**settings).describe() == text


def test_rows_count_by_their_weight():
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, UNLABELLED, 2, 0])
    rows = [masked_cross_entropy(logits[[i]], labels[[i]]).item() for i in range(5)]
    value = masked_cross_entropy(logits, labels, row_weights=WEIGHTS).item()
    assert value == pytest.approx((rows[1] + 0.5 * rows[3] + 3 * rows[4]) / 4.5, rel=1e-5)
    kept = [1, 3, 4]
    without = masked_cross_entropy(logits[kept], labels[kept], row_weights=WEIGHTS[kept])
    assert value == pytest.approx(without.item())
    same = masked_cross_entropy(logits, labels, row_weights=torch.full((5,), 0.25))
    assert same.item() == pytest.approx(masked_cross_entropy(logits, labels).item())


def test_row_weights_and_class_weights_multiply():
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, UNLABELLED, 2, 0])
    classes = torch.tensor([0.5, 2.0, 0.0])
    value = masked_cross_entropy(logits, labels, classes, row_weights=WEIGHTS).item()
    rows = [masked_cross_entropy(logits[[i]], labels[[i]]).item() for i in range(5)]
    # the first row has no weight, the third no label, the fourth a class without weight
    expected = (1 * 2.0 * rows[1] + 3 * 0.5 * rows[4]) / (1 * 2.0 + 3 * 0.5)
    assert value == pytest.approx(expected, rel=1e-5)


def test_whole_row_weight_is_as_many_rows():
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, UNLABELLED, 2, 0])
    copies, classes = torch.tensor([1, 3, 2, 1, 2]), torch.tensor([0.5, 2.0, 1.0])
    for loss, targets in ((masked_cross_entropy, labels), (masked_binary_cross_entropy, PRESENT)):
        repeated = [x.repeat_interleave(copies, 0) for x in (logits, targets)]
        expected = loss(*repeated, classes, 0.1).item()
        value = loss(logits, targets, classes, 0.1, copies.float()).item()
        assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [masked_cross_entropy, masked_binary_cross_entropy])
def test_rows_without_any_weight_are_zero_with_a_gradient_of_zero(loss):
    logits = torch.randn(5, 3, requires_grad=True)
    labels = PRESENT if loss is masked_binary_cross_entropy else torch.zeros(5, dtype=torch.long)
    value = loss(logits, labels, row_weights=torch.zeros(5))
    assert value.item() == 0.0
    value.backward()
    assert not logits.grad.any()


def test_term_takes_the_weights_of_the_batch():
    logits = torch.randn(5, 3)
    for info, labels, loss in (
        (INFO, torch.tensor([0, 1, 2, 2, 0]), masked_cross_entropy),
        (SEVERAL, PRESENT, masked_binary_cross_entropy),
    ):
        term = HardLabel(label_smoothing=0.1, class_weights={"neutral": 3.0})
        term.bind(info, None)
        value = term(Outputs(logits), None, Batch({}, labels, torch.arange(5), weights=WEIGHTS))
        expected = loss(logits, labels, torch.tensor([1.0, 3.0, 1.0]), 0.1, WEIGHTS)
        assert torch.equal(value, expected)
        assert value.item() != pytest.approx(loss(logits, labels).item(), rel=1e-3)


def test_binary_hand_computed():
    # probabilities 3/4 and 1/5; the first class is there, the second is not
    logits = torch.tensor([[math.log(3.0), math.log(0.25)]])
    labels = torch.tensor([[1, 0]])
    expected = (math.log(4 / 3) + math.log(5 / 4)) / 2
    assert masked_binary_cross_entropy(logits, labels).item() == pytest.approx(expected)
    # a weight is that of a class that is there
    weighted = masked_binary_cross_entropy(logits, labels, torch.tensor([3.0, 7.0])).item()
    assert weighted == pytest.approx((3 * math.log(4 / 3) + math.log(5 / 4)) / 2)
    # smoothed targets 0.9 and 0.1
    first = 0.9 * math.log(4 / 3) + 0.1 * math.log(4)
    second = 0.9 * math.log(5 / 4) + 0.1 * math.log(5)
    smoothed = masked_binary_cross_entropy(logits, labels, label_smoothing=0.2).item()
    assert smoothed == pytest.approx((first + second) / 2)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 6),
    classes=st.integers(1, 5),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_binary_agrees_with_the_definition(seed, rows, classes, smoothing):
    random = np.random.default_rng(seed)
    logits = random.normal(size=(rows, classes)) * 3
    labels = random.integers(0, 2, size=(rows, classes))
    labels[1:][random.random(rows - 1) < 0.4] = UNLABELLED  # one at least stays
    weights, row_weights = random.uniform(0.1, 3.0, classes), random.uniform(0.1, 3.0, rows)
    total = shares = 0.0
    for row, present, share in zip(logits, labels, row_weights, strict=True):
        if present[0] == UNLABELLED:
            continue
        target = present * (1 - smoothing) + smoothing / 2
        there, absent = np.log1p(np.exp(-row)), np.log1p(np.exp(row))
        total += share * (weights * target * there + (1 - target) * absent).mean()
        shares += share
    tensors = [torch.tensor(x, dtype=torch.float32) for x in (weights, row_weights)]
    value = masked_binary_cross_entropy(
        torch.tensor(logits), torch.tensor(labels), tensors[0], smoothing, tensors[1]
    )
    assert value.item() == pytest.approx(total / shares, rel=1e-4)


def test_rows_without_labels_count_nowhere_among_several():
    logits = torch.randn(5, 3, requires_grad=True)
    value = masked_binary_cross_entropy(logits, PRESENT)
    kept = [0, 1, 2, 4]
    assert value.item() == pytest.approx(
        masked_binary_cross_entropy(logits[kept], PRESENT[kept]).item()
    )
    value.backward()
    assert not logits.grad[3].any()
    assert logits.grad[kept].abs().min() > 0  # a row that has no class is labelled all the same
    none = masked_binary_cross_entropy(logits, torch.full((5, 3), UNLABELLED))
    assert none.item() == 0.0
    logits.grad = None
    none.backward()
    assert not logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_binary_with_extreme_logits_is_finite(dtype):
    logits = torch.tensor([[1e4, -1e4]], dtype=dtype, requires_grad=True)
    value = masked_binary_cross_entropy(logits, torch.tensor([[0, 1]]))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(1e4, rel=1e-2)
    value.backward()
    assert logits.grad.isfinite().all()


def test_class_weights_go_by_name_among_several():
    logits = torch.randn(5, 3)
    term = HardLabel(class_weights={"positive": 5.0})
    term.bind(SEVERAL, None)
    value = term(Outputs(logits), None, Batch({}, PRESENT, torch.arange(5)))
    expected = masked_binary_cross_entropy(logits, PRESENT, torch.tensor([1.0, 1.0, 5.0]))
    assert torch.equal(value, expected)


def test_weights_by_name_are_put_in_the_order_of_the_classes():
    assert order_class_weights("FooKD", None, INFO) is None
    assert order_class_weights("FooKD", {}, INFO) is None
    weights = order_class_weights("FooKD", {"positive": 2, "negative": 0.5}, INFO)
    assert weights.tolist() == [0.5, 1.0, 2.0]
    with pytest.raises(ConfigError, match=r"FooKD\.class_weights names good, but the classes are"):
        order_class_weights("FooKD", {"good": 2.0}, INFO)
