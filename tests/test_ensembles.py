import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kd.cache import CachedTeacher
from kd.data.collate import EncodedRows
from kd.data.encode import View, encode
from kd.ensembles import (
    EnsembleTeacher,
    OutOfFoldTeacher,
    average_logits,
    average_probabilities,
)
from kd.errors import ConfigError, DataError, ModelError
from kd.projections import PROJECTIONS
from kd.teachers import ModelTeacher, Reference, Teacher
from kd.types import Batch, Row
from kd.vocabulary import train_wordpiece
from tests.conftest import LABELS, TEXTS

LOGITS = frozenset({"logits"})
CPU = torch.device("cpu")
STUDENT = train_wordpiece(TEXTS, 50)
MORE = [*(f"{text}, i say" for text in TEXTS), *(f"so {text}" for text in TEXTS)]


class Counting(ModelTeacher):
    """A model that counts the rows that it is asked about."""

    asked = 0

    def __call__(self, batch, needs):
        self.asked += len(batch)
        return super().__call__(batch, needs)


def written(make_model, name, texts=None, **settings):
    """A model folder whose answers differ clearly from row to row, with a tokenizer of its own."""
    folder = make_model(name, **settings)
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    network.save_pretrained(folder)
    if texts:
        train_wordpiece(texts, 60).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def folders(make_model):
    """Models of two families, two tokenizers and two orders of the classes."""
    return {
        "a": written(make_model, "bert"),
        "b": written(make_model, "roberta", TEXTS[:4], family="roberta", labels=LABELS[::-1]),
    }


def members(folders, kind=ModelTeacher):
    return {name: kind(folder) for name, folder in folders.items()}


def ensemble(folders, kind=ModelTeacher, load=True, **settings):
    teacher = EnsembleTeacher(members(folders, kind), **settings)
    if load:
        teacher.load(LABELS)
    return teacher


def split_of(teacher, texts=TEXTS, first=0):
    """Rows as a teacher reads them; the student has a tokenizer of its own."""
    rows = [Row(first + place, text, label=0) for place, text in enumerate(texts)]
    views = {"student": View(STUDENT, 9, "student"), **teacher.views(32)}
    return EncodedRows(rows, {name: encode(rows, view) for name, view in views.items()})


def all_of(split):
    return split.batch(np.arange(len(split)))


def alone(folder, texts=TEXTS, needs=LOGITS):
    teacher = ModelTeacher(folder)
    teacher.load(LABELS)
    return teacher(all_of(split_of(teacher, texts)), needs)


# Averages


def test_mean_of_logits_by_hand():
    logits = [torch.tensor([[1.0, 3.0]]), torch.tensor([[5.0, -1.0]])]
    torch.testing.assert_close(average_logits(logits, [0.75, 0.25]), torch.tensor([[2.0, 2.0]]))


def test_mean_of_probabilities_by_hand():
    logits = [torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[math.log(4.0), 0.0]])]
    # probabilities 1/4 3/4 and 4/5 1/5
    mean = average_probabilities(logits, [0.2, 0.8]).exp()
    torch.testing.assert_close(mean, torch.tensor([[0.05 + 0.64, 0.15 + 0.16]]))


def test_mean_of_several_classes_is_the_logit_of_the_mean_sigmoid():
    logits = [torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[math.log(4.0), -math.log(9.0)]])]
    # sigmoids 1/2 3/4 and 4/5 1/10
    mean = average_probabilities(logits, [0.5, 0.5], multi_label=True).sigmoid()
    torch.testing.assert_close(mean, torch.tensor([[0.65, 0.425]]))


@pytest.mark.parametrize("multi_label", [False, True])
def test_probabilities_agree_with_numpy(multi_label):
    logits = torch.randn(3, 5, 4) * 3
    shares = [0.5, 0.2, 0.3]
    exact = logits.double().numpy()
    if multi_label:
        mean = np.einsum("m,mbc->bc", shares, 1 / (1 + np.exp(-exact)))
        expected = np.log(mean / (1 - mean))
    else:
        exact = np.exp(exact) / np.exp(exact).sum(-1, keepdims=True)
        expected = np.log(np.einsum("m,mbc->bc", shares, exact))
    mean = average_probabilities(list(logits), shares, multi_label)
    np.testing.assert_allclose(mean.numpy(), expected, atol=1e-5)


def test_equal_teachers_say_what_one_says():
    logits = torch.randn(6, 3)
    twice = [logits, logits]
    torch.testing.assert_close(average_logits(twice, [0.3, 0.7]), logits)
    torch.testing.assert_close(
        average_probabilities(twice, [0.3, 0.7]), logits.log_softmax(dim=-1), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(average_probabilities(twice, [0.3, 0.7], multi_label=True), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("multi_label", [False, True])
def test_extreme_logits_stay_finite_in_float32(multi_label, dtype):
    logits = [torch.tensor([[1e4, -1e4]], dtype=dtype), torch.tensor([[-1e4, 1e4]], dtype=dtype)]
    for mean in (
        average_logits(logits, [0.5, 0.5]),
        average_probabilities(logits, [0.5, 0.5], multi_label),
    ):
        assert mean.isfinite().all()
        assert mean.dtype == torch.float32
        torch.testing.assert_close(mean[0, 0], mean[0, 1])


# Ensembles


def test_members_of_other_families_tokenizers_and_orders_of_classes_are_averaged(folders):
    teacher = ensemble(folders)
    views = teacher.views(32)
    assert set(views) == {"teacher.a", "teacher.b"}
    assert views["teacher.a"].vocabulary != views["teacher.b"].vocabulary
    first, second = alone(folders["a"]).logits, alone(folders["b"]).logits
    assert (first - second).abs().max() > 0.1
    mean = teacher(all_of(split_of(teacher)), LOGITS).logits
    torch.testing.assert_close(mean, (first + second) / 2, atol=1e-6, rtol=0)


def test_classes_are_averaged_by_name(folders):
    """RoBERTa here has its classes the other way round: by position the mean would be another."""
    network = AutoModelForSequenceClassification.from_pretrained(folders["b"])
    with torch.no_grad():
        network.classifier.out_proj.bias.copy_(torch.tensor([100.0, -100.0]))  # positive first
    network.save_pretrained(folders["b"])
    teacher = ensemble(folders)
    logits = teacher(all_of(split_of(teacher)), LOGITS).logits
    assert (logits[:, LABELS.index("positive")] > logits[:, LABELS.index("negative")] + 50).all()


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        (None, (0.5, 0.5)),
        ({"a": 3.0, "b": 1.0}, (0.75, 0.25)),
        ({"b": 4.0}, (0.2, 0.8)),  # a name left out is 1
    ],
)
def test_weights_are_normalised(folders, weights, shares):
    teacher = ensemble(folders, weights=weights)
    expected = shares[0] * alone(folders["a"]).logits + shares[1] * alone(folders["b"]).logits
    mean = teacher(all_of(split_of(teacher)), LOGITS).logits
    torch.testing.assert_close(mean, expected, atol=1e-6, rtol=0)


def test_probabilities_and_logits_have_different_means(folders):
    teacher = ensemble(folders, weights={"a": 3.0}, average="probabilities")
    batch = all_of(split_of(teacher))
    first, second = (alone(folders[name]).logits.softmax(-1) for name in "ab")
    probabilities = teacher(batch, LOGITS).logits.exp()
    torch.testing.assert_close(probabilities, 0.75 * first + 0.25 * second, atol=1e-6, rtol=0)
    teacher.average = "logits"
    assert (teacher(batch, LOGITS).logits.softmax(-1) - probabilities).abs().max() > 1e-3


def test_rows_of_several_classes_are_averaged_by_sigmoids(make_model):
    several = {"problem_type": "multi_label_classification"}
    folders = {name: written(make_model, name, **several) for name in "ab"}
    teacher = ensemble(folders, load=False, average="probabilities")
    teacher.load(LABELS, multi_label=True)
    assert teacher.info.multi_label
    answers = []
    for folder in folders.values():
        member = ModelTeacher(folder)
        member.load(LABELS, multi_label=True)
        answers.append(member(all_of(split_of(member)), LOGITS).logits.sigmoid())
    mean = teacher(all_of(split_of(teacher)), LOGITS).logits.sigmoid()
    torch.testing.assert_close(mean, (answers[0] + answers[1]) / 2, atol=1e-6, rtol=0)


def test_an_ensemble_may_be_a_member(make_model, folders):
    third = written(make_model, "third", TEXTS[4:])
    teacher = EnsembleTeacher(
        {"both": EnsembleTeacher(members(folders)), "c": ModelTeacher(third)}, {"c": 2.0}
    )
    teacher.load(LABELS)
    assert set(teacher.views(32)) == {"teacher.both.a", "teacher.both.b", "teacher.c"}
    assert len(teacher.models) == 3
    expected = (alone(folders["a"]).logits + alone(folders["b"]).logits) / 6
    expected = expected + 2 * alone(third).logits / 3
    mean = teacher(all_of(split_of(teacher)), LOGITS).logits
    torch.testing.assert_close(mean, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("features", ["a", "b"])
def test_other_fields_and_the_mask_are_those_of_one_member(folders, features):
    teacher = ensemble(folders, features=features)
    needs = frozenset({"hidden_states", "attentions.1", "keys"})
    assert teacher.provides == ModelTeacher.provides
    outputs = teacher(all_of(split_of(teacher)), needs)
    own = alone(folders[features], needs=frozenset({"hidden_states", "attentions", "keys"}))
    other = alone(folders["b" if features == "a" else "a"])
    assert own.mask.shape != other.mask.shape  # else the mask of the other might pass
    assert torch.equal(outputs.mask, own.mask)
    for field in ("hidden_states", "attentions", "keys"):
        pairs = zip(getattr(outputs, field), getattr(own, field), strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert outputs.queries is None
    torch.testing.assert_close(outputs.logits, (own.logits + other.logits) / 2, atol=1e-5, rtol=0)


def test_only_the_member_of_the_features_is_asked_for_them(folders):
    asked = {}

    class Noting(ModelTeacher):
        def __call__(self, batch, needs):
            asked[self.model.path] = needs
            assert set(batch.views) == {"student", "teacher"}
            return super().__call__(batch, needs)

    needs = frozenset({"logits", "hidden_states.1"})
    named = {"a": folders["a"], "ab": folders["b"]}  # one name begins with the other
    teacher = ensemble(named, Noting, features="ab")
    teacher(all_of(split_of(teacher)), needs)
    assert asked == {folders["a"]: LOGITS, folders["b"]: needs}
    assert ensemble(folders, load=False).provides == LOGITS


def test_member_without_weight_is_not_there(folders):
    teacher = ensemble(folders, weights={"a": 0.0})
    assert [*teacher.teachers] == ["b"]
    assert [*teacher.references()] == [folders["b"]]
    torch.testing.assert_close(
        teacher(all_of(split_of(teacher)), LOGITS).logits, alone(folders["b"]).logits
    )


def test_member_without_weight_may_give_the_features(folders):
    needs = frozenset({"hidden_states"})
    for average, expected in (
        ("logits", alone(folders["b"]).logits),
        ("probabilities", alone(folders["b"]).logits.log_softmax(-1)),
    ):
        teacher = ensemble(folders, weights={"a": 0.0}, features="a", average=average)
        outputs = teacher(all_of(split_of(teacher)), needs)
        torch.testing.assert_close(outputs.logits, expected, atol=1e-6, rtol=0)
        states = alone(folders["a"], needs=needs).hidden_states[-1]
        torch.testing.assert_close(outputs.hidden_states[-1], states)


def test_info_is_of_the_member_that_gives_the_features(make_model):
    folders = {"a": make_model("a"), "b": make_model("b", num_hidden_layers=2)}
    alone_info = {}
    for name, folder in folders.items():
        member = ModelTeacher(str(folder))
        member.load(LABELS)
        alone_info[name] = member.info
    total = alone_info["a"].parameters + alone_info["b"].parameters
    for features, layers in ((None, 3), ("a", 3), ("b", 2)):
        info = ensemble(folders, kind=lambda f: ModelTeacher(str(f)), features=features).info
        assert (info.layers, info.parameters) == (layers, total)
        assert info.labels == LABELS


def test_all_members_are_told(folders):
    teacher = EnsembleTeacher(
        {"a": ModelTeacher("runs/a", recipe="a.yaml"), "b": ModelTeacher("runs/b")}
    )
    assert teacher.references() == {"runs/a": Reference("a.yaml"), "runs/b": None}
    teacher.follow({"runs/a": folders["a"], "runs/b": folders["b"]})
    teacher.load(LABELS)
    assert [model.path for model in teacher.models] == [*folders.values()]
    assert all(model.network is not None for model in teacher.models)


def test_lowered_reaches_every_member_and_is_undone(folders):
    teacher = ensemble(folders)
    batch = all_of(split_of(teacher))
    linear = [
        next(m for m in model.modules() if isinstance(m, torch.nn.Linear))
        for model in teacher.models
    ]
    before = teacher(batch, LOGITS).logits
    with teacher.lowered():
        assert [layer.weight.dtype for layer in linear] == [torch.bfloat16] * 2
        inside = teacher(batch, LOGITS).logits
    assert [layer.weight.dtype for layer in linear] == [torch.float32] * 2
    assert inside.dtype == torch.float32
    assert 0 < (inside - before).abs().max() < 0.3
    assert torch.equal(teacher(batch, LOGITS).logits, before)


# Keys


def test_key_knows_what_decides_the_answers_and_nothing_else(make_model, folders):
    key = ensemble(folders).key
    assert len(key) == 32
    assert key == ensemble(folders, weights={"a": 7.0, "b": 7.0}).key  # the same shares
    assert key == ensemble({"x": folders["a"], "y": folders["b"]}).key  # names decide nothing
    third = written(make_model, "third")
    weighted = {"weights": {"c": 0.0}}
    assert key == ensemble({**folders, "c": third}, **weighted).key
    others = [
        ensemble(folders, weights={"a": 2.0}).key,
        ensemble(folders, weights={"b": 2.0}).key,
        ensemble(folders, average="probabilities").key,
        ensemble(folders, features="a").key,
        ensemble(folders, features="b").key,
        ensemble({"a": folders["a"], "b": third}).key,
        ensemble({"a": folders["a"]}).key,
        ensemble({**folders, "c": third}).key,
        ensemble({**folders, "c": third}, features="c", **weighted).key,
    ]
    single = ModelTeacher(folders["a"])
    single.load(LABELS)
    assert len({key, single.key, *others}) == 2 + len(others)


# Caches


def cached(folders, folder=None, **settings):
    """An ensemble as the module makes it, and its models, which count."""
    teacher = EnsembleTeacher(members(folders, Counting), **settings)
    counting = [*teacher.teachers.values()]
    assert teacher.wrapped(lambda member: CachedTeacher(member, precision="float32")) is teacher
    teacher.keep_in(folder)
    teacher.load(LABELS)
    return teacher, counting


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_cached_members_answer_as_when_asked_live(folders, average):
    settings = {"average": average, "weights": {"a": 2.0}}
    live = ensemble(folders, **settings)
    teacher, counting = cached(folders, **settings)
    splits = [split_of(teacher), split_of(teacher, MORE, first=100)]
    teacher.prepare(splits, LOGITS, CPU)
    assert [model.asked for model in counting] == [len(TEXTS) + len(MORE)] * 2
    for split in splits:
        batch = all_of(split)
        torch.testing.assert_close(
            teacher(batch, LOGITS).logits, live(batch, LOGITS).logits, atol=1e-6, rtol=0
        )
    assert [model.asked for model in counting] == [len(TEXTS) + len(MORE)] * 2


def test_cached_features_are_those_of_their_member(folders):
    needs = frozenset({"logits", "hidden_states.2", "attentions.0"})
    live = ensemble(folders, features="b")
    teacher, counting = cached(folders, features="b")
    split = split_of(teacher)
    teacher.prepare([split], needs, CPU)
    asked = [model.asked for model in counting]
    ours, theirs = teacher(all_of(split), needs), live(all_of(split), needs)
    assert asked == [model.asked for model in counting]
    real = theirs.mask[:, :, None]
    assert torch.equal(ours.mask, theirs.mask)
    states = (ours.hidden_states[2] - theirs.hidden_states[2]) * real
    attention = (ours.attentions[0] - theirs.attentions[0]) * real[:, None]
    assert states.abs().max() < 1e-5
    assert attention.abs().max() < 1e-5


def test_other_weights_and_other_ensembles_ask_no_member_again(folders, tmp_path):
    answers = []
    for settings, expected in (
        ({}, [len(TEXTS)] * 2),
        ({"weights": {"a": 9.0}}, [0, 0]),
        ({"average": "probabilities", "weights": {"b": 5.0}}, [0, 0]),
        ({"weights": {"a": 0.0}}, [0]),
    ):
        teacher, counting = cached(folders, tmp_path / "answers", **settings)
        split = split_of(teacher)
        teacher.prepare([split], LOGITS, CPU)
        answers.append(teacher(all_of(split), LOGITS).logits)
        assert [model.asked for model in counting] == expected
    assert len({tuple(logits.flatten().tolist()) for logits in answers}) == 4


def test_nested_members_are_cached_by_themselves(folders, make_model):
    inner = EnsembleTeacher(members(folders, Counting))
    teacher = EnsembleTeacher({"both": inner, "c": Counting(written(make_model, "third"))})
    counting = [*inner.teachers.values(), teacher.teachers["c"]]
    teacher.wrapped(lambda member: CachedTeacher(member, precision="float32"))
    assert all(isinstance(member, CachedTeacher) for member in inner.teachers.values())
    assert teacher.teachers["both"] is inner
    teacher.load(LABELS)
    split = split_of(teacher)
    teacher.prepare([split], LOGITS, CPU)
    asked = [model.asked for model in counting]
    assert min(asked) > 0
    logits = teacher(all_of(split), LOGITS).logits
    assert asked == [model.asked for model in counting]
    live = [model(all_of(split_of(model)), LOGITS).logits for model in counting]
    expected = (live[0] + live[1]) / 4 + live[2] / 2
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)


def test_parts_are_what_is_asked_by_itself(folders, make_model):
    inner = EnsembleTeacher(members(folders))
    third = ModelTeacher(written(make_model, "third"))
    teacher = EnsembleTeacher({"both": inner, "c": third})
    assert teacher.parts == (*inner.teachers.values(), third)
    whole = CachedTeacher(teacher)
    assert whole.parts == (whole,)
    folds = OutOfFoldTeacher("runs/teacher", "teacher.yaml")
    assert folds.parts == (folds,), "one of its members answers, and nobody knows which"
    asked = teacher.parts
    teacher.wrapped(CachedTeacher)
    assert tuple(part.teacher for part in teacher.parts) == asked


def test_an_ensemble_cached_as_a_whole_answers_alike(folders):
    live = ensemble(folders)
    teacher = CachedTeacher(ensemble(folders), precision="float32")
    split = split_of(teacher)
    teacher.prepare([split], LOGITS, CPU)
    batch = all_of(split)
    torch.testing.assert_close(
        teacher(batch, LOGITS).logits, live(batch, LOGITS).logits, atol=1e-6, rtol=0
    )


def test_rows_under_other_views_know_what_was_known_of_them(folders):
    split = split_of(ensemble(folders))
    views = {"student": split.views["student"], "teacher": split.views["teacher.b"]}
    other = split.with_views(views)
    assert other.rows is split.rows
    assert other.content is split.content
    batch = all_of(other)
    assert set(batch.views) == {"student", "teacher"}
    assert torch.equal(batch.content, all_of(split).content)
    assert [*split.views] == ["student", "teacher.a", "teacher.b"]


# Settings


@pytest.mark.parametrize(
    ("names", "settings", "told"),
    [
        ("", {}, r"teachers is empty: name at least one teacher"),
        (["a.b"], {}, r"has the name 'a.b': give one that is not empty and has no dot"),
        ([""], {}, r"has the name '': give one that is not empty"),
        ("ab", {"weights": {"c": 1.0}}, r"weights names c, which is no teacher of it.* a, b"),
        ("ab", {"weights": {"b": -0.5}}, r"weights\.b is -0.5: give 0 or more"),
        ("ab", {"weights": {"b": math.nan}}, r"weights\.b is nan: give 0 or more"),
        ("ab", {"weights": {"b": math.inf}}, r"weights\.b is inf: give 0 or more"),
        ("ab", {"weights": {"a": 0.0, "b": 0.0}}, r"weights are all 0: give one teacher a weight"),
        ("ab", {"features": "c"}, r"features is c, which is no teacher of it: choose from a, b"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_in_one_sentence(names, settings, told):
    with pytest.raises(ConfigError, match=told) as caught:
        EnsembleTeacher({name: ModelTeacher("runs/x") for name in names}, **settings)
    assert str(caught.value).startswith("EnsembleTeacher.")
    assert str(caught.value).endswith(".")


def test_recipes_name_ensembles_by_short_names():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--teacher", type=Teacher)
    given = """{class_path: EnsembleTeacher, init_args: {average: probabilities, weights: {b: 2},
        teachers: {a: {class_path: ModelTeacher, init_args: {path: runs/a}},
        b: {class_path: OutOfFoldTeacher, init_args: {path: runs/b, recipe: b.yaml}}}}}"""
    parsed = parser.parse_args([f"--teacher={given}", "--teacher.features=a"])
    teacher = parser.instantiate(parsed).teacher
    assert teacher.shares == {"a": pytest.approx(1 / 3), "b": pytest.approx(2 / 3)}
    assert teacher.features == "a"
    assert isinstance(teacher.teachers["b"], OutOfFoldTeacher)


# Out of fold

FOLDS = 3


@pytest.fixture
def folds(make_model, tmp_path):
    """Three models of one recipe, at the paths where a teacher looks for them."""
    for fold in range(FOLDS):
        written(make_model, f"teacher_fold{fold}of{FOLDS}")
    return str(tmp_path / "teacher")


def out_of_fold(path, folds=FOLDS):
    teacher = OutOfFoldTeacher(path, "teacher.yaml", folds)
    teacher.load(LABELS)
    return teacher


def right_answers(path, split, needs=LOGITS):
    """The answers of each member, and which member is the right one for each row."""
    answers = []
    for fold in range(FOLDS):
        member = ModelTeacher(f"{path}_fold{fold}of{FOLDS}")
        member.load(LABELS)
        answers.append(member(all_of(split), needs))
    return answers, [row.content % FOLDS for row in split.rows]


def test_every_row_is_answered_by_the_model_that_has_not_seen_it(folds):
    teacher = out_of_fold(folds)
    split = split_of(teacher, [*TEXTS, *MORE, TEXTS[0]])
    logits = teacher(all_of(split), LOGITS).logits
    answers, right = right_answers(folds, split)
    assert set(right) == {0, 1, 2}
    assert right != sorted(right)  # else putting them back in order would do nothing
    for row, fold in enumerate(right):
        distances = [float((logits[row] - each.logits[row]).abs().max()) for each in answers]
        assert distances[fold] < 1e-6
        assert min(distances[:fold] + distances[fold + 1 :]) > 1e-3


def test_a_variant_is_answered_in_the_fold_of_its_original(folds):
    teacher = out_of_fold(folds)
    split = split_of(teacher, [*TEXTS, *MORE])
    rows = list(split.rows)
    half = len(rows) // 2
    varied = [replace(row, origin=rows[i].index) for i, row in enumerate(rows[half:])]
    family = EncodedRows([*rows[:half], *varied], split.views)
    logits = teacher(all_of(family), LOGITS).logits
    answers, _ = right_answers(folds, split)
    content = [row.content for row in rows[:half]]
    right = [number % FOLDS for number in [*content, *content[: len(varied)]]]
    assert right != [row.content % FOLDS for row in rows]
    for row, fold in enumerate(right):
        assert float((logits[row] - answers[fold].logits[row]).abs().max()) < 1e-6


def test_all_fields_come_from_the_same_model(folds):
    teacher = out_of_fold(folds)
    split = split_of(teacher, MORE)
    needs = frozenset({"hidden_states", "attentions", *PROJECTIONS})
    assert needs < teacher.provides
    outputs = teacher(all_of(split), needs)
    answers, right = right_answers(folds, split, needs)
    assert torch.equal(outputs.mask, answers[0].mask)
    for field in needs:
        for layer, ours in enumerate(getattr(outputs, field)):
            theirs = torch.stack(
                [getattr(answers[fold], field)[layer][row] for row, fold in enumerate(right)]
            )
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    plain = teacher(all_of(split), LOGITS)
    assert plain.hidden_states is None


def test_a_batch_of_one_fold_asks_one_model(folds):
    teacher = out_of_fold(folds)
    split = split_of(teacher, [TEXTS[0], TEXTS[0]])
    for member in teacher.members:
        member.model.train()  # who is asked now refuses
    right = split.rows[0].content % FOLDS
    teacher.members[right].model.eval()
    assert len(teacher(all_of(split), LOGITS).logits) == 2
    teacher.members[right].model.train()
    with pytest.raises(ModelError, match="train mode"):
        teacher(all_of(split), LOGITS)


def test_out_of_fold_answers_are_cached_as_a_whole(folds, tmp_path):
    live = out_of_fold(folds)
    teacher = OutOfFoldTeacher(folds, "teacher.yaml", FOLDS).wrapped(
        lambda inner: CachedTeacher(inner, precision="float32")
    )
    assert isinstance(teacher, CachedTeacher)
    teacher.keep_in(tmp_path / "answers")
    teacher.load(LABELS)
    splits = [split_of(teacher), split_of(teacher, MORE, first=50)]
    needs = frozenset({"logits", "hidden_states.1"})
    teacher.prepare(splits, needs, CPU)
    assert teacher.filling.asked == len(TEXTS) + len(MORE)
    for split in splits:
        ours, theirs = teacher(all_of(split), needs), live(all_of(split), needs)
        torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-6, rtol=0)
        states = (ours.hidden_states[1] - theirs.hidden_states[1]) * ours.mask[:, :, None]
        assert states.abs().max() < 1e-5


def test_folds_may_be_a_member_of_an_ensemble(folds, folders):
    teacher = EnsembleTeacher(
        {"a": ModelTeacher(folders["b"]), "folds": OutOfFoldTeacher(folds, "t.yaml", FOLDS)}
    )
    teacher.wrapped(lambda member: CachedTeacher(member, precision="float32"))
    teacher.load(LABELS)
    split = split_of(teacher, MORE)
    teacher.prepare([split], LOGITS, CPU)
    logits = teacher(all_of(split), LOGITS).logits
    single = out_of_fold(folds)
    expected = single(all_of(split_of(single, MORE)), LOGITS).logits
    expected = (expected + alone(folders["b"], MORE).logits) / 2
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)
    assert len(teacher.models) == 2


def test_key_of_folds_knows_every_model_and_its_fold(folds, make_model):
    teacher = out_of_fold(folds)
    key = teacher.key
    assert key == out_of_fold(folds).key
    turned = copy.copy(teacher)
    turned.members = teacher.members[::-1]
    fewer = copy.copy(teacher)
    fewer.members = teacher.members[:2]
    keys = {key, turned.key, fewer.key, teacher.members[0].key}
    written(make_model, f"teacher_fold2of{FOLDS}")
    keys.add(out_of_fold(folds).key)
    assert len(keys) == 5


def test_references_say_which_fold_to_leave_out(folds):
    teacher = OutOfFoldTeacher("runs/teacher/", "teacher.yaml", folds=2)
    assert teacher.references() == {
        "runs/teacher_fold0of2": Reference("teacher.yaml", ("--data.fold=[0,2]",)),
        "runs/teacher_fold1of2": Reference("teacher.yaml", ("--data.fold=[1,2]",)),
    }
    places = [f"{folds}_fold{fold}of{FOLDS}" for fold in (1, 2)]
    teacher.follow(dict(zip(teacher.references(), places, strict=True)))
    teacher.load(LABELS)
    assert [member.model.path for member in teacher.members] == places


def test_members_that_read_otherwise_are_refused(folds, make_model):
    told = r"differ in size or tokenizer: train all by one recipe, with a tokenizer"
    written(make_model, f"teacher_fold2of{FOLDS}", TEXTS[:4])
    with pytest.raises(ModelError, match=told):
        out_of_fold(folds)
    folder = written(make_model, f"teacher_fold2of{FOLDS}")
    out_of_fold(folds)
    AutoTokenizer.from_pretrained(folder, model_max_length=20).save_pretrained(folder)
    with pytest.raises(ModelError, match=told):
        out_of_fold(folds)


def test_one_member_says_sizes_and_cost_of_an_answer(folds):
    teacher = out_of_fold(folds)
    assert teacher.info == teacher.members[2].info
    assert teacher.models == (teacher.members[0].model,)
    assert [*teacher.views(20)] == ["teacher"]
    assert teacher.views(20)["teacher"].max_length == 20
    assert CachedTeacher(teacher).models == teacher.models


def test_every_member_is_moved_before_the_first_batch(folds):
    """No GPU here: the meta device has shapes and no numbers."""
    teacher = out_of_fold(folds)
    teacher.prepare([], LOGITS, torch.device("meta"))
    for member in teacher.members:
        assert {weight.device.type for weight in member.model.parameters()} == {"meta"}


def test_folds_are_lowered_and_put_back(folds):
    teacher = out_of_fold(folds)
    batch = all_of(split_of(teacher, MORE))
    before = teacher(batch, LOGITS).logits
    with teacher.lowered():
        inside = teacher(batch, LOGITS).logits
    assert ((inside - before).abs().amax(dim=-1) > 0).all()  # each row, so each member
    assert torch.equal(teacher(batch, LOGITS).logits, before)


def test_folds_that_cannot_be_are_refused(folds):
    with pytest.raises(ConfigError, match="OutOfFoldTeacher.folds is 1: give 2 or more"):
        OutOfFoldTeacher("runs/teacher", "teacher.yaml", folds=1)
    teacher = out_of_fold(folds)
    batch = all_of(split_of(teacher))
    with pytest.raises(DataError, match="A batch without content has no folds"):
        teacher(Batch(batch.views, batch.labels, batch.index), LOGITS)
