import ast
import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning import seed_everything
from transformers import AutoTokenizer, pipeline

import kd
from kd.backends import TorchModel
from kd.calibration import (
    calibration_error,
    cross_fitted,
    fit_temperature,
    probabilities,
    reliability,
)
from kd.callbacks import RunDirectory
from kd.checkpoints import SafeCheckpointIO
from kd.cli import main
from kd.data.datamodule import TextDataModule
from kd.data.sources import Source
from kd.errors import ConfigError, ModelError, RunError
from kd.export import _check_int8, _check_parity, _probes, export, export_checkpoint
from kd.inference import Classifier
from kd.layout import CARD, CHECKSUMS, INT8, ONNX, read_facts, verify_folder
from kd.models import EncoderClassifier
from kd.module import DistillationModule
from kd.objectives import HardLabel
from kd.predictions import VALIDATION, Predictions, read_predictions, write_predictions
from kd.runs import claim
from kd.saving import BestCheckpoint, ResumeCheckpoint
from kd.seq2seq import Seq2SeqClassifier
from kd.signals import StopSignals
from tests.conftest import LABELS, SIZES, TEXTS
from tests.test_module import trainer_of

STUDENT = {"model_type": "bert", **SIZES, "hidden_size": 32, "num_hidden_layers": 1}
WRITER = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
RECIPE = {
    "seed_everything": 7,
    "model": {
        "student": {"class_path": "kd.EncoderClassifier", "init_args": {"config": STUDENT}},
        "teacher": {"class_path": "kd.ModelTeacher", "init_args": {"path": "runs/large"}},
        "objectives": {"labels": {"class_path": "kd.HardLabel", "init_args": {"weight": 0.5}}},
    },
    "data": {"source": {"path": None, "train": "rows.csv"}, "max_length": 20},
    "run": {"name": "tiny", "monitor": "val/accuracy"},
}


def make_run(root, student):
    """Train a student for a moment, as fit does, and return its run and the module at the end."""
    seed_everything(0, verbose=False)
    texts = [f"{text} {turn}" for turn in range(5) for text in TEXTS]
    truth = np.array([int(place % 8 < 4) for place in range(40)])
    lines = [f'"{text}",{LABELS[label]}' for text, label in zip(texts, truth, strict=True)]
    (root / "rows.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    run = claim(root / "runs", "tiny", command="fit")
    module = DistillationModule(student, None, {"labels": HardLabel(1.0)}, learning_rate=1e-2)
    data = TextDataModule(Source(train=str(root / "rows.csv")), batch_size=9, max_length=20)
    trainer = trainer_of(
        RunDirectory(run, {}),
        BestCheckpoint("val/accuracy"),
        ResumeCheckpoint(100, 10, StopSignals()),
        max_epochs=10,
        enable_checkpointing=True,
        default_root_dir=str(run.path),
    )
    trainer.fit(module, datamodule=data)
    export_checkpoint(run.path, "best", run.path / "student")
    logits = TorchModel.load(str(run.path / "student")).logits(texts, None, 8)
    unsure = logits + np.random.default_rng(0).normal(size=logits.shape).astype(np.float32)
    truth[:4] = 1 - truth[:4]  # or the temperature would have no end
    found = Predictions(LABELS, False, tuple(texts), None, truth, logits, unsure)
    write_predictions(run.path / VALIDATION, found)
    run.write_text("config.yaml", yaml.safe_dump(RECIPE))
    run.update(seed=7, data={"train": "abc", "validation": "def"})
    run.finish("finished")
    return run.path, module


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("world"), EncoderClassifier(config=STUDENT))


@pytest.fixture
def trained(world, tmp_path):
    """Return a copy of the run, to break, and the module."""
    shutil.copytree(world[0].parent, tmp_path / "runs" / "tiny")
    return tmp_path / "runs" / "tiny" / "version_0", world[1]


@pytest.fixture(scope="module")
def shipped(world):
    """Return a whole export of the run; it is only read."""
    folder = world[0].parent.parent.parent / "shipped"
    export(world[0], folder)
    return folder


@pytest.fixture
def copied(shipped, tmp_path):
    return shutil.copytree(shipped, tmp_path / "copied")


def weights(folder):
    return Classifier.from_pretrained(folder, "torch").model.classifier.network.state_dict()


def change_weights(run, change):
    """Let a function change the weights of the best checkpoint, by their names in the student."""
    file = run / "checkpoints" / "best.ckpt"
    saved = SafeCheckpointIO().load_checkpoint(file)
    change({name.removeprefix("student.network."): v for name, v in saved["state_dict"].items()})
    SafeCheckpointIO().save_checkpoint(saved, file)


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


def test_the_newest_export_answers_as_the_module(trained, tmp_path):
    run, module = trained
    export(run, tmp_path / "student", "resume", onnx=False)
    wanted = TorchModel(module.student).logits(TEXTS, None, 3)
    found = Classifier.from_pretrained(tmp_path / "student").logits(TEXTS)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert read_facts(tmp_path / "student").measured["checkpoint"] == "resume"


def test_every_backend_answers_as_the_pipeline_does(shipped):
    pipe = pipeline("text-classification", model=str(shipped), device="cpu", top_k=None)
    piped = [{row["label"]: row["score"] for row in answer} for answer in pipe(TEXTS)]
    temperature = read_facts(shipped).temperature
    for backend in ("torch", "onnx", "int8"):
        classifier = Classifier.from_pretrained(shipped, backend)
        near = 0.05 if backend == "int8" else 1e-5
        logits = classifier.logits(TEXTS)
        plain = probabilities(logits).tolist()
        for one, answer in zip(piped, plain, strict=True):
            assert dict(zip(LABELS, answer, strict=True)) == pytest.approx(one, abs=near)
        calibrated = probabilities(logits, temperature=temperature)[0].tolist()
        said = classifier.predict(TEXTS)[0].probabilities
        assert said == pytest.approx(dict(zip(LABELS, calibrated, strict=True)))
    names = json.loads((shipped / "config.json").read_text())["id2label"]
    assert names == {"0": LABELS[0], "1": LABELS[1]}


@pytest.mark.fault(37)
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
    export(run.parent, tmp_path / "student", onnx=False)
    assert f"best checkpoint of {run} exported to" in capsys.readouterr().out
    assert (tmp_path / "student" / "model.safetensors").is_file()


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(RunError, match="is no run"):
            export(path, tmp_path / "student")


def test_a_whole_export_has_these_files_and_leaves_nothing_beside_it(shipped):
    names = {path.relative_to(shipped).as_posix() for path in shipped.rglob("*") if path.is_file()}
    plain = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert names == plain | {ONNX, INT8, "kd.json", CARD, CHECKSUMS}
    assert not list(shipped.parent.glob(".*"))
    assert verify_folder(shipped) == []


def test_no_file_tells_where_the_code_of_this_machine_lies(shipped):
    package = str(Path(kd.__file__).parent)
    for path in shipped.rglob("*"):
        if path.is_file():
            assert package.encode() not in path.read_bytes(), path
            assert b"site-packages" not in path.read_bytes(), path


def test_what_is_stated_was_measured(world, shipped):
    rows, facts = read_predictions(world[0] / VALIDATION), read_facts(shipped)
    measured = facts.measured
    for name in ("torch", "onnx", "int8"):
        logits = Classifier.from_pretrained(shipped, name).logits(rows.texts)
        wanted = {"accuracy": rows.accuracy(logits), "f1": rows.f1(logits)}
        assert measured["scores"][name] == pytest.approx(wanted)
    assert measured["scores"]["teacher"]["accuracy"] == rows.accuracy(rows.teacher)
    assert measured["scores"]["torch"]["accuracy"] > 0.5
    same = rows.student.argmax(axis=1) == rows.teacher.argmax(axis=1)
    assert measured["agreement"] == pytest.approx(same.mean())
    assert facts.temperature != 1.0
    assert facts.temperature == pytest.approx(fit_temperature(rows.student, rows.truth), rel=1e-3)
    error = {
        "before": calibration_error(reliability(probabilities(rows.student), rows.truth)),
        "after": calibration_error(reliability(cross_fitted(rows.student, rows.truth), rows.truth)),
    }
    assert measured["calibration_error"] == pytest.approx(error, rel=1e-3)
    assert measured["parity"]["texts"] == 41
    assert 0 <= measured["parity"]["relative"] <= 1e-4
    assert measured["parity"]["relative"] <= measured["parity"]["difference"]
    assert (measured["rows"], measured["seed"], measured["checkpoint"]) == (40, 7, "best")
    assert measured["data"] == {"train": "abc", "validation": "def"}
    assert (facts.max_length, facts.labels) == (20, LABELS)
    assert facts.inputs == ("input_ids", "attention_mask", "token_type_ids")


@pytest.mark.fault(5)
def test_every_file_is_guarded_against_a_flipped_byte(copied, capsys):
    files = [path for path in copied.rglob("*") if path.is_file()]
    assert len(files) == 9
    for path in files:
        content = path.read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            flipped = bytes([content[place] ^ 1])
            path.write_bytes(content[:place] + flipped + content[place + 1 :])
            name = "" if path.name == CHECKSUMS else path.relative_to(copied).as_posix()
            with pytest.raises(RunError, match=f"{re.escape(name)}.* export (the run|it) again"):
                export(verify=copied)
        path.write_bytes(content)
    capsys.readouterr()
    export(verify=copied)
    assert capsys.readouterr().out == f"{copied} is whole: every file is as it was exported\n"


def test_verify_tells_each_problem_on_a_line(copied, capsys):
    (copied / ONNX).unlink()
    (copied / "more.txt").write_text("more")
    (copied / "config.json").write_text("{}")
    (copied / "onnx" / "more.onnx").write_text("more")
    with pytest.raises(RunError, match=r"differs; more.txt: .* of this export; .* and 1 more\)"):
        export(verify=copied)
    assert capsys.readouterr().out.splitlines() == [
        "config.json: sha256 differs",
        "more.txt: not of this export",
        f"{ONNX}: missing",
        "onnx/more.onnx: not of this export",
    ]


def test_contradicting_options_are_refused(tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    for options in ({}, {"run": run}, {"output": out}, {"verify": out, "run": run}):
        with pytest.raises(ConfigError, match="--run and --output, or --verify alone"):
            export(**options)
    with pytest.raises(ConfigError, match="max_accuracy_loss is 1.5: give 0 to 1"):
        export(run, out, max_accuracy_loss=1.5)
    with pytest.raises(ConfigError, match="add --push user/name"):
        export(run, out, public=True)


def test_onnx_that_answers_otherwise_is_not_exported(trained, shipped, tmp_path):
    run, _ = trained
    onnx = Classifier.from_pretrained(shipped, "onnx").model
    rows = read_predictions(run / VALIDATION)
    other = EncoderClassifier(path=str(shipped))
    other.load(fresh_head=False)
    assert _check_parity(TorchModel(other), onnx, rows)["relative"] < 1e-4
    with torch.no_grad():
        other.head.bias[0] += 1e-3 * max(1.0, np.abs(rows.student).max())
    with pytest.raises(RunError, match="differ from PyTorch's by .* nothing is exported"):
        _check_parity(TorchModel(other), onnx, rows)

    change_weights(run, lambda weights: weights["classifier.bias"].fill_(torch.nan))
    with pytest.raises(RunError, match="differ from PyTorch's by nan"):
        export(run, tmp_path / "student")
    assert not list(tmp_path.glob("*student*"))


def test_eight_bits_that_lose_too_much_are_left_out_and_said_so(trained, tmp_path, capsys):
    run, module = trained
    unused = module.student.tokenizer.mask_token_id

    def stretch(weights):  # one number of a scale of 256 steps, which leaves none for the others
        weights["bert.embeddings.word_embeddings.weight"][unused] = 1e4

    change_weights(run, stretch)
    folder = tmp_path / "student"
    export(run, folder)
    assert not (folder / INT8).exists()
    assert (folder / ONNX).exists()
    assert verify_folder(folder) == []
    measured = read_facts(folder).measured
    assert "int8" not in measured["scores"]
    [note] = measured["notes"]
    assert re.fullmatch(
        rf"{INT8} is left out: its accuracy, \d+.\d% instead of \d+.\d%, loses more than 1.0%", note
    )
    assert f"note = {note}" in capsys.readouterr().out
    assert f"Note: {note}." in (folder / CARD).read_text()


def test_of_several_labels_eight_bits_may_not_lose_macro_f1_either(tmp_path):
    for multi_label, f1 in ((True, 0.68), (True, 0.695), (False, 0.68)):
        (tmp_path / INT8).parent.mkdir(exist_ok=True)
        (tmp_path / INT8).write_bytes(b"")
        scores = {"torch": {"accuracy": 0.98, "f1": 0.7}, "int8": {"accuracy": 0.979, "f1": f1}}
        measured = {"scores": scores, "notes": []}
        _check_int8(tmp_path, measured, multi_label, 0.01)
        is_kept = not multi_label or f1 > 0.69
        assert (tmp_path / INT8).exists() == ("int8" in scores) == is_kept
        told = "its macro-F1, 68.0% instead of 70.0%, loses more than 1.0%"
        assert measured["notes"] == ([] if is_kept else [f"{INT8} is left out: {told}"])


def test_a_broken_recipe_is_no_obstacle(trained, tmp_path):
    run, _ = trained
    (run / "config.yaml").write_text("a: [")
    export(run, tmp_path / "student", onnx=False)
    assert "has no `config.yaml` that can be read" in (tmp_path / "student" / CARD).read_text()


def test_a_run_below_here_is_kept_by_its_relative_path(trained, tmp_path, monkeypatch):
    run, _ = trained
    for here, wanted in (
        (tmp_path, "runs/tiny/version_0"),
        (tmp_path / "runs" / "tiny", "version_0"),
    ):
        monkeypatch.chdir(here)
        export(run, here / "student", onnx=False)
        assert read_facts(here / "student").measured["run"] == wanted


def test_sigterm_ends_an_export_and_leaves_nothing_half(trained, tmp_path):
    run, _ = trained

    def end():
        while not list(tmp_path.glob(".student.*.tmp")):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    try:
        thread = threading.Thread(target=end, daemon=True)
        thread.start()
        with pytest.raises(SystemExit) as stop:
            main(["export", f"--run={run}", f"--output={tmp_path / 'student'}", "--onnx=false"])
        thread.join()
        assert stop.value.code == 143
        assert not list(tmp_path.glob("*student*"))
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_snippets_of_the_card_run(shipped, capsys):
    text = (shipped / CARD).read_text()
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippets) == 3
    said = []
    for snippet in snippets:
        exec(compile(snippet, "snippet", "exec"), {})
        said.append(capsys.readouterr().out)
    [answer] = Classifier.from_pretrained(shipped).predict(["I am very happy today!"])
    assert said[0] == f"{[answer]}\n"
    [piped] = ast.literal_eval(said[1])
    assert piped[0]["label"] == answer.label
    logits = [float(number) for number in re.findall(r"float32\(([^)]*)\)", said[2])]
    calibrated = probabilities(np.array([logits]))[0]
    assert calibrated.tolist() == pytest.approx(list(answer.probabilities.values()), abs=1e-4)


def test_texts_to_compare_on_have_all_lengths_and_one_is_too_long(world):
    rows, student = read_predictions(world[0] / VALIDATION), TorchModel(world[1].student)
    for known in (rows, None):
        texts, pairs = _probes(student, known)
        assert pairs is None
        assert (texts, pairs) == _probes(student, known)
        lengths = [len(ids) for ids in student.classifier.tokenizer(texts[:-1])["input_ids"]]
        assert lengths != sorted(lengths)
        assert len(student.classifier.tokenizer(texts[-1])["input_ids"]) > student.max_length
        if known is None:
            assert set(range(4, student.max_length)) <= set(lengths)
    paired = replace(rows, pairs=tuple(reversed(rows.texts)))
    texts, pairs = _probes(student, paired)
    assert set(zip(texts[:-1], pairs, strict=False)) == set(
        zip(paired.texts, paired.pairs, strict=True)
    )
    assert len(pairs) == len(texts)


@pytest.mark.parametrize("onnx", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_that_was_cut_off_is_exported_without_what_cannot_be_measured(
    trained, tmp_path, capsys, onnx
):
    run, _ = trained
    (run / VALIDATION).unlink()
    (run / "config.yaml").unlink()
    folder = tmp_path / "student"
    export(run, folder, onnx=onnx)
    facts = read_facts(folder)
    assert facts.temperature == 1.0
    assert facts.measured["scores"] is facts.measured["calibration_error"] is None
    assert (facts.measured["parity"] or {}).get("texts") == (257 if onnx else None)
    assert (folder / ONNX).is_file() == onnx
    assert not (folder / INT8).exists()
    said = capsys.readouterr().out
    assert f"has no {VALIDATION} (cut off, or old): not calibrated" in said
    assert (f"{INT8} is left out: its loss cannot be measured" in said) == onnx
    card = (folder / CARD).read_text()
    assert "Unknown: the run has no validation rows" in card
    assert "Unknown: the run has no `config.yaml` that can be read" in card
    assert Classifier.from_pretrained(folder).backend == ("onnx" if onnx else "torch")


def test_without_onnx_the_rest_is_delivered(trained, tmp_path, capsys):
    run, _ = trained
    folder = tmp_path / "student"
    export(run, folder, onnx=False)
    assert not (folder / "onnx").exists()
    assert set(read_facts(folder).measured["scores"]) == {"teacher", "torch"}
    assert "onnxruntime" not in (folder / CARD).read_text()
    assert capsys.readouterr().out.splitlines()[-1] == f"check = kd export --verify {folder}"
    assert Classifier.from_pretrained(folder).backend == "torch"


def test_the_student_without_distillation_comes_from_the_newest_finished_comparison(
    trained, tmp_path
):
    run, _ = trained
    for mean, status in ((0.5, "finished"), (0.625, "finished"), (0.9, "failed")):
        other = claim(tmp_path / "runs", "tiny", command="compare")
        variants = [
            {"name": "distilled", "options": [], "mean": 0.99, "runs": [str(run)]},
            {"name": "b", "options": ["--model.teacher=null"], "mean": mean, "runs": []},
        ]
        variants = [one | {"seeds": [1, 2]} for one in variants]
        other.write_text("compare.json", json.dumps({"variants": variants}))
        other.finish(status)
    export(run, tmp_path / "student", onnx=False)
    found = read_facts(tmp_path / "student").measured["without_distillation"]
    assert found == {"accuracy": 0.625, "seeds": 2, "run": "tiny/version_2"}
    line = "the same student without distillation, mean of 2 seeds | 62.5% |"
    assert line in (tmp_path / "student" / CARD).read_text()


def test_a_place_that_cannot_be_written_is_said_and_left_as_it_was(trained, tmp_path):
    run, _ = trained
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match=r"student cannot be written \(Not a directory\): make room"):
        export(run, tmp_path / "file" / "student", onnx=False)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.slow
def test_a_model_that_writes_is_exported_as_it_scores_the_classes(tmp_path):
    run, _ = make_run(tmp_path, Seq2SeqClassifier(config=WRITER))
    folder = tmp_path / "student"
    export(run, folder)
    facts = read_facts(folder)
    assert facts.prefix == "predict: "
    assert facts.inputs == ("input_ids", "attention_mask")
    wanted = Classifier.from_pretrained(folder, "torch").logits(TEXTS)
    found = Classifier.from_pretrained(folder, "onnx").logits(TEXTS)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert "pipeline(" not in (folder / CARD).read_text()


class Hub(BaseHTTPRequestHandler):
    """Plays the hub: me/seen is public, me/shut is not mine, any other is private and empty."""

    protocol_version = "HTTP/1.1"
    told, files = [], {}

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.told.append((self.command, self.path, self.headers.get("authorization"), body))
        is_new = self.path.endswith("/repos/create")
        name = "/".join(self.path.split("?")[0].split("/")[3:5])
        name = "me/" + json.loads(body)["name"] if is_new else name
        repository = f"http://{self.headers['host']}/{name}"
        answer = {"url": repository, "commitUrl": f"{repository}/commit/1", "commitOid": "1"}
        answer |= {"id": name, "private": name != "me/seen", "siblings": [], "sha": "1"}
        if "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            answer = {"files": [{"path": one["path"], **mode} for one in asked]}
        elif "/commit/" in self.path:
            values = [json.loads(line)["value"] for line in body.splitlines()[1:]]
            found = {one["path"]: base64.b64decode(one["content"]) for one in values}
            self.files[name] = found
        elif "/tree/" in self.path:
            answer = []
        data = json.dumps(answer).encode()
        self.send_response(403 if name == "me/shut" else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST

    def log_message(self, *args):
        pass


PUSHES = {
    "private": ["--push=me/tiny"],
    "unasked": ["--push=me/seen"],
    "public": ["--push=me/seen", "--public=true"],
    "forbidden": ["--push=me/shut"],
    "no login": ["--push=me/tiny"],
}
SCRIPT = """
import contextlib, io, json, os, sys
from kd.cli import main

answers = {}
for name, options in json.loads(sys.argv[1]).items():
    if name == "no login":
        del os.environ["HF_TOKEN"]
    said, code = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main(["export", *options])
        except SystemExit as error:
            code = error.code
    answers[name] = code, said.getvalue()
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def pushed(shipped):
    """Push the folder in a process of its own, whose hub is ours, and return what it said."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    known = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    known |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": "hf_none"}
    known |= {"HF_HOME": str(shipped.parent / "hub"), "HF_HUB_DISABLE_XET": "1"}
    (shipped / ".cache").mkdir()
    (shipped / ".cache" / "secret").write_text("mine")  # verify lets it be, and so must a push
    cases = {name: [f"--verify={shipped}", *options] for name, options in PUSHES.items()}
    command = [sys.executable, "-c", SCRIPT, json.dumps(cases)]
    done = subprocess.run(command, env=known, capture_output=True, text=True)
    shutil.rmtree(shipped / ".cache")
    server.shutdown()
    thread.join()
    server.server_close()
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_push_is_private_and_holds_the_folder_without_the_machine(pushed, shipped, tmp_path):
    code, said = pushed["private"]
    assert code == 0, said
    assert re.search(r"pushed = http://127.0.0.1:\d+/me/tiny, private\n", said)
    read = [path for path in shipped.rglob("*") if path.is_file()]
    wanted = {path.relative_to(shipped).as_posix(): path.read_bytes() for path in read}
    found = Hub.files["me/tiny"]
    assert found.keys() == wanted.keys()
    changed = {name for name in found if found[name] != wanted[name]}
    assert changed == {CARD, "kd.json", CHECKSUMS}
    for name, content in found.items():
        assert str(shipped.parent).encode() not in content, name
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert verify_folder(tmp_path) == []
    assert read_facts(tmp_path).measured["run"] == "tiny/version_0"
    card = found[CARD].decode()
    for code in ("_pretrained(", "model=", "folder = "):
        assert card.count(f'{code}"me/tiny"') == 1
    assert card.replace("me/tiny", str(shipped)) == wanted[CARD].decode()
    made = [json.loads(body) for _, path, _, body in Hub.told if path.endswith("/repos/create")]
    assert made[0] == {"name": "tiny", "organization": "me", "visibility": "private"}
    assert "Bearer hf_none" in {key for _, _, key, _ in Hub.told}


def test_what_all_the_world_sees_is_filled_only_if_told_so(pushed):
    code, said = pushed["unasked"]
    assert (code, "me/seen is public on the hub: add --public" in said) == (2, True), said
    code, said = pushed["public"]
    assert (code, "me/seen, public\n" in said) == (0, True), said
    commits = [path for _, path, _, _ in Hub.told if "/me/seen/commit/" in path]
    assert len(commits) == 1
    settings = [body for _, path, _, body in Hub.told if path.endswith("/me/seen/settings")]
    assert [json.loads(body)["visibility"] for body in settings] == ["public"]


def test_a_push_that_fails_is_one_sentence_that_says_what_to_do(pushed, shipped):
    code, said = pushed["no login"]
    assert (code, "run `hf auth login` first" in said) == (2, True), said
    code, said = pushed["forbidden"]
    assert (code, "was not pushed (" in said) == (2, True), said
    assert f"try again by kd export --verify {shipped} --push me/shut.\n" in said
    assert len(said.splitlines()) == 2


def test_a_push_that_cannot_be_is_refused_before_the_export(trained, tmp_path):
    run, _ = trained
    for name, reason in (("tiny", "give user/name"), ("me/tiny", "HF_HUB_OFFLINE is set")):
        with pytest.raises(ConfigError, match=reason):
            export(run, tmp_path / "student", push=name)
    assert not (tmp_path / "student").exists()
