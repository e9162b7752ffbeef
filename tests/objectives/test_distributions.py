import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.errors import ConfigError
from kd.objectives.distributions import (
    DecoupledKD,
    DistKD,
    decoupled_kl,
    inter_class_distance,
    intra_class_distance,
    soften,
)
from kd.objectives.logits import softened_kl
from kd.objectives.schedules import Schedule
from kd.types import UNLABELLED, Batch, ModelInfo, Outputs

ROWS, CLASSES = 6, 4
NAMES = ("anger", "joy", "love", "fear")
INFO = ModelInfo(NAMES, 1, 1, 1, 1, "digest")
SEVERAL = ModelInfo(NAMES, 1, 1, 1, 1, "digest", multi_label=True)
EVERY = [DecoupledKD, DistKD]
TARGET = torch.tensor([0, 1, 2, 3, 1, 1])
WEIGHTS = torch.tensor([0.0, 1.0, 2.0, 0.5, 0.0, 3.0])


def pair(rows=ROWS, classes=CLASSES, size=1.0):
    return torch.randn(rows, classes) * size, torch.randn(rows, classes) * size


def numpy_softmax(logits, temperature=1.0):
    powers = np.exp(np.asarray(logits, dtype=np.float64) / temperature)
    return powers / powers.sum(axis=-1, keepdims=True)


def numpy_decoupled(student, teacher, target, temperature, target_weight, other_weight):
    """Equations 5 to 7 of the paper, row by row in float64."""
    rows = []
    for z, v, t in zip(student, teacher, target, strict=True):
        q, p = numpy_softmax(z, temperature), numpy_softmax(v, temperature)
        others = [c for c in range(len(p)) if c != t]
        first = p[t] * math.log(p[t] / q[t])
        first += (1 - p[t]) * math.log((1 - p[t]) / (1 - q[t]))
        p_others, q_others = p[others] / p[others].sum(), q[others] / q[others].sum()
        second = (p_others * np.log(p_others / q_others)).sum()
        rows.append(temperature**2 * (target_weight * first + other_weight * second))
    return np.array(rows)


def numpy_correlation(a, b, weights=None):
    """Pearson's correlation from NumPy's covariances, which count a row by its weight."""
    covariance = np.cov(np.stack([a, b]), aweights=weights, ddof=0)
    return covariance[0, 1] / math.sqrt(covariance[0, 0] * covariance[1, 1])


def term_of(student, teacher, labels=TARGET, kind=DistKD, info=INFO, weights=None, **settings):
    batch = Batch({}, labels[: len(student)], torch.arange(len(student)), weights=weights)
    term = kind(**settings)
    term.bind(info, info)
    return term(Outputs(student), Outputs(teacher), batch)


def test_softened_logits_are_over_the_temperature():
    logits = torch.tensor([[0.0, 2.0, 4.0]])
    assert torch.equal(soften(logits, 2.0), torch.tensor([[0.0, 1.0, 2.0]]))
    # mean 2, population variance 8 / 3
    score = 2 / math.sqrt(8 / 3)
    expected = torch.tensor([[-score / 2, 0, score / 2]])
    torch.testing.assert_close(soften(logits.half(), 2.0, standardise=True), expected)
    assert not soften(torch.full((1, 3), 7.0), 2.0, standardise=True).any()


def test_decoupled_hand_computed():
    # teacher 1/2 1/4 1/4, student 1/4 1/4 1/2; the target is the first
    teacher = torch.tensor([[0.5, 0.25, 0.25]]).log()
    student = torch.tensor([[0.25, 0.25, 0.5]]).log()
    target = torch.tensor([0])
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    second = 0.5 * math.log(0.5 / (1 / 3)) + 0.5 * math.log(0.5 / (2 / 3))
    value = decoupled_kl(student, teacher, target, 1.0, 1.0, 0.0)
    assert value.item() == pytest.approx(first, rel=1e-5)
    value = decoupled_kl(student, teacher, target, 1.0, 0.0, 1.0)
    assert value.item() == pytest.approx(second, rel=1e-5)
    value = decoupled_kl(student, teacher, target, 1.0, 2.0, 3.0)
    assert value.item() == pytest.approx(2 * first + 3 * second, rel=1e-5)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 6),
    classes=st.integers(2, 6),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
    weights=st.sampled_from([(1.0, 8.0), (1.0, 0.0), (0.0, 1.0)]),
)
def test_decoupled_agrees_with_the_definition(seed, rows, classes, temperature, weights):
    random = np.random.default_rng(seed)
    student, teacher = random.normal(size=(2, rows, classes))
    target = random.integers(0, classes, size=rows)
    tensors = torch.tensor(student), torch.tensor(teacher), torch.tensor(target)
    value = decoupled_kl(*tensors, temperature, *weights)
    expected = numpy_decoupled(student, teacher, target, temperature, *weights)
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_decoupled_parts_make_up_the_divergence(temperature):
    """Equation 5: KL = target part + (1 - p_target) other part."""
    student, teacher = pair(size=2.0)
    target_part = decoupled_kl(student, teacher, TARGET, temperature, 1.0, 0.0)
    other_part = decoupled_kl(student, teacher, TARGET, temperature, 0.0, 1.0)
    rest = 1 - (teacher / temperature).softmax(-1)[torch.arange(ROWS), TARGET]
    expected = softened_kl(student, teacher, temperature)
    torch.testing.assert_close(target_part + rest * other_part, expected, rtol=1e-4, atol=1e-5)


def test_decoupled_with_two_classes_is_the_divergence():
    student, teacher = pair(classes=2)
    target = torch.tensor([0, 1, 0, 1, 0, 1])
    value = decoupled_kl(student, teacher, target, 2.0, 1.0, 8.0)
    torch.testing.assert_close(value, softened_kl(student, teacher, 2.0), rtol=1e-4, atol=1e-6)
    assert not decoupled_kl(student, teacher, target, 2.0, 0.0, 8.0).any()


def test_decoupled_is_zero_at_equality_and_after_a_shift():
    logits = torch.randn(ROWS, CLASSES) * 5
    assert not decoupled_kl(logits, logits, TARGET, 2.0).any()
    moved = logits + torch.randn(ROWS, 1)
    assert decoupled_kl(moved, logits, TARGET, 2.0).abs().max() < 1e-4
    assert decoupled_kl(logits.flip(1), logits, TARGET, 2.0).min() > 0.01


def test_target_is_the_label_and_without_one_the_teachers_top_class():
    student, teacher = pair()
    labels = torch.tensor([0, UNLABELLED, 2, UNLABELLED, UNLABELLED, 1])
    top = teacher.argmax(1)
    target = torch.tensor([0, top[1], 2, top[3], top[4], 1])
    expected = decoupled_kl(student, teacher, target, 3.0, 0.5, 4.0).mean()
    settings = {"temperature": 3.0, "target_weight": 0.5, "other_weight": 4.0}
    value = term_of(student, teacher, labels, DecoupledKD, **settings)
    assert value.item() == pytest.approx(expected.item())
    wrong = decoupled_kl(student, teacher, top, 3.0, 0.5, 4.0).mean()
    assert value.item() != pytest.approx(wrong.item(), rel=0.01)


def test_default_weights_are_the_papers():
    student, teacher = pair()
    value = term_of(student, teacher, kind=DecoupledKD).item()
    expected = numpy_decoupled(student.numpy(), teacher.numpy(), TARGET.tolist(), 2.0, 1.0, 8.0)
    assert value == pytest.approx(expected.mean(), rel=1e-4)


def test_decoupled_takes_standardised_logits():
    student, teacher = pair()
    value = term_of(student, teacher, kind=DecoupledKD, standardise=True).item()

    def scores(logits):
        return (logits - logits.mean(1, keepdim=True)) / logits.std(1, False, keepdim=True)

    expected = decoupled_kl(scores(student), scores(teacher), TARGET, 2.0).mean().item()
    assert value == pytest.approx(expected, rel=1e-3)
    stretched = term_of(student * 9 + 2, teacher, kind=DecoupledKD, standardise=True).item()
    assert stretched == pytest.approx(value, rel=1e-3)
    with pytest.raises(ConfigError, match=r"DecoupledKD\.standardise leaves nothing of two"):
        DecoupledKD(standardise=True).bind(ModelInfo(("a", "b"), 1, 1, 1, 1, "digest"), INFO)


def test_distances_hand_computed():
    # over the classes: probabilities with a correlation of 1/2
    teacher = torch.tensor([[0.5, 0.3, 0.1, 0.1]]).log()
    student = torch.tensor([[0.4, 0.1, 0.4, 0.1]]).log()
    # centred: 1/4 1/20 -3/20 -3/20 and 3/20 -3/20 3/20 -3/20
    product = (5 * 3 - 1 * 3 - 3 * 3 + 3 * 3) / 400
    length = math.sqrt(25 + 1 + 9 + 9) * math.sqrt(4 * 9) / 400
    value = inter_class_distance(student, teacher, 1.0)
    assert value.item() == pytest.approx(1 - product / length, rel=1e-5)
    # over two rows a correlation is 1 or -1: here the student has the rows the other way round
    two = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()
    assert intra_class_distance(two.flip(0), two, 1.0).tolist() == pytest.approx([2, 2])
    assert intra_class_distance(two * 0.5, two, 1.0).tolist() == pytest.approx([0, 0], abs=1e-6)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(3, 8),
    classes=st.integers(3, 6),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
    weighted=st.booleans(),
)
def test_distances_agree_with_the_definition(seed, rows, classes, temperature, weighted):
    random = np.random.default_rng(seed)
    student, teacher = random.normal(size=(2, rows, classes))
    weights = random.uniform(0.1, 3.0, size=rows) if weighted else None
    q, p = numpy_softmax(student, temperature), numpy_softmax(teacher, temperature)
    tensors = torch.tensor(student), torch.tensor(teacher)
    inter = inter_class_distance(*tensors, temperature)
    expected = [1 - numpy_correlation(a, b) for a, b in zip(q, p, strict=True)]
    np.testing.assert_allclose(inter.numpy(), temperature**2 * np.array(expected), atol=2e-4)
    row_weights = None if weights is None else torch.tensor(weights, dtype=torch.float32)
    intra = intra_class_distance(*tensors, temperature, row_weights)
    expected = [1 - numpy_correlation(a, b, weights) for a, b in zip(q.T, p.T, strict=True)]
    np.testing.assert_allclose(intra.numpy(), temperature**2 * np.array(expected), atol=2e-4)
    value = term_of(*tensors, torch.zeros(rows, dtype=torch.long), weights=row_weights,
                    temperature=temperature, inter_weight=2.0, intra_weight=0.5)  # fmt: skip
    mean = np.average(inter.numpy(), weights=weights)
    assert value.item() == pytest.approx(2 * mean + 0.5 * intra.mean().item(), rel=1e-4)


def test_distances_lie_between_zero_and_two():
    logits = torch.randn(ROWS, CLASSES) * 3
    assert not inter_class_distance(logits, logits, 2.0).any()
    assert not intra_class_distance(logits, logits, 2.0).any()
    sure = torch.tensor([[20.0, 0.0], [0.0, 20.0]])
    for distance in (inter_class_distance, intra_class_distance):
        torch.testing.assert_close(distance(sure, -sure, 1.0), torch.full((2,), 2.0))
        torch.testing.assert_close(distance(sure, -sure, 2.0), torch.full((2,), 8.0))


def test_what_does_not_vary_has_a_place():
    flat, teacher = torch.zeros(2, 3), torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.0, 0.5]])
    for distance in (inter_class_distance, intra_class_distance):
        assert not distance(flat, flat, 1.0).any()
        for one, other in ((flat, teacher), (teacher, flat)):
            value = distance(one, other, 1.0)
            torch.testing.assert_close(value, torch.full_like(value, 0.5), atol=1e-3, rtol=0)
    # one row, or one row with a weight, has nothing to be compared with
    assert not intra_class_distance(teacher[:1], torch.randn(1, 3), 1.0).any()
    one = torch.tensor([0.0, 2.0])
    assert not intra_class_distance(teacher, torch.randn(2, 3), 1.0, one).any()


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (torch.zeros(3, 4), torch.randn(3, 4)),
        (torch.randn(3, 4), torch.zeros(3, 4)),
        (torch.randn(1, 4), torch.randn(1, 4)),
        (torch.randn(3, 4), torch.eye(4)[:3] * 1e4),
        (torch.eye(4)[:3] * 1e4, torch.eye(4)[:3] * -1e4),
        (torch.eye(4)[:3].bfloat16() * 1e4, torch.eye(4)[1:].half() * 1e4),
    ],
)
@pytest.mark.parametrize("kind", EVERY)
def test_degenerate_and_extreme_logits_give_finite_numbers(kind, student, teacher):
    student = student.clone().requires_grad_()
    for temperature in (0.5, 1.0, 10.0):
        value = term_of(student, teacher, kind=kind, temperature=temperature)
        assert value.dtype == torch.float32
        assert value.isfinite()
        student.grad = None
        value.backward()
        assert student.grad.isfinite().all()


def test_extreme_logits_keep_the_decoupled_parts():
    student = torch.tensor([[1e4, -1e4, 0.0, 0.0]])
    # the student leaves the rest 2 exp(-1e4), and the teacher's class among them half of exp(-1e4)
    for weights, expected in (((1.0, 0.0), 1e4 - math.log(2)), ((0.0, 1.0), 1e4 + math.log(2))):
        value = decoupled_kl(student, -student, torch.tensor([0]), 1.0, *weights)
        assert value.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("labels", [TARGET, torch.full((ROWS,), UNLABELLED)])
@pytest.mark.parametrize("kind", EVERY)
def test_gradient_reaches_the_student_and_never_the_teacher(kind, labels):
    student, teacher = (logits.requires_grad_() for logits in pair())
    term_of(student, teacher, labels, kind, by_confidence=True).backward()
    assert student.grad.abs().min() > 0
    assert teacher.grad is None


def test_each_part_of_dist_teaches():
    for alone in ({"inter_weight": 0.0}, {"intra_weight": 0.0}):
        student, teacher = pair()
        student.requires_grad_()
        term_of(student, teacher, **alone).backward()
        assert student.grad.abs().min() > 0
    assert term_of(*pair(), inter_weight=0.0, intra_weight=0.0).item() == 0


@pytest.mark.parametrize("kind", EVERY)
def test_term_falls_to_zero_by_gradient_descent(kind):
    student, teacher = pair()
    student.requires_grad_()
    optimizer = torch.optim.Adam([student], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        value = term_of(student, teacher, kind=kind)
        value.backward()
        optimizer.step()
    assert value.item() < 0.01
    assert torch.equal(student.argmax(1), teacher.argmax(1))


@pytest.mark.parametrize("kind", EVERY)
def test_rows_count_by_their_weight(kind):
    student, teacher = pair()
    value = term_of(student, teacher, kind=kind, weights=WEIGHTS).item()
    kept = WEIGHTS > 0
    without = term_of(
        student[kept], teacher[kept], TARGET[kept], kind=kind, weights=WEIGHTS[kept]
    ).item()
    assert value == pytest.approx(without, rel=1e-5)
    assert value != pytest.approx(term_of(student, teacher, kind=kind).item(), rel=0.01)
    assert term_of(student, teacher, kind=kind, weights=torch.zeros(ROWS)).item() == 0
    halves = term_of(student, teacher, kind=kind, weights=torch.full((ROWS,), 0.5)).item()
    assert halves == pytest.approx(term_of(student, teacher, kind=kind).item(), rel=1e-5)


@pytest.mark.parametrize("kind", EVERY)
def test_whole_weight_is_as_many_rows(kind):
    student, teacher = pair()
    copies = torch.tensor([1, 3, 2, 1, 1, 2])
    repeated = [z.repeat_interleave(copies, 0) for z in (student, teacher, TARGET)]
    value = term_of(student, teacher, kind=kind, weights=copies.float()).item()
    assert value == pytest.approx(term_of(*repeated, kind=kind).item(), rel=1e-5)


@pytest.mark.parametrize("kind", EVERY)
def test_rows_count_by_the_teachers_confidence(kind):
    student, teacher = pair(size=3.0)
    value = term_of(student, teacher, kind=kind, by_confidence=True).item()
    sure = torch.tensor(numpy_softmax(teacher.numpy()).max(1), dtype=torch.float32)
    expected = term_of(student, teacher, kind=kind, weights=sure).item()
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", EVERY)
def test_rows_of_several_classes_are_refused(kind):
    with pytest.raises(ConfigError, match=rf"{kind.__name__} compares .*several: use LogitKD\."):
        kind().bind(SEVERAL, SEVERAL)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_temperature_is_refused(kind, value):
    with pytest.raises(ConfigError, match=rf"{kind.__name__}\.temperature is .*must be positive"):
        kind(temperature=value)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (DecoupledKD, "target_weight"),
        (DecoupledKD, "other_weight"),
        (DistKD, "inter_weight"),
        (DistKD, "intra_weight"),
    ],
)
def test_weights_of_the_parts_may_be_scheduled_and_not_negative(kind, name):
    with pytest.raises(ConfigError, match=rf"{kind.__name__}\.{name} is -1.*: give 0 or more"):
        kind(**{name: -1.0})
    student, teacher = pair()
    term = kind(**{name: Schedule(3.0, 0.0)})
    batch = Batch({}, TARGET, torch.arange(ROWS))
    for progress, weight in ((0.0, 3.0), (1.0, 0.0)):
        term.advance(progress)
        value = term(Outputs(student), Outputs(teacher), batch)
        assert torch.equal(value, term_of(student, teacher, kind=kind, **{name: weight}))


@pytest.mark.parametrize("kind", EVERY)
def test_teacher_is_asked_for_logits_only(kind):
    assert kind.uses_teacher
    assert not kind.uses_labels  # unlabelled rows are of use
    assert kind().teacher_needs() == {"logits"}


@pytest.mark.parametrize(
    ("term", "text"),
    [
        (DecoupledKD(), "DecoupledKD T=2 target=1 other=8"),
        (DecoupledKD(standardise=True), "DecoupledKD T=2 target=1 other=8 standardised"),
        (DecoupledKD(other_weight=Schedule(8.0, 2.0)), "DecoupledKD T=2 target=1 other=8→2"),
        (DistKD(), "DistKD T=1 inter=1 intra=1"),
        (DistKD(temperature=4, intra_weight=2), "DistKD T=4 inter=1 intra=2"),
    ],
)
def test_description_shows_the_settings(term, text):
    assert term.describe() == text
