import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch

from kd.errors import ConfigError
from kd.objectives.relation import (
    ContrastiveKD,
    RelationalKD,
    SimilarityKD,
    contrastive_loss,
    relational_angle,
    relational_distance,
    similarity_distance,
)
from kd.objectives.schedules import Schedule
from kd.types import Batch, ModelInfo, Outputs

STUDENT = ModelInfo(("a", "b", "c"), 1, 2, 6, 2, "digest")
TEACHER = ModelInfo(("a", "b", "c"), 1, 3, 10, 2, "another")
KINDS = [RelationalKD, SimilarityKD, ContrastiveKD]
FUNCTIONS = [relational_distance, relational_angle, similarity_distance]
READINGS = [{}, {"pool": "mean"}, {"vectors": "logits"}]
WEIGHTS = [1.0, 0.5, 3.0, 0.2, 1.0]


def answer(info, rows=5, length=4, scale=1.0, dtype=torch.float32, gradient=False):
    """What a model of these sizes could say, at random; the last row is shortest."""
    mask = torch.ones(rows, length).long()
    mask[-1, 2:] = 0
    states = tuple(
        (torch.randn(rows, length, info.width) * scale).to(dtype).requires_grad_(gradient)
        for _ in range(info.layers + 1)
    )
    logits = (torch.randn(rows, 3) * scale).to(dtype).requires_grad_(gradient)
    return Outputs(logits, hidden_states=states, mask=mask)


def bound(kind, teacher=TEACHER, **settings):
    torch.manual_seed(1)
    term = kind(**settings)
    term.bind(STUDENT, teacher)
    return term


def value_of(term, student, teacher, weights=None, content=None):
    rows = len(student.logits)
    weights = None if weights is None else torch.tensor(weights)
    content = None if content is None else torch.tensor(content)
    batch = Batch({}, torch.zeros(rows).long(), torch.arange(rows), content, weights)
    return term(student, teacher, batch)


def read_tensor(outputs, vectors):
    return outputs.logits if vectors == "logits" else outputs.hidden_states[-1]


def huber(gap):
    return 0.5 * gap**2 if abs(gap) < 1 else abs(gap) - 0.5


def numpy_distance(student, teacher, weights):
    """Pair by pair in float64."""
    pairs = list(permutations(range(len(student)), 2))
    shares = np.array([weights[i] * weights[j] for i, j in pairs])
    relative = []
    for side in (student, teacher):
        distances = np.array([np.linalg.norm(side[i] - side[j]) for i, j in pairs])
        relative.append(distances / ((distances * shares).sum() / shares.sum()))
    losses = np.array([huber(gap) for gap in relative[0] - relative[1]])
    return (losses * shares).sum() / shares.sum()


def numpy_angle(student, teacher, weights, skip=frozenset()):
    """Triplet by triplet in float64, from directions; none with a leg to skip."""

    def cosine(side, i, j, k):
        first, second = side[i] - side[j], side[k] - side[j]
        return first @ second / np.linalg.norm(first) / np.linalg.norm(second)

    triplets = [t for t in permutations(range(len(student)), 3) if not skip & {t[:2], t[1:]}]
    shares = np.array([weights[i] * weights[j] * weights[k] for i, j, k in triplets])
    losses = np.array([huber(cosine(student, *t) - cosine(teacher, *t)) for t in triplets])
    return (losses * shares).sum() / shares.sum()


def numpy_similarity(student, teacher, weights):
    """Product by product in float64."""
    rows = range(len(student))
    matrices = []
    for side in (student, teacher):
        products = np.array([[side[i] @ side[j] for j in rows] for i in rows])
        matrices.append(products / np.linalg.norm(products, axis=1, keepdims=True))
    shares = np.outer(weights, weights)
    return ((matrices[0] - matrices[1]) ** 2 * shares).sum() / shares.sum()


def test_distances_hand_computed():
    student = torch.tensor([[0.0], [1.0], [4.0]])  # 1, 3, 4 over their mean 8/3
    teacher = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])  # 3, 5, 4 over 4
    gaps = [3 / 8 - 3 / 4, 9 / 8 - 5 / 4, 12 / 8 - 1]
    expected = sum(gap**2 / 2 for gap in gaps) / 3
    assert relational_distance(student, teacher).item() == pytest.approx(expected)


def test_angles_hand_computed():
    student = torch.tensor([[0.0], [1.0], [4.0]])  # on a line: cosines 1, -1, 1
    teacher = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])  # cosines 0, 3/5, 4/5
    expected = (0.5 + (1.6 - 0.5) + 0.5 * 0.2**2) / 3
    assert relational_angle(student, teacher).item() == pytest.approx(expected)


def test_similarities_hand_computed():
    student = torch.tensor([[1.0, 0.0], [0.0, 2.0]])  # products 1 0, 0 4: lengths one give I
    teacher = torch.tensor([[2.0], [2.0]])  # all the same: 1/√2
    expected = (2 * (1 - math.sqrt(0.5)) ** 2 + 2 * 0.5) / 4
    assert similarity_distance(student, teacher).item() == pytest.approx(expected)


def test_contrast_hand_computed():
    student = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    teacher = torch.tensor([[5.0, 0.0], [1.0, 1.0]])  # cosines 1 √½, 0 √½
    rows = contrastive_loss(student, teacher, 0.5)
    root = 2 * math.sqrt(0.5)
    expected = [math.log(1 + math.exp(root - 2)), math.log(1 + math.exp(-root))]
    assert rows.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("function", "definition"),
    [
        (relational_distance, numpy_distance),
        (relational_angle, numpy_angle),
        (similarity_distance, numpy_similarity),
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_agrees_with_the_definition(function, definition, weighted):
    student, teacher = torch.randn(5, 6), torch.randn(5, 10)
    weights = WEIGHTS if weighted else [1.0] * 5
    value = function(student, teacher, torch.tensor(WEIGHTS) if weighted else None).item()
    expected = definition(student.double().numpy(), teacher.double().numpy(), weights)
    assert value == pytest.approx(expected, rel=1e-5)


def test_parts_are_weighted_as_in_the_paper():
    student, teacher = answer(STUDENT), answer(TEACHER)
    rows = student.hidden_states[-1][:, 0], teacher.hidden_states[-1][:, 0]
    distance, angle = relational_distance(*rows).item(), relational_angle(*rows).item()
    value = value_of(bound(RelationalKD), student, teacher).item()
    assert value == pytest.approx(distance + 2 * angle)
    other = bound(RelationalKD, distance_weight=3.0, angle_weight=0.0)
    assert value_of(other, student, teacher).item() == pytest.approx(3 * distance)


def test_contrast_is_weighted_by_row():
    term, student, teacher = bound(ContrastiveKD), answer(STUDENT), answer(TEACHER)
    ours = term.student_projection(student.hidden_states[-1][:, 0])
    theirs = term.teacher_projection(teacher.hidden_states[-1][:, 0])
    assert ours.shape == theirs.shape == (5, 128)
    rows = contrastive_loss(ours, theirs, 0.07)
    value = value_of(term, student, teacher, WEIGHTS).item()
    expected = (rows * torch.tensor(WEIGHTS)).sum() / sum(WEIGHTS)
    assert value == pytest.approx(expected.item(), rel=1e-5)
    assert value != pytest.approx(rows.mean().item(), rel=1e-3)


@pytest.mark.parametrize("settings", READINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_reads_one_vector_per_row(kind, settings):
    """The same term on those vectors as logits."""
    term, student, teacher = bound(kind, **settings), answer(STUDENT), answer(TEACHER)
    vectors = []
    for side in (student, teacher):
        states = side.hidden_states[-1]
        if "pool" in settings:
            lengths = side.mask.sum(dim=1).tolist()
            rows = [row[:n].mean(dim=0) for row, n in zip(states, lengths, strict=True)]
            vectors.append(Outputs(torch.stack(rows)))
        else:
            vectors.append(Outputs(side.logits if settings else states[:, 0]))
    value = value_of(term, student, teacher).item()
    term.vectors = "logits"
    assert value == pytest.approx(value_of(term, *vectors).item(), rel=1e-5)


@pytest.mark.parametrize("kind", [RelationalKD, SimilarityKD])
def test_zero_at_equality(kind):
    term = bound(kind)
    student = answer(STUDENT, gradient=True)
    value = value_of(term, student, student)
    assert value.item() == 0.0
    value.backward()
    assert not student.hidden_states[-1].grad.any()


def test_relations_do_not_see_shift_turn_and_scale():
    student = torch.randn(6, 4)
    turn, _ = torch.linalg.qr(torch.randn(4, 4))
    moved = 3.0 * student @ turn + 5.0
    assert relational_distance(student, moved).item() < 1e-10
    assert relational_angle(student, moved).item() < 1e-10
    assert similarity_distance(student, 3.0 * student @ turn).item() < 1e-10
    assert similarity_distance(student, moved).item() > 1e-3


def test_contrast_falls_towards_agreement_and_is_blind_at_a_high_temperature():
    rows = torch.randn(5, 8)
    agreeing = contrastive_loss(rows, rows, 0.07)
    assert agreeing.max() < contrastive_loss(-rows, rows, 0.07).min()
    assert contrastive_loss(rows, rows, 1e5).tolist() == pytest.approx([math.log(5)] * 5, rel=1e-4)


def test_equal_texts_are_not_each_others_negatives():
    student, teacher = torch.randn(4, 8), torch.randn(4, 8)
    content = torch.tensor([7, 3, 7, 9])
    rows = contrastive_loss(student, teacher, 0.5, content)
    for row, there in enumerate([[0, 1, 3], [0, 1, 2, 3], [1, 2, 3], [0, 1, 2, 3]]):
        cosines = torch.cosine_similarity(student[row], teacher[there], dim=-1) / 0.5
        expected = -cosines.log_softmax(dim=0)[there.index(row)]
        assert rows[row].item() == pytest.approx(expected.item(), rel=1e-5)


def test_contrast_takes_the_texts_from_the_batch():
    student, teacher = answer(STUDENT, gradient=True), answer(TEACHER)
    term = bound(ContrastiveKD)
    apart = value_of(term, student, teacher, content=[1, 2, 3, 4, 5])
    assert torch.equal(apart, value_of(term, student, teacher))
    assert value_of(term, student, teacher, content=[1, 2, 1, 4, 5]) < apart
    alone = value_of(term, student, teacher, content=[1] * 5)
    assert alone.item() == 0.0
    alone.backward()
    assert not student.hidden_states[-1].grad.any()


@pytest.mark.parametrize("settings", READINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_the_student_and_never_the_teacher(kind, settings):
    term = bound(kind, **settings)
    student, teacher = answer(STUDENT, gradient=True), answer(TEACHER, gradient=True)
    value_of(term, student, teacher).backward()
    assert teacher.logits.grad is None
    assert all(states.grad is None for states in teacher.hidden_states)
    gradient = read_tensor(student, term.vectors).grad
    pooled = gradient if gradient.dim() == 2 else gradient[:, 0]
    assert (pooled.abs().amax(dim=-1) > 0).all()
    if "pool" in settings:
        assert not gradient[-1, 2:].any()
    assert all(weight.grad.any() for name, weight in term.named_parameters() if "weight" in name)


@pytest.mark.parametrize("settings", READINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind, settings):
    term = bound(kind, **settings)
    student, teacher = answer(STUDENT), answer(TEACHER)

    def pad(outputs, more):
        states = torch.nn.functional.pad(outputs.hidden_states[-1], (0, 0, 0, more))
        mask = torch.nn.functional.pad(outputs.mask, (0, more))
        states = states.masked_fill(mask.unsqueeze(-1) == 0, 9.0)
        return replace(outputs, hidden_states=(states,), mask=mask)

    value = value_of(term, pad(student, 2), pad(teacher, 3)).item()
    assert value == pytest.approx(value_of(term, student, teacher).item(), rel=1e-5)


@pytest.mark.parametrize("kind", [RelationalKD, SimilarityKD])
def test_row_without_weight_is_not_there(kind):
    term = bound(kind)
    student, teacher = answer(STUDENT, gradient=True), answer(TEACHER)
    value = value_of(term, student, teacher, [1.0, 0.0, 1.0, 1.0, 1.0])
    chosen = [0, 2, 3, 4]
    kept = [
        Outputs(side.logits[chosen], hidden_states=(side.hidden_states[-1][chosen],))
        for side in (student, teacher)
    ]
    assert value.item() == pytest.approx(value_of(term, *kept).item(), rel=1e-5)
    value.backward()
    gradient = student.hidden_states[-1].grad
    assert not gradient[1].any()
    assert gradient[0].any()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_have_no_size_and_may_all_be_zero(kind):
    term = bound(kind)
    student, teacher = answer(STUDENT, gradient=True), answer(TEACHER)
    value = value_of(term, student, teacher).item()
    for size in (0.01, 100.0):
        assert value_of(term, student, teacher, [size] * 5).item() == pytest.approx(value)
    nothing = value_of(term, student, teacher, [0.0] * 5)
    assert nothing.item() == 0.0
    nothing.backward()
    assert not student.hidden_states[-1].grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_confidence_weights_the_rows(kind):
    student, teacher = answer(STUDENT), answer(TEACHER)
    sure = teacher.logits.softmax(dim=-1).amax(dim=-1)
    value = value_of(bound(kind, by_confidence=True), student, teacher).item()
    expected = value_of(bound(kind), student, teacher, sure.tolist()).item()
    assert value == pytest.approx(expected, rel=1e-5)
    assert value != pytest.approx(value_of(bound(kind), student, teacher).item(), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_single_row_is_zero_with_a_gradient_of_zero(kind):
    student = answer(STUDENT, rows=1, gradient=True)
    value = value_of(bound(kind), student, answer(TEACHER, rows=1))
    assert value.item() == 0.0
    value.backward()
    assert not student.hidden_states[-1].grad.any()


def test_two_rows_have_a_distance_but_no_angle():
    """One distance over itself is 1 on both sides, so there is nothing to learn either."""
    student, teacher = torch.randn(2, 4, requires_grad=True), torch.randn(2, 3)
    value = relational_angle(student, teacher)
    assert value.item() == 0.0
    value.backward()
    assert not student.grad.any()
    assert relational_distance(student, teacher).item() == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("filling", ["zeros", "equal", "twins", "nearly"])
def test_identical_rows_give_moderate_gradients(function, filling):
    student = torch.randn(5, 6)
    if filling == "nearly":
        student[1] = student[0] + 1e-6
    elif filling == "twins":
        student[1] = student[0]
    else:
        student = torch.zeros(5, 6) if filling == "zeros" else student[:1].expand(5, 6).clone()
    student.requires_grad_()
    value = function(student, torch.randn(5, 10))
    assert value.isfinite()
    value.backward()
    assert student.grad.abs().max() < 10.0


def test_triplet_with_identical_rows_has_no_angle():
    rows, twins = torch.randn(5, 6), torch.randn(5, 10)
    twins[3] = twins[0]
    arrays = rows.double().numpy(), twins.double().numpy()
    expected = numpy_angle(*arrays, [1.0] * 5, skip={(0, 3), (3, 0)})
    assert relational_angle(rows, twins).item() == pytest.approx(expected, rel=1e-5)
    assert relational_angle(twins, rows).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", READINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_inputs_give_finite_numbers(kind, settings, dtype):
    term = bound(kind, **settings)
    student = answer(STUDENT, scale=1e4, dtype=dtype, gradient=True)
    value = value_of(term, student, answer(TEACHER, scale=-1e4, dtype=dtype))
    assert value.dtype == torch.float32
    assert value.isfinite()
    value.backward()
    gradient = read_tensor(student, term.vectors).grad
    assert gradient.isfinite().all()
    assert gradient.dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_computed_in_float32(kind):
    term = bound(kind)
    sides = answer(STUDENT, dtype=torch.bfloat16), answer(TEACHER, dtype=torch.bfloat16)
    exact = [
        replace(side, hidden_states=tuple(states.float() for states in side.hidden_states))
        for side in sides
    ]
    value = value_of(term, *sides)
    assert torch.equal(value, value_of(term, *exact))
    if kind is not ContrastiveKD:  # its projections are layers like any other
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(value, value_of(term, *sides))


def test_projections_follow_the_precision_of_training():
    term = bound(ContrastiveKD).bfloat16()
    student = answer(STUDENT, dtype=torch.bfloat16, gradient=True)
    value = value_of(term, student, answer(TEACHER, dtype=torch.bfloat16))
    value.backward()
    assert value.dtype == torch.float32
    assert term.teacher_projection.weight.grad.dtype == torch.bfloat16


def test_angles_take_no_tensor_of_every_triplet_and_width():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Sizes(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor):
                self.largest = max(self.largest, made.numel())
            return made

    with Sizes() as sizes:
        relational_angle(torch.randn(48, 128, requires_grad=True), torch.randn(48, 768)).backward()
    assert sizes.largest == 48**3


@pytest.mark.parametrize("kind", KINDS)
def test_asks_for_no_more_than_it_reads(kind):
    term = bound(kind)
    assert term.needs == {"hidden_states"}
    assert term.teacher_needs() == {"hidden_states.3"}
    assert bound(kind, by_confidence=True).teacher_needs() == {"hidden_states.3", "logits"}
    student, teacher = answer(STUDENT), answer(TEACHER)
    sparse = replace(teacher, hidden_states=(None, None, None, teacher.hidden_states[3]))
    assert torch.equal(value_of(term, student, sparse), value_of(term, student, teacher))
    on_logits = bound(kind, vectors="logits")
    assert on_logits.needs == on_logits.teacher_needs() == {"logits"}


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (RelationalKD, {"distance_weight": -1.0}, "distance_weight is -1.0: give 0 or more"),
        (RelationalKD, {"angle_weight": math.nan}, "angle_weight is nan"),
        (ContrastiveKD, {"temperature": 0.0}, "temperature is 0.0: it must be positive"),
        (ContrastiveKD, {"width": 0}, "width is 0: give 1 or more"),
    ],
)
def test_impossible_settings_are_refused(kind, settings, message):
    with pytest.raises(ConfigError, match=f"{kind.__name__}.{message}"):
        kind(**settings)


def test_temperature_follows_its_schedule():
    term = bound(ContrastiveKD, temperature=Schedule(1.0, 0.1))
    student, teacher = answer(STUDENT), answer(TEACHER)
    term.advance(1.0)
    value = value_of(term, student, teacher)
    assert torch.equal(value, value_of(bound(ContrastiveKD, temperature=0.1), student, teacher))


@pytest.mark.parametrize(
    ("term", "text"),
    [
        (RelationalKD(), "RelationalKD hidden_states first distance=1 angle=2"),
        (SimilarityKD(pool="mean"), "SimilarityKD hidden_states mean"),
        (SimilarityKD(vectors="logits"), "SimilarityKD logits"),
        (ContrastiveKD(width=64), "ContrastiveKD hidden_states first T=0.07 width=64"),
    ],
)
def test_description_shows_the_settings(term, text):
    assert term.describe() == text
