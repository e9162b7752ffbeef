import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification

from kd.budget import NARROWABLE, Shape, shape_of
from kd.errors import ConfigError
from kd.narrowing import narrow
from tests.conftest import FAMILIES, TEXTS

SIZES = {**FAMILIES, "xlm-roberta": FAMILIES["roberta"]}
SOURCE, SMALL = Shape(3, 16, 4, 32), Shape(3, 8, 2, 16)

families = pytest.mark.parametrize("family", NARROWABLE)


def build(family, **changes):
    heads = {"n_heads": 4} if family == "distilbert" else {"num_attention_heads": 4}
    config = AutoConfig.for_model(
        family, **{**SIZES[family], **heads, "vocab_size": 50, "pad_token_id": 0, **changes}
    )
    network = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            # away from the beginning, where biases are 0, gains 1 and all the rest is small
            weight.normal_(1.0 if "norm" in name.lower() and "weight" in name else 0.0, 0.4)
    return network


def inputs_of(rows=12, length=9):
    ids = torch.randint(1, 50, (rows, length))
    mask = (torch.arange(length) < torch.randint(3, length + 1, (rows, 1))).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@torch.no_grad()
def answers(network, inputs):
    return network.eval()(**inputs, output_hidden_states=True)


# Laws


@families
@pytest.mark.parametrize("method", ["svd", "magnitude"])
def test_same_sizes_are_the_same_model(family, method):
    network, inputs = build(family), inputs_of()
    copy = narrow(network, SOURCE, [inputs] if method == "svd" else [])
    assert copy is not network
    torch.testing.assert_close(
        answers(copy, inputs).logits, answers(network, inputs).logits, atol=1e-5, rtol=0
    )


def is_written(name):
    """Whether rows of a weight, or a bias, are dimensions of the hidden states."""
    ends = ("output.dense", "out_lin", "lin2", "embeddings_project")
    return name.rpartition(".")[0].endswith(ends) or "norm" in name.lower()


def repeat(network, reads=None):
    """Make the last 8 dimensions a copy of the first, and leave no use for the other spaces."""
    weights = network.state_dict()
    for name, weight in weights.items():
        if is_written(name):
            weight[8:] = weight[:8]
        elif "embeddings." in name:
            weight[:, 8:] = weight[:, :8]
        if name.endswith(("intermediate.dense.weight", "lin1.weight")):
            weight[16:] *= 100.0  # large and useless: nothing reads it
        if name.endswith(("output.dense.weight", "lin2.weight")) and "attention" not in name:
            weight[:, 16:] = 0.0
        if name.endswith(("attention.output.dense.weight", "out_lin.weight")):
            weight[:, reads] = 0.0
        if name in ("classifier.weight", "classifier.out_proj.weight"):
            weight[:, :8] = 0.0
    network.load_state_dict(weights)
    return network


@families
def test_what_adds_nothing_is_dropped_without_loss(family):
    """Hidden states that say all twice, and heads, neurons and pooled units nobody reads."""
    network = repeat(build(family), reads=[0, 1, 2, 3, 8, 9, 10, 11])  # heads 0 and 2
    inputs = inputs_of()
    small = narrow(network, SMALL, [inputs])
    assert shape_of(small.config) == SMALL
    theirs, ours = answers(network, inputs), answers(small, inputs)
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-4, rtol=1e-4)
    mask = inputs["attention_mask"].bool()
    for wide, thin in zip(theirs.hidden_states, ours.hidden_states, strict=True):
        lengths = wide[mask].norm(dim=-1), thin[mask].norm(dim=-1)
        torch.testing.assert_close(*lengths, atol=1e-4, rtol=1e-4)


@families
def test_heads_of_low_rank_are_narrowed_without_loss(family):
    network = repeat(build(family), reads=[])
    weights = network.state_dict()
    for name, weight in weights.items():
        if name.endswith(("query.weight", "key.weight", "q_lin.weight", "k_lin.weight")):
            rows = torch.cat([weight, weights[name.replace("weight", "bias")][:, None]], dim=1)
            thin = torch.randn(4, 4, 2) @ torch.linalg.pinv(torch.randn(4, 4, 2))
            rows = (thin @ rows.view(4, 4, -1)).view(16, -1)
            weight[:], weights[name.replace("weight", "bias")][:] = rows[:, :-1], rows[:, -1]
        if name.endswith(("attention.output.dense.weight", "out_lin.weight")):
            weight[:, [2, 3, 6, 7, 10, 11, 14, 15]] = 0.0  # half of each head
    network.load_state_dict(weights)
    inputs = inputs_of()
    small = narrow(network, Shape(3, 8, 4, 16), [inputs])
    assert shape_of(small.config).heads == 4
    torch.testing.assert_close(
        answers(small, inputs).logits, answers(network, inputs).logits, atol=1e-4, rtol=1e-4
    )


@families
@pytest.mark.parametrize("heads", [2, 4])
def test_magnitude_copies_numbers_as_they_are(family, heads):
    network = build(family)
    copy = narrow(network, Shape(3, 8, heads, 16))
    old, new = network.state_dict(), copy.state_dict()
    assert old.keys() == new.keys()
    words = next(name for name in old if name.endswith("word_embeddings.weight"))
    kept = [int((old[words] == column[:, None]).all(dim=0).nonzero()) for column in new[words].T]
    assert kept == sorted(set(kept))
    norms = [name for name in old if "norm" in name.lower()]
    energy = sum(old[name] ** 2 for name in norms)
    assert set(kept) == set(energy.topk(8).indices.tolist())
    for name, weight in new.items():
        if is_written(name) and weight.dim() == 1:
            assert torch.equal(weight, old[name][kept])
        assert torch.isin(weight, old[name]).all(), name  # not one number is new


def test_largest_neurons_are_kept():
    network = build("bert")
    up, down = (
        network.bert.encoder.layer[1].intermediate.dense,
        network.bert.encoder.layer[1].output.dense,
    )
    norms = (up.weight.square().sum(1) + up.bias**2).sqrt() * down.weight.norm(dim=0)
    kept = norms.topk(16).indices.sort().values
    small = narrow(network, Shape(3, 16, 4, 16)).bert.encoder.layer[1]
    assert torch.equal(small.intermediate.dense.bias, up.bias[kept])
    assert torch.equal(small.output.dense.weight, down.weight[:, kept])


def test_neurons_that_never_fire_are_dropped():
    """Their weights are large: only a look at inputs tells."""
    network, inputs = build("bert", hidden_act="relu"), inputs_of()
    with torch.no_grad():
        for layer in network.bert.encoder.layer:
            layer.intermediate.dense.bias[:16] = -1000.0
            layer.output.dense.weight[:, :16] *= 10.0
    wanted = answers(network, inputs).logits
    shape = Shape(3, 16, 4, 16)
    torch.testing.assert_close(answers(narrow(network, shape, [inputs]), inputs).logits, wanted)
    assert not torch.allclose(answers(narrow(network, shape), inputs).logits, wanted, atol=1e-2)


def test_padding_is_not_looked_at():
    network, inputs = build("bert"), inputs_of()
    longer = {name: functional.pad(value, (0, 5)) for name, value in inputs.items()}
    ours, padded = (narrow(network, SMALL, [seen]) for seen in (inputs, longer))
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(
            weight.abs(), padded.state_dict()[name].abs(), atol=1e-3, rtol=1e-3
        )


def test_dropout_is_off_while_looking():
    network, inputs = build("bert", hidden_dropout_prob=0.5), inputs_of()
    calm, wild = narrow(network, SMALL, [inputs]), narrow(network.train(), SMALL, [inputs])
    for name, weight in calm.state_dict().items():
        assert torch.equal(weight, wild.state_dict()[name])


# A real signal


@pytest.fixture(scope="module")
def trained():
    """A tiny BERT that tells praise from blame, and what it reads."""
    torch.manual_seed(0)
    words = sorted({word for text in TEXTS for word in text.replace(",", "").split()})
    rows = [
        [1, *(words.index(word) + 2 for word in text.replace(",", "").split())] for text in TEXTS
    ]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    config = AutoConfig.for_model(
        "bert",
        vocab_size=len(words) + 2,
        hidden_size=32,
        num_attention_heads=4,
        num_hidden_layers=3,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    network = AutoModelForSequenceClassification.from_config(config)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    labels = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0])
    for _ in range(60):
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(**inputs).logits, labels)
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    return network.eval(), inputs, labels


@pytest.mark.parametrize(
    "shape",
    [Shape(3, 24, 3, 48), Shape(3, 24, 4, 48), Shape(3, 16, 4, 32), Shape(3, 16, 2, 32)],
    ids=str,
)
def test_narrowed_student_starts_far_better_than_chance(trained, shape):
    network, inputs, labels = trained
    wanted = answers(network, inputs)

    def distance(student):
        logits = answers(student, inputs).logits.log_softmax(-1)
        target = wanted.logits.log_softmax(-1)
        return functional.kl_div(logits, target, reduction="batchmean", log_target=True).item()

    student = narrow(network, shape, [inputs])
    torch.manual_seed(1)
    random = type(network)(student.config)
    assert (answers(student, inputs).logits.argmax(-1) == labels).all()
    assert distance(student) < distance(random) / 5
    assert distance(student) < distance(narrow(network, shape))


def readout(states, wanted):
    """Share of the variance of hidden states `[N, D]` that a linear map from others explains."""
    inputs = torch.cat([states, torch.ones(len(states), 1)], dim=1).double()
    wanted = wanted.double()
    rest = wanted - inputs @ torch.linalg.lstsq(inputs, wanted, driver="gelsd").solution
    return 1 - (rest.square().sum() / (wanted - wanted.mean(0)).square().sum()).item()


def test_hidden_states_can_be_read_from_the_narrow_ones(trained):
    network, inputs, _ = trained
    student = narrow(network, Shape(3, 16, 4, 32), [inputs])
    random = type(network)(student.config)
    mask = inputs["attention_mask"].bool()
    wanted = [states[mask] for states in answers(network, inputs).hidden_states]
    for layer, states in enumerate(wanted):
        ours, chance = (
            readout(answers(model, inputs).hidden_states[layer][mask], states)
            for model in (student, random)
        )
        assert ours > chance + 0.1
        assert ours > 0.7


# Sides


def test_source_stays_as_it_is():
    network, inputs = build("roberta").train(), inputs_of()
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    small = narrow(network, SMALL, [inputs])
    assert network.training
    assert not any(module._forward_pre_hooks for module in network.modules())
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, before[name])
    with torch.no_grad():
        for weight in narrow(network, SOURCE).parameters():
            weight.zero_()
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, before[name])
    assert all(
        module.weight.dtype == torch.float32
        for module in small.modules()
        if isinstance(module, nn.Linear)
    )


@pytest.mark.parametrize("method", ["svd", "magnitude"])
def test_electra_with_embeddings_of_another_width(method):
    network, inputs = build("electra", embedding_size=12), inputs_of()
    seen = [inputs] if method == "svd" else []
    small = narrow(network, SMALL, seen)
    assert small.electra.embeddings_project.weight.shape == (8, 12)
    words = "electra.embeddings.word_embeddings.weight"
    assert torch.equal(small.state_dict()[words], network.state_dict()[words])
    assert answers(small, inputs).logits.isfinite().all()
    torch.testing.assert_close(
        answers(narrow(network, SOURCE, seen), inputs).logits, answers(network, inputs).logits
    )
    with pytest.raises(ConfigError, match=r"Shrink\.width is 12, the width of this ELECTRA's"):
        narrow(network, Shape(3, 12, 4, 16), seen)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (Shape(3, 32, 4, 32), r"Shrink\.width is 32, but the source has 16: give at most that"),
        (Shape(3, 16, 8, 32), r"Shrink\.heads is 8, but the source has 4"),
        (Shape(3, 16, 4, 64), r"Shrink\.intermediate is 64, but the source has 32"),
        (Shape(3, 10, 4, 32), r"4 heads of a width of 10: a head's width must be whole"),
        (Shape(3, 16, 2, 32), r"2 heads of a width of 16: .* at most the source's, 4\."),
    ],
)
def test_impossible_sizes_are_refused(shape, words):
    with pytest.raises(ConfigError, match=words):
        narrow(build("bert"), shape)


@pytest.mark.parametrize("family", ["deberta-v2", "modernbert"])
def test_other_families_are_refused(family):
    with pytest.raises(
        ConfigError, match=rf"cannot make a {family} narrower, only bert, distilbert.*keep_layers"
    ):
        narrow(build(family), SMALL)
