import pytest
import torch

from kd.errors import ModelError
from kd.models import EncoderClassifier
from kd.projections import PROJECTIONS, captured
from tests.conftest import FAMILIES

FIELDS = frozenset(PROJECTIONS)


def loaded(folder):
    model = EncoderClassifier(path=str(folder))
    model.load()
    return model.eval()


def read(model, texts=("i love this film", "what a sad day")):
    inputs = model.tokenizer(list(texts), padding=True, return_tensors="pt")
    return inputs, model(dict(inputs), FIELDS)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_shows_queries_keys_and_values(make_model, family):
    model = loaded(make_model(family=family))
    inputs, outputs = read(model)
    for field in PROJECTIONS:
        states = getattr(outputs, field)
        assert len(states) == model.info.layers
        assert all(s.shape == (*inputs["input_ids"].shape, model.info.width) for s in states)
        assert not torch.equal(states[0], states[1])
    assert not torch.equal(outputs.queries[0], outputs.keys[0])


def test_values_are_those_of_the_layer(make_model):
    model = loaded(make_model())
    inputs, _ = read(model)
    outputs = model(dict(inputs), FIELDS | {"hidden_states"})
    attention = model.loaded.base_model.encoder.layer[1].attention.self
    assert torch.equal(outputs.values[1], attention.value(outputs.hidden_states[1]))
    assert torch.equal(outputs.queries[1], attention.query(outputs.hidden_states[1]))
    assert torch.equal(outputs.keys[1], attention.key(outputs.hidden_states[1]))


def test_attention_is_made_of_them(make_model):
    model = loaded(make_model())
    inputs = model.tokenizer("i love this film", return_tensors="pt")
    outputs = model(dict(inputs), FIELDS | {"attentions"})
    heads = model.info.heads

    def split(states):
        return states.unflatten(-1, (heads, -1)).transpose(1, 2)

    queries, keys = split(outputs.queries[2]), split(outputs.keys[2])
    scores = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
    assert torch.allclose(scores.softmax(-1), outputs.attentions[2], atol=1e-6)


def test_no_hook_stays_behind(make_model):
    model = loaded(make_model())
    read(model)
    assert not any(module._forward_hooks for module in model.loaded.base_model.encoder.modules())
    assert model(dict(model.tokenizer("i love", return_tensors="pt"))).queries is None


def test_unknown_attention_is_refused(make_model):
    network = loaded(make_model()).loaded
    network.base_model.encoder.layer[0].attention.self.query = torch.nn.Identity()
    with (
        pytest.raises(ModelError, match="queries of a bert cannot be read"),
        captured(network, ["queries"]),
    ):
        pass
