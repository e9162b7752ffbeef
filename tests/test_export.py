import json

import pytest
import torch
from transformers import AutoTokenizer, pipeline

from kd.callbacks import BestCheckpoint, ResumeCheckpoint, RunDirectory
from kd.data.datamodule import TextDataModule
from kd.data.sources import Source
from kd.errors import ModelError, RunError
from kd.export import export, export_checkpoint
from kd.inference import Classifier
from kd.models import EncoderClassifier
from kd.module import DistillationModule
from kd.runs import claim
from kd.teachers import ModelTeacher
from tests.conftest import LABELS, TEXTS
from tests.test_module import both, trainer_of


@pytest.fixture
def trained(make_model, csv_file, tmp_path):
    """Distil a student for two epochs, and return its run and the module at the end."""
    run = claim(tmp_path / "runs", "tiny", command="fit")
    module = DistillationModule(
        EncoderClassifier(path=str(make_model("base", num_hidden_layers=1))),
        ModelTeacher(path=str(make_model("teacher"))),
        both(),
        learning_rate=1e-2,
    )
    data = TextDataModule(Source(train=str(csv_file)), batch_size=9, max_length=20)
    trainer = trainer_of(
        RunDirectory(run, {}),
        BestCheckpoint("val/accuracy"),
        ResumeCheckpoint(100),
        max_epochs=2,
        enable_checkpointing=True,
        default_root_dir=str(run.path),
    )
    trainer.fit(module, datamodule=data)
    return run.path, module


def weights(folder):
    return Classifier.from_pretrained(folder).model.network.state_dict()


@pytest.mark.parametrize("checkpoint", ["best", "resume"])
def test_an_export_is_the_student_of_the_checkpoint(trained, tmp_path, checkpoint):
    run, _ = trained
    folder = tmp_path / "out" / "student"
    export_checkpoint(run, checkpoint, folder)
    saved = torch.load(run / "checkpoints" / f"{checkpoint}.ckpt", weights_only=True)
    found = weights(folder)
    assert {f"student.network.{name}" for name in found} == set(saved["state_dict"])
    for name, value in found.items():
        assert torch.equal(value, saved["state_dict"][f"student.network.{name}"])
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert [path.name for path in folder.parent.iterdir()] == ["student"]  # no temporary left


def test_the_newest_export_answers_as_the_module_and_the_pipeline_do(trained, tmp_path):
    run, module = trained
    folder = tmp_path / "student"
    export(run, folder, "resume")
    answers = Classifier.from_pretrained(folder).predict(TEXTS)
    reference = pipeline("text-classification", model=str(folder), device="cpu", top_k=None)
    module.eval()
    for text, answer in zip(TEXTS, answers, strict=True):
        inputs = module.student.tokenizer(
            [text], return_tensors="pt", truncation=True, max_length=20
        )
        with torch.no_grad():
            logits = module.student(inputs).logits[0]
        wanted = dict(zip(LABELS, logits.softmax(-1).tolist(), strict=True))
        assert answer.probabilities == pytest.approx(wanted, abs=1e-5)
        piped = {row["label"]: row["score"] for row in reference(text, truncation=True)[0]}
        assert piped == pytest.approx(wanted, abs=1e-5)
    assert json.loads((folder / "config.json").read_text())["id2label"] == {
        "0": LABELS[0],
        "1": LABELS[1],
    }


def test_an_export_cuts_texts_where_training_did(trained, tmp_path):
    run, _ = trained
    export_checkpoint(run, "best", tmp_path / "student")
    assert AutoTokenizer.from_pretrained(tmp_path / "student").model_max_length == 20


def test_a_folder_that_is_there_is_never_touched(trained, tmp_path):
    run, _ = trained
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="is there already"):
        export_checkpoint(run, "best", folder)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_a_run_without_the_checkpoint_is_refused(trained, tmp_path):
    run, _ = trained
    (run / "checkpoints" / "resume.ckpt").unlink()
    with pytest.raises(RunError, match="has no resume checkpoint"):
        export_checkpoint(run, "resume", tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_weights_of_another_configuration_are_refused(trained, tmp_path):
    run, _ = trained
    config = run / "checkpoints" / "model" / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"num_hidden_layers": 2}))
    with pytest.raises(ModelError, match="do not fit"):
        export_checkpoint(run, "best", tmp_path / "student")


def test_the_name_of_a_run_means_its_newest_fit(trained, tmp_path, capsys):
    run, _ = trained
    claim(tmp_path / "runs", "tiny", command="predict")  # a later run without checkpoints
    export(run.parent, tmp_path / "student")
    assert f"best checkpoint of {run} exported to" in capsys.readouterr().out
    assert (tmp_path / "student" / "model.safetensors").is_file()


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(RunError, match="is no run"):
            export(path, tmp_path / "student")
