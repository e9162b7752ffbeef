import json

import pytest
import torch
from safetensors.torch import load_file

from kd.errors import ModelError
from kd.layers import class_probabilities
from kd.models import EncoderClassifier
from tests.conftest import LABELS

SEVERAL, ONE = "multi_label_classification", "single_label_classification"


def loaded(folder, **settings):
    model = EncoderClassifier(path=str(folder))
    model.load(LABELS, **settings)
    return model


@pytest.mark.parametrize("stored", [None, ONE, SEVERAL])
@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("labels", [LABELS, ("other", "names", "three")])
def test_a_student_becomes_what_the_data_is(make_model, tmp_path, stored, wanted, labels):
    folder = make_model(problem_type=stored, labels=labels)
    model = loaded(folder, multi_label=wanted)
    assert model.info.multi_label is wanted
    model.save(tmp_path / "saved")
    said = json.loads((tmp_path / "saved" / "config.json").read_text())["problem_type"]
    assert said == (SEVERAL if wanted else ONE)


def test_what_a_model_says_of_itself_stays(make_model, tmp_path):
    folder = make_model(problem_type=SEVERAL)
    model = EncoderClassifier(path=str(folder), keep_layers=[0, 2])
    model.load()
    assert model.info.multi_label
    model = loaded(folder, multi_label=True)
    model.describe(tmp_path / "described", 32)
    weights = load_file(folder / "model.safetensors")
    assert EncoderClassifier.from_folder(tmp_path / "described", weights).info.multi_label
    plain = EncoderClassifier(path=str(make_model("plain")))
    plain.load()
    assert not plain.info.multi_label


def test_a_new_model_can_have_several_labels(tokenizer, make_model):
    config = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "intermediate_size": 32}
    model = EncoderClassifier(config=config, tokenizer=str(make_model()))
    model.load(LABELS, multi_label=True)
    assert model.info.multi_label
    assert model.loaded.config.problem_type == SEVERAL


@pytest.mark.parametrize(
    ("stored", "wanted", "words"),
    [
        (None, True, "problem_type None, but data.multi_label is true: .* for multi_label_class"),
        (ONE, True, "problem_type single_label_.* data.multi_label is true: .* for multi_label_"),
        (SEVERAL, False, "problem_type multi_.* data.multi_label is false: .* for single_label_"),
    ],
)
def test_a_teacher_of_another_problem_is_refused(make_model, stored, wanted, words):
    folder = make_model(problem_type=stored)
    with pytest.raises(ModelError, match=words) as error:
        loaded(folder, fresh_head=False, multi_label=wanted)
    assert str(folder) in str(error.value)
    loaded(folder, fresh_head=False, multi_label=not wanted)


def test_probabilities_are_a_softmax_or_a_sigmoid_each():
    logits = torch.tensor([[0.0, 3.0**0.5, -1.0], [1e4, -1e4, 0.0]], dtype=torch.float64)
    one, several = (class_probabilities(logits, multi_label) for multi_label in (False, True))
    assert one.dtype == several.dtype == torch.float32
    assert one.sum(dim=-1).tolist() == pytest.approx([1.0, 1.0])
    assert one[0].tolist() == pytest.approx((logits[0].exp() / logits[0].exp().sum()).tolist())
    assert several[0].tolist() == pytest.approx((1 / (1 + (-logits[0]).exp())).tolist())
    assert several[1].tolist() == [1.0, 0.0, 0.5]
