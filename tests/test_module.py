import shutil
from collections import Counter
from itertools import chain, pairwise

import pytest
import torch
from lightning import Callback, Trainer, seed_everything
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification

from kd.cache import CachedTeacher
from kd.checkpoints import SafeCheckpointIO
from kd.data.augment import WordDrop
from kd.data.datamodule import TextDataModule
from kd.data.sources import Source
from kd.data.variants import Augmentation
from kd.ensembles import EnsembleTeacher
from kd.errors import ConfigError, RunError
from kd.inference import Classifier
from kd.models import EncoderClassifier
from kd.module import DistillationModule
from kd.objectives import HardLabel, LogitKD, Objective
from kd.teachers import ModelTeacher, Teacher
from kd.types import UNLABELLED, Batch
from kd.vocabulary import train_wordpiece
from tests.conftest import LABELS, TEXTS

# The losses of a fixed run: a change that should change no result keeps them.
GOLDEN = [0.345321, 0.347636, 0.365724, 0.345033, 0.342532, 0.351604, 0.354357, 0.35753]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Watcher(Callback):
    """Note what training sees: rows, modes, logged values."""

    def __init__(self, stop_after=None):
        self.stop_after = stop_after
        self.indices, self.labels, self.modes, self.losses, self.logged = [], [], [], [], []
        self.batches, self.validations = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.modes.append((module.student.training, module.student.network.training))
        self.indices.append(batch.index.tolist())
        self.labels.append(batch.labels.tolist())
        self.batches.append(batch)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        self.logged.append({name: float(v) for name, v in trainer.callback_metrics.items()})
        if len(self.losses) == self.stop_after:
            trainer.should_stop = True

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            self.validations.append({k: float(v) for k, v in trainer.callback_metrics.items()})


def trainer_of(*callbacks, **options):
    defaults = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}
    defaults |= {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return Trainer(
        callbacks=list(callbacks),
        plugins=[SafeCheckpointIO()],
        use_distributed_sampler=False,
        log_every_n_steps=1,
        **{**defaults, **options},
    )


def data_of(csv_file, **options):
    source = Source(train=str(csv_file), **options.pop("roles", {}))
    return TextDataModule(source, **{"batch_size": 8, "validation_fraction": 0.2, **options})


def both(labels=0.5, logits=0.5, temperature=2.0):
    return {"labels": HardLabel(labels), "logits": LogitKD(logits, temperature=temperature)}


@pytest.fixture
def make_module(make_model):
    """Return a function that makes a module with a student and perhaps a teacher of its own."""
    made = 0

    def make(taught=True, student=None, teacher=None, **options):
        nonlocal made
        made += 1
        torch.manual_seed(made)
        student = student or make_model(f"student{made}", num_hidden_layers=1, **NO_DROPOUT)
        if taught and teacher is None:
            teacher = make_model(f"teacher{made}", initializer_range=0.5)
        options.setdefault("objectives", both() if taught else None)
        return DistillationModule(
            student=EncoderClassifier(path=str(student)),
            teacher=ModelTeacher(path=str(teacher)) if taught else None,
            **{"learning_rate": 1e-2, **options},
        )

    return make


def fit(module, data, *callbacks, ckpt_path=None, seed=0, **options):
    seed_everything(seed, verbose=False)
    trainer = trainer_of(*callbacks, **options)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return trainer


@pytest.fixture(autouse=True)
def _seed_of_the_run(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # so that seed_everything leaves no trace behind


# --- Fine-tuning and distilling ------------------------------------------------------------------


def test_fine_tuning_needs_no_teacher_and_learns(make_module, csv_file):
    module, watcher = make_module(taught=False), Watcher()
    trainer = fit(module, data_of(csv_file), watcher, max_epochs=12)
    assert module.equation == "loss = 1 * labels[HardLabel]"
    assert watcher.losses[-1] < 0.75 * watcher.losses[0]
    assert trainer.callback_metrics["val/accuracy"] == 1.0
    assert not [name for name in trainer.callback_metrics if "teacher" in name]
    assert "val/agreement" not in trainer.callback_metrics


def test_a_distilled_student_comes_to_agree_with_its_teacher(make_module, csv_file):
    teacher = make_module(taught=False)
    fit(teacher, data_of(csv_file), max_epochs=8)
    folder = csv_file.parent / "trained_teacher"
    teacher.student.save(folder)
    module = make_module(teacher=folder, objectives={"logits": LogitKD(1.0)})
    watcher = Watcher()
    fit(module, data_of(csv_file), watcher, max_epochs=10)
    assert sum(watcher.losses[-4:]) < 0.3 * sum(watcher.losses[:4])
    assert watcher.validations[-1]["val/agreement"] == 1.0


def test_the_teacher_stays_what_it_was_and_out_of_everything(make_module, csv_file, tmp_path):
    module = make_module()
    trainer = trainer_of(max_epochs=2)
    module.teacher.load(LABELS)
    before = {k: v.clone() for k, v in module.teacher.teacher.model.state_dict().items()}
    trainer.fit(module, datamodule=data_of(csv_file))
    after = module.teacher.teacher.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not module.teacher.teacher.model.training
    assert all(weight.grad is None for weight in module.teacher.teacher.model.parameters())
    assert all(name.startswith("student.") for name in module.state_dict())
    assert not [name for name, _ in module.named_modules() if "teacher.model" in name]
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for p in module.student.parameters()}
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert set(saved["state_dict"]) == set(module.state_dict())
    assert "hyper_parameters" not in saved
    assert saved["student"]["labels"] == list(LABELS)


def test_the_student_is_in_train_mode_in_every_step(make_module, csv_file):
    module, watcher = make_module(), Watcher()
    fit(module, data_of(csv_file), watcher, max_epochs=2, val_check_interval=2)
    assert len(watcher.validations) == 4  # validation comes in between
    assert set(watcher.modes) == {(True, True)}
    network = module.student.network
    assert all(part.training for part in network.modules())


def by_hand(module, watcher):
    """Compute the loss of the first step again, from logits and formulas alone."""
    batch = watcher.batches[0]
    student = AutoModelForSequenceClassification.from_pretrained(module.student.path)
    teacher = AutoModelForSequenceClassification.from_pretrained(module.teacher.teacher.model.path)
    with torch.no_grad():
        ours = student(**batch.views["student"]).logits
        theirs = teacher(**batch.views["teacher"]).logits
    p, log_q = (theirs / 3).softmax(-1), (ours / 3).log_softmax(-1)
    logits = float((p * (p.log() - log_q)).sum(-1).mean() * 9)
    known = batch.labels != UNLABELLED
    labels = float(functional.nll_loss(ours.log_softmax(-1)[known], batch.labels[known]))
    return labels, logits


def test_the_loss_is_the_weighted_sum_and_terms_are_logged_unweighted(make_module, csv_file):
    module = make_module(objectives=both(labels=0.25, logits=3.0, temperature=3.0))
    watcher = Watcher()
    fit(module, data_of(csv_file, labelled_rows=20), watcher)
    labels, logits = by_hand(module, watcher)
    assert UNLABELLED in watcher.labels[0]
    assert logits > 0.01
    assert watcher.losses[0] == pytest.approx(0.25 * labels + 3.0 * logits, rel=1e-4)
    assert watcher.logged[0]["train/labels"] == pytest.approx(labels, rel=1e-4)
    assert watcher.logged[0]["train/logits"] == pytest.approx(logits, rel=1e-4)
    assert watcher.logged[0]["train/loss"] == pytest.approx(watcher.losses[0])
    assert module.equation == "loss = 0.25 * labels[HardLabel] + 3 * logits[LogitKD T=3]"


def test_two_runs_of_one_seed_give_the_same_losses(make_module, make_model, csv_file):
    student = make_model("dropping", num_hidden_layers=1)  # dropout as in real life
    teacher = make_model("teacher")
    losses = []
    for seed in (3, 3, 4):
        watcher = Watcher()
        module = make_module(student=student, teacher=teacher)
        fit(module, data_of(csv_file), watcher, max_epochs=2, seed=seed)
        losses.append(watcher.losses)
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    assert losses[0] == pytest.approx(GOLDEN, rel=1e-4)


def test_unlabelled_rows_are_for_the_teacher_only(make_module, csv_file, tmp_path):
    more = tmp_path / "more.csv"
    more.write_text("text\n" + "".join(f"what a kind film {n}\n" for n in range(8)))
    roles = {"unlabelled": str(more)}
    taught, alone, muted = Watcher(), Watcher(), Watcher()
    fit(make_module(), data_of(csv_file, roles=roles), taught)
    fit(make_module(taught=False), data_of(csv_file, roles=roles), alone)
    off = make_module(objectives=both(labels=1.0, logits=0.0))
    fit(off, data_of(csv_file, roles=roles), muted)
    counts = [
        sum(labels.count(UNLABELLED) for labels in watcher.labels)
        for watcher in (taught, alone, muted)
    ]
    assert counts == [8, 0, 0]
    assert len(taught.losses) == 5
    assert all(loss == loss for loss in taught.losses)


def test_a_batch_without_any_label_teaches_through_the_teacher(make_module, csv_file):
    module, watcher = make_module(), Watcher()
    fit(module, data_of(csv_file, labelled_rows=0), watcher)
    assert {logged["train/labels"] for logged in watcher.logged} == {0.0}
    assert all(logged["train/logits"] > 0 for logged in watcher.logged)


@pytest.mark.fault(36)
def test_a_teacher_of_another_vocabulary_reads_its_own_ids(
    make_module, make_model, csv_file, monkeypatch
):
    other = train_wordpiece(["zebra xylophone", *TEXTS[:3]], 90)
    folder = make_model("foreign", vocab_size=len(other))
    other.save_pretrained(folder)
    seen = []
    answer = ModelTeacher.__call__

    def spied(self, batch, needs):
        seen.append(batch)
        return answer(self, batch, needs)

    monkeypatch.setattr(ModelTeacher, "__call__", spied)
    module, watcher = make_module(teacher=folder), Watcher()
    data = data_of(csv_file)
    fit(module, data, watcher)
    texts = {row.index: row.text for row in data.rows["train"] + data.rows["validation"]}
    for batch in seen:
        wanted = other([texts[i] for i in batch.index.tolist()], padding=True)["input_ids"]
        assert batch.views["teacher"]["input_ids"].tolist() == wanted
        assert batch.views["student"]["input_ids"].tolist() != wanted
    assert seen
    assert watcher.losses


@pytest.mark.fault(34)
def test_a_teacher_with_classes_in_another_order_is_aligned_by_name(
    make_module, make_model, csv_file
):
    folder = make_model("teacher", initializer_range=0.5)
    turned = csv_file.parent / "turned"
    shutil.copytree(folder, turned)
    config = AutoConfig.from_pretrained(turned)
    network = AutoModelForSequenceClassification.from_pretrained(turned)
    network.config.id2label = {0: LABELS[1], 1: LABELS[0]}
    network.config.label2id = {LABELS[1]: 0, LABELS[0]: 1}
    network.classifier.weight.data = network.classifier.weight.data.flip(0)
    network.classifier.bias.data = network.classifier.bias.data.flip(0)
    network.save_pretrained(turned)
    assert config.id2label[0] == LABELS[0]
    student = make_model("student", num_hidden_layers=1, **NO_DROPOUT)
    losses = []
    for teacher in (folder, turned):
        watcher = Watcher()
        fit(make_module(student=student, teacher=teacher), data_of(csv_file), watcher)
        losses.append(watcher.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# --- What validation says ------------------------------------------------------------------------


def test_validation_measures_student_teacher_and_their_agreement(make_module, csv_file):
    module = make_module()
    data = data_of(csv_file, validation_fraction=0.5, eval_batch_size=3)
    trainer = fit(module, data)
    values = trainer.callback_metrics
    module.eval()
    data_rows = {row.index: row for row in data.rows["validation"]}
    ours, theirs, truth, losses = [], [], [], []
    with torch.no_grad():
        for batch in data.val_dataloader():
            logits = module.student(batch.views["student"]).logits
            losses += functional.cross_entropy(logits, batch.labels, reduction="none").tolist()
            ours += logits.argmax(-1).tolist()
            theirs += module.teacher(batch, frozenset()).logits.argmax(-1).tolist()
            truth += [data_rows[index].label for index in batch.index.tolist()]

    def share(left, right):
        return sum(a == b for a, b in zip(left, right, strict=True)) / len(left)

    assert len(truth) == 20
    assert float(values["val/agreement"]) == pytest.approx(share(ours, theirs))
    assert float(values["val/accuracy"]) == pytest.approx(share(ours, truth))
    assert float(values["val/teacher_accuracy"]) == pytest.approx(share(theirs, truth))
    assert float(values["val/loss"]) == pytest.approx(sum(losses) / 20, rel=1e-4)
    assert {"val/f1", "val/teacher_f1"} <= set(values)
    again = trainer_of().validate(module, datamodule=data, verbose=False)[0]
    assert again["val/agreement"] == pytest.approx(share(ours, theirs))


def test_the_teacher_is_asked_once_about_each_text(make_module, csv_file, monkeypatch):
    asked = []
    answer = ModelTeacher.__call__

    def counted(self, batch, needs):
        asked.extend(batch.content.tolist())
        return answer(self, batch, needs)

    monkeypatch.setattr(ModelTeacher, "__call__", counted)
    module, watcher = make_module(), Watcher()
    data = data_of(csv_file, validation_fraction=0.5, eval_batch_size=4)
    fit(module, data, watcher, max_epochs=3)
    assert len(watcher.validations) == 3
    splits = [data.encoded(role).views["teacher"] for role in ("train", "validation")]
    texts = {tuple(one.ids[s:e]) for one in splits for s, e in pairwise(one.starts)}
    assert len(asked) == len(texts) > 1


@pytest.mark.parametrize("terms", [("labels", "logits"), ("labels",)])
def test_evaluation_asks_once_about_each_batch_and_is_no_training_time(
    make_module, csv_file, monkeypatch, terms
):
    asked = []
    answer = CachedTeacher.__call__

    def noted(self, batch, needs):
        asked.append(batch.index.tolist())
        return answer(self, batch, needs)

    monkeypatch.setattr(CachedTeacher, "__call__", noted)
    module = make_module(objectives={name: both()[name] for name in terms})
    data = data_of(csv_file, validation_fraction=0.5, eval_batch_size=4)
    fit(module, data)
    assert (module.teacher_time.seconds() > 0) == module.taught
    asked.clear()
    trainer_of().validate(module, datamodule=data, verbose=False)
    assert len(asked) == 5
    assert sorted(chain(*asked)) == sorted(row.index for row in data.rows["validation"])
    assert module.teacher_time.seconds() == 0


def test_fillings_are_those_of_all_caches(make_module, make_model, csv_file, tmp_path):
    alone = make_module(taught=False)
    members = {name: ModelTeacher(str(make_model(name))) for name in "ab"}
    student = EncoderClassifier(path=str(make_model("student", num_hidden_layers=1)))
    module = DistillationModule(student, EnsembleTeacher(members), both())
    assert module.fillings == []
    module.answers_folder = tmp_path / "answers"
    for one in (alone, module):
        fit(one, data_of(csv_file))
    assert alone.fillings == []
    assert module.fillings == [part.filling for part in module.teacher.teachers.values()]
    assert {one.folder for one in module.fillings} == {*(tmp_path / "answers").iterdir()}
    assert all(one.seconds > 0 for one in module.fillings)
    module.cache = False
    fit(module, data_of(csv_file))
    assert [one.folder for one in module.fillings] == [None, None]


def test_other_rows_are_asked_again(make_module, make_model, csv_file, tmp_path):
    """What is remembered of one validation set must not answer for the next."""
    module = make_module()
    fit(module, data_of(csv_file))
    other = tmp_path / "other.csv"
    lines = [f"{text},{'positive' if n < 4 else 'negative'}" for n, text in enumerate(TEXTS)]
    lines = [line for line in lines if line.count(",") == 1]
    other.write_text("\n".join(["text,label", *lines]) + "\n")
    data = data_of(csv_file, roles={"validation": str(other)})
    values = trainer_of().validate(module, datamodule=data, verbose=False)[0]
    batch = next(iter(data.val_dataloader()))
    right = module.teacher(batch, frozenset()).logits.argmax(-1) == batch.labels
    assert values["val/teacher_accuracy"] == pytest.approx(float(right.float().mean()))


def test_predictions_carry_index_and_probabilities(make_module, csv_file, tmp_path):
    predict = tmp_path / "p.csv"
    predict.write_text("text\n" + "\n".join(text.replace(",", "") for text in TEXTS) + "\n")
    module = make_module(taught=False)
    data = data_of(csv_file, roles={"predict": str(predict)})
    answers = trainer_of().predict(module, datamodule=data)
    indices = torch.cat([answer["index"] for answer in answers])
    probabilities = torch.cat([answer["probabilities"] for answer in answers])
    assert sorted(indices.tolist()) == list(range(8))
    assert torch.allclose(probabilities.sum(-1), torch.ones(8))


# --- Impossible pairs ----------------------------------------------------------------------------


class Hidden(Objective):
    needs = frozenset({"hidden_states"})


class Cached(Teacher):
    provides = frozenset({"logits"})


@pytest.mark.parametrize(
    ("teacher", "objectives", "named"),
    [
        (None, both(), r"model\.objectives\.logits \(LogitKD\) needs a teacher.*model\.teacher"),
        (None, {}, r"model\.objectives has no term"),
        (None, {"labels": None}, r"model\.objectives has no term"),
        (Cached(), both(0.0, 0.0), r"model\.objectives has no term"),
        (Cached(), {"deep": Hidden()}, r"objectives\.deep \(Hidden\) needs hidden_states.*Cached"),
        (None, {"a.b": HardLabel()}, r"model\.objectives\.a\.b"),
        (None, {"loss": HardLabel()}, r"model\.objectives\.loss"),
        (None, {"": HardLabel()}, r"model\.objectives\."),
        (None, {"train": HardLabel()}, r"model\.objectives\.train"),
        (None, {"keys": HardLabel()}, r"model\.objectives\.keys"),
    ],
)
def test_impossible_pairs_are_refused_at_construction(teacher, objectives, named):
    with pytest.raises(ConfigError, match=named):
        DistillationModule(EncoderClassifier(path="nowhere"), teacher, objectives)


def test_a_removed_term_leaves_the_rest():
    objectives = {"labels": HardLabel(), "logits": None}
    module = DistillationModule(EncoderClassifier(path="nowhere"), None, objectives)
    assert list(module.terms) == ["labels"]


@pytest.mark.parametrize("warmup", [-0.1, 1.5, float("nan")])
def test_an_odd_warmup_is_refused(warmup):
    with pytest.raises(ConfigError, match=r"model\.warmup"):
        DistillationModule(EncoderClassifier(path="nowhere"), warmup=warmup)


# --- Resuming ------------------------------------------------------------------------------------


class SaveAt(Callback):
    """Save a checkpoint after some steps, as a killed run would leave it."""

    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable")  # the data module is
@pytest.mark.parametrize("step", [1, 3, 4, 6])
def test_a_resumed_run_sees_exactly_the_remaining_rows(make_module, csv_file, tmp_path, step):
    """Two epochs of four steps; 4 is the end of an epoch. Without dropout losses are equal too."""
    straight, resumed = Watcher(), Watcher()
    file = tmp_path / "cut.ckpt"
    module = make_module()
    fit(module, data_of(csv_file), straight, SaveAt(file, step), max_epochs=2)
    assert len(straight.indices) == 8
    again = make_module(student=module.student.path, teacher=module.teacher.teacher.model.path)
    trainer = fit(again, data_of(csv_file), resumed, max_epochs=2, ckpt_path=file)
    assert resumed.indices == straight.indices[step:]
    assert resumed.losses == straight.losses[step:]
    assert trainer.global_step == 8
    for name, value in module.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_checkpoint_of_other_labels_or_vocabulary_is_refused(
    make_module, make_model, csv_file, tmp_path
):
    file = tmp_path / "x.ckpt"
    module = make_module(taught=False)
    fit(module, data_of(csv_file), SaveAt(file, 1))
    turned = data_of(csv_file, label_names=list(reversed(LABELS)))
    with pytest.raises(RunError, match=r"labels .*are not this recipe's"):
        fit(make_module(taught=False), turned, ckpt_path=file)
    other = train_wordpiece([text[::-1] for text in TEXTS], 200)
    folder = make_model("foreign", num_hidden_layers=1)
    other.save_pretrained(folder)
    with pytest.raises(RunError, match=r"vocabulary .*are not this recipe's"):
        fit(make_module(taught=False, student=folder), data_of(csv_file), ckpt_path=file)


def test_a_checkpoint_of_another_program_is_refused(make_module, csv_file, tmp_path):
    file = tmp_path / "x.ckpt"
    module = make_module(taught=False)
    fit(module, data_of(csv_file), SaveAt(file, 1))
    saved = torch.load(file, weights_only=True)
    del saved["student"]
    torch.save(saved, file)
    (tmp_path / "x.ckpt.json").unlink()
    with pytest.raises(RunError, match="not written by kd"):
        fit(make_module(taught=False), data_of(csv_file), ckpt_path=file)


def test_a_batch_moves_as_lightning_moves_it(make_module, csv_file):
    data = data_of(csv_file)
    module = make_module()
    fit(module, data)
    batch = next(iter(data.train_dataloader()))
    moved = module.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert isinstance(moved, Batch)
    assert moved.views["student"] is moved.views["teacher"]


# --- Variants of training rows --------------------------------------------------------------------


def plan(**options):
    return Augmentation([WordDrop(share=0.4)], **{"variants": 2, "processes": 1, **options})


def chosen_by(teacher, rows):
    """What the teacher says of texts, asked by another way."""
    classifier = Classifier.from_pretrained(teacher)
    return [answer.probabilities for answer in classifier.predict([row.text for row in rows])]


def test_variants_on_which_the_teacher_turns_round_are_left_out(make_module, make_model, csv_file):
    teacher = make_model("judge", initializer_range=0.5)
    kept = []
    for confidence in (None, 0.6):
        data = data_of(csv_file, augment=plan(flip_confidence=confidence))
        fit(make_module(teacher=teacher), data)
        kept.append(data.rows["train"])
    every, judged = kept
    origins = {row.index: row for row in every if row.origin is None}
    answers = dict(zip([row.index for row in every], chosen_by(teacher, every), strict=True))
    flipped = set()
    for row in every:
        if row.origin is not None:
            mine, theirs = answers[row.index], answers[row.origin]
            best = max(mine, key=mine.get)
            if best != max(theirs, key=theirs.get) and mine[best] >= 0.6:
                flipped.add(row.index)
    assert 0 < len(flipped) < len(every) - len(origins)
    assert [row for row in every if row.index not in flipped] == judged
    trained = {index for batch in data.train_dataloader() for index in batch.index.tolist()}
    assert trained == {row.index for row in judged}
    assert len(data.variants.flipped) == len(flipped)


def test_the_teacher_labels_variants(make_module, make_model, csv_file):
    teacher = make_model("judge", initializer_range=0.5)
    data = data_of(csv_file, augment=plan(labels="teacher", flip_confidence=None))
    fit(make_module(teacher=teacher), data)
    answers = chosen_by(teacher, data.rows["train"])
    for row, answer in zip(data.rows["train"], answers, strict=True):
        if row.origin is not None:
            assert data.labels[row.label] == max(answer, key=answer.get)
    assert any(row.label != origin.label for row, origin in with_origins(data.rows["train"]))


def with_origins(rows):
    known = {row.index: row for row in rows}
    return [(row, known[row.origin]) for row in rows if row.origin is not None]


def test_variants_of_unlabelled_rows_are_learnt_from_the_teacher(make_module, csv_file, tmp_path):
    more = tmp_path / "more.jsonl"
    more.write_text("".join(f'{{"text": "{text} {n}"}}\n' for n, text in enumerate(TEXTS)))
    data = data_of(csv_file, augment=plan(unlabelled_variants=3), roles={"unlabelled": str(more)})
    fit(make_module(), data)
    fates = Counter((row.label is None, row.origin is None) for row in data.rows["train"])
    assert fates[True, True] == 8
    assert fates[True, False] > 8
    alone = data_of(csv_file, augment=plan(), roles={"unlabelled": str(more)})
    fit(make_module(taught=False), alone)
    trained = {index for batch in alone.train_dataloader() for index in batch.index.tolist()}
    assert trained == {row.index for row in alone.rows["train"] if row.label is not None}


def test_variants_are_never_measured_on(make_module, csv_file):
    plain, data = data_of(csv_file), data_of(csv_file, augment=plan())
    for one in (plain, data):
        fit(make_module(), one)
    assert data.rows["validation"] == plain.rows["validation"]
    assert len(data.rows["train"]) > 2 * len(plain.rows["train"])
    assert [row for row in data.rows["train"] if row.origin is None] == plain.rows["train"]


def test_variants_without_labels_need_a_teacher(make_module, csv_file):
    for labels in ("drop", "teacher"):
        with pytest.raises(ConfigError, match=r"data\.augment\.labels .* teacher"):
            fit(make_module(taught=False), data_of(csv_file, augment=plan(labels=labels)))


def test_a_teacher_that_is_only_measured_judges_too(make_module, make_model, csv_file):
    teacher = make_model("judge", initializer_range=0.5)
    module = make_module(teacher=teacher, objectives={"labels": HardLabel()})
    data = data_of(csv_file, augment=plan(flip_confidence=0.6))
    fit(module, data)
    assert not module.taught
    assert data.variants.flipped


def test_the_vocabulary_is_made_of_originals(csv_file):
    data = data_of(csv_file, augment=plan())
    data.read("fit")
    assert list(data.texts()) == [row.text for row in data.rows["train"] if row.origin is None]
