import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.errors import ConfigError
from kd.objectives import HardLabel, masked_cross_entropy
from kd.types import UNLABELLED, Batch, ModelInfo, Outputs

CLASSES = ("negative", "neutral", "positive")
INFO = ModelInfo(CLASSES, 1, 1, 1, 1, "digest")


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
