import json

import pytest
import torch
from jsonargparse import ArgumentParser
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification, BertTokenizer, pipeline

from kd.budget import NARROWABLE, Shape, shape_of
from kd.errors import ConfigError, ModelError
from kd.models import EncoderClassifier
from kd.shrink import Shrink
from tests.conftest import FAMILIES, LABELS, TEXTS

SOURCE = Shape(3, 16, 2, 32)
FEW = TEXTS[:3]
SMALL = {"width": 8, "heads": 2, "intermediate": 16}

families = pytest.mark.parametrize("family", [*FAMILIES, "xlm-roberta"])
narrowable = pytest.mark.parametrize("family", NARROWABLE)


@pytest.fixture(autouse=True)
def _more_families(monkeypatch):
    monkeypatch.setitem(FAMILIES, "xlm-roberta", FAMILIES["roberta"])


def load(folder, texts=TEXTS, labels=LABELS, keep_layers=None, **settings):
    shrink = Shrink(**settings) if settings else None
    model = EncoderClassifier(path=str(folder), shrink=shrink, keep_layers=keep_layers)
    model.load(labels, texts)
    return model


def encode(model, texts=TEXTS):
    return dict(model.tokenizer(texts, padding=True, return_tensors="pt"))


@torch.no_grad()
def logits_of(model, texts=TEXTS):
    return model.eval()(encode(model, texts)).logits


def shaken(folder):
    """Weights away from where they begin, so that each of them matters."""
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    network.save_pretrained(folder)
    return folder


# Narrower layers


@narrowable
@pytest.mark.parametrize("method", ["svd", "magnitude"])
def test_narrow_student_trains_and_is_saved(make_model, tmp_path, family, method):
    folder = shaken(make_model(family=family))
    model = load(folder, method=method, vocabulary=True, **SMALL)
    assert shape_of(model.loaded.config) == Shape(3, 8, 2, 16)
    assert (model.info.width, model.info.heads, model.info.labels) == (8, 2, LABELS)
    assert all(module.training for module in model.modules())
    outputs = model(encode(model), frozenset({"hidden_states", "attentions"}))
    assert [states.shape[-1] for states in outputs.hidden_states] == [8] * 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    labels = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0])
    before = functional.cross_entropy(logits_of(model), labels)
    functional.cross_entropy(model.eval()(encode(model)).logits, labels).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None or "pooler" in name, name
    optimizer.step()
    assert functional.cross_entropy(logits_of(model), labels) < before
    model.save(tmp_path / "saved")
    classify = pipeline("text-classification", str(tmp_path / "saved"), top_k=None, device="cpu")
    for answer, row in zip(classify(TEXTS), logits_of(model).softmax(-1).tolist(), strict=True):
        scores = {item["label"]: item["score"] for item in answer}
        assert scores == pytest.approx(dict(zip(LABELS, row, strict=True)), abs=1e-5)
    again = EncoderClassifier(path=str(tmp_path / "saved"))
    again.load()
    assert again.info == model.info
    torch.testing.assert_close(logits_of(again), logits_of(model))
    model.describe(tmp_path / "described", 32)
    again = EncoderClassifier.from_folder(tmp_path / "described", model.loaded.state_dict())
    torch.testing.assert_close(logits_of(again), logits_of(model))


@narrowable
@pytest.mark.parametrize("method", ["svd", "magnitude"])
def test_same_sizes_are_the_same_student(make_model, family, method):
    folder = shaken(make_model(family=family))
    model = load(folder, method=method, width=16, heads=2, intermediate=32)
    torch.testing.assert_close(logits_of(model), logits_of(load(folder)), atol=1e-5, rtol=0)


def test_sizes_that_are_not_given_stay(make_model):
    folder = make_model()
    assert shape_of(load(folder, width=8).loaded.config) == Shape(3, 8, 2, 32)
    assert shape_of(load(folder, intermediate=9).loaded.config) == Shape(3, 16, 2, 9)
    assert shape_of(load(folder, width=8, heads=1).loaded.config) == Shape(3, 8, 1, 32)
    assert shape_of(load(folder, vocabulary=True).loaded.config) == SOURCE


def test_kept_layers_are_narrowed(make_model):
    folder = shaken(make_model())
    model = load(folder, keep_layers=[0, 2], **SMALL, method="magnitude")
    assert shape_of(model.loaded.config) == Shape(2, 8, 2, 16)
    last = load(folder).loaded.bert.encoder.layer[2].attention.self.value.weight
    assert torch.isin(model.loaded.bert.encoder.layer[1].attention.self.value.weight, last).all()


def test_narrowing_looks_at_the_texts(make_model):
    folder = shaken(make_model())
    first, same, other = (load(folder, texts, width=8) for texts in (TEXTS, TEXTS, TEXTS[5:]))
    torch.testing.assert_close(logits_of(first), logits_of(same))
    assert not torch.allclose(logits_of(first), logits_of(other), atol=1e-4)


def test_long_texts_and_many_are_looked_at_in_part(make_model, monkeypatch):
    seen = []
    kind = type(load(make_model()).loaded)
    original = kind.forward

    def forward(self, *args, **inputs):
        seen.append(inputs["input_ids"])
        return original(self, *args, **inputs)

    monkeypatch.setattr(kind, "forward", forward)
    texts = ["happy " * (1 + number % 80) for number in range(700)] + ["sad"] * 300
    model = load(make_model(), texts, width=8)
    assert sum(map(len, seen)) == 128
    assert max(ids.shape[1] for ids in seen) == 63  # the tiny model has 64 positions
    words = [model.tokenizer.decode(row) for ids in seen for row in ids]
    assert sum("sad" in word for word in words) == pytest.approx(0.3 * 128, abs=1)
    seen.clear()
    load(make_model(), texts[500:], width=8)  # less than two for each
    assert sum("sad" in model.tokenizer.decode(row) for ids in seen for row in ids) > 70
    with pytest.raises(ConfigError, match=r"Shrink\.method is svd, which looks at the training"):
        load(make_model(), [], width=8)
    load(make_model(), [], width=8, method="magnitude")


# Fewer tokens


@families
def test_pruned_student_says_the_same(make_model, tokenizer, tmp_path, family):
    folder = shaken(make_model(family=family))
    whole, pruned = load(folder), load(folder, FEW, vocabulary=True)
    torch.testing.assert_close(logits_of(pruned, FEW), logits_of(whole, FEW), atol=1e-6, rtol=0)
    rows = len(pruned.tokenizer)
    assert rows < len(whole.tokenizer)
    embedding = pruned.loaded.get_input_embeddings()
    assert embedding.weight.shape[0] == pruned.loaded.config.vocab_size == rows
    assert pruned.loaded.config.pad_token_id == embedding.padding_idx == 0
    for token in ("cls", "sep"):
        number = getattr(pruned.tokenizer, f"{token}_token_id")
        assert getattr(pruned.loaded.config, f"{token}_token_id", number) == number
    old = whole.loaded.get_input_embeddings().weight
    for token, number in pruned.tokenizer.get_vocab().items():
        assert torch.equal(embedding.weight[number], old[tokenizer.get_vocab()[token]])
    assert logits_of(pruned, ["quite another text, zebra!"]).isfinite().all()
    assert pruned.info.vocabulary != whole.info.vocabulary
    expected = logits_of(whole, FEW).softmax(-1).tolist()
    pruned.save(tmp_path / "saved")
    classify = pipeline("text-classification", str(tmp_path / "saved"), top_k=None, device="cpu")
    for answer, row in zip(classify(FEW), expected, strict=True):
        scores = {item["label"]: item["score"] for item in answer}
        assert scores == pytest.approx(dict(zip(LABELS, row, strict=True)), abs=1e-5)


def test_positions_counted_from_the_padding_stay(make_model, tokenizer):
    """RoBERTa's first position is the number behind the padding's, here among words."""
    pieces = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    pieces.insert(30, pieces.pop(0))
    folder = shaken(make_model(family="roberta", pad_token_id=30, max_position_embeddings=120))
    BertTokenizer(vocab={token: row for row, token in enumerate(pieces)}).save_pretrained(folder)
    whole, pruned = load(folder), load(folder, FEW, vocabulary=True)
    assert pruned.loaded.config.pad_token_id == 30 < len(pruned.tokenizer) < len(pieces)
    torch.testing.assert_close(logits_of(pruned, FEW), logits_of(whole, FEW), atol=1e-6, rtol=0)


def test_numbers_of_special_tokens_that_are_none_are_removed(make_model):
    model = load(make_model(eos_token_id=10_000), FEW, vocabulary=True)
    assert model.loaded.config.eos_token_id is None
    assert model.loaded.config.bos_token_id == model.tokenizer.cls_token_id


def test_rare_tokens_may_go_too(make_model):
    folder = make_model()
    sizes = [
        len(load(folder, vocabulary=True, minimum_count=count).tokenizer) for count in (1, 2, 9)
    ]
    assert sizes[0] > sizes[1] > sizes[2]


def test_pruning_without_texts_is_refused(make_model):
    with pytest.raises(ModelError, match="no text to prune a vocabulary by"):
        load(make_model(), [], vocabulary=True)


# A budget


def parameters(network):
    return sum(weight.numel() for weight in network.parameters())


@narrowable
def test_budget_chooses_the_sizes(make_model, family):
    folder = make_model(family=family)
    whole = load(folder).info.parameters
    model = load(folder, max_parameters=whole // 2)
    assert model.info.parameters <= whole // 2
    assert model.info.parameters == parameters(model.loaded)
    shape = shape_of(model.loaded.config)
    assert shape != SOURCE
    assert len(model.notes) == 1
    assert model.notes[0].startswith(f"shape = {shape}: ")
    assert load(folder, max_parameters=whole).info.parameters == whole


def test_budget_counts_the_pruned_vocabulary(make_model):
    folder = make_model()
    whole = load(folder).info.parameters
    pruned = load(folder, FEW, vocabulary=True).info.parameters
    assert pruned < whole
    assert load(folder, FEW, max_parameters=pruned).info.parameters < pruned
    model = load(folder, FEW, max_parameters=pruned, vocabulary=True)
    assert model.info.parameters == pruned
    assert [note.split(" = ")[0] for note in model.notes] == ["vocabulary", "shape"]


def test_budget_takes_layers_of_the_source(make_model):
    folder = shaken(make_model())
    source = load(folder).loaded
    two = type(source)(AutoConfig.from_pretrained(folder, num_hidden_layers=2))
    model = load(folder, max_parameters=parameters(two))
    assert shape_of(model.loaded.config) == Shape(2, 16, 2, 32)
    old, new = source.bert.encoder.layer, model.loaded.bert.encoder.layer
    for place, layer in enumerate([0, 2]):
        for name, weight in new[place].state_dict().items():
            assert torch.equal(weight, old[layer].state_dict()[name])


@pytest.mark.parametrize("family", ["modernbert", "deberta-v2"])
def test_budget_of_another_family_drops_layers(make_model, family):
    folder = make_model(family=family)
    model = load(folder, max_parameters=load(folder).info.parameters - 1)
    assert shape_of(model.loaded.config) == Shape(2, 16, 2, 32)
    assert logits_of(model).isfinite().all()


def test_latency_budget(make_model):
    model = load(make_model(), max_latency_ms=10_000)
    assert shape_of(model.loaded.config) == SOURCE
    assert " ms of at most 10000 ms" in model.notes[0]


# What is said


def test_notes_say_what_was_done(make_model):
    folder = make_model()
    model = load(folder, FEW, vocabulary=True, **SMALL)
    tokens = f"{len(model.tokenizer)} of {len(load(folder).tokenizer)} tokens"
    assert model.notes == [
        f"vocabulary = {tokens}",
        f"shape = 3 layers of 8, 2 heads: {model.info.parameters / 1e6:.3g}M parameters",
    ]
    model.load(LABELS, FEW)
    assert len(model.notes) == 2
    assert load(folder).notes == []


def test_who_wants_texts(make_model):
    folder = str(make_model())
    assert EncoderClassifier(path=folder, shrink=Shrink(width=8)).wants_texts
    assert EncoderClassifier(config={"model_type": "bert"}).wants_texts
    assert not EncoderClassifier(path=folder).wants_texts


def test_recipe_gives_it_as_a_mapping():
    parser = ArgumentParser()
    parser.add_subclass_arguments(EncoderClassifier, "student")
    settings = {"path": "a", "shrink": {"width": 192, "heads": 6, "vocabulary": True}}
    text = json.dumps({"class_path": "kd.models.EncoderClassifier", "init_args": settings})
    values = parser.parse_args([f"--student={text}", "--student.shrink.method=magnitude"])
    student = parser.instantiate(values).student
    assert student.shrink == Shrink(width=192, heads=6, vocabulary=True, method="magnitude")


# Contradictions


@pytest.mark.parametrize(
    "name", ["width", "heads", "intermediate", "minimum_count", "max_parameters", "max_latency_ms"]
)
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_numbers_must_be_positive(name, value):
    with pytest.raises(ConfigError, match=rf"Shrink\.{name} is .*: give a positive"):
        Shrink(**{name: value})


@pytest.mark.parametrize("budget", [{"max_parameters": 10**6}, {"max_latency_ms": 5.0}])
@pytest.mark.parametrize("size", ["width", "heads", "intermediate"])
def test_sizes_and_a_budget_are_refused(size, budget):
    with pytest.raises(ConfigError, match=f"Shrink has {size} and a budget, which chooses"):
        Shrink(**{size: 4}, **budget)


def test_kept_layers_and_a_budget_are_refused():
    with pytest.raises(ConfigError, match="keep_layers and a shrink with a budget"):
        EncoderClassifier(path="a", keep_layers=[0], shrink=Shrink(max_parameters=10**6))
    EncoderClassifier(path="a", keep_layers=[0], shrink=Shrink(width=8))


def test_new_weights_are_not_shrunk():
    with pytest.raises(ConfigError, match=r"EncoderClassifier\.shrink makes a student from a path"):
        EncoderClassifier(config={"model_type": "bert"}, shrink=Shrink(width=8))


def test_impossible_sizes_are_refused(make_model):
    with pytest.raises(ConfigError, match=r"Shrink\.width is 32, but the source has 16"):
        load(make_model(), width=32)
    with pytest.raises(ConfigError, match="cannot make a modernbert narrower"):
        load(make_model(family="modernbert"), width=8)
