import json

import pytest
import torch
from jsonargparse import ArgumentParser
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForSeq2SeqLM, T5Tokenizer

from kd.checkpoints import MODEL_FOLDER, SafeCheckpointIO
from kd.classifiers import TextClassifier
from kd.data.collate import EncodedRows
from kd.data.encode import View, encode
from kd.errors import ConfigError, ModelError
from kd.export import export_checkpoint
from kd.inference import Classifier
from kd.models import EncoderClassifier, choose_classifier
from kd.parsing import allow_imports
from kd.seq2seq import Seq2SeqClassifier
from kd.summary import measure
from kd.types import Row
from tests.conftest import LABELS, TEXTS

T5 = {"d_model": 16, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 2, "d_ff": 32}
FAMILIES = {
    "t5": {**T5, "d_kv": 8},
    "mt5": {**T5, "d_kv": 8},
    "bart": {"d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "max_position_embeddings": 64}
    | {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    | {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
}
WORDS = {"negative": "terrible", "positive": "what a wonderful and happy day"}
RATIONALES = ["a delight is love", "kind", "a bore"]

families = pytest.mark.parametrize("family", FAMILIES)


def new(family="t5", labels=LABELS, **settings):
    """Make a small model whose answers differ widely, in eval mode."""
    changes = settings.pop("config", {})
    config = {"model_type": family, **FAMILIES[family], **changes}
    model = Seq2SeqClassifier(config=config, vocabulary_size=200, **settings)
    model.load(labels, TEXTS)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5.0 if family == "bart" else 1.5)  # which starts from smaller weights
    return model.eval()


def read(model, texts, prefix=None):
    """Encode as a view does: with the prefix."""
    prefix = model.prefix if prefix is None else prefix
    inputs = model.tokenizer([prefix + text for text in texts], padding=True, return_tensors="pt")
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}


@torch.no_grad()
def logits_of(model, texts):
    return model.eval()(read(model, texts)).logits


@torch.no_grad()
def slow_logits(model, texts, words):
    """Ask for each text and each class by itself, without padding, for the network's own loss."""
    rows = []
    for text in texts:
        inputs, row = read(model, [text]), []
        for word in words:
            labels = model.tokenizer(word, return_tensors="pt")["input_ids"]
            row.append(-model.loaded(**inputs, labels=labels).loss.item() * labels.shape[1])
        rows.append(row)
    return torch.tensor(rows)


def load(folder, labels=LABELS, **settings):
    model = Seq2SeqClassifier(path=str(folder), **settings)
    model.load(labels)
    return model.eval()


def load_teacher(folder, labels=LABELS, stored=None):
    model = Seq2SeqClassifier(path=str(folder))
    model.load(labels, stored=stored, fresh_head=False)
    return model.eval()


def one_sentence(error):
    text = str(error.value)
    return "\n" not in text and text.endswith(".") and ". " not in text


# Answers


@families
def test_logits_are_the_log_likelihoods_of_the_words(family):
    model = new(family, verbalisers=WORDS)
    lengths = (model.targets != -100).sum(dim=1)
    assert lengths[1] > lengths[0] > 1  # words of several tokens, and not of as many
    found = logits_of(model, TEXTS)
    torch.testing.assert_close(
        found, slow_logits(model, TEXTS, WORDS.values()), atol=1e-5, rtol=1e-5
    )
    assert found.std(dim=0).min() > 1e-3  # texts are told apart
    assert torch.equal(found, logits_of(model, TEXTS))


@families
def test_padding_changes_no_answer_of_a_writer(family):
    model = new(family, verbalisers=WORDS)
    texts = [TEXTS[0], "happy", TEXTS[2]]
    needs = frozenset({"hidden_states"})
    together = model(read(model, texts), needs)
    for place, text in enumerate(texts):
        inputs = read(model, [text])
        alone, length = model(inputs, needs), inputs["input_ids"].shape[1]
        torch.testing.assert_close(together.logits[place], alone.logits[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            together.hidden_states[-1][place, :length], alone.hidden_states[-1][0]
        )
    unmasked = read(model, texts)
    unmasked["attention_mask"] = torch.ones_like(unmasked["attention_mask"])
    assert (model(unmasked).logits - together.logits)[1].abs().max() > 1e-4


def test_words_of_a_class_change_no_other_class(tmp_path):
    model = new()
    model.save(tmp_path / "saved")
    other = load(tmp_path / "saved", verbalisers={"positive": WORDS["positive"]})
    assert other.targets.shape[1] > model.targets.shape[1]
    old, found = logits_of(model, TEXTS), logits_of(other, TEXTS)
    torch.testing.assert_close(found[:, 0], old[:, 0], atol=1e-5, rtol=1e-5)
    assert (found[:, 1] - old[:, 1]).abs().min() > 1e-2


@families
def test_states_of_the_encoder_come_if_asked_for(family):
    model = new(family)
    inputs = read(model, TEXTS[:3])
    rows, length = inputs["input_ids"].shape
    plain = model(inputs)
    assert plain.hidden_states is plain.attentions is None
    assert torch.equal(plain.mask, inputs["attention_mask"])
    assert model.loaded.config._attn_implementation == "sdpa"
    outputs = model(inputs, frozenset({"hidden_states", "attentions"}))
    assert [state.shape for state in outputs.hidden_states] == [(rows, length, 16)] * 3
    assert [state.shape for state in outputs.attentions] == [(rows, 2, length, length)] * 2
    torch.testing.assert_close(outputs.attentions[0].sum(-1), torch.ones(rows, 2, length))
    torch.testing.assert_close(outputs.logits, plain.logits, atol=1e-5, rtol=1e-5)
    info = model.info
    assert (info.layers, info.width, info.heads, info.labels) == (2, 16, 2, LABELS)
    assert info.tokens == outputs_size(model)


def outputs_size(model):
    return model.explain(read(model, TEXTS[:1]), read(model, TEXTS[:1])).shape[-1]


def test_projections_come_where_the_family_has_them():
    bart, t5 = new("bart"), new("t5")
    queries = bart(read(bart, TEXTS[:2]), frozenset({"queries"})).queries
    assert len(queries) == 2
    with pytest.raises(ModelError, match="queries of a t5 cannot be read"):
        t5(read(t5, TEXTS[:2]), frozenset({"queries"}))


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("lowered", ["not", "autocast", "weights"])
def test_answers_are_finite_and_float32(scale, lowered):
    model = new(verbalisers=WORDS)
    with torch.no_grad():
        model.head.weight = torch.nn.Parameter(model.head.weight * scale)
    if lowered == "weights":
        model.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=lowered == "autocast"):
        logits = model(read(model, TEXTS)).logits
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    assert (logits < 0).all()


# Training


@families
def test_gradient_of_an_answer_reaches_encoder_and_decoder(family):
    model = new(family).train()
    model(read(model, TEXTS)).logits.log_softmax(-1)[:, 0].sum().backward()
    for side in (model.loaded.get_encoder(), model.loaded.get_decoder()):
        grads = [weight.grad for weight in side.parameters()]
        assert all(grad is not None for grad in grads)
        assert all(grad.isfinite().all() for grad in grads)
        assert sum(grad.abs().sum() for grad in grads) > 0


def test_small_writer_learns_classes_and_rationales():
    model = Seq2SeqClassifier(config={"model_type": "t5", **FAMILIES["t5"]}, vocabulary_size=200)
    model.load(LABELS, TEXTS)
    assert all(module.training for module in model.modules())
    truth = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0])
    why = read(model, [" ".join(text.split()[:4]) for text in TEXTS], prefix="")
    wanted = why["input_ids"].masked_fill(why["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        answer = model(read(model, TEXTS)).logits
        written = model.explain(read(model, TEXTS, model.explain_prefix), why)
        loss = torch.stack(
            [
                torch.nn.functional.cross_entropy(answer, truth),
                torch.nn.functional.cross_entropy(written.flatten(0, 1), wanted.flatten()),
            ]
        )
        losses.append(loss.detach())
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    assert (losses[-1] < losses[0] * torch.tensor([0.1, 0.8])).all()
    assert logits_of(model, TEXTS).argmax(dim=-1).equal(truth)


# Rationales


@families
def test_rationales_are_scored_as_the_network_scores_them(family):
    model = new(family)
    inputs = read(model, TEXTS[:3], model.explain_prefix)
    targets = read(model, RATIONALES, prefix="")
    with torch.no_grad():
        logits = model.explain(inputs, targets)
        assert logits.shape == (*targets["input_ids"].shape, model.info.tokens)
        for row in range(3):
            alone = read(model, TEXTS[row : row + 1], model.explain_prefix)
            labels = read(model, RATIONALES[row : row + 1], prefix="")["input_ids"]
            loss = torch.nn.functional.cross_entropy(logits[row, : labels.shape[1]], labels[0])
            reference = model.loaded(**alone, labels=labels)
            torch.testing.assert_close(loss, reference.loss, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(
                logits[row, : labels.shape[1]], reference.logits[0], atol=1e-4, rtol=0
            )


def test_rationale_token_is_not_shown_itself():
    model = new()
    inputs, targets = read(model, TEXTS[:1]), read(model, RATIONALES[:1])
    before = model.explain(inputs, targets)
    targets["input_ids"][0, 3] = 7
    after = model.explain(inputs, targets)
    assert torch.equal(after[0, :4], before[0, :4])
    assert (after[0, 4] - before[0, 4]).abs().max() > 1e-4


@families
def test_dropout_reaches_every_layer(family):
    rates = [m.p for m in new(family, dropout=0.37).modules() if isinstance(m, torch.nn.Dropout)]
    config = new(family, dropout=0.37).loaded.config
    assert 0.37 in (getattr(config, "dropout_rate", None), getattr(config, "dropout", None))
    assert set(rates) <= {0.37}


def test_an_encoder_writes_no_rationale(make_model, tokenizer):
    model = EncoderClassifier(path=str(make_model()))
    model.load(LABELS)
    assert model.prefix == model.explain_prefix == ""
    with pytest.raises(ModelError, match="writes no rationales: take a Seq2SeqClassifier"):
        model.explain({}, {})


# Folders


def untie(model):
    """Give the head weights of its own, as the checkpoints of T5 1.1 and mT5 have."""
    head = model.head
    head.weight = torch.nn.Parameter(torch.randn_like(head.weight))
    return model


@families
@pytest.mark.parametrize("is_tied", [True, False])
def test_folders_keep_answers_and_tied_weights(tmp_path, family, is_tied):
    model = new(family, verbalisers=WORDS, prefix="judge: ", explain_prefix="say why: ")
    if not is_tied:
        untie(model)
    expected = logits_of(model, TEXTS)
    model.describe(tmp_path / "described", 40)
    model.save(tmp_path / "saved")
    weights = model.loaded.state_dict()
    assert set(model.state_dict()) == {f"network.{name}" for name in weights}
    described = Seq2SeqClassifier.from_folder(tmp_path / "described", weights)
    described.save(tmp_path / "again")
    models = [described, load_teacher(tmp_path / "saved"), load_teacher(tmp_path / "again", None)]
    for other in models:
        assert (other.prefix, other.explain_prefix) == ("judge: ", "say why: ")
        torch.testing.assert_close(logits_of(other, TEXTS), expected, atol=1e-5, rtol=1e-5)
        assert other.info == model.info
        embeddings = other.loaded.get_input_embeddings()
        assert (other.head.weight is embeddings.weight) == is_tied
        assert other.loaded.get_encoder().get_input_embeddings().weight is embeddings.weight
    with torch.no_grad():
        described.head.weight.zero_()
    assert model.head.weight.abs().sum() > 0  # weights are copied, not shared


def test_described_folder_of_a_writer_refuses_other_weights(tmp_path):
    new().describe(tmp_path / "described", 40)
    for wrong in (new(config={"d_model": 32}), new(config={"num_decoder_layers": 2})):
        with pytest.raises(ModelError, match=r"do not fit .*config\.json"):
            Seq2SeqClassifier.from_folder(tmp_path / "described", wrong.loaded.state_dict())
    weights = new().loaded.state_dict()
    del weights["lm_head.weight"]
    with pytest.raises(ModelError, match="do not fit"):
        Seq2SeqClassifier.from_folder(tmp_path / "described", weights)


def test_a_run_is_exported_and_measured(tmp_path):
    model = new(verbalisers=WORDS, prefix="judge: ")
    run = tmp_path / "run"
    model.describe(run / MODEL_FOLDER, 24)
    state = {f"student.network.{name}": value for name, value in model.loaded.state_dict().items()}
    SafeCheckpointIO().save_checkpoint({"state_dict": state}, run / "checkpoints" / "best.ckpt")
    folder = tmp_path / "student"
    export_checkpoint(run, "best", folder)
    classifier = Classifier.from_pretrained(folder)
    assert isinstance(classifier.model.classifier, Seq2SeqClassifier)
    long = [*TEXTS, "terrible " * 50]
    ids = [model.tokenizer(f"judge: {text}", truncation=True, max_length=24) for text in long]
    for text, inputs, answer in zip(long, ids, classifier.predict(long), strict=True):
        tensors = {name: torch.tensor([inputs[name]]) for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            wanted = model(tensors).logits.softmax(-1)[0].tolist()
        assert answer.probabilities == pytest.approx(
            dict(zip(LABELS, wanted, strict=True)), abs=1e-5
        ), text
    rows = [Row(place, text, LABELS.index("positive")) for place, text in enumerate(TEXTS)]
    found = measure(folder, EncodedRows(rows, {}), LABELS)[1]["student"]
    chosen = [answer.label == "positive" for answer in classifier.predict(TEXTS)]
    assert found.accuracy == pytest.approx(sum(chosen) / len(chosen))
    assert found.parameters == model.info.parameters
    assert found.rows_per_second > 0


def test_an_exported_writer_writes_by_transformers_alone(tmp_path):
    model = new()
    model.save(tmp_path / "saved")
    network = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved")
    written = network.generate(**read(model, TEXTS[:2]), max_new_tokens=4, do_sample=False)
    assert written.shape[0] == 2
    assert network.generation_config.eos_token_id == model.tokenizer.sep_token_id
    assert (written[:, 0] == model.tokenizer.pad_token_id).all()


def test_the_kind_of_a_folder_is_told_by_its_configuration(tmp_path, make_model):
    new().save(tmp_path / "writer")
    assert choose_classifier(tmp_path / "writer") is Seq2SeqClassifier
    assert choose_classifier(make_model()) is EncoderClassifier
    bart = new("bart")
    bart.save(tmp_path / "bart")
    assert choose_classifier(tmp_path / "bart") is Seq2SeqClassifier
    file = tmp_path / "bart" / "config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"architectures": ["BartForSequenceClassification"]}))
    assert choose_classifier(tmp_path / "bart") is EncoderClassifier
    file.write_text(json.dumps({**values, "model_type": None}))
    assert choose_classifier(tmp_path / "bart", "bart") is Seq2SeqClassifier
    with pytest.raises(ModelError, match="neither a model folder here nor"):
        choose_classifier(tmp_path / "nowhere")


def test_weights_of_an_encoder_alone_are_refused(tmp_path):
    model = new()
    model.save(tmp_path / "saved")
    weights = model.loaded.get_encoder()
    weights.save_pretrained(tmp_path / "encoder")
    (tmp_path / "encoder" / "model.safetensors").replace(tmp_path / "saved" / "model.safetensors")
    with pytest.raises(ModelError, match="not those of a t5"):
        load(tmp_path / "saved")


# Class names and words


@pytest.mark.parametrize("form", [str.lower, str.upper, str.title])
@pytest.mark.parametrize("read", [load, load_teacher])
def test_classes_are_put_in_the_wanted_order_with_their_words(tmp_path, read, form):
    model = new(labels=("Negative", "Positive"), verbalisers={"Negative": "terrible"})
    model.save(tmp_path / "saved")
    negative, positive = form("negative"), form("positive")
    other = read(tmp_path / "saved", (positive, negative))
    assert other.labels == (positive, negative)
    assert other.loaded.config.verbalisers == {negative: "terrible", positive: "Positive"}
    torch.testing.assert_close(logits_of(other, TEXTS)[:, [1, 0]], logits_of(model, TEXTS))


def test_words_and_prefix_of_a_recipe_replace_the_stored_ones(tmp_path):
    new(verbalisers=WORDS, prefix="judge: ").save(tmp_path / "saved")
    model = load(tmp_path / "saved", verbalisers={"negative": "awful"}, prefix="")
    assert model.loaded.config.verbalisers == {**WORDS, "negative": "awful"}
    assert (model.prefix, model.explain_prefix) == ("", "explain: ")


def test_other_classes_are_a_students_own(tmp_path):
    new(verbalisers=WORDS).save(tmp_path / "saved")
    model = load(tmp_path / "saved", ("spam", "ham", "positive"))
    assert model.labels == ("spam", "ham", "positive")
    assert model.loaded.config.num_labels == 3
    assert model.loaded.config.verbalisers["ham"] == "ham"
    assert model(read(model, TEXTS)).logits.shape == (8, 3)
    with pytest.raises(ModelError, match="answers with negative, positive"):
        load_teacher(tmp_path / "saved", ("spam", "ham"))


def test_a_writer_of_another_place_teaches_by_the_names_given(tmp_path):
    model = new()
    model.save(tmp_path / "saved")
    file = tmp_path / "saved" / "config.json"
    values = json.loads(file.read_text())
    for name in ("id2label", "label2id", "verbalisers", "prefix", "explain_prefix"):
        del values[name]
    file.write_text(json.dumps(values))
    with pytest.raises(ModelError, match=r"LABEL_0, LABEL_1.*label_names"):
        load_teacher(tmp_path / "saved")
    with pytest.raises(ModelError, match="was not trained to classify") as error:
        Classifier.from_pretrained(tmp_path / "saved")
    assert one_sentence(error)
    teacher = load_teacher(tmp_path / "saved", stored=["negative", "positive"])
    torch.testing.assert_close(logits_of(teacher, TEXTS), logits_of(model, TEXTS))
    teacher = load_teacher(tmp_path / "saved", LABELS, stored=["positive", "NEGATIVE"])
    assert teacher.loaded.config.verbalisers == {"negative": "NEGATIVE", "positive": "positive"}


def test_several_classes_a_row_are_refused():
    with pytest.raises(ModelError, match="one class, but data.multi_label is true") as error:
        Seq2SeqClassifier(config={"model_type": "t5", **FAMILIES["t5"]}).load(
            LABELS, TEXTS, multi_label=True
        )
    assert one_sentence(error)


@pytest.mark.parametrize(
    ("labels", "words", "message"),
    [
        (LABELS, {"postive": "good"}, "names postive, but the data's classes are negative, "),
        (LABELS, {"positive": "sad", "negative": "Sad"}, "classes negative and positive alike"),
        (("us", "US"), {}, "classes us and US alike"),
    ],
)
def test_impossible_words_are_refused(labels, words, message):
    with pytest.raises(ConfigError, match=message) as error:
        new(labels=labels, verbalisers=words)
    assert one_sentence(error)


def test_what_is_no_writer_is_refused(make_model):
    with pytest.raises(ModelError, match="do not load: Unrecognized configuration class"):
        load(make_model())
    with pytest.raises(ConfigError, match="Seq2SeqClassifier's config makes no model"):
        Seq2SeqClassifier(config={"model_type": "bert"}).load(LABELS, TEXTS)
    with pytest.raises(ConfigError, match=r"Seq2SeqClassifier's config names .*e\.g\. t5"):
        Seq2SeqClassifier(config={})
    with pytest.raises(ConfigError, match="Seq2SeqClassifier takes a path or a config"):
        Seq2SeqClassifier()


def test_new_vocabulary_has_the_letters_of_prefixes_and_classes():
    model = new(labels=("quartz", "x-ray"), prefix="judge> ", verbalisers={"quartz": "jewel 7"})
    words = f"{model.prefix}{model.explain_prefix}quartz x-ray jewel 7"
    assert words.startswith("judge> explain: ")
    assert model.tokenizer.unk_token not in model.tokenizer.tokenize(words)
    assert Seq2SeqClassifier(config={"model_type": "t5"}).wants_texts
    assert not Seq2SeqClassifier(path="anything").wants_texts


# The tokenizer of T5


@pytest.fixture
def pieces(tmp_path):
    """A Unigram vocabulary as T5 has it: pad 0, end 1, nothing at the start."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([*TEXTS, "predict: explain: negative positive"] * 3, trainer)
    vocabulary = [tuple(piece) for piece in json.loads(tokenizer.to_str())["model"]["vocab"]]
    folder = tmp_path / "pieces"
    T5Tokenizer(vocab=vocabulary, extra_ids=0).save_pretrained(folder)
    return str(folder)


def test_tokenizer_of_t5_is_read_and_kept(pieces, tmp_path):
    model = new(tokenizer=pieces)
    assert model.tokenizer.pad_token_id == model.loaded.config.decoder_start_token_id == 0
    ends = [row[row != -100][-1].item() for row in model.targets]
    assert ends == [model.tokenizer.eos_token_id] * 2 == [1, 1]
    assert model.loaded.config.eos_token_id == 1
    expected = logits_of(model, TEXTS)
    torch.testing.assert_close(expected, slow_logits(model, TEXTS, LABELS), atol=1e-5, rtol=1e-5)
    model.save(tmp_path / "saved")
    classifier = Classifier.from_pretrained(tmp_path / "saved")
    wanted = expected.softmax(-1)
    found = [list(answer.probabilities.values()) for answer in classifier.predict(TEXTS)]
    torch.testing.assert_close(torch.tensor(found), wanted, atol=1e-5, rtol=0)


def test_prefix_stands_before_texts_and_pairs_however_long(pieces):
    model = new(tokenizer=pieces)
    begin = model.tokenizer(model.prefix, add_special_tokens=False)["input_ids"]
    rows = [Row(0, "happy " * 90, pair="sad"), Row(1, "happy", pair="sad " * 90)]
    rows += [Row(2, "happy " * 90, pair="sad " * 90)]
    view = View(model.tokenizer, 20, "any", prefix=model.prefix)
    inputs = encode(rows, view).pad(torch.arange(3).numpy())
    assert (inputs["input_ids"][:, : len(begin)] == torch.tensor(begin)).all()
    assert inputs["input_ids"].shape[1] == 20
    assert model(inputs).logits.shape == (3, 2)
    assert not torch.allclose(*model(inputs).logits[:2])


# Recipes


def test_a_recipe_names_either_kind_of_student():
    allow_imports()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--student", type=TextClassifier)
    options = {"path": "anything", "verbalisers": WORDS, "prefix": "judge: "}
    students = {"Seq2SeqClassifier": options, "EncoderClassifier": {"path": "a"}}
    for name, settings in students.items():
        text = json.dumps({"class_path": name, "init_args": settings})
        student = parser.instantiate(parser.parse_args([f"--student={text}"])).student
        assert type(student).__name__ == name
        assert student.path == settings["path"]
