import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.errors import ConfigError
from kd.objectives.hidden import (
    CosineKD,
    EmbeddingKD,
    HiddenKD,
    PatientKD,
    masked_cosine,
    masked_mse,
    patient_distance,
)
from kd.types import Batch, ModelInfo, Outputs

ROWS, TOKENS = 4, 5
STUDENT = ModelInfo(("a", "b"), 1, layers=3, width=6, heads=2, vocabulary="digest")
TEACHER = ModelInfo(("a", "b"), 1, layers=12, width=8, heads=2, vocabulary="digest")
EVERY = [HiddenKD, CosineKD, PatientKD, EmbeddingKD]
BY_TOKEN = [HiddenKD, CosineKD, EmbeddingKD]
PAIRS = {
    HiddenKD: [(1, 4), (2, 8), (3, 12)],
    CosineKD: [(3, 12)],
    PatientKD: [(1, 4), (2, 8)],
    EmbeddingKD: [(0, 0)],
}


def numpy_rows(kind, student, teacher, mask=None):
    """The definitions, token by token in float64: an independent formulation."""
    student, teacher = np.float64(student), np.float64(teacher)
    rows = []
    for row in range(len(student)):
        values = []
        for a, b in zip(student[row], teacher[row], strict=True):
            lengths = math.sqrt((a * a).sum()), math.sqrt((b * b).sum())
            if kind is CosineKD:
                values.append(1 - (a * b).sum() / (lengths[0] * lengths[1]))
            elif kind is PatientKD:
                values.append(((a / lengths[0] - b / lengths[1]) ** 2).sum())
            else:
                values.append(((a - b) ** 2).sum() / len(a))
        if kind is PatientKD:
            rows.append(values[0])
        else:
            kept = [value for value, there in zip(values, mask[row], strict=True) if there]
            rows.append(sum(kept) / len(kept))
    return np.array(rows)


def some_mask():
    return torch.tensor([[1] * 5, [1] * 3 + [0] * 2, [1] + [0] * 4, [1] * 4 + [0]])


def answer(info, mask=None, dtype=torch.float32):
    mask = some_mask() if mask is None else mask
    states = tuple(
        torch.randn(*mask.shape, info.width, dtype=dtype, requires_grad=True)
        for _ in range(info.layers + 1)
    )
    logits = torch.randn(len(mask), 2, requires_grad=True)
    return Outputs(logits, hidden_states=states, mask=mask)


def batch_of(rows=ROWS, weights=None):
    return Batch({}, torch.zeros(rows, dtype=torch.long), torch.arange(rows), weights=weights)


def bound(kind, student=STUDENT, teacher=TEACHER, **settings):
    term = kind(**settings)
    term.bind(student, teacher)
    return term


def row_function(kind):
    """Of states [B, L, D] and a mask, whatever the kind reads of them."""
    if kind is PatientKD:
        return lambda student, teacher, mask: patient_distance(student[:, 0], teacher[:, 0])
    return masked_cosine if kind is CosineKD else masked_mse


# rows


def test_mean_squared_error_by_hand():
    student = torch.tensor([[[1.0, 0.0], [3.0, 4.0], [9.0, 9.0]]])
    value = masked_mse(student, torch.zeros(1, 3, 2), torch.tensor([[1, 1, 0]]))
    assert value.tolist() == [(0.5 + 12.5) / 2]


def test_cosine_by_hand():
    student = torch.tensor([[[1.0, 0.0], [3.0, 4.0], [1.0, 1.0]]])
    teacher = torch.tensor([[[0.0, 9.0], [4.0, 3.0], [-2.0, -2.0]]])
    values = [masked_cosine(student, teacher, mask[None]).item() for mask in torch.eye(3)]
    assert values == pytest.approx([1.0, 0.04, 2.0])
    whole = masked_cosine(student, teacher, torch.ones(1, 3))
    assert whole.item() == pytest.approx(3.04 / 3)


def test_patient_distance_by_hand():
    student = torch.tensor([[3.0, 0.0], [3.0, 4.0], [3.0, 4.0], [1.0, 0.0]])
    teacher = torch.tensor([[0.0, 7.0], [6.0, 8.0], [5.0, 0.0], [-3.0, 0.0]])
    assert patient_distance(student, teacher).tolist() == pytest.approx([2.0, 0.0, 0.8, 4.0])


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    kind=st.sampled_from([HiddenKD, CosineKD, PatientKD]),
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 4),
    tokens=st.integers(1, 5),
    width=st.integers(1, 6),
)
def test_rows_agree_with_the_definition(kind, seed, rows, tokens, width):
    random = np.random.default_rng(seed)
    student, teacher = random.normal(size=(2, rows, tokens, width)) * 3
    mask = np.arange(tokens) < random.integers(1, tokens + 1, size=(rows, 1))
    values = row_function(kind)(*(torch.tensor(array) for array in (student, teacher, mask)))
    expected = numpy_rows(kind, student, teacher, mask)
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [HiddenKD, CosineKD, PatientKD])
def test_rows_are_zero_at_equality_only(kind):
    states = torch.randn(ROWS, TOKENS, 8)
    values = row_function(kind)(states, states, some_mask())
    assert values.tolist() == pytest.approx([0.0] * ROWS, abs=1e-6)
    assert row_function(kind)(states.flip(2), states, some_mask()).min() > 0.1


@pytest.mark.parametrize("kind", [CosineKD, PatientKD])
def test_directions_are_compared_and_not_lengths(kind):
    student, teacher = torch.randn(2, ROWS, TOKENS, 8)
    compare = row_function(kind)
    values = compare(student, teacher, some_mask())
    torch.testing.assert_close(values, compare(student * 7, teacher / 3, some_mask()))
    assert masked_mse(student * 7, teacher, some_mask()).min() > values.max()


def test_patient_distance_is_twice_one_minus_the_cosine():
    student, teacher = torch.randn(2, ROWS, 8)
    cosines = masked_cosine(student[:, None], teacher[:, None], torch.ones(ROWS, 1))
    torch.testing.assert_close(patient_distance(student, teacher), 2 * cosines)


@pytest.mark.parametrize("compare", [masked_mse, masked_cosine])
def test_padding_changes_nothing(compare):
    mask = some_mask()
    student, teacher = torch.randn(2, ROWS, TOKENS, 8)
    values = compare(student, teacher, mask)
    garbage = 1e4 * torch.randn(2, ROWS, 3, 8)
    longer = compare(
        torch.cat([student, garbage[0]], 1),
        torch.cat([teacher, garbage[1]], 1),
        torch.cat([mask, torch.zeros(ROWS, 3, dtype=torch.long)], 1),
    )
    torch.testing.assert_close(longer, values)
    student.requires_grad_()
    compare(student, teacher, mask).sum().backward()
    assert not student.grad[mask == 0].any()
    assert student.grad[mask == 1].abs().min() > 0


@pytest.mark.parametrize("kind", [HiddenKD, CosineKD, PatientKD])
def test_a_row_knows_no_other_row(kind):
    student, teacher = torch.randn(2, ROWS, TOKENS, 8)
    mask, compare = some_mask(), row_function(kind)
    alone = [compare(student[[i]], teacher[[i]], mask[[i]]) for i in range(ROWS)]
    torch.testing.assert_close(compare(student, teacher, mask), torch.cat(alone))


@pytest.mark.parametrize("kind", [HiddenKD, CosineKD, PatientKD])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_states_give_finite_numbers(kind, dtype):
    signs = torch.tensor([1.0, -1.0, 0.0, 1.0]).repeat(ROWS, TOKENS, 192)
    student = (1e4 * signs).to(dtype).requires_grad_()
    values = row_function(kind)(student, -student, some_mask())
    assert values.dtype == torch.float32
    expected = {HiddenKD: 3e8, CosineKD: 2.0, PatientKD: 4.0}[kind]
    assert values.tolist() == pytest.approx([expected] * ROWS, rel=1e-2)
    values.sum().backward()
    assert student.grad.isfinite().all()
    assert student.grad.dtype == dtype


@pytest.mark.parametrize("kind", [HiddenKD, CosineKD, PatientKD])
def test_half_precision_is_computed_in_float32(kind):
    student, teacher = torch.randn(2, ROWS, TOKENS, 64).bfloat16()
    values = row_function(kind)(student, teacher.half(), some_mask())
    expected = numpy_rows(kind, student.float(), teacher.float(), some_mask())
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", [HiddenKD, CosineKD, PatientKD])
def test_states_of_zero_and_rows_without_tokens_give_finite_numbers(kind):
    student = torch.zeros(ROWS, TOKENS, 8, requires_grad=True)
    teacher, mask = torch.randn(ROWS, TOKENS, 8), some_mask()
    mask[2] = 0
    values = row_function(kind)(student, teacher, mask)
    assert values.isfinite().all()
    assert kind is PatientKD or values[2] == 0
    values.sum().backward()
    assert student.grad.isfinite().all()


# terms


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("width", [6, 8])
def test_term_is_the_mean_over_pairs_and_rows(kind, width):
    info = replace(TEACHER, width=width)
    term, student, teacher = bound(kind, teacher=info), answer(STUDENT), answer(info)
    values = []
    for place, (ours, theirs) in enumerate(PAIRS[kind]):
        state = student.hidden_states[ours].detach().numpy()
        if width != STUDENT.width:
            state = state @ term.projections[place].weight.detach().numpy().T
        target = teacher.hidden_states[theirs].detach().numpy()
        values.append(numpy_rows(kind, state, target, student.mask.numpy()).mean())
    value = term(student, teacher, batch_of())
    assert value.shape == ()
    assert value.item() == pytest.approx(np.mean(values), rel=1e-5)


@pytest.mark.parametrize("kind", EVERY)
def test_term_is_zero_for_a_student_like_its_teacher(kind):
    student = answer(STUDENT)
    term = bound(kind, teacher=STUDENT)
    assert term(student, student, batch_of()).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", EVERY)
def test_gradient_reaches_student_and_projections_and_never_the_teacher(kind):
    term, student, teacher = bound(kind), answer(STUDENT), answer(TEACHER)
    term(student, teacher, batch_of()).backward()
    reached = [i for i, state in enumerate(student.hidden_states) if state.grad is not None]
    assert reached == [ours for ours, _ in PAIRS[kind]]
    assert len(list(term.parameters())) == len(PAIRS[kind])
    assert all(weight.grad.abs().min() > 0 for weight in term.parameters())
    assert all(state.grad is None for state in teacher.hidden_states)


@pytest.mark.parametrize("kind", EVERY)
def test_padding_does_not_change_the_term(kind):
    term, student, teacher = bound(kind), answer(STUDENT), answer(TEACHER)
    value = term(student, teacher, batch_of())

    def noisy(outputs):
        padding = (some_mask() == 0)[..., None] * 100.0
        states = tuple(state + padding * torch.randn(1) for state in outputs.hidden_states)
        return replace(outputs, hidden_states=states)

    torch.testing.assert_close(term(noisy(student), noisy(teacher), batch_of()), value)


def test_patient_reads_the_first_token_alone():
    term, student, teacher = bound(PatientKD), answer(STUDENT), answer(TEACHER)
    value = term(student, teacher, batch_of())
    first = replace(student, hidden_states=tuple(s[:, :1] for s in student.hidden_states))
    assert torch.equal(term(first, teacher, batch_of()), value)
    last = replace(student, hidden_states=tuple(s.flip(1) for s in student.hidden_states))
    assert not torch.equal(term(last, teacher, batch_of()), value)


def test_embeddings_are_hidden_state_zero():
    student, teacher = answer(STUDENT), answer(TEACHER)
    embedding, hidden = bound(EmbeddingKD), bound(HiddenKD, layers={0: 0})
    hidden.load_state_dict(embedding.state_dict())
    values = [term(student, teacher, batch_of()) for term in (embedding, hidden)]
    assert torch.equal(*values)


@pytest.mark.parametrize("kind", EVERY)
def test_rows_count_by_their_weights(kind):
    term, student, teacher = bound(kind), answer(STUDENT), answer(TEACHER)
    rows = [
        term(student, teacher, batch_of(weights=torch.eye(ROWS)[i])).item() for i in range(ROWS)
    ]
    assert len({round(row, 4) for row in rows}) == ROWS
    value = term(student, teacher, batch_of(weights=torch.tensor([1.0, 0.0, 2.0, 1.0])))
    assert value.item() == pytest.approx((rows[0] + 2 * rows[2] + rows[3]) / 4, rel=1e-5)
    assert term(student, teacher, batch_of()).item() == pytest.approx(np.mean(rows), rel=1e-5)
    assert term(student, teacher, batch_of(weights=torch.zeros(ROWS))).item() == 0


@pytest.mark.parametrize("kind", EVERY)
def test_rows_count_by_the_confidence_of_the_teacher(kind):
    student, teacher = answer(STUDENT), answer(TEACHER)
    sure = teacher.logits.softmax(-1).amax(-1).detach()
    torch.manual_seed(1)
    plain = bound(kind)
    torch.manual_seed(1)
    term = bound(kind, by_confidence=True)
    value = term(student, teacher, batch_of())
    assert torch.equal(value, plain(student, teacher, batch_of(weights=sure)))
    assert not torch.equal(value, plain(student, teacher, batch_of()))


@pytest.mark.parametrize("kind", EVERY)
def test_teacher_is_asked_for_the_layers_of_the_pairs(kind):
    layers = {f"hidden_states.{theirs}" for _, theirs in PAIRS[kind]}
    assert kind.needs == {"hidden_states"}
    assert kind.uses_teacher
    assert not kind.uses_labels
    assert bound(kind).teacher_needs() == layers
    assert bound(kind, by_confidence=True).teacher_needs() == layers | {"logits"}


@pytest.mark.parametrize("kind", EVERY)
def test_what_was_not_asked_for_is_not_read(kind):
    term, student, teacher = bound(kind), answer(STUDENT), answer(TEACHER)
    value = term(student, teacher, batch_of())
    asked = {theirs for _, theirs in PAIRS[kind]}
    states = tuple(s if i in asked else None for i, s in enumerate(teacher.hidden_states))
    sparse = replace(teacher, logits=None, mask=None, hidden_states=states)
    assert torch.equal(term(student, sparse, batch_of()), value)


# binding


@pytest.mark.parametrize("kind", EVERY)
def test_projections_are_there_only_where_widths_differ(kind):
    shapes = {f"projections.{i}.weight": (8, 6) for i in range(len(PAIRS[kind]))}
    state = bound(kind).state_dict()
    assert {name: tuple(weight.shape) for name, weight in state.items()} == shapes
    assert not bound(kind, teacher=replace(TEACHER, width=6)).state_dict()


def test_projection_of_equal_widths_is_there_when_asked_for():
    term = bound(HiddenKD, STUDENT, STUDENT, project=True)
    assert [tuple(weight.shape) for weight in term.parameters()] == [(6, 6)] * 3
    student, teacher = answer(STUDENT), answer(STUDENT)
    plain = bound(HiddenKD, STUDENT, STUDENT, project=False)
    assert not list(plain.parameters())
    value = plain(student, teacher, batch_of())
    assert not torch.equal(term(student, teacher, batch_of()), value)
    for weight in term.parameters():
        torch.nn.init.eye_(weight)
    torch.testing.assert_close(term(student, teacher, batch_of()), value)


def test_different_widths_without_projection_are_refused():
    with pytest.raises(
        ConfigError,
        match=r"HiddenKD\.project is false, but the student's width is 6 and the teacher's 8: "
        "leave it out",
    ):
        bound(HiddenKD, project=False)


@pytest.mark.parametrize("kind", EVERY)
def test_binding_again_keeps_what_was_learnt(kind):
    term = bound(kind)
    before = list(term.parameters())
    term.bind(STUDENT, TEACHER)
    after = list(term.parameters())
    assert len(before) == len(PAIRS[kind])
    assert all(first is second for first, second in zip(before, after, strict=True))
    term.bind(STUDENT, replace(TEACHER, width=10))
    assert {tuple(weight.shape) for weight in term.parameters()} == {(10, 6)}


@pytest.mark.parametrize("kind", EVERY)
def test_checkpoint_brings_the_term_back(kind):
    student, teacher = answer(STUDENT), answer(TEACHER)
    first, second = bound(kind), bound(kind)
    value = first(student, teacher, batch_of())
    assert not torch.equal(second(student, teacher, batch_of()), value)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(student, teacher, batch_of()), value)


@pytest.mark.fault(36)
@pytest.mark.parametrize("kind", BY_TOKEN)
def test_other_tokens_are_refused(kind):
    with pytest.raises(
        ConfigError, match=f"{kind.__name__} compares token by token, but .* different vocab"
    ):
        bound(kind, teacher=replace(TEACHER, vocabulary="other"))


@pytest.mark.parametrize("kind", BY_TOKEN)
def test_texts_of_different_length_are_refused(kind):
    longer = torch.ones(ROWS, TOKENS + 1)
    with pytest.raises(
        ConfigError,
        match=rf"^{kind.__name__} .* read texts of different length .*: give model and teacher the "
        r"same max_length\.$",
    ):
        bound(kind)(answer(STUDENT), answer(TEACHER, longer), batch_of())


def test_patient_takes_other_tokens():
    term = bound(PatientKD, teacher=replace(TEACHER, vocabulary="other"))
    longer = torch.ones(ROWS, TOKENS + 1)
    assert term(answer(STUDENT), answer(TEACHER, longer), batch_of()).item() > 0


@pytest.mark.parametrize("kind", [HiddenKD, PatientKD])
def test_layer_map_that_does_not_fit_is_refused(kind):
    with pytest.raises(ConfigError, match=rf"{kind.__name__}\.layers is {{4: 1}}"):
        bound(kind, layers={4: 1})


def test_the_last_layers_meet_whatever_the_depths():
    term = bound(CosineKD, TEACHER, STUDENT)
    assert term.pairs == ((12, 3),)
    assert term(answer(TEACHER), answer(STUDENT), batch_of()).item() > 0


@pytest.mark.parametrize(
    ("kind", "settings", "text"),
    [
        (HiddenKD, {}, "HiddenKD 1←4,2←8,3←12"),
        (HiddenKD, {"layers": "skip"}, "HiddenKD 1←4,2←8"),
        (HiddenKD, {"layers": {0: 0, 3: 9}}, "HiddenKD 0←0,3←9"),
        (CosineKD, {}, "CosineKD 3←12"),
        (PatientKD, {}, "PatientKD 1←4,2←8"),
        (PatientKD, {"layers": "last"}, "PatientKD 1←10,2←11,3←12"),
        (EmbeddingKD, {}, "EmbeddingKD"),
    ],
)
def test_description_shows_the_pairs_once_they_are_known(kind, settings, text):
    assert kind(**settings).describe() == kind.__name__
    assert bound(kind, **settings).describe() == text


# devices and precisions


@pytest.mark.parametrize("kind", EVERY)
def test_nothing_waits_for_the_device(kind):
    """The meta device has no values: reading one there is an error."""
    term = bound(kind, by_confidence=True).to("meta")

    def moved(outputs):
        states = tuple(state.to("meta") for state in outputs.hidden_states)
        mask = outputs.mask.to("meta")
        return replace(outputs, logits=outputs.logits.to("meta"), hidden_states=states, mask=mask)

    batch = batch_of(weights=torch.ones(ROWS)).to("meta")
    assert term(moved(answer(STUDENT)), moved(answer(TEACHER)), batch).device.type == "meta"


@pytest.mark.parametrize("kind", EVERY)
def test_half_precision_gives_a_finite_float32(kind):
    student, teacher = answer(STUDENT, dtype=torch.bfloat16), answer(TEACHER, dtype=torch.bfloat16)
    value = bound(kind).bfloat16()(student, teacher, batch_of())
    assert value.dtype == torch.float32
    assert value.isfinite()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = bound(kind)(answer(STUDENT), answer(TEACHER), batch_of())
    assert value.dtype == torch.float32
    assert value.isfinite()
