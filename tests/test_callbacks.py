import csv
import json
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from lightning import Callback

from kd.callbacks import MetricsFile, Milestones, PredictionWriter, RunDirectory
from kd.data.datamodule import TextDataModule
from kd.data.sources import Source
from kd.models import EncoderClassifier
from kd.module import DistillationModule
from kd.objectives import HardLabel, LogitKD
from kd.runs import claim, read_manifest
from kd.saving import BestCheckpoint, ResumeCheckpoint
from kd.signals import StopSignals
from kd.teachers import ModelTeacher
from tests.conftest import LABELS
from tests.test_module import trainer_of

pytestmark = pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable")


class Scores(Callback):
    """Replace the monitored metric by given values, one for each validation."""

    def __init__(self, values):
        self.values = list(values)

    def on_validation_epoch_end(self, trainer, module):
        if not trainer.sanity_checking:
            module.log("val/accuracy", float(self.values.pop(0)), batch_size=4)


class Scored(DistillationModule):
    """A module that leaves val/accuracy to the callback above."""

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", 0.5, batch_size=4)


def paths(run):
    return sorted(path.name for path in (run.path / "checkpoints").iterdir())


def read(run, name):
    return torch.load(run.path / "checkpoints" / name, weights_only=True)


@pytest.fixture
def student(make_model):
    return str(make_model("student", num_hidden_layers=1))


@pytest.fixture
def scored_fit(student, csv_file, tmp_path):
    """Return a function that fits 4 steps per epoch, with given scores, in a new run."""

    def fit(scores, steps=1000, minutes=10, resume=None, max_epochs=None):
        run = claim(tmp_path / "runs", "scored", command="fit")
        best, newest = (
            BestCheckpoint("val/accuracy"),
            ResumeCheckpoint(steps, minutes, StopSignals()),
        )
        trainer = trainer_of(
            RunDirectory(run, {}),
            Scores(scores),
            best,
            newest,
            max_epochs=max_epochs or len(scores),
            enable_checkpointing=True,
            default_root_dir=str(run.path),
            num_sanity_val_steps=0,
        )
        data = TextDataModule(Source(train=str(csv_file)), batch_size=9)
        module = Scored(EncoderClassifier(path=student), learning_rate=1e-3)
        trainer.fit(module, datamodule=data, ckpt_path=resume)
        return run, best, newest

    return fit


def test_best_keeps_the_best_and_resume_the_newest(scored_fit):
    """Lightning's own last.ckpt stays at the best one when the metric worsens."""
    run, best, _ = scored_fit([0.2, 0.9, 0.3])
    wanted = ["best.ckpt", "best.ckpt.json", "model", "resume.ckpt", "resume.ckpt.json"]
    assert paths(run) == wanted
    assert read(run, "best.ckpt")["global_step"] == 8
    assert read(run, "resume.ckpt")["global_step"] == 12
    assert float(best.best_model_score) == pytest.approx(0.9)


def test_a_loss_is_better_when_smaller():
    assert BestCheckpoint("val/loss").mode == "min"
    assert BestCheckpoint("val/f1").mode == "max"


@pytest.mark.parametrize(("minutes", "wanted"), [(0, [1, 2, 3, 4, 5, 6, 7, 8]), (10, [3, 6, 8])])
def test_resume_is_saved_every_few_steps_or_minutes_and_at_the_end(
    scored_fit, monkeypatch, minutes, wanted
):
    saved = []
    save = ResumeCheckpoint._save

    def noted(self, trainer):
        saved.append(trainer.global_step)
        save(self, trainer)

    monkeypatch.setattr(ResumeCheckpoint, "_save", noted)
    scored_fit([0.2, 0.3], steps=3, minutes=minutes)
    assert saved == wanted


def test_a_worse_model_does_not_become_best_after_a_resume(scored_fit, tmp_path):
    first, _, _ = scored_fit([0.2, 0.9])
    kept = (first.path / "checkpoints" / "best.ckpt").read_bytes()
    before = {path: path.read_bytes() for path in first.path.rglob("*") if path.is_file()}
    resume = first.path / "checkpoints" / "resume.ckpt"
    second, best, _ = scored_fit([0.5], resume=resume, max_epochs=3)
    assert second.path != first.path
    assert (second.path / "checkpoints" / "best.ckpt").read_bytes() == kept
    assert (second.path / "checkpoints" / "best.ckpt.json").is_file()
    assert read(second, "resume.ckpt")["global_step"] == 12
    assert float(best.best_model_score) == pytest.approx(0.9)
    third, best, _ = scored_fit([0.95], resume=resume, max_epochs=3)
    assert read(third, "best.ckpt")["global_step"] == 12
    assert float(best.best_model_score) == pytest.approx(0.95)
    after = {path: path.read_bytes() for path in first.path.rglob("*") if path.is_file()}
    assert before == after  # the old run has one writer: itself


def test_a_resume_whose_best_is_gone_starts_anew(scored_fit):
    first, _, _ = scored_fit([0.9])
    resume = first.path / "resume.ckpt"
    shutil.copy(first.path / "checkpoints" / "resume.ckpt", resume)
    shutil.rmtree(first.path / "checkpoints")
    second, best, _ = scored_fit([0.5], resume=resume, max_epochs=2)
    assert read(second, "best.ckpt")["global_step"] == 8
    assert float(best.best_model_score) == pytest.approx(0.5)


# --- Files of a run ------------------------------------------------------------------------------


@pytest.fixture
def distilled(make_model, student, csv_file, tmp_path):
    """Fit a distilled student for one epoch with all callbacks of a recipe."""
    run = claim(tmp_path / "runs", "distilled", command="fit")
    predict = tmp_path / "predict.csv"
    predict.write_text('text\nwhat a wonderful day\nno\n"a dull, cold and clumsy story, a bore"\n')
    trainer = trainer_of(
        RunDirectory(run, {}),
        Milestones(),
        BestCheckpoint("val/accuracy"),
        ResumeCheckpoint(2, 10, StopSignals()),
        enable_checkpointing=True,
        logger=MetricsFile(run.path),
        default_root_dir=str(run.path),
    )
    module = DistillationModule(
        EncoderClassifier(path=student),
        ModelTeacher(path=str(make_model("teacher"))),
        {"labels": HardLabel(0.5), "logits": LogitKD(0.5)},
        learning_rate=1e-3,
    )
    source = Source(train=str(csv_file), predict=str(predict))
    data = TextDataModule(source, batch_size=9, max_length=20)
    trainer.fit(module, datamodule=data)
    return run, module, data


def test_metrics_are_in_one_csv_file(distilled):
    run, _, _ = distilled
    with (run.path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns = set(rows[0])
    wanted = {"train/loss", "train/labels", "train/logits", "val/accuracy", "val/f1", "val/loss"}
    assert wanted | {"val/agreement", "val/teacher_accuracy", "epoch", "step"} <= columns
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert len(losses) == 4
    terms = [
        0.5 * float(row["train/labels"]) + 0.5 * float(row["train/logits"])
        for row in rows
        if row["train/loss"]
    ]
    assert losses == pytest.approx(terms, rel=1e-5)
    files = {path.name for path in run.path.iterdir()}
    assert files == {"manifest.json", "metrics.csv", "checkpoints"}


def test_the_manifest_and_the_output_tell_what_is_trained(capsys, distilled):
    run, _, data = distilled
    printed = capsys.readouterr().out
    assert "loss = 0.5 * labels[HardLabel] + 0.5 * logits[LogitKD T=2]" in printed
    assert "data = 36 labelled, 4 validation rows; classes negative, positive" in printed
    assert "step 4/4  accuracy " in printed
    assert read_manifest(run.path)["data"] == data.fingerprints()


def test_configuration_and_tokenizer_lie_beside_the_checkpoints(distilled):
    run, _, _ = distilled
    folder = run.path / "checkpoints" / "model"
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": LABELS[0], "1": LABELS[1]}
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 20
    assert not list(folder.glob("*.safetensors"))
    assert config["architectures"] == ["BertForSequenceClassification"]


def test_all_ranks_follow_the_references_of_the_first(make_model, csv_file, student):
    module = DistillationModule(EncoderClassifier(path="runs/other"))
    directory = RunDirectory(None, {"runs/other": student})
    trainer_of(directory, fast_dev_run=True).fit(
        module, datamodule=TextDataModule(Source(train=str(csv_file)))
    )
    assert module.student.path == student


def test_predictions_are_written_in_the_order_of_the_file(distilled, tmp_path):
    _, module, data = distilled
    run = claim(tmp_path / "runs", "predictions", command="predict")
    trainer = trainer_of(PredictionWriter(run))
    trainer.predict(module, datamodule=data, return_predictions=False)
    parquet = pd.read_parquet(run.path / "predictions.parquet")
    plain = pd.read_csv(run.path / "predictions.csv", keep_default_na=False)
    probabilities = ["probability_negative", "probability_positive"]
    for frame in (parquet, plain):
        assert list(frame.columns) == ["text", "label", *probabilities]
        assert list(frame["text"]) == [
            "what a wonderful day",
            "no",
            "a dull, cold and clumsy story, a bore",
        ]
        assert frame[probabilities].sum(axis=1).to_numpy() == pytest.approx(1.0)
        best = frame[probabilities].to_numpy().argmax(axis=1)
        assert list(frame["label"]) == [LABELS[place] for place in best]
    module.eval()
    for text, wanted in zip(parquet["text"], parquet[probabilities].to_numpy(), strict=True):
        inputs = module.student.tokenizer([text], return_tensors="pt")
        with torch.no_grad():
            answer = module.student(inputs).logits.softmax(-1)[0]
        assert answer.numpy() == pytest.approx(wanted, abs=1e-5)


def test_predictions_of_all_ranks_are_put_together(distilled, tmp_path, monkeypatch):
    """Two ranks hold a part each; the one with the run writes both."""
    _, module, data = distilled
    data.read("predict")
    run = claim(tmp_path / "runs", "predictions", command="predict")
    parts = [
        {"index": torch.tensor([2, 0]), "probabilities": torch.tensor([[0.1, 0.9], [0.8, 0.2]])},
        {"index": torch.tensor([1]), "probabilities": torch.tensor([[0.3, 0.7]])},
    ]

    def gather(gathered, mine):
        gathered[:] = [[part] for part in parts]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)

    class TwoRanks:
        world_size = 2
        datamodule = data

    for claimed in (None, run):
        writer = PredictionWriter(claimed)
        writer.on_predict_batch_end(TwoRanks(), module, parts[0], None, 0)
        writer.on_predict_end(TwoRanks(), module)
    frame = pd.read_csv(run.path / "predictions.csv")
    assert list(frame["label"]) == ["negative", "positive", "positive"]
    assert list(frame["probability_positive"]) == pytest.approx([0.2, 0.7, 0.9])


@pytest.mark.parametrize("separator", ["|", ";"])
def test_predictions_of_several_labels_can_be_read_as_labels(tmp_path, separator):
    train, predict = tmp_path / "train.csv", tmp_path / "predict.csv"
    train.write_text("text,label\n" + f"a,joy\nb,fear{separator}joy\nc,fear\n" * 5)
    predict.write_text("text\none\ntwo\nthree\n")
    several = {"multi_label": True, "label_separator": separator}
    data = TextDataModule(Source(train=str(train), predict=str(predict)), **several)
    data.read("predict")
    run = claim(tmp_path / "runs", "predictions", command="predict")
    probabilities = [[0.9, 0.8], [0.4, 0.5], [0.1, 0.6]]
    answers = {"index": torch.tensor([2, 0, 1]), "probabilities": torch.tensor(probabilities)}
    writer = PredictionWriter(run)
    trainer = SimpleNamespace(world_size=1, datamodule=data)
    writer.on_predict_batch_end(trainer, None, answers, None, 0)
    writer.on_predict_end(trainer, None)
    parquet = pd.read_parquet(run.path / "predictions.parquet")
    assert [list(labels) for labels in parquet["label"]] == [[], ["joy"], ["fear", "joy"]]
    assert list(parquet["probability_joy"]) == pytest.approx([0.5, 0.6, 0.8])
    names = {**several, "label_names": ["fear", "joy"]}
    for file in ("predictions.csv", "predictions.parquet"):
        path = str(run.path / file)
        again = TextDataModule(Source(train=path, validation=path), **names)
        again.read("fit")
        assert [row.label for row in again.rows["train"]] == [(), (1,), (0, 1)]
