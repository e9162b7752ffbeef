import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.errors import ConfigError
from kd.objectives.logits import (
    JensenShannonKD,
    LogitKD,
    LogitMSE,
    ReverseKD,
    logit_squared_error,
    softened_jensen_shannon,
    softened_kl,
    softened_reverse_kl,
)
from kd.objectives.schedules import Schedule
from kd.types import UNLABELLED, Batch, ModelInfo, Outputs

ROWS, CLASSES = 6, 4
NAMES = ("anger", "joy", "love", "fear")
INFO = ModelInfo(NAMES, 1, 1, 1, 1, "digest")
SEVERAL = ModelInfo(NAMES, 1, 1, 1, 1, "digest", multi_label=True)
DIVERGENCES = [softened_kl, softened_reverse_kl, softened_jensen_shannon]
SOFTENED = [LogitKD, ReverseKD, JensenShannonKD]
EVERY = [*SOFTENED, LogitMSE]


def pair(rows=ROWS, classes=CLASSES, size=1.0):
    return torch.randn(rows, classes) * size, torch.randn(rows, classes) * size


def numpy_softmax(logits, temperature):
    logits = np.asarray(logits, dtype=np.float64)
    powers = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def numpy_sigmoid(logits, temperature):
    """[B, C, 2]: each class is a distribution of its own."""
    there = 1 / (1 + np.exp(-np.asarray(logits, dtype=np.float64) / temperature))
    return np.stack([there, 1 - there], axis=-1)


def kl(p, q):
    """Σ p log(p/q) of every row, in float64: an independent formulation."""
    return np.array([(a * np.log(a / b)).sum() for a, b in zip(p, q, strict=True)])


def numpy_kl(student, teacher, temperature):
    p, q = numpy_softmax(teacher, temperature), numpy_softmax(student, temperature)
    return temperature**2 * kl(p, q)


def numpy_divergence(function, p, q, share=0.5):
    """The definition of each divergence of the teacher's p and the student's q."""
    if function is softened_kl:
        return kl(p, q)
    if function is softened_reverse_kl:
        return kl(q, p)
    mixture = share * p + (1 - share) * q
    return share * kl(p, mixture) + (1 - share) * kl(q, mixture)


def term_of(student, teacher, labels=None, kind=LogitKD, info=INFO, weights=None, **settings):
    labels = torch.zeros(len(student), dtype=torch.long) if labels is None else labels
    batch = Batch({}, labels, torch.arange(len(labels)), weights=weights)
    term = kind(**settings)
    term.bind(info, info)
    return term(Outputs(student), Outputs(teacher), batch)


def gradient(student, teacher, temperature):
    student = student.clone().requires_grad_()
    softened_kl(student, teacher, temperature).mean().backward()
    return student.grad


def test_hand_computed():
    # teacher 1/2 1/2, student 1/4 3/4: KL = 1/2 ln 2 + 1/2 ln 2/3 = 1/2 ln 4/3
    student, teacher = torch.tensor([[0.0, math.log(3.0)]]), torch.zeros(1, 2)
    assert softened_kl(student, teacher, 1.0).item() == pytest.approx(0.5 * math.log(4 / 3))
    # T = 2: student 1/(1+√3), √3/(1+√3)
    q = 1 / (1 + math.sqrt(3))
    expected = 4 * 0.5 * (math.log(0.5 / q) + math.log(0.5 / (1 - q)))
    assert softened_kl(student, teacher, 2.0).item() == pytest.approx(expected)


def test_others_hand_computed():
    student, teacher = torch.tensor([[0.0, math.log(3.0)]]), torch.zeros(1, 2)
    # KL of 1/4 3/4 to 1/2 1/2
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert softened_reverse_kl(student, teacher, 1.0).item() == pytest.approx(expected)
    # mixture 3/8 5/8
    to_mixture = 0.5 * math.log(0.5 / 0.375) + 0.5 * math.log(0.5 / 0.625)
    from_student = 0.25 * math.log(0.25 / 0.375) + 0.75 * math.log(0.75 / 0.625)
    value = softened_jensen_shannon(student, teacher, 1.0)
    assert value.item() == pytest.approx((to_mixture + from_student) / 2)
    # a difference of (0, ln 3), and of ∓ ln 3 / 2 where the means are taken off
    square = math.log(3.0) ** 2
    assert logit_squared_error(student, teacher).item() == pytest.approx(square / 2)
    assert logit_squared_error(student, teacher, centred=True).item() == pytest.approx(square / 4)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 6),
    classes=st.integers(2, 6),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 4.0, 10.0]),
    function=st.sampled_from(DIVERGENCES),
    multi_label=st.booleans(),
)
def test_agrees_with_the_definition(seed, rows, classes, temperature, function, multi_label):
    random = np.random.default_rng(seed)
    student, teacher = random.normal(size=(2, rows, classes)) * 2
    value = function(
        torch.tensor(student), torch.tensor(teacher), temperature, multi_label=multi_label
    )
    soften = numpy_sigmoid if multi_label else numpy_softmax
    p, q = soften(teacher, temperature), soften(student, temperature)
    expected = temperature**2 * numpy_divergence(function, p, q)
    assert value.shape == (rows,)
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-3, atol=2e-4)
    assert value.min().item() >= -1e-4


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 100.0])
@pytest.mark.parametrize("function", DIVERGENCES)
def test_zero_when_the_distributions_agree(function, temperature):
    logits = torch.randn(ROWS, CLASSES) * 5
    if function is not softened_jensen_shannon:
        assert not function(logits, logits, temperature).any()
    torch.testing.assert_close(
        function(logits, logits, temperature), torch.zeros(ROWS), atol=2e-7 * temperature**2, rtol=0
    )
    moved = logits + torch.randn(ROWS, 1)  # softmax does not see a shift of a row
    assert function(moved, logits, temperature).abs().max() < 5e-3
    assert function(moved, logits, temperature, multi_label=True).min() > 1e-4  # sigmoids do
    assert function(logits.flip(1), logits, temperature).min() > 0.01


def test_direction_is_from_the_teacher_to_the_student():
    a, b = torch.tensor([[3.0, 0.0, -1.0]]), torch.tensor([[0.0, 0.5, 0.0]])
    forward = numpy_kl(a.numpy(), b.numpy(), 1.0)[0]
    reverse = numpy_kl(b.numpy(), a.numpy(), 1.0)[0]
    assert softened_kl(a, b, 1.0).item() == pytest.approx(forward)
    assert softened_reverse_kl(a, b, 1.0).item() == pytest.approx(reverse)
    assert forward != pytest.approx(reverse, rel=0.05)


def test_jensen_shannon_lies_between_both_directions():
    student, teacher = pair()
    p, q = numpy_softmax(teacher.numpy(), 1.0), numpy_softmax(student.numpy(), 1.0)
    for share in (0.5, 0.2, 0.9):  # the mixture has as much of the teacher as the mean
        value = softened_jensen_shannon(student, teacher, 1.0, share)
        expected = numpy_divergence(softened_jensen_shannon, p, q, share)
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-3, atol=1e-6)
    low = softened_jensen_shannon(student, teacher, 1.0, 1e-3) / 1e-3
    torch.testing.assert_close(low, softened_kl(student, teacher, 1.0), rtol=0.02, atol=1e-3)
    high = softened_jensen_shannon(student, teacher, 1.0, 1 - 1e-3) / 1e-3
    expected = softened_reverse_kl(student, teacher, 1.0)
    torch.testing.assert_close(high, expected, rtol=0.02, atol=1e-3)


def test_jensen_shannon_has_a_bound():
    apart = torch.tensor([[50.0, -50.0]])
    for temperature in (1.0, 2.0):
        value = softened_jensen_shannon(apart, -apart, temperature).item()
        assert value == pytest.approx(temperature**2 * math.log(2))
    entropy = -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    assert softened_jensen_shannon(apart, -apart, 1.0, 0.1).item() == pytest.approx(entropy)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 2.0, float("nan")])
def test_impossible_share_is_refused(value):
    with pytest.raises(ConfigError, match=r"JensenShannonKD\.teacher_share is .*between 0 and 1"):
        JensenShannonKD(teacher_share=value)


@pytest.mark.parametrize("kind", EVERY)
def test_mean_is_over_rows_and_not_over_classes(kind):
    """PyTorch's reduction 'mean' divides by the classes too."""
    student, teacher = pair()
    value = term_of(student, teacher, kind=kind)
    rows = [term_of(student[[i]], teacher[[i]], kind=kind).item() for i in range(ROWS)]
    assert value.item() == pytest.approx(sum(rows) / ROWS)
    doubled = term_of(student.repeat(2, 1), teacher.repeat(2, 1), kind=kind)
    assert doubled.item() == pytest.approx(value.item())


@pytest.mark.parametrize("function", DIVERGENCES)
def test_classes_that_nobody_believes_in_change_nothing(function):
    student, teacher = pair()
    padding = torch.full((ROWS, 3), -1e4)
    wide = function(torch.cat([student, padding], 1), torch.cat([teacher, padding], 1), 2.0)
    torch.testing.assert_close(wide, function(student, teacher, 2.0), rtol=1e-4, atol=1e-5)


def test_large_temperature_is_half_the_mean_square_of_centred_logits():
    """Hinton et al. 2015, equation 4: T² KL -> 1/(2C) Σ (z - v)², logits centred by row."""
    student, teacher = pair()
    gap = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    limit = gap.square().sum(1) / (2 * CLASSES)
    torch.testing.assert_close(
        logit_squared_error(student, teacher, centred=True) / 2, limit, rtol=1e-4, atol=1e-5
    )
    for function, share in zip(DIVERGENCES, (1.0, 1.0, 0.25), strict=True):
        value = function(student, teacher, 50.0)
        torch.testing.assert_close(value, share * limit, rtol=0.1, atol=5e-3)
    slopes = gap / (CLASSES * ROWS)
    torch.testing.assert_close(gradient(student, teacher, 50.0), slopes, rtol=0.1, atol=2e-3)


def test_large_temperature_of_several_labels_is_an_eighth_of_the_square():
    student, teacher = pair()
    value = softened_kl(student, teacher, 50.0, multi_label=True)
    limit = (student - teacher).square().sum(1) / 8
    torch.testing.assert_close(value, limit, rtol=0.05, atol=5e-3)


def test_size_of_the_gradient_does_not_fall_with_the_temperature():
    student, teacher = pair()
    norms = [gradient(student, teacher, t).norm().item() for t in (1.0, 4.0, 8.0, 16.0)]
    assert max(norms) / min(norms) < 2.5  # 256 times without T²
    assert norms[2] == pytest.approx(norms[3], rel=0.15)


def test_gradient_is_t_times_the_difference_of_probabilities():
    student, teacher = pair()
    for t in (1.0, 3.0):
        expected = t * ((student / t).softmax(-1) - (teacher / t).softmax(-1)) / ROWS
        torch.testing.assert_close(gradient(student, teacher, t), expected)


@pytest.mark.parametrize("info", [INFO, SEVERAL])
@pytest.mark.parametrize("kind", EVERY)
def test_gradient_reaches_the_student_and_never_the_teacher(kind, info):
    student, teacher = (logits.requires_grad_() for logits in pair())
    term_of(student, teacher, kind=kind, info=info, by_confidence=True).backward()
    assert student.grad.abs().min() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 10.0])
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("function", DIVERGENCES)
def test_extreme_logits_give_finite_numbers(function, multi_label, dtype, temperature):
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, 1e4]], dtype=dtype)
    value = function(student, teacher, temperature, multi_label=multi_label)
    assert value.dtype == torch.float32
    assert value.isfinite().all()
    least = 0.5 if function is softened_jensen_shannon else 1000
    assert value.min() > least * temperature**2 / 10
    value.mean().backward()
    assert student.grad.isfinite().all()
    if not multi_label:
        assert function(student, teacher, temperature, standardise=True).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_extreme_logits_give_a_finite_squared_error(dtype):
    student = torch.tensor([[1e4, -1e4]], dtype=dtype, requires_grad=True)
    value = logit_squared_error(student, -student.detach())
    assert value.item() == pytest.approx(4e8, rel=0.02)
    value.sum().backward()
    assert student.grad.isfinite().all()


def test_half_precision_is_computed_in_float32():
    student, teacher = (logits.bfloat16() for logits in pair(rows=64))
    expected = numpy_kl(student.float().numpy(), teacher.float().numpy(), 2.0)
    value = softened_kl(student, teacher, 2.0)
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-4, atol=1e-6)
    expected = ((student.double() - teacher.double()) ** 2).mean(1)
    torch.testing.assert_close(logit_squared_error(student, teacher), expected.float())


def test_mixed_precisions_meet():
    student, teacher = pair()
    value = softened_kl(student, teacher.bfloat16(), 2.0)
    torch.testing.assert_close(value, softened_kl(student, teacher, 2.0), atol=0.05, rtol=0)


@pytest.mark.parametrize("kind", EVERY)
def test_unlabelled_rows_count_fully(kind):
    student, teacher = pair()
    none = torch.full((ROWS,), UNLABELLED)
    assert torch.equal(
        term_of(student, teacher, none, kind=kind), term_of(student, teacher, kind=kind)
    )


@pytest.mark.parametrize("kind", SOFTENED)
def test_temperature_is_not_ignored(kind):
    student, teacher = pair(size=3.0)
    function = DIVERGENCES[SOFTENED.index(kind)]
    for t in (1.0, 2.0, 8.0):
        value = term_of(student, teacher, kind=kind, temperature=t).item()
        p, q = numpy_softmax(teacher.numpy(), t), numpy_softmax(student.numpy(), t)
        expected = t**2 * numpy_divergence(function, p, q).mean()
        assert value == pytest.approx(expected, rel=1e-4)
    first, second = (term_of(student, teacher, kind=kind, temperature=t) for t in (1.0, 8.0))
    assert first.item() != pytest.approx(second.item(), rel=0.05)


def test_temperature_follows_its_schedule():
    student, teacher = pair()
    term = LogitKD(temperature=Schedule(4.0, 1.0))
    assert term.describe() == "LogitKD T=4→1"
    term.advance(1.0)
    batch = Batch({}, torch.zeros(ROWS, dtype=torch.long), torch.arange(ROWS))
    value = term(Outputs(student), Outputs(teacher), batch)
    assert torch.equal(value, term_of(student, teacher, temperature=1.0))


@pytest.mark.parametrize("value", [0, 0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", SOFTENED)
def test_impossible_temperature_is_refused(kind, value):
    with pytest.raises(ConfigError, match=rf"{kind.__name__}\.temperature is .*must be positive"):
        kind(temperature=value)


@pytest.mark.parametrize("info", [INFO, SEVERAL])
@pytest.mark.parametrize("kind", EVERY)
def test_rows_count_by_their_weight(kind, info):
    student, teacher = pair()
    rows = [term_of(student[[i]], teacher[[i]], kind=kind, info=info).item() for i in range(ROWS)]
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5, 0.0, 3.0])
    value = term_of(student, teacher, kind=kind, info=info, weights=weights).item()
    assert value == pytest.approx(np.average(rows, weights=weights.numpy()), rel=1e-4)
    kept = [1, 2, 3, 5]
    without = term_of(student[kept], teacher[kept], kind=kind, info=info, weights=weights[kept])
    assert value == pytest.approx(without.item(), rel=1e-5)
    assert term_of(student, teacher, kind=kind, info=info, weights=torch.zeros(ROWS)).item() == 0


@pytest.mark.parametrize("kind", EVERY)
def test_rows_count_by_the_teachers_confidence(kind):
    student, teacher = pair(size=3.0)
    rows = [term_of(student[[i]], teacher[[i]], kind=kind).item() for i in range(ROWS)]
    sure = numpy_softmax(teacher.numpy(), 1.0).max(axis=1)
    value = term_of(student, teacher, kind=kind, by_confidence=True).item()
    assert value == pytest.approx(np.average(rows, weights=sure), rel=1e-4)
    weights = torch.rand(ROWS)
    value = term_of(student, teacher, kind=kind, by_confidence=True, weights=weights).item()
    assert value == pytest.approx(np.average(rows, weights=sure * weights.numpy()), rel=1e-4)


@pytest.mark.parametrize("kind", SOFTENED)
def test_several_labels_are_a_sum_over_classes(kind):
    student, teacher = pair()
    value = term_of(student, teacher, kind=kind, info=SEVERAL)
    one = [
        term_of(student[:, [c]], teacher[:, [c]], kind=kind, info=SEVERAL).item()
        for c in range(CLASSES)
    ]
    assert value.item() == pytest.approx(sum(one), rel=1e-5)
    # a sigmoid is the softmax of the logit and 0
    zeros = torch.zeros(ROWS)
    column = [torch.stack([z[:, 0], zeros], 1) for z in (student, teacher)]
    assert one[0] == pytest.approx(term_of(*column, kind=kind).item(), rel=1e-4)


def test_squared_error_of_several_labels_is_no_different():
    student, teacher = pair()
    value = term_of(student, teacher, kind=LogitMSE, info=SEVERAL)
    assert value.item() == pytest.approx((student - teacher).square().mean().item())


def test_centred_squared_error_does_not_see_a_shift():
    student, teacher = pair()
    moved = student + torch.randn(ROWS, 1) * 10
    value = term_of(moved, teacher, kind=LogitMSE, centred=True).item()
    assert value == pytest.approx(
        term_of(student, teacher, kind=LogitMSE, centred=True).item(), rel=1e-4
    )
    plain = [term_of(z, teacher, kind=LogitMSE).item() for z in (student, moved)]
    assert plain[0] != pytest.approx(plain[1], rel=0.5)
    assert term_of(teacher, teacher, kind=LogitMSE).item() == 0
    assert term_of(teacher + 1, teacher, kind=LogitMSE).item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("kind", SOFTENED)
def test_standardised_logits_have_no_size_and_no_shift(kind):
    student, teacher = pair(size=2.0)
    value = term_of(student, teacher, kind=kind, standardise=True).item()

    def scores(logits):
        """Mean 0 and population standard deviation 1 in each row, as in the paper."""
        logits = logits.double().numpy()
        return (logits - logits.mean(1, keepdims=True)) / logits.std(1, keepdims=True)

    p, q = numpy_softmax(scores(teacher), 2.0), numpy_softmax(scores(student), 2.0)
    expected = 4 * numpy_divergence(DIVERGENCES[SOFTENED.index(kind)], p, q).mean()
    assert value == pytest.approx(expected, rel=1e-3)
    assert value != pytest.approx(term_of(student, teacher, kind=kind).item(), rel=0.05)
    stretched = term_of(student * 7 + 3, teacher * 0.5 - 1, kind=kind, standardise=True)
    assert stretched.item() == pytest.approx(value, rel=1e-3)
    zero = term_of(teacher * 3 + 1, teacher, kind=kind, standardise=True).item()
    assert zero == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", SOFTENED)
def test_standardised_rows_that_do_not_vary_are_finite(kind):
    student = torch.zeros(2, CLASSES, requires_grad=True)
    teacher = torch.tensor([[5.0, 5.0, 5.0, 5.0], [1.0, 2.0, 3.0, 4.0]])
    value = term_of(student, teacher, kind=kind, standardise=True)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
    assert student.grad[1].abs().max() > 0


@pytest.mark.parametrize("kind", SOFTENED)
def test_standardising_is_refused_where_it_leaves_nothing(kind):
    term, name = kind(standardise=True), kind.__name__
    with pytest.raises(ConfigError, match=rf"{name}\.standardise .*two classes.*leave it out\."):
        term.bind(ModelInfo(("no", "yes"), 1, 1, 1, 1, "digest"), INFO)
    with pytest.raises(ConfigError, match=rf"{name}\.standardise .*may have several: leave it"):
        term.bind(SEVERAL, SEVERAL)
    # why: with two classes, z-scores are 1 and -1 whatever the logits are
    student = torch.randn(ROWS, 2, requires_grad=True)
    softened_kl(student, torch.randn(ROWS, 2), 1.0, standardise=True).sum().backward()
    assert student.grad.abs().max() < 1e-3


def test_centring_is_refused_where_a_sigmoid_sees_the_shift():
    with pytest.raises(ConfigError, match=r"LogitMSE\.centred .*several: leave it out\."):
        LogitMSE(centred=True).bind(SEVERAL, SEVERAL)


def test_class_weights_multiply_each_part_of_the_divergence():
    student, teacher = pair()
    weights = {"joy": 5.0, "fear": 0.0}
    value = term_of(student, teacher, class_weights=weights).item()
    p, q = numpy_softmax(teacher.numpy(), 2.0), numpy_softmax(student.numpy(), 2.0)
    parts = p * np.log(p / q) - p + q
    assert (parts >= 0).all()
    assert value == pytest.approx(4 * (parts * [1, 5, 1, 0]).sum(1).mean(), rel=1e-3)
    p, q = numpy_sigmoid(teacher.numpy(), 2.0), numpy_sigmoid(student.numpy(), 2.0)
    parts = (p * np.log(p / q)).sum(2)
    value = term_of(student, teacher, class_weights=weights, info=SEVERAL).item()
    assert value == pytest.approx(4 * (parts * [1, 5, 1, 0]).sum(1).mean(), rel=1e-3)


@pytest.mark.parametrize("info", [INFO, SEVERAL])
def test_class_weights_of_one_change_nothing(info):
    student, teacher = pair()
    value = term_of(student, teacher, info=info, class_weights={"joy": 1.0})
    expected = term_of(student, teacher, info=info)
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    doubled = term_of(student, teacher, info=info, class_weights=dict.fromkeys(NAMES, 2.0))
    assert doubled.item() == pytest.approx(2 * expected.item(), rel=1e-4)


def test_class_weights_leave_the_least_where_both_agree():
    """Weighted, p log(p / q) alone would be least at another distribution, and below zero."""
    weights, teacher = {"joy": 10.0}, torch.randn(1, CLASSES)
    student = teacher.clone().requires_grad_()
    value = term_of(student, teacher, class_weights=weights)
    value.backward()
    assert value.item() == 0.0
    torch.testing.assert_close(student.grad, torch.zeros(1, CLASSES), atol=1e-6, rtol=0)
    others = teacher + torch.randn(200, CLASSES)
    values = [term_of(z[None], teacher, class_weights=weights).item() for z in others]
    assert min(values) > 1e-3


def test_class_weights_keep_the_limit_of_a_large_temperature():
    student, teacher = pair()
    weights = torch.tensor([1.0, 5.0, 0.5, 2.0])
    value = softened_kl(student, teacher, 50.0, class_weights=weights)
    gap = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    limit = (weights * gap.square()).sum(1) / (2 * CLASSES)
    torch.testing.assert_close(value, limit, rtol=0.1, atol=0.02)


def test_class_weights_follow_the_order_of_the_student():
    student, teacher = pair()
    term = LogitKD(class_weights={"joy": 5.0})
    batch = Batch({}, torch.zeros(ROWS, dtype=torch.long), torch.arange(ROWS))
    values = []
    for order in ([0, 1, 2, 3], [1, 0, 3, 2], [0, 1, 2, 3]):
        names = tuple(NAMES[place] for place in order)
        term.bind(ModelInfo(names, 1, 1, 1, 1, "digest"), INFO)
        moved = [Outputs(logits[:, order]) for logits in (student, teacher)]
        values.append(term(*moved, batch).item())
    assert values == pytest.approx([values[0]] * 3, rel=1e-5)
    assert values[0] != pytest.approx(term_of(student, teacher).item(), rel=1e-2)


def test_extreme_logits_with_class_weights_are_finite():
    student = torch.tensor([[1e4, -1e4, 0.0, 0.0]], requires_grad=True)
    value = term_of(student, -student.detach(), class_weights={"joy": 3.0})
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_impossible_class_weights_are_refused():
    with pytest.raises(ConfigError, match=r"LogitKD\.class_weights is .*: give 0 or more"):
        LogitKD(class_weights={"joy": -1.0})
    with pytest.raises(ConfigError, match=r"LogitKD\.class_weights names Joy, but the classes"):
        LogitKD(class_weights={"Joy": 2.0, "fear": 1.0}).bind(INFO, INFO)


@pytest.mark.parametrize("kind", EVERY)
def test_teacher_is_asked_for_logits_only(kind):
    assert kind.uses_teacher
    assert not kind.uses_labels
    assert kind().teacher_needs() == {"logits"}


@pytest.mark.parametrize(
    ("term", "text"),
    [
        (LogitKD(), "LogitKD T=2"),
        (LogitKD(temperature=2.5, standardise=True), "LogitKD T=2.5 standardised"),
        (LogitKD(class_weights={"joy": 2.0}), "LogitKD T=2 class-weighted"),
        (ReverseKD(), "ReverseKD T=2"),
        (ReverseKD(standardise=True), "ReverseKD T=2 standardised"),
        (JensenShannonKD(teacher_share=0.25), "JensenShannonKD T=2 teacher_share=0.25"),
        (LogitMSE(), "LogitMSE"),
        (LogitMSE(centred=True), "LogitMSE centred"),
    ],
)  # fmt: skip
def test_description_shows_the_settings(term, text):
    assert term.describe() == text
