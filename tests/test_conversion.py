import logging

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from kd.conversion import convert, quantise
from kd.errors import ModelError
from kd.models import EncoderClassifier, choose_classifier
from kd.seq2seq import Seq2SeqClassifier
from tests.conftest import FAMILIES, LABELS, TEXTS

WRITERS = {
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
    "bart": {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2}
    | {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    | {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64},
}

QUICK_FIRST = ["bert", *(pytest.param(one, marks=pytest.mark.slow) for one in list(FAMILIES)[1:])]


def strong(model):
    """Return a model whose answers differ from text to text, as those of a trained one."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(6)
    return model.eval()


def loaded(folder):
    model = choose_classifier(folder)(path=str(folder))
    model.load(fresh_head=False)
    return strong(model)


def inputs_of(model, names, rows, length, short):
    """Return random inputs, every other row padded from ``short`` tokens on."""
    ids = torch.randint(5, len(model.tokenizer), (rows, length))
    mask = torch.ones_like(ids)
    mask[1::2, short:] = 0
    ids[mask == 0] = model.tokenizer.pad_token_id
    types = torch.zeros_like(ids)
    types[:, length // 2 :] = 1
    return dict(zip(names, (ids, mask, types), strict=False))


def session_of(file):
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def answer(session, inputs):
    return session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})[0]


def assert_same_answers(model, file, names, longest):
    session = session_of(file)
    assert tuple(one.name for one in session.get_inputs()) == names
    assert {tuple(one.shape) for one in session.get_inputs()} == {("batch", "length")}
    found = []
    for rows, length in [(1, 1), (1, longest), (2, 2), (3, 19), (7, longest)]:
        inputs = inputs_of(model, names, rows, length, short=max(1, length // 3))
        with torch.inference_mode():
            wanted = model(inputs).logits.numpy()
        np.testing.assert_allclose(answer(session, inputs), wanted, rtol=1e-4, atol=1e-4)
        found.append(wanted)
    assert np.concatenate(found).std(axis=0).max() > 1e-3  # or the comparison says nothing


@pytest.mark.parametrize("family", QUICK_FIRST)
def test_onnx_answers_as_torch_does_at_every_length_and_in_eight_bits(
    make_model, tmp_path, family, capfd, recwarn
):
    width = {"hidden_size": 64, "intermediate_size": 128, "dim": 64, "hidden_dim": 128}
    model = loaded(make_model(family=family, vocab_size=2000, **width))
    attention = model.network.config._attn_implementation
    names = convert(model, tmp_path / "model.onnx")
    assert model.network.config._attn_implementation == attention
    assert ("token_type_ids" in names) == (getattr(model.network.config, "type_vocab_size", 0) > 1)
    assert_same_answers(model, tmp_path / "model.onnx", names, model.max_length)

    quantise(tmp_path / "model.onnx", tmp_path / "model_int8.onnx")
    assert {path.name for path in tmp_path.glob("*.onnx*")} == {"model.onnx", "model_int8.onnx"}
    weights = sum(weight.numel() for weight in model.parameters())
    graph = (tmp_path / "model.onnx").stat().st_size - 4 * weights
    assert (tmp_path / "model_int8.onnx").stat().st_size < 1.5 * weights + 1.5 * graph
    inputs = inputs_of(model, names, 32, 20, short=7)
    found = answer(session_of(tmp_path / "model_int8.onnx"), inputs)
    wanted = answer(session_of(tmp_path / "model.onnx"), inputs)
    assert not np.array_equal(found, wanted)
    assert np.abs(found - wanted).mean() < 0.2 * wanted.std() + 0.05

    assert logging.root.manager.disable == logging.NOTSET
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


@pytest.mark.slow
@pytest.mark.parametrize("family", WRITERS)
def test_models_that_write_convert_as_they_score_the_classes(tmp_path, family):
    model = Seq2SeqClassifier(config={"model_type": family, **WRITERS[family]})
    model.load(labels=["negative", "very positive"], texts=TEXTS)
    names = convert(strong(model), tmp_path / "model.onnx")
    assert_same_answers(model, tmp_path / "model.onnx", names, 60)


def test_a_model_beyond_one_file_is_refused_in_a_sentence(tmp_path):
    config = AutoConfig.for_model("bert", vocab_size=1_000_000, num_labels=len(LABELS))
    model = EncoderClassifier(path="large")
    with torch.device("meta"):
        model.network = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ModelError, match=r"has 3\.4 GB of weights .* --onnx=false"):
        convert(model, tmp_path / "model.onnx")


class OfTwo(EncoderClassifier):
    """Answers two texts at a time and no other number."""

    def forward(self, inputs, needs=frozenset()):
        assert len(inputs["input_ids"]) == 2
        return super().forward(inputs, needs)


class OfValues(EncoderClassifier):
    """Does what no graph can hold: looks at the values."""

    def forward(self, inputs, needs=frozenset()):
        if inputs["input_ids"].sum().item() > 100:
            raise ValueError
        return super().forward(inputs, needs)


@pytest.mark.parametrize("kind", [OfTwo, pytest.param(OfValues, marks=pytest.mark.slow)])
def test_what_torch_cannot_convert_is_refused_in_a_sentence(make_model, tmp_path, kind):
    model = kind(path=str(make_model()))
    model.load(fresh_head=False)
    attention = model.network.config._attn_implementation
    with pytest.raises(ModelError, match="cannot convert a bert to ONNX: export it with --onnx=f"):
        convert(model, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
    assert model.network.config._attn_implementation == attention
