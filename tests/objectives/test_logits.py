import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.errors import ConfigError
from kd.objectives import LogitKD, softened_kl
from kd.types import UNLABELLED, Batch, Outputs

ROWS, CLASSES = 6, 4


def numpy_kl(student, teacher, temperature):
    """T² Σ p log(p/q), mean over rows, in float64: an independent formulation."""

    def soften(logits):
        powers = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
        return powers / powers.sum(axis=1, keepdims=True)

    p = soften(np.asarray(teacher, dtype=np.float64))
    q = soften(np.asarray(student, dtype=np.float64))
    return temperature**2 * np.mean([(a * np.log(a / b)).sum() for a, b in zip(p, q, strict=True)])


def term_of(student, teacher, labels=None, **settings):
    labels = torch.zeros(len(student), dtype=torch.long) if labels is None else labels
    batch = Batch({}, labels, torch.arange(len(labels)))
    return LogitKD(**settings)(Outputs(student), Outputs(teacher), batch)


def gradient(student, teacher, temperature):
    student = student.clone().requires_grad_()
    softened_kl(student, teacher, temperature).backward()
    return student.grad


def test_hand_computed():
    # teacher 1/2 1/2, student 1/4 3/4: KL = 1/2 ln 2 + 1/2 ln 2/3 = 1/2 ln 4/3
    student, teacher = torch.tensor([[0.0, math.log(3.0)]]), torch.zeros(1, 2)
    assert softened_kl(student, teacher, 1.0).item() == pytest.approx(0.5 * math.log(4 / 3))
    # T = 2: student 1/(1+√3), √3/(1+√3)
    q = 1 / (1 + math.sqrt(3))
    expected = 4 * 0.5 * (math.log(0.5 / q) + math.log(0.5 / (1 - q)))
    assert softened_kl(student, teacher, 2.0).item() == pytest.approx(expected)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 6),
    classes=st.integers(2, 6),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 4.0, 10.0]),
)
def test_agrees_with_the_definition(seed, rows, classes, temperature):
    random = np.random.default_rng(seed)
    student, teacher = random.normal(size=(2, rows, classes)) * 2
    value = softened_kl(torch.tensor(student), torch.tensor(teacher), temperature)
    expected = numpy_kl(student, teacher, temperature)
    assert value.item() == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert value.item() >= -1e-4


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 100.0])
def test_zero_when_the_distributions_agree(temperature):
    logits = torch.randn(ROWS, CLASSES) * 5
    assert softened_kl(logits, logits, temperature).item() == 0.0
    moved = logits + torch.randn(ROWS, 1)  # softmax does not see a shift of a row
    assert softened_kl(moved, logits, temperature).item() == pytest.approx(0, abs=1e-3)
    assert softened_kl(logits.flip(1), logits, temperature).item() > 0.01


def test_direction_is_from_the_teacher_to_the_student():
    a, b = torch.tensor([[3.0, 0.0, -1.0]]), torch.tensor([[0.0, 0.5, 0.0]])
    assert softened_kl(a, b, 1.0).item() == pytest.approx(numpy_kl(a.numpy(), b.numpy(), 1.0))
    reverse = numpy_kl(b.numpy(), a.numpy(), 1.0)
    assert softened_kl(a, b, 1.0).item() != pytest.approx(reverse, rel=0.05)


def test_mean_is_over_rows_and_not_over_classes():
    """PyTorch's reduction 'mean' divides by the classes too."""
    student, teacher = torch.randn(ROWS, CLASSES), torch.randn(ROWS, CLASSES)
    value = softened_kl(student, teacher, 2.0)
    rows = [softened_kl(student[[i]], teacher[[i]], 2.0).item() for i in range(ROWS)]
    assert value.item() == pytest.approx(sum(rows) / ROWS)
    doubled = softened_kl(student.repeat(2, 1), teacher.repeat(2, 1), 2.0)
    assert doubled.item() == pytest.approx(value.item())
    # classes nobody believes in change nothing
    padding = torch.full((ROWS, 3), -1e4)
    wide = softened_kl(torch.cat([student, padding], 1), torch.cat([teacher, padding], 1), 2.0)
    assert wide.item() == pytest.approx(value.item(), rel=1e-4)


def test_large_temperature_is_half_the_mean_square_of_centred_logits():
    """Hinton et al. 2015, equation 4: T² KL -> 1/(2C) Σ (z - v)², logits centred by row."""
    student, teacher = torch.randn(ROWS, CLASSES), torch.randn(ROWS, CLASSES)
    gap = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    limit = gap.square().sum(1).mean() / (2 * CLASSES)
    value = softened_kl(student, teacher, 50.0)
    assert value.item() == pytest.approx(limit.item(), rel=0.05)
    slopes = gap / (CLASSES * ROWS)
    torch.testing.assert_close(gradient(student, teacher, 50.0), slopes, rtol=0.1, atol=2e-3)


def test_size_of_the_gradient_does_not_fall_with_the_temperature():
    student, teacher = torch.randn(ROWS, CLASSES), torch.randn(ROWS, CLASSES)
    norms = [gradient(student, teacher, t).norm().item() for t in (1.0, 4.0, 8.0, 16.0)]
    assert max(norms) / min(norms) < 2.5  # 256 times without T²
    assert norms[2] == pytest.approx(norms[3], rel=0.15)


def test_gradient_is_t_times_the_difference_of_probabilities():
    student, teacher = torch.randn(ROWS, CLASSES), torch.randn(ROWS, CLASSES)
    for t in (1.0, 3.0):
        expected = t * ((student / t).softmax(-1) - (teacher / t).softmax(-1)) / ROWS
        torch.testing.assert_close(gradient(student, teacher, t), expected)


def test_gradient_reaches_the_student_and_never_the_teacher():
    student = torch.randn(ROWS, CLASSES, requires_grad=True)
    teacher = torch.randn(ROWS, CLASSES, requires_grad=True)
    term_of(student, teacher).backward()
    assert student.grad.abs().min() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 10.0])
def test_extreme_logits_give_finite_numbers(dtype, temperature):
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, 1e4]], dtype=dtype)
    value = softened_kl(student, teacher, temperature)
    assert value.dtype == torch.float32
    assert value.item() > 1000
    assert math.isfinite(value.item())
    value.backward()
    assert student.grad.isfinite().all()


def test_half_precision_is_computed_in_float32():
    student, teacher = torch.randn(64, CLASSES).bfloat16(), torch.randn(64, CLASSES).bfloat16()
    expected = numpy_kl(student.float().numpy(), teacher.float().numpy(), 2.0)
    assert softened_kl(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-4)


def test_mixed_precisions_meet():
    student, teacher = torch.randn(ROWS, CLASSES), torch.randn(ROWS, CLASSES)
    value = softened_kl(student, teacher.bfloat16(), 2.0)
    assert value.item() == pytest.approx(softened_kl(student, teacher, 2.0).item(), abs=0.05)


def test_unlabelled_rows_count_fully():
    student, teacher = torch.randn(ROWS, CLASSES), torch.randn(ROWS, CLASSES)
    none = torch.full((ROWS,), UNLABELLED)
    value = term_of(student, teacher, none)
    assert torch.equal(value, term_of(student, teacher))
    assert value.item() == pytest.approx(numpy_kl(student.numpy(), teacher.numpy(), 2.0), rel=1e-5)


def test_temperature_is_not_ignored():
    student, teacher = torch.randn(ROWS, CLASSES) * 3, torch.randn(ROWS, CLASSES) * 3
    for t in (1.0, 2.0, 8.0):
        value = term_of(student, teacher, temperature=t).item()
        assert value == pytest.approx(numpy_kl(student.numpy(), teacher.numpy(), t), rel=1e-4)
    first, second = (term_of(student, teacher, temperature=t).item() for t in (1.0, 8.0))
    assert first != pytest.approx(second, rel=0.05)


@pytest.mark.parametrize("value", [0, 0.0, -1.0, float("nan"), float("inf")])
def test_impossible_temperature_is_refused(value):
    with pytest.raises(ConfigError, match=r"LogitKD\.temperature is .*: it must be positive"):
        LogitKD(temperature=value)


def test_teacher_is_asked_for_logits_only():
    assert LogitKD.uses_teacher
    assert not LogitKD.uses_labels
    assert LogitKD.needs == {"logits"}


def test_description_shows_the_temperature():
    assert LogitKD().describe() == "LogitKD T=2"
    assert LogitKD(temperature=2.5).describe() == "LogitKD T=2.5"
