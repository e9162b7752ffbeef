import json

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from kd.errors import ConfigError, ModelError
from kd.layers import stored_labels
from kd.models import EncoderClassifier
from kd.vocabulary import digest, train_wordpiece
from tests.conftest import FAMILIES, LABELS, TEXTS

EVERY = frozenset({"hidden_states", "attentions"})
LAYERS, WIDTH, HEADS = 3, 16, 2
TINY = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}

families = pytest.mark.parametrize("family", FAMILIES)


def load(folder, labels=LABELS, **settings):
    model = EncoderClassifier(path=str(folder), **settings)
    model.load(labels)
    return model


def load_teacher(folder, labels=LABELS, stored=None):
    model = EncoderClassifier(path=str(folder))
    model.load(labels, stored=stored, fresh_head=False)
    return model.eval()


def edit_config(folder, **changes):
    """Write values into a config.json; None removes one."""
    file = folder / "config.json"
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return folder


def encode(tokenizer, texts, pairs=None):
    inputs = tokenizer(
        texts, pairs, padding=True, return_tensors="pt", return_token_type_ids=pairs is not None
    )
    return dict(inputs)


@torch.no_grad()
def logits_of(model, inputs):
    model.eval()
    return model(inputs).logits


def one_sentence(error):
    """A message is one line, of sensible length, that ends in a full stop."""
    text = str(error.value).replace("e.g. ", "")
    return "\n" not in text and text.endswith(".") and ". " not in text and len(text) < 400


# Every family


@families
def test_family_answers_with_logits_and_all_its_states(make_model, tokenizer, family):
    model = load(make_model(family=family)).eval()
    inputs = encode(tokenizer, TEXTS[:3])
    rows, length = inputs["input_ids"].shape
    outputs = model(inputs, EVERY)
    assert outputs.logits.shape == (rows, 2)
    assert outputs.logits.dtype == torch.float32
    assert len(outputs.hidden_states) == LAYERS + 1
    assert all(state.shape == (rows, length, WIDTH) for state in outputs.hidden_states)
    assert len(outputs.attentions) == LAYERS
    for attention in outputs.attentions:
        assert attention.shape == (rows, HEADS, length, length)
        torch.testing.assert_close(attention.sum(-1)[:, :, 0], torch.ones(rows, HEADS))
    assert torch.equal(outputs.mask, inputs["attention_mask"])
    assert model.info.labels == LABELS
    assert (model.info.layers, model.info.width, model.info.heads) == (LAYERS, WIDTH, HEADS)
    assert model.info.parameters == sum(weight.numel() for weight in model.parameters())


def test_fields_that_nobody_asked_for_are_not_computed(make_model, tokenizer):
    outputs = load(make_model())(encode(tokenizer, TEXTS[:2]))
    assert outputs.hidden_states is None
    assert outputs.attentions is None


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "electra", "modernbert"])
def test_attentions_come_although_the_default_gives_none(make_model, tokenizer, family):
    model = load(make_model(family=family)).eval()
    inputs = encode(tokenizer, TEXTS[:3])
    assert model.loaded.config._attn_implementation == "sdpa"
    assert not model.loaded(**inputs, output_attentions=True).attentions  # the trap itself
    before = logits_of(model, inputs)
    assert len(model(inputs, frozenset({"attentions"})).attentions) == LAYERS
    torch.testing.assert_close(logits_of(model, inputs), before, atol=1e-6, rtol=0)


def test_states_that_are_not_complete_are_refused(make_model, tokenizer, monkeypatch):
    model = load(make_model())
    inputs = encode(tokenizer, TEXTS[:2])
    monkeypatch.setattr(model.loaded, "set_attn_implementation", lambda name: None)
    with pytest.raises(ModelError, match="0 attentions where 3 were expected"):
        model(inputs, frozenset({"attentions"}))
    model.loaded.config.num_hidden_layers = 4
    with pytest.raises(ModelError, match="4 hidden_states where 5 were expected"):
        model(inputs, frozenset({"hidden_states"}))


@families
def test_padding_changes_no_answer(make_model, tokenizer, family):
    model = load(make_model(family=family)).eval()
    texts = [TEXTS[0], "happy", TEXTS[2]]
    together = model(encode(tokenizer, texts), frozenset({"hidden_states"}))
    for row, text in enumerate(texts):
        inputs = encode(tokenizer, [text])
        alone = model(inputs, frozenset({"hidden_states"}))
        length = inputs["input_ids"].shape[1]
        torch.testing.assert_close(together.logits[row], alone.logits[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(
            together.hidden_states[-1][row, :length], alone.hidden_states[-1][0], atol=1e-5, rtol=0
        )
    unmasked = encode(tokenizer, texts)
    unmasked["attention_mask"] = torch.ones_like(unmasked["attention_mask"])
    seen = model(unmasked, frozenset({"hidden_states"})).hidden_states[-1]
    assert (seen[1, 0] - together.hidden_states[-1][1, 0]).abs().max() > 1e-4


@families
@pytest.mark.parametrize("paired", [False, True])
def test_saved_folder_answers_alike_in_a_pipeline(make_model, tmp_path, family, paired):
    model = load(make_model(family=family), keep_layers=[0, 2]).eval()
    pairs = list(reversed(TEXTS)) if paired else None
    inputs = encode(model.tokenizer, TEXTS, pairs)
    expected = logits_of(model, inputs).softmax(-1)
    model.save(tmp_path / "saved")
    classify = pipeline("text-classification", str(tmp_path / "saved"), top_k=None, device="cpu")
    rows = TEXTS
    if pairs:
        rows = [{"text": text, "text_pair": pair} for text, pair in zip(TEXTS, pairs, strict=True)]
    for answer, probabilities in zip(classify(rows), expected, strict=True):
        scores = {item["label"]: item["score"] for item in answer}
        assert scores == pytest.approx(
            dict(zip(LABELS, probabilities.tolist(), strict=True)), abs=1e-5
        )
    again = load_teacher(tmp_path / "saved", labels=None)
    torch.testing.assert_close(logits_of(again, inputs), logits_of(model, inputs))
    assert again.info == model.info


@families
def test_pairs_reach_models_with_and_without_segments(make_model, tokenizer, family):
    model = load(make_model(family=family)).eval()
    inputs = encode(tokenizer, TEXTS[:4], TEXTS[4:])
    assert inputs["token_type_ids"].max() == 1
    given = logits_of(model, inputs)
    inputs["token_type_ids"] = torch.zeros_like(inputs["token_type_ids"])
    unequal = (logits_of(model, inputs) - given).abs().max() > 1e-6
    assert unequal == (family in {"bert", "electra", "roberta"})  # those that read segments here


def test_model_with_one_segment_gets_none(make_model, tokenizer):
    model = load(make_model(family="roberta", type_vocab_size=1)).eval()  # as roberta-base
    assert logits_of(model, encode(tokenizer, TEXTS[:4], TEXTS[4:])).shape == (4, 2)


@families
def test_untrained_head_is_made_for_a_student_only(make_model, tokenizer, family):
    folder = make_model(family=family)
    body = AutoModel.from_pretrained(folder)
    body.save_pretrained(folder)
    edit_config(folder, id2label=None, label2id=None)
    model = load(folder, labels=("a", "b", "c"))
    assert model.labels == ("a", "b", "c")
    assert logits_of(model, encode(tokenizer, TEXTS[:3])).shape == (3, 3)
    ours = model.loaded.base_model.state_dict()
    for name, weight in body.state_dict().items():
        assert name.startswith("pooler") or torch.equal(ours[name], weight), name
    with pytest.raises(ModelError, match="no trained classification head") as error:
        load_teacher(folder)
    assert one_sentence(error)
    assert "fine-tune it first" in str(error.value)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "modernbert"])
def test_pretrained_language_model_becomes_a_student(make_model, family):
    folder = make_model(family=family)
    AutoModelForMaskedLM.from_pretrained(folder).save_pretrained(folder)  # without pooler and head
    assert load(folder).training
    with pytest.raises(ModelError, match="no trained classification head"):
        load_teacher(folder)


# Modes and numbers


@families
def test_loaded_student_is_in_train_mode(make_model, tmp_path, family):
    folder = make_model(family=family)
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    assert not network.training  # the trap: Lightning keeps it so
    assert all(module.training for module in load(folder).modules())
    assert all(module.training for module in load(folder, keep_layers=[0]).modules())
    new = EncoderClassifier(config=TINY)
    new.load(LABELS, TEXTS)
    assert all(module.training for module in new.modules())


@pytest.mark.parametrize("keep", [None, [0, 2]])
def test_half_precision_checkpoint_is_trained_in_float32(make_model, tmp_path, keep):
    folder = make_model()
    AutoModelForSequenceClassification.from_pretrained(folder).to(torch.bfloat16).save_pretrained(
        folder
    )
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForSequenceClassification.from_pretrained(folder).dtype == torch.bfloat16
    model = load(folder, keep_layers=keep)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    model.describe(tmp_path / "described", 32)
    again = EncoderClassifier.from_folder(tmp_path / "described", model.loaded.state_dict())
    assert {weight.dtype for weight in again.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("bert", {"hidden_dropout_prob", "attention_probs_dropout_prob"}),
        ("distilbert", {"dropout", "attention_dropout"}),
        ("roberta", {"hidden_dropout_prob", "attention_probs_dropout_prob"}),
        ("electra", {"hidden_dropout_prob", "attention_probs_dropout_prob"}),
        ("deberta-v2", {"hidden_dropout_prob", "attention_probs_dropout_prob"}),
        ("modernbert", {"embedding_dropout", "attention_dropout", "mlp_dropout"}),
    ],
)
def test_dropout_reaches_the_familys_own_names(make_model, tokenizer, family, names):
    model = load(make_model(family=family), dropout=0.37)
    assert {name: getattr(model.loaded.config, name) for name in names} == dict.fromkeys(
        names, 0.37
    )
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert rates.count(0.37) >= 2 * LAYERS  # in every layer
    inputs = encode(tokenizer, TEXTS[:2])
    assert not torch.equal(model(inputs).logits, model(inputs).logits)
    still = load(make_model(family=family), dropout=0.0)
    assert all(module.p != 0.37 for module in still.modules() if isinstance(module, nn.Dropout))


def test_dropout_replaces_a_whole_number_too(make_model):
    folder = edit_config(make_model(), hidden_dropout_prob=0)  # as JSON writes 0.0 by hand
    assert load(folder, dropout=0.5).loaded.bert.embeddings.dropout.p == 0.5


def test_dropout_without_override_is_the_configurations(make_model):
    assert load(make_model(hidden_dropout_prob=0.2)).loaded.bert.embeddings.dropout.p == 0.2


def test_dropout_of_a_new_model():
    model = EncoderClassifier(config=TINY, dropout=0.37)
    model.load(LABELS, TEXTS)
    assert model.loaded.bert.embeddings.dropout.p == 0.37


@pytest.mark.parametrize("dropout", [-0.1, 1.5, float("nan")])
def test_impossible_dropout_is_refused(dropout):
    with pytest.raises(ConfigError, match=r"EncoderClassifier\.dropout is .*: give 0 to 1"):
        EncoderClassifier(path="anything", dropout=dropout)


# Layers of another model


@families
@pytest.mark.parametrize("keep", [[0], [0, 2], [0, 1, 2]])
def test_kept_layers_have_their_weights(make_model, tokenizer, family, keep):
    folder = make_model(family=family)
    whole, part = load(folder).eval(), load(folder, keep_layers=keep).eval()
    old, new = whole.loaded.state_dict(), part.loaded.state_dict()
    seen = 0
    for name, weight in new.items():
        source = name
        for place in range(len(keep)):
            for layers in (".layer.", ".layers."):
                if f"{layers}{place}." in name:
                    source = name.replace(f"{layers}{place}.", f"{layers}{keep[place]}.")
                    seen |= 1 << place
        assert torch.equal(weight, old[source]), name
    assert seen == 2 ** len(keep) - 1
    outputs = part(encode(tokenizer, TEXTS[:3]), EVERY)
    assert len(outputs.hidden_states) == len(keep) + 1
    assert len(outputs.attentions) == len(keep)
    assert part.info.layers == len(keep)
    assert part.info.labels == whole.info.labels


@families
def test_all_layers_kept_is_the_same_model(make_model, tokenizer, family):
    folder, inputs = make_model(family=family), encode(tokenizer, TEXTS)
    whole, part = load(folder), load(folder, keep_layers=[0, 1, 2])
    torch.testing.assert_close(logits_of(part, inputs), logits_of(whole, inputs))


@families
def test_kept_layers_compute_what_they_did(make_model, tokenizer, family):
    """Two layers of three: the first hidden states agree, the whole model's last does not."""
    folder = make_model(family=family)
    inputs = encode(tokenizer, TEXTS[:3])
    needs = frozenset({"hidden_states"})
    whole = load(folder).eval()(inputs, needs).hidden_states
    part = load(folder, keep_layers=[0, 1]).eval()(inputs, needs).hidden_states
    torch.testing.assert_close(part[0], whole[0])
    torch.testing.assert_close(part[1], whole[1])
    assert not torch.allclose(part[-1], whole[-1], atol=1e-4)


def test_kept_layers_keep_their_kind_of_attention(make_model):
    folder = make_model(family="modernbert", global_attn_every_n_layers=2)
    kinds = load(folder).loaded.config.layer_types
    assert kinds == ["full_attention", "sliding_attention", "full_attention"]
    assert load(folder, keep_layers=[0, 2]).loaded.config.layer_types == ["full_attention"] * 2


def test_kept_layers_leave_the_first_model_alone(make_model):
    folder = make_model()
    part = load(folder, keep_layers=[0])
    with torch.no_grad():
        for weight in part.parameters():
            weight.zero_()
    assert load(folder).loaded.bert.encoder.layer[0].output.dense.weight.abs().max() > 0


@pytest.mark.parametrize("keep", [[], [2, 0], [0, 0], [0, 3], [-1]])
def test_impossible_layers_are_refused(make_model, keep):
    with pytest.raises(ConfigError, match=r"keep_layers=.* rising layer numbers from 0 to 2"):
        load(make_model(), keep_layers=keep)


def test_layers_that_differ_from_the_others_are_refused(make_model):
    with pytest.raises(ConfigError, match=r"keep_layers=\[1, 2\] does not fit ModernBert.*layer 0"):
        load(make_model(family="modernbert"), keep_layers=[1, 2])


def test_model_with_one_shared_layer_has_none_to_keep(make_model, monkeypatch):
    albert = {**FAMILIES["bert"], "embedding_size": 16}
    monkeypatch.setitem(FAMILIES, "albert", albert)
    folder = make_model(family="albert")
    assert load(folder).info.layers == LAYERS
    with pytest.raises(ConfigError, match="keep_layers does not fit Albert"):
        load(folder, keep_layers=[0])


# Longest input


@families
@pytest.mark.parametrize("padding", [0, 1])
def test_longest_input_is_read_and_no_longer_one(make_model, family, padding):
    model = load(make_model(family=family, pad_token_id=padding)).eval()
    offset = padding + 1 if family == "roberta" else 0
    positions = FAMILIES[family]["max_position_embeddings"]
    assert model.max_length == positions - offset
    ids = torch.full((1, model.max_length), 7)
    logits_of(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    if family != "modernbert":  # rotary: no table of positions that ends
        ids = torch.full((1, model.max_length + 1), 7)
        with pytest.raises((IndexError, RuntimeError)):
            logits_of(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def test_longest_input_of_roberta_base_is_512(make_model):
    model = load(make_model(family="roberta", max_position_embeddings=514, pad_token_id=1))
    assert model.max_length == 512


def test_tokenizer_may_read_less_than_the_model(make_model, tmp_path):
    model = load(make_model())
    model.tokenizer.model_max_length = 12
    assert model.max_length == 12
    model.describe(tmp_path / "described", 10)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "described")
    assert tokenizer.model_max_length == 10
    assert len(tokenizer("happy " * 50, truncation=True)["input_ids"]) == 10


@pytest.mark.fault(37)
def test_description_cuts_no_later_than_the_model_reads(make_model, tmp_path):
    load(make_model()).describe(tmp_path / "described", 1000)
    assert AutoTokenizer.from_pretrained(tmp_path / "described").model_max_length == 64


# Described folders


@families
def test_described_folder_and_weights_make_the_model_again(make_model, tokenizer, tmp_path, family):
    model = load(make_model(family=family), labels=("x", "y", "z"), keep_layers=[0, 2])
    model.describe(tmp_path / "described", 32)
    assert not list((tmp_path / "described").glob("*.safetensors"))
    again = EncoderClassifier.from_folder(tmp_path / "described", model.loaded.state_dict())
    assert again.info == model.info
    inputs = encode(tokenizer, TEXTS)
    torch.testing.assert_close(logits_of(again, inputs), logits_of(model, inputs))


def test_described_folder_refuses_other_weights(make_model, tmp_path):
    model = load(make_model())
    model.describe(tmp_path / "described", 32)
    weights = dict(load(make_model("wide", hidden_size=32)).loaded.state_dict())
    with pytest.raises(ModelError, match=r"The weights do not fit .*described/config\.json\."):
        EncoderClassifier.from_folder(tmp_path / "described", weights)
    weights = dict(model.loaded.state_dict())
    weights.popitem()
    with pytest.raises(ModelError, match="do not fit"):
        EncoderClassifier.from_folder(tmp_path / "described", weights)


# Class names


def by_name(model, tokenizer):
    probabilities = logits_of(model, encode(tokenizer, TEXTS)).softmax(-1)
    return {label: probabilities[:, place] for place, label in enumerate(model.labels)}


def shifted(folder, bias):
    """Tell the classes apart: a tiny new model finds them equally likely."""
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        head.bias.copy_(torch.tensor(bias))
    network.save_pretrained(folder)
    return folder


@families
def test_head_is_put_in_the_wanted_order_by_name(make_model, tokenizer, family):
    names = ("negative", "neutral", "positive")
    folder = make_model(family=family, labels=names)
    if family != "modernbert":  # whose head has no bias
        shifted(folder, [0.0, 1.0, 2.0])
    wanted = ("positive", "negative", "neutral")
    plain, moved = load(folder, names), load(folder, wanted)
    assert moved.labels == wanted
    assert moved.loaded.config.label2id == {"positive": 0, "negative": 1, "neutral": 2}
    old, new = by_name(plain, tokenizer), by_name(moved, tokenizer)
    for name in names:
        torch.testing.assert_close(new[name], old[name])
    assert not torch.allclose(old["positive"], old["neutral"])


@pytest.mark.parametrize("read", [load, load_teacher])
def test_names_agree_whatever_the_case(make_model, tokenizer, read):
    folder = shifted(make_model(labels=("POSITIVE", "NEGATIVE")), [1.0, -1.0])
    model = read(folder, labels=("negative", "positive"))
    assert model.labels == ("negative", "positive")
    assert (by_name(model, tokenizer)["positive"] > 0.5).all()


def test_names_that_differ_in_case_only_stay_apart(make_model, tokenizer):
    folder = shifted(make_model(labels=("us", "US")), [1.0, -1.0])
    model = load_teacher(folder, labels=("US", "us"))
    assert (by_name(model, tokenizer)["us"] > 0.5).all()
    assert (by_name(model, tokenizer)["US"] < 0.5).all()


def test_stored_names_stay_where_none_are_wanted(make_model):
    model = EncoderClassifier(path=str(make_model(labels=("POSITIVE", "NEGATIVE"))))
    model.load(fresh_head=False)
    assert model.labels == ("POSITIVE", "NEGATIVE")


@pytest.mark.parametrize("labels", [("spam", "ham"), ("negative", "neutral", "positive"), ("a",)])
def test_other_names_give_a_student_a_fresh_head(make_model, tokenizer, labels):
    folder = shifted(make_model(), [1.0, -1.0])
    model = load(folder, labels=labels)
    assert model.labels == stored_labels(model.loaded.config) == labels
    assert model.loaded.classifier.weight.shape == (len(labels), WIDTH)
    assert model.loaded.classifier.out_features == len(labels)
    assert model.loaded.classifier.weight.abs().sum() > 0
    assert not model.loaded.classifier.bias.any()
    assert model.loaded.config.num_labels == len(labels)
    stored = load(folder).loaded
    assert not torch.equal(model.loaded.classifier.weight[0], stored.classifier.weight[0])
    assert torch.equal(
        model.loaded.bert.pooler.dense.weight, stored.bert.pooler.dense.weight
    )  # only the head is new


@pytest.mark.fault(35)
@pytest.mark.parametrize("labels", [("spam", "ham"), ("negative", "neutral", "positive")])
def test_other_names_are_refused_for_a_teacher(make_model, labels):
    with pytest.raises(ModelError, match="answers with negative, positive") as error:
        load_teacher(make_model(), labels=labels)
    assert f"classes are {', '.join(labels)}: use a teacher of these" in str(error.value)
    assert "data.label_map" in str(error.value)
    assert "label_names" not in str(error.value)


@pytest.mark.fault(34)
def test_nameless_teacher_needs_names(make_model, tokenizer):
    folder = shifted(make_model(labels=("LABEL_0", "LABEL_1")), [1.0, -1.0])
    with pytest.raises(ModelError, match=r"LABEL_0, LABEL_1.*label_names") as error:
        load_teacher(folder)
    assert one_sentence(error)
    model = load_teacher(folder, stored=["positive", "negative"])
    assert model.labels == LABELS
    assert (by_name(model, tokenizer)["positive"] > 0.5).all()


@pytest.mark.fault(35)
@pytest.mark.parametrize("names", [["a", "b", "c"], ["a"]])
def test_names_must_be_as_many_as_the_teachers_classes(make_model, names):
    with pytest.raises(ModelError, match=f"has 2 classes, but label_names gives {len(names)}"):
        load_teacher(make_model(), labels=tuple(names), stored=names)


def test_classes_must_be_numbered_from_zero(make_model):
    folder = edit_config(make_model(), id2label={"1": "a", "2": "b"})
    with pytest.raises(
        ModelError, match=r"id2label .* \[1, 2\]: they must go from 0 to 1"
    ) as error:
        load(folder)
    assert one_sentence(error)


# Folders with something amiss


def test_missing_model_type_is_named(make_model, tokenizer):
    folder = make_model()
    expected = by_name(load_teacher(folder), tokenizer)
    edit_config(folder, model_type=None)
    with pytest.raises(ModelError, match="does not say its model_type: set model_type") as error:
        load(folder)
    assert one_sentence(error)
    model = load(folder, model_type="bert")
    assert digest(model.tokenizer) == digest(tokenizer)
    for name, probabilities in by_name(model, tokenizer).items():
        torch.testing.assert_close(probabilities, expected[name])


def test_old_repository_with_vocabulary_file_only(make_model, tokenizer):
    """As early hub models: no model_type and no tokenizer.json."""
    folder = edit_config(make_model(), model_type=None)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    pieces = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    ours = load(folder, model_type="bert").tokenizer
    assert ours(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]


def test_model_type_that_is_not_the_weights_is_refused(make_model):
    folder = edit_config(make_model(), model_type=None)
    with pytest.raises(ModelError, match="not those of a roberta") as error:
        load(folder, model_type="roberta")
    assert one_sentence(error)


def test_unknown_model_type_is_refused(make_model):
    folder = make_model()
    with pytest.raises(ModelError, match="Unrecognized model identifier: berd") as error:
        load(folder, model_type="berd")
    assert one_sentence(error)
    with pytest.raises(ModelError, match="does not recognize this architecture") as error:
        load(edit_config(folder, model_type="berd"))
    assert one_sentence(error)


def test_unknown_keys_of_a_stored_configuration_do_no_harm(make_model):
    folder = edit_config(make_model(), finetuning_task="sst-2", strange={"a": [1, 2]})
    assert load(folder).labels == LABELS
    assert load(folder, model_type="bert").labels == LABELS


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ('{"model_type": "bert", "hidden_size": "big"}', "'hidden_size' expected int"),
    ],
)
@pytest.mark.parametrize("model_type", [None, "bert"])
def test_damaged_configuration_is_refused(make_model, text, words, model_type):
    folder = make_model()
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=words) as error:
        load(folder, model_type=model_type)
    assert one_sentence(error)
    assert str(folder) in str(error.value)


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:600])


def scribble(folder):
    (folder / "model.safetensors").write_bytes(b"garbage")


def cut_tail(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def empty(folder):
    (folder / "model.safetensors").write_bytes(b"")


def remove(folder):
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("damage", [truncate, scribble, cut_tail, empty, remove])
def test_damaged_weights_are_refused(make_model, damage):
    folder = make_model()
    damage(folder)
    with pytest.raises(ModelError, match=r"The weights of .* do not load: ") as error:
        load(folder)
    assert one_sentence(error)


@pytest.mark.parametrize("read", [load, load_teacher])
@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"num_hidden_layers": 4}, r"bert\.encoder\.layer\.3"),
        ({"hidden_size": 32}, r"bert\.embeddings"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, r"classifier\.bias"),
    ],
)
def test_weights_of_another_configuration_are_refused(make_model, read, changes, name):
    folder = edit_config(make_model(), **changes)
    with pytest.raises(ModelError, match=f"not those of a bert.*{name}") as error:
        read(folder)
    assert one_sentence(error)


def test_sharded_weights_load(make_model, tokenizer):
    folder = make_model()
    expected = by_name(load(folder), tokenizer)
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    network.save_pretrained(folder, max_shard_size="10KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    for name, probabilities in by_name(load(folder), tokenizer).items():
        torch.testing.assert_close(probabilities, expected[name])
    next(folder.glob("model-00002*")).unlink()
    with pytest.raises(ModelError, match="do not load"):
        load(folder)


@pytest.mark.fault(41)
@pytest.mark.parametrize("path", ["nowhere/at/all", "./nowhere", "google/no-such-model"])
@pytest.mark.parametrize("model_type", [None, "bert"])
def test_missing_model_is_refused(path, model_type):
    with pytest.raises(ModelError, match="neither a model folder here nor") as error:
        load(path, model_type=model_type)
    assert one_sentence(error)
    assert path in str(error.value)


def test_folder_without_tokenizer_is_refused(make_model):
    folder = make_model()
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert len(AutoTokenizer.from_pretrained(folder)) == 5  # the trap: all text becomes [UNK]
    with pytest.raises(ModelError, match="no tokenizer files") as error:
        load(folder)
    assert one_sentence(error)


def test_tokenizer_of_another_place(make_model, tokenizer, tmp_path):
    folder = make_model()
    other = tmp_path / "tokenizer"
    tokenizer.save_pretrained(other)
    (folder / "tokenizer.json").unlink()
    assert digest(load(folder, tokenizer=str(other)).tokenizer) == digest(tokenizer)


def test_revision_is_of_the_model_not_of_another_tokenizer(make_model, tmp_path, monkeypatch):
    folder = make_model()
    asked = []

    def load_tokenizer(path, config=None, revision=None):
        asked.append((path, revision))
        return AutoTokenizer.from_pretrained(folder)

    monkeypatch.setattr("kd.classifiers.load_tokenizer", load_tokenizer)
    load(folder, revision="v2")
    load(folder, revision="v2", tokenizer="other/tokenizer")
    assert asked == [(str(folder), "v2"), ("other/tokenizer", None)]


def test_vocabulary_larger_than_the_embedding_is_refused(make_model, tmp_path):
    folder = make_model()
    large = train_wordpiece([f"word{number} " * 3 for number in range(300)], 400)
    small = load(folder).loaded.config.vocab_size
    assert len(large) > small
    large.save_pretrained(folder)
    with pytest.raises(ModelError, match=f"{len(large)} tokens .*embedding has {small}") as error:
        load(folder)
    assert one_sentence(error)


def test_vocabulary_smaller_than_the_embedding_is_fine(make_model, tokenizer):
    folder = make_model(vocab_size=len(tokenizer) + 8)  # padded, as many are
    assert load(folder).info.vocabulary == digest(tokenizer)


def test_nothing_is_read_before_load(make_model):
    model = EncoderClassifier(path="nowhere/at/all")
    for use in (lambda: model.info, lambda: model.max_length, lambda: model({})):
        with pytest.raises(ModelError, match=r"nowhere/at/all is not loaded yet: call load\(\)"):
            use()


def test_loading_is_quiet(make_model, capfd, caplog):
    folder = make_model()
    capfd.readouterr()
    load(folder, labels=("a", "b", "c"))  # a new head: transformers prints a table for it
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


# New models


@pytest.mark.parametrize("given", [{}, {"path": "a", "config": {"model_type": "bert"}}])
def test_exactly_one_source_is_needed(given):
    with pytest.raises(ConfigError, match="a path or a config: give exactly one"):
        EncoderClassifier(**given)


def test_configuration_must_name_its_family():
    with pytest.raises(ConfigError, match="config names no model_type"):
        EncoderClassifier(config={"hidden_size": 8})


@families
def test_new_model_of_every_family(family):
    model = EncoderClassifier(
        config={"model_type": family, **FAMILIES[family]}, vocabulary_size=100
    )
    model.load(LABELS, TEXTS * 3)
    assert model.labels == LABELS
    assert len(model.tokenizer) == model.loaded.config.vocab_size <= 100
    assert model.loaded.config.pad_token_id == model.tokenizer.pad_token_id
    assert model.loaded.get_input_embeddings().padding_idx == model.tokenizer.pad_token_id
    assert (model.info.layers, model.info.width, model.info.heads) == (LAYERS, WIDTH, HEADS)
    assert logits_of(model, encode(model.tokenizer, TEXTS)).shape == (len(TEXTS), 2)
    assert "[UNK]" not in model.tokenizer.tokenize(" ".join(TEXTS))


def test_new_model_is_the_same_for_the_same_seed():
    def make():
        torch.manual_seed(7)
        model = EncoderClassifier(config=TINY)
        model.load(LABELS, TEXTS)
        return model

    first, second = make(), make()
    assert first.info == second.info
    for name, weight in second.state_dict().items():
        assert torch.equal(first.state_dict()[name], weight), name


def test_new_model_with_a_given_tokenizer(make_model, tokenizer):
    model = EncoderClassifier(config=TINY, tokenizer=str(make_model()))
    model.load(LABELS)
    assert model.info.vocabulary == digest(tokenizer)
    assert model.loaded.config.vocab_size == len(tokenizer)


def test_new_model_without_texts_is_refused():
    with pytest.raises(ModelError, match="no text to train a vocabulary on"):
        EncoderClassifier(config=TINY).load(LABELS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "berd"}, "unknown model_type berd"),
        ({"hiden_size": 8}, "has hiden_size, which a bert does not know"),
        ({"hidden_size": "big"}, "'hidden_size' expected int"),
        ({"num_attention_heads": 3}, "not a multiple of the number of attention heads"),
        ({"model_type": "clap"}, "makes no model|does not know"),
    ],
)
def test_impossible_configuration_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words) as error:
        EncoderClassifier(config={**TINY, **changes}).load(LABELS, TEXTS)
    assert one_sentence(error)


def test_new_model_whose_embedding_is_too_small_is_refused():
    model = EncoderClassifier(config={**TINY, "vocab_size": 10})
    with pytest.raises(ModelError, match=r"The tokenizer of the new bert model has .* has 10"):
        model.load(LABELS, TEXTS)


def test_weights_are_as_legible_as_the_configuration(make_model, tmp_path):
    load(make_model()).save(tmp_path / "saved")
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "saved").iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]
