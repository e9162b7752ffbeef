"""PyTorch and ONNX Runtime read the same texts and give the same logits."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification

from kd.backends import ONNXModel, TorchModel
from kd.conversion import convert
from kd.errors import ConfigError, ModelError
from kd.inference import Classifier
from kd.layout import ONNX, Facts, read_facts, write_facts
from tests.conftest import FAMILIES, LABELS, TEXTS

LONG = [*TEXTS, "no", "great " * 90, "w" * 900, "a 🎬 film", "a \ud83d film\0", "<s> [SEP] </s>"]


def with_onnx(folder):
    """Write what ONNX Runtime reads into a model folder."""
    model = TorchModel.load(str(folder))
    (folder / ONNX).parent.mkdir()
    inputs = convert(model.classifier, folder / ONNX)
    write_facts(folder, Facts(model.labels, model.multi_label, model.max_length, inputs))
    return folder


@pytest.fixture(scope="module")
def converted(tmp_path_factory, tokenizer):
    """A folder with ONNX; to convert takes seconds, so it is done once."""
    sizes = {**FAMILIES["bert"], "vocab_size": len(tokenizer), "initializer_range": 0.5}
    folder = tmp_path_factory.mktemp("converted") / "model"
    config = AutoConfig.for_model("bert", **sizes, id2label=dict(enumerate(LABELS)))
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return with_onnx(folder)


@pytest.fixture
def folder(converted, tmp_path):
    return Path(shutil.copytree(converted, tmp_path / "mine"))


def test_both_backends_give_the_same_logits(folder):  # other families: test_conversion
    wanted, found = (Classifier.from_pretrained(folder, name) for name in ("torch", "onnx"))
    assert (wanted.backend, found.backend) == ("torch", "onnx")
    texts = [answer.text for answer in wanted.predict(LONG)]
    logits = wanted.logits(texts)
    assert len({tuple(row) for row in logits.round(3)}) > len(LONG) / 2, "it is no constant"
    for found.batch_size in (1, 5, 64):
        assert found.logits(texts) == pytest.approx(logits, abs=1e-4)


def test_pairs_are_read_as_in_pytorch(folder):
    texts, pairs = ["a film", "what a day", "great " * 60], ["sad", "and rude " * 50, "love"]
    wanted, found = (Classifier.from_pretrained(folder, name) for name in ("torch", "onnx"))
    assert found.logits(texts, pairs) == pytest.approx(wanted.logits(texts, pairs), abs=1e-4)
    assert found.logits(texts, pairs) != pytest.approx(found.logits(texts), abs=1e-3)
    others = [first for first, _ in zip(pairs, texts, strict=True)]
    assert found.logits(texts, others[::-1]) != pytest.approx(found.logits(texts, pairs), abs=1e-3)


def test_texts_are_answered_in_their_order_over_many_chunks(folder, monkeypatch):
    monkeypatch.setattr("kd.backends._CHUNK", 4)
    model = Classifier.from_pretrained(folder, "onnx")
    alone = np.concatenate([model.logits([text]) for text in TEXTS])
    model.batch_size = 3
    assert model.logits(TEXTS) == pytest.approx(alone, abs=1e-5)
    assert model.logits([]).shape == (0, 2)


def test_onnx_is_taken_where_it_is(folder, make_model):
    assert Classifier.from_pretrained(folder).backend == "onnx"
    assert Classifier.from_pretrained(make_model("other")).backend == "torch"


def test_the_temperature_of_the_folder_is_applied_by_every_backend(folder):
    plain = Classifier.from_pretrained(folder, "onnx").predict(TEXTS)
    facts = read_facts(folder)
    write_facts(folder, replace(facts, temperature=3.0))
    for name in ("torch", "onnx"):
        model = Classifier.from_pretrained(folder, name)
        logits = model.logits(TEXTS).astype(float)
        for row, cool, warm in zip(logits, plain, model.predict(TEXTS), strict=True):
            odds = np.exp((row - row.max()) / 3)
            wanted = dict(zip(LABELS, odds / odds.sum(), strict=True))
            assert warm.probabilities == pytest.approx(wanted, abs=1e-4)
            assert warm.label == cool.label
            assert max(warm.probabilities.values()) < max(cool.probabilities.values())


def test_threads_are_those_that_are_asked_for(folder):
    import torch

    before = torch.get_num_threads()
    try:
        Classifier.from_pretrained(folder, "torch", threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    one, two = (Classifier.from_pretrained(folder, "onnx", threads=count) for count in (1, 2))
    assert one.logits(TEXTS) == pytest.approx(two.logits(TEXTS), abs=1e-5)


def test_onnx_starts_without_the_libraries_of_training(folder):
    blocked = ["torch", "transformers", "lightning", "datasets", "pandas", "scipy", "sklearn"]
    blocked += ["torchmetrics", "wandb", "jsonargparse", "nltk", "matplotlib", "pyarrow", "rich"]
    code = f"""
import sys
for name in {blocked!r}:
    sys.modules[name] = None  # an import of it fails
from kd import Classifier
print([answer.label for answer in Classifier.from_pretrained({str(folder)!r}).predict({TEXTS!r})])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wanted = [answer.label for answer in Classifier.from_pretrained(folder, "torch").predict(TEXTS)]
    assert done.stdout.strip() == str(wanted)


def test_what_is_not_there_is_named(make_model, folder, tmp_path):
    other = make_model("other")
    with pytest.raises(ModelError, match=r"has no onnx/model_int8\.onnx: make it by `kd export`"):
        Classifier.from_pretrained(other, "int8")
    with pytest.raises(ModelError, match="neither a folder nor a model of the hub"):
        Classifier.from_pretrained(tmp_path / "none", "onnx")
    with pytest.raises(ConfigError, match="no backend 'fast'"):
        ONNXModel(folder, "fast")


@pytest.mark.parametrize("file", [ONNX, "tokenizer.json", "kd.json", "tokenizer_config.json"])
def test_a_broken_file_is_one_sentence(folder, file):
    path = folder / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelError, match="export"):
        Classifier.from_pretrained(folder, "onnx")


def test_a_later_format_is_refused(folder):
    facts = json.loads((folder / "kd.json").read_text())
    (folder / "kd.json").write_text(json.dumps({**facts, "format": 2}))
    with pytest.raises(ModelError, match="has format 2, and this kd reads 1: update it"):
        Classifier.from_pretrained(folder)


def test_the_model_is_whole_in_one_file(folder):
    model = onnx.load(folder / ONNX)
    assert not [one for one in model.graph.initializer if one.external_data]
    session = onnxruntime.InferenceSession(folder / ONNX)
    (logits,) = session.get_outputs()
    assert logits.name == "logits"
    assert isinstance(logits.shape[0], str), "any number of texts"
