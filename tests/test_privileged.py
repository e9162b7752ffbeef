"""What is known in training only: it teaches, and is gone when the student answers."""

import json
from dataclasses import replace

import pytest
import torch

from kd.cache import CachedTeacher
from kd.data.annotations import Rationales
from kd.data.augment import WordDrop
from kd.data.datamodule import TextDataModule
from kd.data.sources import Source
from kd.data.variants import Augmentation
from kd.ensembles import EnsembleTeacher
from kd.errors import ConfigError
from kd.models import EncoderClassifier
from kd.module import DistillationModule
from kd.objectives import (
    EvidenceKD,
    HardLabel,
    LogitKD,
    PrivilegedKD,
    RationaleEmbeddingKD,
    RationaleLM,
    RationaleWordsKD,
    RDrop,
)
from kd.seq2seq import Seq2SeqClassifier
from kd.teachers import AnnotationTeacher, ModelTeacher
from tests.conftest import LABELS, TEXTS
from tests.test_module import NO_DROPOUT, SaveAt, Watcher, fit, trainer_of

T5 = {"model_type": "t5", "d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 2, "num_heads": 2}
WORDS = "wonderful delight warm happy".split(), "awful bore cold sad".split()


@pytest.fixture(autouse=True)
def _seed_of_the_run(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


@pytest.fixture
def data_file(tmp_path):
    """Return a function that writes forty rows with what an annotator said, and its path."""

    def write(name="rows.jsonl", every=1, **changes):
        lines = []
        for n in range(40):
            place, turn = n % len(TEXTS), n // len(TEXTS)
            label = int(place < 4)
            row = {"text": f"{TEXTS[place]} {turn}", "label": LABELS[label]}
            if n % every == 0:
                row["rationale"] = f"it is {WORDS[1 - label][turn % 4]} because it says {n}"
                row |= {"teacher_label": LABELS[label], "evidence": TEXTS[place].split()[:2]}
            lines.append(json.dumps({**row, **changes}))
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


def data_of(path, rationales=True, **options):
    plan = Rationales(dropout=0.0) if rationales is True else rationales
    source = Source(train=str(path))
    settings = {"batch_size": 8, "validation_fraction": 0.2, "rationales": plan or None, **options}
    return TextDataModule(source, **settings)


@pytest.fixture
def make_module(make_model):
    def make(objectives=None, student=None, **options):
        torch.manual_seed(0)
        if student is None:
            path = make_model("student", num_hidden_layers=2, **NO_DROPOUT)
            student = EncoderClassifier(path=str(path))
        settings = {"learning_rate": 1e-2, **options}
        return DistillationModule(student=student, objectives=objectives, **settings)

    return make


ENCODER_TERMS = {
    "privileged": PrivilegedKD,
    "embedding": RationaleEmbeddingKD,
    "words": RationaleWordsKD,
    "evidence": EvidenceKD,
}


def test_every_term_has_a_value_and_teaches_the_student(make_module, data_file):
    seen = {}

    class Gradients(Watcher):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            super().on_train_batch_start(trainer, module, batch, batch_idx)
            outputs = module._answer(batch)
            for name, term in module.terms.items():
                term.advance(1.0)
                value = term(outputs, None, batch)
                weights = list(module.student.parameters())
                slopes = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
                size = sum(s.abs().sum().item() for s in slopes if s is not None)
                seen.setdefault(name, []).append((value.item(), size))

    terms = {name: term() for name, term in ENCODER_TERMS.items()}
    watcher = Gradients()
    fit(make_module({"labels": HardLabel(), **terms}), data_of(data_file()), watcher)
    for name in ENCODER_TERMS:
        assert all(value > 0 and slope > 0 for value, slope in seen[name]), name
        assert watcher.logged[-1][f"train/{name}"] > 0


def test_a_t5_learns_to_write_the_rationales(make_module, data_file):
    student = Seq2SeqClassifier(config=T5, dropout=0.0)
    terms = {"labels": HardLabel(), "rationale": RationaleLM(0.5)}
    watcher = Watcher()
    trainer = fit(
        make_module(terms, student, learning_rate=1e-2), data_of(data_file()), watcher, max_epochs=8
    )
    losses = [logged["train/rationale"] for logged in watcher.logged]
    assert losses[-1] < losses[0] - 0.5
    assert trainer.callback_metrics["val/accuracy"] > 0.5
    assert set(watcher.batches[0].views) == {"student", "rationale", "explain"}


@pytest.mark.parametrize("stage", ["validation", "test", "predict"])
def test_no_other_batch_carries_a_rationale(make_module, data_file, stage):
    path = data_file()
    data = data_of(path)
    data.source.test = data.source.predict = str(path)
    watcher = Watcher()
    fit(make_module({"labels": HardLabel(), "privileged": PrivilegedKD()}), data, watcher)
    assert set(watcher.batches[0].views) == {"student", "privileged"}
    data.read("test")
    data.read("predict")
    assert not any(row.annotation for row in data.rows[stage])
    for batch in data._evaluation(stage):
        assert set(batch.views) == {"student"}
        assert not batch.privileged


def test_answers_are_the_same_whatever_the_file_says_of_its_rows(make_module, data_file):
    module = make_module({"labels": HardLabel(), "privileged": PrivilegedKD()})
    fit(module, data_of(data_file()))
    garbage = data_file("garbage.jsonl", rationale="\x01 %$ positive " * 50, evidence=3)
    same = data_file("same.jsonl")
    answers = []
    for path in (garbage, same):
        data = data_of(path)
        data.source.predict = str(path)
        found = trainer_of().predict(module, datamodule=data)
        answers.append(torch.cat([part["probabilities"] for part in found]))
    assert torch.equal(*answers)
    plain = data_of(data_file("train.jsonl"), rationales=None)
    plain.source.predict = str(same)
    found = trainer_of().predict(module, datamodule=plain)
    assert torch.equal(torch.cat([part["probabilities"] for part in found]), answers[0])


def test_a_term_of_weight_0_changes_no_bit_and_costs_nothing(make_module, make_model, data_file):
    weights, path = [], make_model("dropping", num_hidden_layers=1)  # with dropout
    for terms in ({}, {"privileged": PrivilegedKD(0.0)}):
        student = EncoderClassifier(path=str(path))
        module = make_module({"labels": HardLabel(), **terms}, student)
        assert set(module.terms) == {"labels"}
        fit(module, data_of(data_file(), rationales=True))
        weights.append(torch.cat([w.flatten() for w in module.student.parameters()]))
    assert torch.equal(*weights)


def test_the_shuffled_control_changes_what_is_read_of_rationales_and_nothing_else(
    make_module, data_file
):
    batches = []
    for control in (None, "shuffled"):
        watcher = Watcher()
        data = data_of(data_file(), Rationales(control=control))
        terms = {"labels": HardLabel(), "privileged": PrivilegedKD(), "words": RationaleWordsKD()}
        fit(make_module(terms), data, watcher)
        batches.append(watcher.batches)
    for real, shuffled in zip(*batches, strict=True):
        assert torch.equal(real.index, shuffled.index)
        assert torch.equal(real.labels, shuffled.labels)
        for name, value in real.views["student"].items():
            assert torch.equal(value, shuffled.views["student"][name])
        assert torch.equal(real.privileged["weight"], shuffled.privileged["weight"])
    words = [
        [sorted(batch.views["rationale"]["input_ids"][0].tolist()) for batch in run]
        for run in batches
    ]
    assert words[0] != words[1]


def test_the_absent_control_shows_the_text_twice(make_module, data_file):
    watcher = Watcher()
    data = data_of(data_file(), Rationales(control="absent"))
    module = make_module({"labels": HardLabel(), "privileged": PrivilegedKD()})
    fit(module, data, watcher)
    for batch in watcher.batches:
        ours, theirs = (batch.views[name]["input_ids"] for name in ("student", "privileged"))
        assert torch.equal(ours, theirs)
        assert (batch.privileged["weight"] == 1).all()


def test_no_control_changes_the_vocabulary_that_is_made(data_file):
    texts = []
    for control in (None, "shuffled", "absent"):
        rows = data_file()
        lines = [json.loads(line) for line in rows.read_text().splitlines()]
        lines[3]["teacher_label"] = "negative"  # which contradicts, so its rationale goes
        rows.write_text("\n".join(map(json.dumps, lines)))
        data = data_of(rows, Rationales(control=control))
        data.read("fit")
        texts.append(data.texts())
    assert texts[0] == texts[1] == texts[2]


def test_embeddings_outlive_what_a_teacher_thinks_of_variants(make_module, make_model, data_file):
    teacher = ModelTeacher(path=str(make_model("teacher", initializer_range=2.0)))
    terms = {"labels": HardLabel(), "embedding": RationaleEmbeddingKD(), "logits": LogitKD()}
    augment = Augmentation([WordDrop(share=0.5)], variants=2, flip_confidence=0.5)
    data = data_of(data_file(), augment=augment)
    watcher = Watcher()
    fit(make_module(terms, teacher=teacher), data, watcher)
    assert data.variants.flipped
    assert all("embedding" in batch.privileged for batch in watcher.batches)


def test_an_author_who_was_told_the_label_is_read_by_no_student(make_module, data_file):
    watcher = Watcher()
    terms = {"labels": HardLabel(), "privileged": PrivilegedKD(), "words": RationaleWordsKD()}
    fit(make_module(terms), data_of(data_file(rationale_source="rationalised")), watcher)
    assert {logged["train/privileged"] for logged in watcher.logged} == {0.0}
    assert all(logged["train/words"] > 0 for logged in watcher.logged)


@pytest.mark.parametrize(
    ("objectives", "plan", "named"),
    [
        ({"privileged": PrivilegedKD}, {"rationale_column": None}, "no training row has one left"),
        ({"evidence": EvidenceKD}, {"evidence_column": "none"}, "no training row has a quote"),
    ],
)
def test_a_column_that_is_not_there_is_named_and_not_learnt_from(
    make_module, data_file, objectives, plan, named
):
    module = make_module({name: kind() for name, kind in objectives.items()})
    with pytest.raises(ConfigError, match=named):
        fit(module, data_of(data_file(), Rationales(**plan)))


@pytest.mark.parametrize("wrap", [CachedTeacher, lambda one: EnsembleTeacher({"a": one})])
def test_a_teacher_of_training_rows_alone_stands_alone(wrap):
    with pytest.raises(ConfigError, match="AnnotationTeacher answers rows of training only"):
        wrap(AnnotationTeacher())


def test_annotators_label_no_variants(make_module, data_file):
    module = make_module({"logits": LogitKD()}, teacher=AnnotationTeacher())
    augment = Augmentation([WordDrop()], labels="teacher")
    with pytest.raises(ConfigError, match="takes labels from variants"):
        fit(module, data_of(data_file(), augment=augment))


def test_asking_again_costs_no_data(make_module, data_file):
    watcher = Watcher()
    trainer = fit(
        make_module({"labels": HardLabel(), "again": RDrop()}),
        data_of(data_file(), rationales=None),
        watcher,
    )
    assert watcher.logged[-1]["train/again"] > 0
    assert set(watcher.batches[0].views) == {"student"}
    assert trainer.callback_metrics["val/accuracy"] >= 0


@pytest.mark.parametrize(
    ("objectives", "options", "named"),
    [
        ({"privileged": PrivilegedKD()}, {}, "privileged"),
        ({"labels": HardLabel(), "evidence": EvidenceKD()}, {}, "evidence"),
        ({"labels": HardLabel()}, {"reads": "text and rationale"}, "student"),
    ],
)
def test_what_reads_rationales_needs_some(make_module, data_file, objectives, options, named):
    module = make_module(objectives, **options)
    with pytest.raises(ConfigError, match=rf"view '{named}' .* data\.rationales is null"):
        fit(module, data_of(data_file(), rationales=None))


def test_a_reader_of_rationales_is_not_taught_by_them(make_module):
    with pytest.raises(ConfigError, match=r"privileged \(PrivilegedKD\) teaches what a rationale"):
        make_module({"privileged": PrivilegedKD()}, reads="text and rationale")


def test_annotations_teach_without_a_gold_label(make_module, data_file, tmp_path):
    path = data_file(every=3, label=None)
    teacher = AnnotationTeacher(missing=0.8)
    module = make_module({"logits": LogitKD(temperature=1.0)}, teacher=teacher)
    watcher = Watcher()
    data = data_of(path, label_names=list(LABELS), labelled_rows=0)
    data.source.validation = str(data_file("gold.jsonl"))
    trainer = fit(module, data, watcher, max_epochs=8)
    metrics = trainer.callback_metrics
    assert metrics["val/accuracy"] > 0.8
    assert "val/teacher_accuracy" not in metrics
    assert "val/logits" not in metrics
    batch = watcher.batches[0]
    answer = teacher(batch, frozenset({"logits"}))
    known = batch.privileged["label"] >= 0
    assert 0 < known.sum() < len(batch)
    assert torch.equal(answer.weights, known.float())
    probabilities = answer.logits.softmax(dim=-1)[known]
    assert torch.allclose(probabilities.amax(dim=-1), torch.tensor(0.8))
    assert torch.equal(probabilities.argmax(dim=-1), batch.privileged["label"][known])


def test_rows_without_an_annotation_count_nowhere(make_module, data_file):
    module = make_module({"logits": LogitKD(temperature=1.0)}, teacher=AnnotationTeacher())
    watcher = Watcher()
    fit(module, data_of(data_file(every=2)), watcher)
    batch = watcher.batches[0]
    logits = torch.randn(len(batch), 2, requires_grad=True)
    answer = module.teacher(batch, frozenset({"logits"}))
    term = module.terms["logits"]
    term(replace(answer, logits=logits), answer, batch).backward()
    is_known = batch.privileged["label"] >= 0
    assert (logits.grad[~is_known] == 0).all()
    assert (logits.grad[is_known] != 0).all()


@pytest.mark.parametrize(
    "settings", [{"lowest": 0.0}, {"highest": 1.0}, {"missing": 0.99}, {"lowest": 0.93}]
)
def test_probabilities_of_an_annotation_teacher_are_in_order(settings):
    with pytest.raises(ConfigError, match="AnnotationTeacher has lowest="):
        AnnotationTeacher(**settings)


def test_an_annotation_teacher_needs_annotations(make_module, data_file):
    module = make_module({"logits": LogitKD()}, teacher=AnnotationTeacher())
    with pytest.raises(ConfigError, match=r"model\.teacher \(AnnotationTeacher\) answers what was"):
        fit(module, data_of(data_file(), rationales=None))


def test_a_privileged_teacher_is_shown_the_rationale_and_its_student_is_not(
    make_module, make_model, data_file, tmp_path
):
    reader = make_module({"labels": HardLabel()}, reads="text and rationale")
    watcher = Watcher()
    fit(reader, data_of(data_file()), watcher, max_epochs=2)
    shown = watcher.batches[0].views["student"]["input_ids"].shape[1]
    reader.student.save(tmp_path / "reader")
    teacher = ModelTeacher(path=str(tmp_path / "reader"), reads="text and rationale")
    torch.manual_seed(3)
    student = EncoderClassifier(path=str(make_model("small", num_hidden_layers=1, **NO_DROPOUT)))
    module = make_module(
        {"labels": HardLabel(), "logits": LogitKD()}, student=student, teacher=teacher
    )
    watcher = Watcher()
    trainer = fit(module, data_of(data_file(), Rationales(dropout=0.5)), watcher)
    for batch in watcher.batches:
        mine, theirs = (batch.views[name]["attention_mask"] for name in ("student", "teacher"))
        assert (theirs.sum(dim=1) > mine.sum(dim=1)).all()  # dropout is the student's alone
    assert shown > watcher.batches[0].views["student"]["input_ids"].shape[1]
    assert trainer.callback_metrics["val/teacher_accuracy"] >= 0


def test_embeddings_are_those_of_the_student_before_training(make_module, data_file):
    watcher = Watcher()
    module = make_module({"labels": HardLabel(), "embedding": RationaleEmbeddingKD()})
    before = {}

    class Before(Watcher):
        def on_train_start(self, trainer, module):
            before.update({k: v.clone() for k, v in module.student.state_dict().items()})

    fit(module, data_of(data_file()), watcher, Before())
    batch = watcher.batches[-1]
    module.student.load_state_dict(before)
    module.student.eval()
    with torch.no_grad():
        inputs = batch.views["rationale"]
        states = module.student(inputs, frozenset({"hidden_states"})).hidden_states[-1]
    for row in range(len(batch)):
        mean = states[row, : int(inputs["attention_mask"][row].sum())].mean(dim=0)
        expected = mean / mean.norm()
        assert torch.allclose(batch.privileged["embedding"][row], expected, atol=1e-5)


def test_a_new_vocabulary_has_the_words_of_rationales(data_file):
    data = data_of(data_file())
    data.read("fit")
    assert any("because it says" in text for text in data.texts())
    plain = data_of(data_file(), rationales=None)
    plain.read("fit")
    assert set(plain.texts()) < set(data.texts())


def test_variants_keep_the_rationale_and_lose_the_quotes(make_module, data_file):
    data = data_of(data_file(), augment=Augmentation([WordDrop()], variants=1))
    fit(make_module({"labels": HardLabel(), "words": RationaleWordsKD()}), data)
    rows = {row.index: row for row in data.rows["train"]}
    made = [row for row in rows.values() if row.origin is not None]
    assert made
    for row in made:
        origin = rows[row.origin].annotation
        assert origin.evidence
        assert row.annotation.rationale == origin.rationale
        assert row.annotation.evidence == ()


@pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable")  # the data module is
def test_a_resumed_run_hides_the_same_rationales(make_module, data_file, tmp_path):
    file = tmp_path / "cut.ckpt"

    def shown(*callbacks, ckpt_path=None):
        watcher = Watcher()
        module = make_module({"labels": HardLabel(), "privileged": PrivilegedKD()})
        data = data_of(data_file(), Rationales(dropout=0.5))
        fit(module, data, watcher, *callbacks, ckpt_path=ckpt_path, max_epochs=2)
        masks = [batch.views["privileged"]["attention_mask"] for batch in watcher.batches]
        return [mask.sum(dim=1).tolist() for mask in masks]

    whole = shown(SaveAt(file, 3))
    assert shown(ckpt_path=file) == whole[3:]
