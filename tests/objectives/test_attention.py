import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from kd.errors import ConfigError
from kd.models import EncoderClassifier
from kd.objectives.attention import (
    AttentionKD,
    MiniLMKD,
    attention_kl,
    attention_mse,
    attention_scores,
)
from kd.types import Batch, ModelInfo, Outputs

FIELDS = ("queries", "keys", "values")
STUDENT = ModelInfo(("a", "b"), 1, 2, 8, 2, "digest")
TEACHER = ModelInfo(("a", "b"), 1, 4, 12, 2, "digest")
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
TERMS = [
    (AttentionKD, {}),
    (AttentionKD, {"matrices": "scores"}),
    (MiniLMKD, {}),
    (MiniLMKD, {"version": 1}),
]


def answer(info, mask=MASK, scale=1.0, dtype=torch.float32, gradient=False):
    """All that a model of these sizes could say, at random."""
    rows, length = mask.shape
    tensors = {
        field: tuple(
            (torch.randn(rows, length, info.width) * scale).to(dtype).requires_grad_(gradient)
            for _ in range(info.layers)
        )
        for field in FIELDS
    }
    shape = (rows, info.heads, length, length)
    lowest = torch.finfo(torch.float32).min
    attentions = tuple(
        (torch.randn(shape) * scale)
        .masked_fill(mask[:, None, None, :] == 0, lowest)
        .softmax(dim=-1)
        .to(dtype)
        .requires_grad_(gradient)
        for _ in range(info.layers)
    )
    return Outputs(torch.randn(rows, 2), attentions=attentions, mask=mask, **tensors)


def batch_of(rows, weights=None):
    weights = None if weights is None else torch.tensor(weights)
    return Batch({}, torch.zeros(rows).long(), torch.arange(rows), weights=weights)


def bound(kind, student=STUDENT, teacher=TEACHER, **settings):
    term = kind(**settings)
    term.bind(student, teacher)
    return term


def value_of(term, student, teacher, weights=None):
    return term(student, teacher, batch_of(len(student.logits), weights))


def changed(outputs, change):
    """The same outputs, every tensor of a layer changed."""
    fields = (*FIELDS, "attentions")
    return replace(outputs, **{f: tuple(change(t) for t in getattr(outputs, f)) for f in fields})


def leaves(outputs):
    return [t for field in (*FIELDS, "attentions") for t in getattr(outputs, field)]


def softmax(scores):
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def numpy_relation_kl(student, teacher, heads, mask):
    """KL of softmax(left · right / √d), row by row, head by head, query by query, in float64."""
    rows = []
    for row, tokens in enumerate(mask.sum(dim=1).tolist()):
        total = 0.0
        for head in range(heads):
            for query in range(tokens):
                said = []
                for left, right in (teacher, student):
                    left, right = left[row].double().numpy(), right[row].double().numpy()
                    size = left.shape[-1] // heads
                    part = slice(head * size, (head + 1) * size)
                    scores = [left[query, part] @ right[key, part] for key in range(tokens)]
                    said.append(softmax(np.array(scores) / math.sqrt(size)))
                total += (said[0] * np.log(said[0] / said[1])).sum()
        rows.append(total / heads / tokens)
    return np.array(rows)


def test_scores_hand_computed():
    queries = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 0.0, 1.0]]])
    keys = torch.tensor([[[1.0, 0.0, 0.0, 2.0], [2.0, 2.0, 1.0, 1.0]]])
    expected = torch.tensor([[[[1.0, 6.0], [0.0, 2.0]], [[8.0, 7.0], [2.0, 1.0]]]])
    torch.testing.assert_close(attention_scores(queries, keys, 2), expected / math.sqrt(2))


def test_scores_are_not_rounded_under_autocast():
    left, right = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = attention_scores(left, right, 2)
    assert torch.equal(scores, attention_scores(left, right, 2))


def test_scores_are_those_of_a_real_model(make_model, tokenizer):
    model = EncoderClassifier(path=str(make_model()))
    model.load()
    model.eval()
    texts = ["i love this film", "what a terrible and sad day", "a bore"]
    inputs = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    outputs = model(inputs, frozenset({"queries", "keys", "attentions"}))
    hidden = inputs["attention_mask"][:, None, None, :] == 0
    for queries, keys, attention in zip(
        outputs.queries, outputs.keys, outputs.attentions, strict=True
    ):
        scores = attention_scores(queries, keys, 2).masked_fill(hidden, -torch.inf)
        torch.testing.assert_close(scores.softmax(dim=-1), attention)


def test_mse_hand_computed():
    student = torch.tensor([[[[0.5, 0.5], [1.0, 0.0]]]])
    teacher = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    both = attention_mse(student, teacher, torch.ones(1, 2))
    assert both.item() == pytest.approx((0.25 + 0.25 + 1 + 1) / 4)
    one = attention_mse(student, teacher, torch.tensor([[1, 0]]))
    assert one.item() == pytest.approx(0.25)


def test_mse_compares_the_mean_over_heads_where_their_numbers_differ():
    student = torch.tensor([[[[0.2]], [[0.8]]]])
    teacher = torch.tensor([[[[0.3]], [[0.4]], [[0.2]]]])
    assert attention_mse(student, teacher, torch.ones(1, 1)).item() == pytest.approx(0.2**2)
    assert attention_mse(student, student.flip(1), torch.ones(1, 1)).item() == pytest.approx(0.6**2)


def test_kl_hand_computed():
    student = torch.zeros(1, 1, 2, 2)
    teacher = torch.tensor([[[[math.log(3.0), 0.0], [0.0, 0.0]]]])
    first = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert attention_kl(student, teacher, torch.ones(1, 2)).item() == pytest.approx(first / 2)
    # one token attends to itself, whatever the score
    assert attention_kl(student, teacher, torch.tensor([[1, 0]])).item() == 0.0


@pytest.mark.parametrize("matrices", ["probabilities", "scores"])
def test_attention_agrees_with_the_definition(matrices):
    student, teacher = answer(STUDENT), answer(TEACHER)
    rows = []
    for row, tokens in enumerate(MASK.sum(dim=1).tolist()):
        squares = []
        for ours, theirs in ((1, 2), (2, 4)):
            for head in range(2):
                matrices = []
                for outputs, layer in ((student, ours - 1), (teacher, theirs - 1)):
                    if matrices == "probabilities":
                        matrix = outputs.attentions[layer][row, head].numpy()
                    else:
                        queries, keys = outputs.queries[layer][row], outputs.keys[layer][row]
                        size = queries.shape[-1] // 2
                        part = slice(head * size, (head + 1) * size)
                        matrix = queries[:, part].numpy() @ keys[:, part].numpy().T
                        matrix = matrix / math.sqrt(size)
                    matrices.append(matrix[:tokens, :tokens].astype(np.float64))
                squares.append(((matrices[0] - matrices[1]) ** 2).mean())
        rows.append(np.mean(squares))
    term = bound(AttentionKD, matrices=matrices)
    assert value_of(term, student, teacher).item() == pytest.approx(np.mean(rows), rel=1e-5)
    weighted = value_of(term, student, teacher, [1.0, 0.5, 3.0]).item()
    assert weighted == pytest.approx((rows[0] + 0.5 * rows[1] + 3 * rows[2]) / 4.5, rel=1e-5)


@pytest.mark.parametrize("heads", [None, 4, 1])
@pytest.mark.parametrize("layer", [None, 3])
@pytest.mark.parametrize("relations", [None, ["values"], ["keys", "queries"]])
def test_version_2_agrees_with_the_definition(heads, layer, relations):
    student, teacher = answer(STUDENT), answer(TEACHER)
    rows = sum(
        numpy_relation_kl(
            (getattr(student, field)[-1],) * 2,
            (getattr(teacher, field)[(layer or 4) - 1],) * 2,
            heads or 2,
            MASK,
        )
        for field in relations or FIELDS
    )
    term = bound(MiniLMKD, relation_heads=heads, teacher_layer=layer, relations=relations)
    assert value_of(term, student, teacher).item() == pytest.approx(rows.mean(), rel=1e-4)
    weighted = value_of(term, student, teacher, [1.0, 0.5, 3.0]).item()
    assert weighted == pytest.approx((rows * [1.0, 0.5, 3.0]).sum() / 4.5, rel=1e-4)


@pytest.mark.parametrize("heads", [None, 4])
def test_version_1_agrees_with_the_definition(heads):
    student, teacher = answer(STUDENT), answer(TEACHER)
    attention = numpy_relation_kl(
        (student.queries[-1], student.keys[-1]), (teacher.queries[-1], teacher.keys[-1]), 2, MASK
    )
    values = numpy_relation_kl(
        (student.values[-1],) * 2, (teacher.values[-1],) * 2, heads or 2, MASK
    )
    term = bound(MiniLMKD, version=1, relation_heads=heads)
    value = value_of(term, student, teacher).item()
    assert value == pytest.approx((attention + values).mean(), rel=1e-4)


@pytest.mark.parametrize(("kind", "settings"), TERMS)
def test_zero_at_equality(kind, settings):
    term = bound(kind, teacher=STUDENT, **settings)
    same, other = answer(STUDENT, gradient=True), answer(STUDENT)
    value = value_of(term, same, same)
    assert value.item() == 0.0
    value.backward()
    read = [leaf.grad for leaf in leaves(same) if leaf.grad is not None]
    assert all(gradient.abs().max() < 1e-6 for gradient in read)
    assert value_of(term, same, other).item() > 1e-3


@pytest.mark.parametrize(("kind", "settings"), TERMS)
def test_padding_changes_nothing(kind, settings):
    term = bound(kind, **settings)
    student, teacher = answer(STUDENT), answer(TEACHER)
    expected = value_of(term, student, teacher).item()

    def spoil(tensor):
        """Write nonsense where there is no token, and two more tokens of it."""
        square = tensor.dim() == 4
        wide = torch.full(
            (*tensor.shape[:-2], 7, 7) if square else (len(tensor), 7, tensor.shape[-1]), 9.0
        )
        for row, tokens in enumerate(MASK.sum(dim=1).tolist()):
            if square:
                wide[row, :, :tokens, :tokens] = tensor[row, :, :tokens, :tokens]
            else:
                wide[row, :tokens] = tensor[row, :tokens]
        return wide

    mask = torch.nn.functional.pad(MASK, (0, 2))
    longer = [replace(changed(outputs, spoil), mask=mask) for outputs in (student, teacher)]
    assert value_of(term, *longer).item() == pytest.approx(expected, rel=1e-5)
    nobody = [replace(outputs, mask=torch.ones_like(mask)) for outputs in longer]
    assert value_of(term, *nobody).item() != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(("kind", "settings"), TERMS)
def test_gradient_reaches_the_student_and_never_the_teacher(kind, settings):
    term = bound(kind, **settings)
    student, teacher = answer(STUDENT, gradient=True), answer(TEACHER, gradient=True)
    value_of(term, student, teacher).backward()
    assert all(leaf.grad is None for leaf in leaves(teacher))
    for field in term.needs:
        gradient = getattr(student, field)[-1].grad
        assert gradient[MASK == 1].abs().max() > 0 if field != "attentions" else gradient.any()
        if field != "attentions":
            assert not gradient[MASK == 0].any()
    unread = {*FIELDS, "attentions"} - term.needs
    assert all(leaf.grad is None for field in unread for leaf in getattr(student, field))


@pytest.mark.parametrize(("kind", "settings"), TERMS)
def test_row_without_weight_is_not_there(kind, settings):
    term = bound(kind, **settings)
    student, teacher = answer(STUDENT), answer(TEACHER)
    value = value_of(term, student, teacher, [1.0, 0.0, 1.0])

    def kept(outputs):
        outputs = changed(outputs, lambda tensor: tensor[[0, 2]])
        return replace(outputs, logits=outputs.logits[[0, 2]], mask=MASK[[0, 2]])

    expected = value_of(term, kept(student), kept(teacher)).item()
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(value_of(term, student, teacher).item(), rel=1e-3)


@pytest.mark.parametrize(("kind", "settings"), TERMS)
def test_confidence_weights_the_rows(kind, settings):
    student, teacher = answer(STUDENT), answer(TEACHER)
    sure = teacher.logits.softmax(dim=-1).amax(dim=-1)
    value = value_of(bound(kind, by_confidence=True, **settings), student, teacher).item()
    expected = value_of(bound(kind, **settings), student, teacher, sure.tolist()).item()
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "settings"), TERMS)
def test_extreme_inputs_give_finite_numbers(kind, settings, dtype):
    term = bound(kind, **settings)
    student = answer(STUDENT, scale=1e4, dtype=dtype, gradient=True)
    value = value_of(term, student, answer(TEACHER, scale=-1e4, dtype=dtype))
    assert value.dtype == torch.float32
    assert value.isfinite()
    value.backward()
    for field in term.needs:
        gradient = getattr(student, field)[-1].grad
        assert gradient.isfinite().all()
        assert gradient.dtype == dtype


@pytest.mark.parametrize(("kind", "settings"), TERMS)
def test_half_precision_is_computed_in_float32(kind, settings):
    term = bound(kind, **settings)
    sides = answer(STUDENT, dtype=torch.bfloat16), answer(TEACHER, dtype=torch.bfloat16)
    exact = [changed(side, lambda tensor: tensor.float()) for side in sides]
    assert value_of(term, *sides).item() == value_of(term, *exact).item()


@pytest.mark.parametrize(("kind", "settings"), TERMS)
def test_row_without_tokens_is_zero(kind, settings):
    term = bound(kind, **settings)
    mask = torch.zeros(3, 5).long()
    student = replace(answer(STUDENT, gradient=True), mask=mask)
    value = value_of(term, student, replace(answer(TEACHER), mask=mask))
    assert value.item() == 0.0
    value.backward()
    assert not any(leaf.grad.any() for leaf in leaves(student) if leaf.grad is not None)


@pytest.mark.parametrize(
    ("kind", "settings", "needs", "asked"),
    [
        (AttentionKD, {}, {"attentions"}, {"attentions.1", "attentions.3"}),
        (
            AttentionKD,
            {"matrices": "scores", "layers": {2: 3}},
            {"queries", "keys"},
            {"queries.2", "keys.2"},
        ),
        (MiniLMKD, {}, set(FIELDS), {"queries.3", "keys.3", "values.3"}),
        (MiniLMKD, {"version": 1}, set(FIELDS), {"queries.3", "keys.3", "values.3"}),
        (MiniLMKD, {"relations": ["values"], "teacher_layer": 2}, {"values"}, {"values.1"}),
    ],
)
def test_asks_for_no_more_than_it_reads(kind, settings, needs, asked):
    term = bound(kind, **settings)
    assert term.needs == needs
    assert term.teacher_needs() == asked
    assert bound(kind, by_confidence=True, **settings).teacher_needs() == asked | {"logits"}
    student, teacher = answer(STUDENT), answer(TEACHER)
    sparse = {
        field: tuple(
            tensor if f"{field}.{layer}" in asked else None
            for layer, tensor in enumerate(getattr(teacher, field))
        )
        for field in (*FIELDS, "attentions")
    }
    value = value_of(term, student, replace(teacher, **sparse))
    assert torch.equal(value, value_of(term, student, teacher))


@pytest.mark.parametrize(("kind", "settings"), TERMS)
def test_texts_of_different_length_are_refused(kind, settings):
    term = bound(kind, **settings)
    short = answer(TEACHER, MASK[:, :4])
    with pytest.raises(ConfigError, match=r"5 and 4 tokens\): give model and teacher the same max"):
        value_of(term, answer(STUDENT), short)


@pytest.mark.parametrize(
    ("kind", "settings", "changes", "message"),
    [
        (AttentionKD, {}, {"vocabulary": "other"}, "AttentionKD compares token by token"),
        (MiniLMKD, {}, {"vocabulary": "other"}, "MiniLMKD compares token by token"),
        (AttentionKD, {"layers": {0: 0}}, {}, "0 is the embeddings, which have no attention"),
        (AttentionKD, {"layers": {1: 9}}, {}, "AttentionKD.layers is"),
        (
            AttentionKD,
            {"matrices": "scores"},
            {"heads": 3},
            "2 heads and the teacher 3: use matrices=prob",
        ),
        (MiniLMKD, {"version": 1}, {"heads": 3}, "version is 1, .* 2 heads and the teacher 3"),
        (MiniLMKD, {}, {"heads": 3}, "relation_heads is 3, .*width 8 .*12: give a divisor of 4"),
        (MiniLMKD, {"relation_heads": 8}, {}, "relation_heads is 8"),
        (MiniLMKD, {"teacher_layer": 5}, {}, "teacher_layer is 5, .*: give 1 to 4"),
        (MiniLMKD, {"teacher_layer": 0}, {}, "teacher_layer is 0"),
    ],
)
def test_impossible_pairs_are_refused(kind, settings, changes, message):
    with pytest.raises(ConfigError, match=message):
        bound(kind, teacher=replace(TEACHER, **changes), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"relation_heads": 0}, "relation_heads is 0: give 1 or more"),
        ({"relations": []}, r"relations is \[\]: name one or more"),
        ({"version": 1, "relations": ["values"]}, ".*leave it out with version 1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=f"MiniLMKD.{message}"):
        MiniLMKD(**settings)


def test_other_numbers_of_heads_are_compared_where_the_paper_can():
    teacher = replace(TEACHER, heads=3)
    attention = bound(AttentionKD, teacher=teacher)
    assert value_of(attention, answer(STUDENT), answer(teacher)).item() > 0
    relations = bound(MiniLMKD, teacher=teacher, relation_heads=4)
    assert value_of(relations, answer(STUDENT), answer(teacher)).item() > 0


def test_description_shows_the_settings():
    assert AttentionKD(layers="last").describe() == "AttentionKD probabilities last"
    assert bound(AttentionKD, matrices="scores").describe() == "AttentionKD scores 1←2,2←4"
    assert MiniLMKD().describe() == "MiniLMKD version=2"
    assert bound(MiniLMKD, teacher_layer=3).describe() == "MiniLMKD version=2 2←3"
