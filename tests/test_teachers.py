import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from kd.errors import ModelError
from kd.models import EncoderClassifier
from kd.module import DistillationModule
from kd.objectives import LogitKD
from kd.projections import PROJECTIONS
from kd.teachers import ModelTeacher, Reference, Teacher
from kd.types import Batch
from kd.vocabulary import digest, train_wordpiece
from tests.conftest import FAMILIES, LABELS, TEXTS

LOGITS = frozenset({"logits"})


def teacher_of(folder, labels=LABELS, **settings):
    teacher = ModelTeacher(str(folder), **settings)
    teacher.load(labels)
    return teacher


def batch_of(tokenizer, texts=TEXTS, name="teacher"):
    inputs = dict(tokenizer(list(texts), padding=True, return_tensors="pt"))
    return Batch(
        {name: inputs}, torch.zeros(len(texts), dtype=torch.long), torch.arange(len(texts))
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_teacher_is_frozen_and_answers_alike_twice(make_model, tokenizer, family):
    """A teacher in train mode is a known bug of others: every answer is another one."""
    teacher = teacher_of(make_model(family=family))
    assert not any(module.training for module in teacher.model.modules())
    assert not any(weight.requires_grad for weight in teacher.model.parameters())
    batch = batch_of(tokenizer)
    first, second = teacher(batch, LOGITS), teacher(batch, LOGITS)
    assert torch.equal(first.logits, second.logits)
    assert not first.logits.requires_grad
    assert first.hidden_states is first.attentions is None


def test_no_graph_is_kept_even_of_weights_that_are_not_frozen(make_model, tokenizer):
    teacher = teacher_of(make_model())
    teacher.model.requires_grad_(True)
    assert not teacher(batch_of(tokenizer), LOGITS).logits.requires_grad


def test_dropout_would_be_seen(make_model, tokenizer):
    """The test above can fail: with dropout two answers differ."""
    teacher = teacher_of(make_model())
    teacher.model.train()
    inputs = batch_of(tokenizer).views["teacher"]
    assert not torch.equal(teacher.model(inputs).logits, teacher.model(inputs).logits)


def test_teacher_in_train_mode_is_refused(make_model, tokenizer):
    teacher = teacher_of(make_model())
    teacher.model.train()
    with pytest.raises(ModelError, match="teacher is in train mode: its dropout would be on"):
        teacher(batch_of(tokenizer), LOGITS)


def test_teacher_that_is_not_loaded_is_refused(make_model, tokenizer):
    teacher = ModelTeacher(str(make_model()))
    with pytest.raises(ModelError):
        teacher(batch_of(tokenizer), LOGITS)
    with pytest.raises(ModelError, match="not loaded yet"):
        teacher.views(10)
    with pytest.raises(ModelError, match="not loaded yet"):
        _ = teacher.info


def test_hidden_states_and_attentions_come_when_needed(make_model, tokenizer):
    teacher = teacher_of(make_model())
    outputs = teacher(batch_of(tokenizer), ModelTeacher.provides)
    assert len(outputs.hidden_states) == 4
    assert len(outputs.attentions) == 3
    for tensor in (*outputs.hidden_states, *outputs.attentions):
        assert not tensor.requires_grad
    torch.testing.assert_close(
        outputs.logits, teacher(batch_of(tokenizer), LOGITS).logits, atol=1e-6, rtol=0
    )


def test_teacher_provides_what_a_model_can_answer():
    assert ModelTeacher.provides == {"logits", "hidden_states", "attentions", *PROJECTIONS}
    assert Teacher.provides == frozenset()


def test_teacher_is_no_module_and_in_no_checkpoint(make_model):
    teacher = teacher_of(make_model("teacher"))
    assert not isinstance(teacher, nn.Module)
    student = EncoderClassifier(path=str(make_model("student")))
    module = DistillationModule(student, teacher, {"logits": LogitKD()})
    student.load(LABELS)
    assert ids(module.parameters()) == ids(student.parameters())
    assert not any(name.startswith("teacher") for name in module.state_dict())
    module.train()
    assert not teacher.model.training  # Lightning calls train() on the module
    assert not any(weight.requires_grad for weight in teacher.model.parameters())


def ids(values):
    return {id(value) for value in values}


def test_teacher_reads_its_own_view(make_model, tokenizer):
    teacher = teacher_of(make_model())
    views = {
        **batch_of(tokenizer).views,
        "student": batch_of(tokenizer, ["x"], "student").views["student"],
    }
    batch = Batch(views, torch.zeros(len(TEXTS), dtype=torch.long), torch.arange(len(TEXTS)))
    assert len(teacher(batch, LOGITS).logits) == len(TEXTS)


def test_view_is_of_the_teachers_tokenizer_and_length(make_model, tokenizer):
    folder = make_model("other")
    other = train_wordpiece(TEXTS[:4], 60)
    other.save_pretrained(folder)
    teacher = teacher_of(folder)
    views = teacher.views(20)
    assert set(views) == {"teacher"}
    view = views["teacher"]
    assert view.tokenizer is teacher.model.tokenizer
    assert view.max_length == 20
    assert view.vocabulary == teacher.info.vocabulary == digest(other) != digest(tokenizer)
    assert teacher.views(1000)["teacher"].max_length == 64  # what the model reads at most
    same = teacher_of(make_model("same")).views(20)["teacher"]
    assert same.key == (digest(tokenizer), 20, "", "text", 0)


def test_key_knows_what_decides_the_answers_and_nothing_else(make_model):
    folder = make_model()
    key = teacher_of(folder).key
    assert teacher_of(folder).models[0].path == str(folder)
    moved = folder.rename(folder.with_name("moved"))
    assert teacher_of(moved).key == key  # where it lies decides nothing
    turned = teacher_of(moved, LABELS[::-1]).key
    other = teacher_of(make_model("other")).key  # other weights
    train_wordpiece(TEXTS[:4], 60).save_pretrained(moved)
    assert len({key, turned, other, teacher_of(moved).key}) == 4


def test_lowered_answers_differ_a_little_and_the_weights_come_back(make_model, tokenizer):
    teacher = teacher_of(make_model())
    batch, before = batch_of(tokenizer), teacher.key
    exact = teacher(batch, LOGITS).logits
    with teacher.lowered():
        quick = teacher(batch, LOGITS).logits
    assert quick.dtype == torch.float32
    assert 0 < (quick - exact).abs().max() < 0.05
    assert teacher.key == before
    assert torch.equal(teacher(batch, LOGITS).logits, exact)


def test_teacher_follows_the_batch_to_its_device(make_model, tokenizer):
    """No GPU here: the meta device has shapes and no numbers."""
    teacher = teacher_of(make_model())
    assert teacher(batch_of(tokenizer), LOGITS).logits.device.type == "cpu"
    inputs = {
        name: value.to("meta") for name, value in batch_of(tokenizer).views["teacher"].items()
    }
    moved = []

    class Elsewhere(EncoderClassifier):
        def to(self, device):
            moved.append(device)
            return self

        def forward(self, inputs, needs=frozenset()):
            return needs

    teacher.model.__class__ = Elsewhere
    batch = Batch({"teacher": inputs}, torch.zeros(8), torch.arange(8))
    assert teacher(batch, frozenset({"logits", "attentions"})) == {"attentions"}
    assert moved == [torch.device("meta")]


# Classes


@pytest.mark.fault(34)
def test_logits_are_in_the_order_of_the_data(make_model, tokenizer):
    folder = make_model(labels=("NEGATIVE", "POSITIVE"))
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        network.classifier.bias.copy_(torch.tensor([-1.0, 1.0]))
    network.save_pretrained(folder)
    straight = teacher_of(folder, ("negative", "positive"))
    turned = teacher_of(folder, ("positive", "negative"))
    assert turned.info.labels == ("positive", "negative")
    batch = batch_of(tokenizer)
    logits = straight(batch, LOGITS).logits
    assert (logits[:, 1] > logits[:, 0]).all()
    torch.testing.assert_close(turned(batch, LOGITS).logits, logits.flip(1))


@pytest.mark.fault(35)
def test_other_classes_are_refused(make_model):
    with pytest.raises(ModelError, match=r"answers with negative, positive, .* ham, spam"):
        teacher_of(make_model(), ("ham", "spam"))


def test_nameless_classes_take_label_names(make_model, tokenizer):
    folder = make_model(labels=("LABEL_0", "LABEL_1"))
    with pytest.raises(ModelError, match="label_names beside the teacher's path"):
        teacher_of(folder)
    plain = teacher_of(folder, label_names=["negative", "positive"])
    turned = teacher_of(folder, label_names=["positive", "negative"])
    batch = batch_of(tokenizer)
    torch.testing.assert_close(turned(batch, LOGITS).logits, plain(batch, LOGITS).logits.flip(1))


def test_more_names_than_classes_give_no_random_teacher(make_model):
    with pytest.raises(ModelError, match="has 2 classes, but label_names gives 3: a, b, c"):
        teacher_of(make_model(), ("a", "b", "c"), label_names=["a", "b", "c"])


def test_teacher_without_model_type(make_model, tokenizer):
    folder = make_model()
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"model_type": "bert",', ""))
    with pytest.raises(ModelError, match="model_type"):
        teacher_of(folder)
    teacher = teacher_of(folder, model_type="bert")
    assert teacher(batch_of(tokenizer), LOGITS).logits.shape == (len(TEXTS), 2)


# References


def test_references_name_path_and_recipe():
    assert ModelTeacher("runs/teacher").references() == {"runs/teacher": None}
    teacher = ModelTeacher("runs/teacher", recipe="configs/teacher.yaml")
    assert teacher.references() == {"runs/teacher": Reference("configs/teacher.yaml", ())}
    assert Teacher().references() == {}


def test_follow_reads_from_where_the_reference_leads(make_model):
    folder = make_model()
    teacher = ModelTeacher("runs/teacher")
    teacher.follow({"runs/other": "elsewhere"})
    assert teacher.model.path == "runs/teacher"
    teacher.follow({"runs/teacher": str(folder)})
    teacher.load(LABELS)
    assert teacher.info.labels == LABELS


def test_base_does_nothing_where_nothing_need_be_done():
    teacher = Teacher()
    teacher.follow({"a": "b"})
    teacher.keep_in(None)
    teacher.prepare([], LOGITS, torch.device("cpu"))
    with teacher.lowered():
        assert teacher.models == ()
    assert teacher.wrapped(lambda given: [given]) == [teacher]
    assert teacher.parts == (teacher,)


def test_base_says_what_is_missing(tokenizer):
    class Silent(Teacher):
        pass

    teacher = Silent()
    for use in (
        lambda: teacher.load(LABELS),
        lambda: teacher.views(10),
        lambda: teacher.info,
        lambda: teacher.key,
        lambda: teacher(batch_of(tokenizer), LOGITS),
    ):
        with pytest.raises(TypeError, match="Silent does not implement"):
            use()
