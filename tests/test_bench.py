import json
import os
import resource
import shutil
import signal

import numpy as np
import pytest
import yaml
from transformers import AutoConfig, AutoModelForSequenceClassification

from kd.bench import bench
from kd.conversion import convert, quantise
from kd.errors import ConfigError, DataError, ModelError, RunError
from kd.inference import Classifier
from kd.layout import INT8, ONNX, Facts, write_checksums, write_facts
from kd.measuring import Contender, Process
from kd.models import EncoderClassifier
from kd.predictions import Predictions, write_predictions
from kd.runs import claim, read_manifest, verify
from tests.conftest import FAMILIES, LABELS, TEXTS

TRUTH = np.array([1, 1, 1, 1, 0, 0, 0, 0])
TEACHER = np.eye(2, dtype=np.float32)[TRUTH ^ np.array([1, 0, 0, 0, 0, 0, 0, 0])]
SIZES = (1, 4)


def make(folder, tokenizer, **changes):
    sizes = FAMILIES["bert"] | {"vocab_size": len(tokenizer), "initializer_range": 0.5} | changes
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
    config = AutoConfig.for_model("bert", **sizes, **names)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def export_all(folder, run):
    """Make of a model folder what `export` makes, without its checks."""
    model = EncoderClassifier(path=str(folder))
    model.load(fresh_head=False)
    (folder / ONNX).parent.mkdir()
    inputs = convert(model, folder / ONNX)
    quantise(folder / ONNX, folder / INT8)
    write_facts(folder, Facts(LABELS, False, 64, inputs, measured={"run": str(run)}))
    write_checksums(folder)
    return folder


def run_of(root, name, tokenizer, teacher, references):
    """Write a run as `fit` leaves it: a student, a recipe, what was said of eight rows."""
    run = claim(root, name, command="fit")
    make(run.path / "student", tokenizer)
    run.write_text("config.yaml", yaml.safe_dump({"model": {"teacher": teacher}}))
    run.update(references=references)
    student = Classifier.from_pretrained(run.path / "student", "torch").logits(TEXTS)
    found = Predictions(LABELS, False, tuple(TEXTS), None, TRUTH, student, TEACHER)
    write_predictions(run.path / "validation.parquet", found)
    run.finish("finished")
    return run.path


def named(path):
    return {"class_path": "kd.ModelTeacher", "init_args": {"path": str(path), "recipe": "x.yaml"}}


def models_of(run):
    results = json.loads((run / "bench.json").read_text())
    return results, {line["name"]: line for line in results["models"]}


def size_of(*files):
    return pytest.approx(sum(file.stat().st_size for file in files) / 1e6)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, tokenizer):
    """An exported student without a run."""
    folder = make(tmp_path_factory.mktemp("tiny") / "shipped", tokenizer)
    return export_all(folder, "runs/elsewhere/version_0")


# --- the command ---------------------------------------------------------------------------------


def test_teacher_and_student_stand_side_by_side(tmp_path, tokenizer, capsys):
    first, second = (make(tmp_path / n, tokenizer, hidden_size=32) for n in ("first", "second"))
    members = {"a": named("runs/first"), "b": named(second)}
    ensemble = {"class_path": "kd.EnsembleTeacher", "init_args": {"teachers": members}}
    cached = {"class_path": "kd.CachedTeacher", "init_args": {"teacher": ensemble}}
    run = run_of(tmp_path / "runs", "x", tokenizer, cached, {"runs/first": str(first)})
    before = read_manifest(run)
    shipped = export_all(shutil.copytree(run / "student", tmp_path / "shipped"), run)
    bench(str(shipped), batch_sizes=SIZES, threads=[1], repeats=3)
    own = run.parent / "version_1"
    results, models = models_of(own)

    assert list(models) == ["teacher", "student, torch", "student, onnx", "student, int8"]
    assert [line["backend"] for line in models.values()] == ["torch", "torch", "onnx", "int8"]
    assert results["run"] == str(run)
    assert (results["rows"], results["texts"], results["repeats"]) == (8, 8, 3)
    teacher, torch, onnx, int8 = models.values()
    one, small = (EncoderClassifier(path=str(folder)) for folder in (first, shipped))
    for model in (one, small):
        model.load(fresh_head=False)
    assert teacher["parameters"] == 2 * one.info.parameters, "an ensemble answers by all members"
    assert {line["parameters"] for line in (torch, onnx, int8)} == {small.info.parameters}
    words = [shipped / name for name in ("tokenizer.json", "tokenizer_config.json", "kd.json")]
    assert onnx["megabytes"] == size_of(*words, shipped / ONNX)
    assert int8["megabytes"] == size_of(*words, shipped / INT8)
    assert torch["megabytes"] == size_of(
        *words, shipped / "config.json", shipped / "model.safetensors"
    )
    assert teacher["megabytes"] == size_of(*first.glob("*"), *second.glob("*"))
    assert teacher["accuracy"] == 7 / 8, "known from the run, not asked again"
    assert torch["accuracy"] == onnx["accuracy"]
    for line in models.values():
        latency = line["latency_ms"]
        assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
        assert list(line["rows_per_second"]) == ["1", "4"]
        assert all(rate > 0 for rate in line["rows_per_second"].values())
        assert all(int(n) <= count <= 3 * 8 for n, count in line["texts_timed"].items())
        assert line["peak_megabytes"] > 20
        assert line["cold_start_seconds"] > 0
        assert line["threads"] == 1
    assert torch["peak_megabytes"] > onnx["peak_megabytes"], "nothing needs torch for ONNX"

    manifest = read_manifest(own)
    assert (manifest["command"], manifest["status"]) == ("bench", "finished")
    assert manifest["references"] == {"run": str(run)}
    assert (own / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert read_manifest(run) == before
    assert verify(run) == verify(own) == []
    said = capsys.readouterr().out
    assert "int8 answers" in said
    assert "as many texts a second as the teacher" in said
    assert f"run = {own}" in said
    assert max(len(line) for line in said.splitlines() if str(own) not in line) <= 100


def test_what_can_be_measured_is_measured(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("a good film\n\n  \na bad film\n")
    bench(str(tiny), file=tmp_path / "texts.txt", batch_sizes=(2,), threads=[1], repeats=1)
    results, models = models_of(tmp_path / "runs" / "bench" / "version_0")
    assert list(models) == ["student, torch", "student, onnx", "student, int8"]
    assert (results["run"], results["rows"], results["texts"]) == (None, 0, 2)
    assert {line["accuracy"] for line in models.values()} == {None}
    assert not (tmp_path / "runs" / "bench" / "version_0" / "pareto.png").exists()
    said = capsys.readouterr().out
    assert "runs/elsewhere/version_0 that" in said
    assert "no teacher is known" in said
    assert "texts a second as PyTorch" in said


def test_a_run_that_lost_its_teacher_is_measured_alone(tmp_path, tokenizer, capsys):
    run = run_of(tmp_path / "runs", "x", tokenizer, named(tmp_path / "gone"), {})
    bench(str(run.parent), batch_sizes=(1,), threads=[1], repeats=1, root=str(tmp_path / "other"))
    _, models = models_of(tmp_path / "other" / "x" / "version_0")
    assert list(models) == ["student, torch"]
    said = capsys.readouterr().out
    assert f"teacher is left out: {tmp_path / 'gone'}" in said
    assert "has no onnx/model.onnx, `kd export` makes it" in said
    assert "times as many" not in said


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, ConfigError, "no texts: give --file"),
        ({"batch_sizes": (0, 8)}, ConfigError, "batch_sizes is 0"),
        ({"threads": [-1]}, ConfigError, "threads is -1"),
        ({"repeats": 0}, ConfigError, "repeats is 0"),
        ({"file": "missing.txt"}, DataError, "missing.txt cannot be read"),
        ({"file": "junk.txt"}, DataError, "junk.txt cannot be read as UTF-8"),
        ({"model": "nowhere"}, ModelError, "nowhere is no folder"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(
    tiny, tmp_path, monkeypatch, options, error, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "junk.txt").write_bytes(b"\xff\xfe\x00\x81")
    if "file" in options:
        options = options | {"file": tmp_path / options["file"]}
    with pytest.raises(error, match=words):
        bench(**({"model": str(tiny)} | options))
    assert not (tmp_path / "runs").exists()


# --- processes and turns -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def process(tiny):
    with Process([str(tiny)], "int8", 1, TEXTS) as running:
        yield running


def test_a_process_answers_whole_batches_until_all_texts_were_read(process):
    assert len(process.time(3, 0, 60.0)) == 3
    assert len(process.time(8, 5, 60.0)) == 1
    assert len(process.time(1, 100, 0.0)) == 1, "one batch at least"


def test_a_process_answers_as_the_classifier_does_by_name_of_class(process, tiny):
    wanted = Classifier.from_pretrained(tiny, "int8").logits(TEXTS)
    assert process.logits(TEXTS, None, LABELS) == pytest.approx(wanted)
    assert process.logits(TEXTS, None, LABELS[::-1]) == pytest.approx(wanted[:, ::-1])
    assert process.logits(TEXTS, None, ("cat", "dog")) is None


def test_the_memory_of_a_process_is_its_own(process):
    mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    assert 20 < process.peak_megabytes() < 0.7 * mine


def test_an_error_in_a_process_is_the_users(tmp_path):
    with pytest.raises(ModelError, match="is neither a folder nor"):
        Process([str(tmp_path / "nothing")], "onnx", 1, TEXTS)


def test_a_process_that_dies_is_told(tiny):
    with Process([str(tiny)], "int8", 1, TEXTS) as running:
        os.kill(running._process.pid, signal.SIGKILL)
        with pytest.raises(RunError, match=r"int8\) died with code -9"):
            running.time(1, 0, 1.0)


def test_a_slow_model_has_fewer_turns():
    slow = Contender("teacher", "torch", ["x"])  # has no process: a turn would fail
    slow.turns = {1: [[1.0, 1.5]]}
    slow.take_turn(1)
    slow.take_turn(128)
    assert slow.turns == {1: [[1.0, 1.5]]}
    slow.turns = {1: [[0.01]]}
    for size in (1, 128):
        with pytest.raises(AttributeError):
            slow.take_turn(size)


def test_medians_of_the_turns_are_told(tiny):
    one = Contender("student", "int8", [str(tiny)])
    one.start(1, TEXTS, None)
    one.turns = {1: [[0.1, 0.1], [0.2, 0.2], [4.0]], 8: [[2.0, 2.0], [1.0]]}
    plain = one.as_plain(1, (1, 8, 32))
    one._process.__exit__()
    assert plain["rows_per_second"] == {"1": 5.0, "8": 6.0, "32": None}
    assert plain["texts_timed"] == {"1": 5, "8": 24}
    assert plain["latency_ms"]["p50"] == pytest.approx(200.0)
