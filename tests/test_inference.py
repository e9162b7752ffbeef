import io
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import pipeline

from kd.backends import TorchModel
from kd.conversion import convert
from kd.errors import ConfigError, DataError, ModelError
from kd.inference import Cascade, Classifier, classify
from kd.layout import ONNX, Facts, write_facts
from tests.conftest import LABELS, TEXTS

LONG = [*TEXTS, "no", "a", "great " * 40, "sad and rude", "w" * 300, "love, love, love"]


@pytest.fixture
def folder(make_model):
    return make_model(initializer_range=0.5)


@pytest.fixture
def model(folder):
    return Classifier.from_pretrained(folder)


# --- Classifier ----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_answers_equal_those_of_the_pipeline_of_transformers(folder, model, batch_size):
    reference = pipeline("text-classification", model=str(folder), device="cpu", top_k=None)
    cut = {"truncation": True, "max_length": 64}
    wanted = [{row["label"]: row["score"] for row in reference(text, **cut)[0]} for text in LONG]
    predictions = Classifier(model.model, batch_size=batch_size).predict(LONG)
    assert [prediction.text for prediction in predictions] == LONG
    for prediction, probabilities in zip(predictions, wanted, strict=True):
        assert prediction.probabilities == pytest.approx(probabilities, abs=1e-5)
        assert prediction.label == max(probabilities, key=probabilities.get)
        assert tuple(prediction.probabilities) == model.labels == LABELS
    assert len({prediction.label for prediction in predictions}) == 2  # the model is no constant


def test_a_text_gets_the_same_answer_in_any_company(model):
    together = model.predict(LONG)
    backwards = model.predict(LONG[::-1])[::-1]
    for text, first, second in zip(LONG, together, backwards, strict=True):
        (alone,) = model.predict([text])
        assert alone.probabilities == pytest.approx(first.probabilities, abs=1e-5)
        assert second.probabilities == pytest.approx(first.probabilities, abs=1e-5)


def test_no_text_is_no_answer(model):
    assert model.predict([]) == []


def test_a_text_beyond_the_models_limit_is_cut(model):
    long, cut = model.predict(["great film " * 5000, "great film " * 100])
    assert long.probabilities == pytest.approx(cut.probabilities)


@pytest.mark.fault(29)
@pytest.mark.parametrize("blank", ["", "  \n", None, 3])
def test_a_blank_text_is_refused_with_its_number(model, blank):
    with pytest.raises(DataError, match="Text 2 of 3 is empty"):
        model.predict(["a", blank, "b"])


@pytest.mark.fault(30)
def test_broken_unicode_is_read_as_in_training(model):
    lone, pair, whole, nul, plain = model.predict(
        ["a \ud83d film", "a \ud83c\udfac film", "a 🎬 film", "a\0 film", "a film"]
    )
    assert lone.text == "a \ufffd film"
    assert pair == whole
    assert nul == plain
    json.dumps(lone.text, ensure_ascii=False).encode()


def test_a_model_is_in_eval_mode_and_needs_no_gradient(model):
    assert not model.model.classifier.training
    first, second = (model.predict(TEXTS)[0].probabilities for _ in range(2))
    assert first == second


def test_a_folder_without_a_head_is_refused(folder):
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="no trained classification head"):
        Classifier.from_pretrained(folder)


def test_a_place_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="neither a model folder"):
        Classifier.from_pretrained(tmp_path / "nothing")


def test_a_run_reference_means_its_exported_student(folder, tmp_path):
    version = tmp_path / "runs" / "x" / "version_0"
    version.mkdir(parents=True)
    (version / "manifest.json").write_text('{"status": "finished", "command": "fit"}')
    folder.rename(version / "student")
    for path in (version.parent, version, version / "student"):
        assert Classifier.from_pretrained(path).labels == LABELS


def test_nothing_heavy_is_imported():
    code = "import sys, kd.inference; print([m for m in ('lightning', 'datasets', 'pandas', "
    code += "'torchmetrics', 'wandb', 'jsonargparse') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == "[]"


# --- classify ------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def columns(printed):
    return [line.split("\t") for line in printed.splitlines()]


def test_texts_are_classified_one_line_each(folder, model, capsys):
    classify(str(folder), texts=TEXTS)
    lines = columns(capsys.readouterr().out)
    for line, wanted in zip(lines, model.predict(TEXTS), strict=True):
        share = wanted.probabilities[wanted.label]
        assert line == [wanted.label, f"{share:.3f}", wanted.text]


def test_a_file_is_classified_line_by_line(folder, tmp_path, capsys):
    file = tmp_path / "texts.txt"
    file.write_text("\ufeff" + "\n\n".join(TEXTS) + "\n", encoding="utf-8")
    classify(str(folder), file=file)
    assert [line[2] for line in columns(capsys.readouterr().out)] == TEXTS


@pytest.mark.parametrize("dash", [True, False])
def test_standard_input_is_classified(folder, capsys, monkeypatch, tmp_path, dash):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(TEXTS)))
    classify(str(folder), file=type(tmp_path)("-") if dash else None)
    assert [line[2] for line in columns(capsys.readouterr().out)] == TEXTS


def test_chunks_are_put_together_in_order(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("kd.inference._CHUNK", 3)
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS))
    classify(str(folder), file=file)
    assert [line[2] for line in columns(capsys.readouterr().out)] == TEXTS


def test_jsonl_holds_all_probabilities(folder, model, capsys):
    texts = ["what a day 🎬", "a \ud83d film"]
    classify(str(folder), texts=texts, output="jsonl")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for row, wanted in zip(rows, model.predict(texts), strict=True):
        assert row["text"] == wanted.text
        assert row["label"] == wanted.label
        assert row["probabilities"] == pytest.approx(wanted.probabilities)
        assert sum(row["probabilities"].values()) == pytest.approx(1.0)


# --- Several labels ------------------------------------------------------------------------------


THREE = ("joy", "fear", "love")


@pytest.fixture
def several(make_model):
    settings = {"initializer_range": 0.5, "problem_type": "multi_label_classification"}
    return make_model("several", labels=THREE, **settings)


def test_several_labels_equal_those_of_the_pipeline_of_transformers(several):
    reference = pipeline("text-classification", model=str(several), device="cpu", top_k=None)
    cut = {"truncation": True, "max_length": 64}
    model = Classifier.from_pretrained(several)
    assert model.multi_label
    predictions = model.predict(LONG)
    for text, prediction in zip(LONG, predictions, strict=True):
        wanted = {row["label"]: row["score"] for row in reference(text, **cut)[0]}
        assert prediction.probabilities == pytest.approx(wanted, abs=1e-5)
        assert tuple(prediction.probabilities) == THREE
        assert prediction.labels == tuple(label for label in THREE if wanted[label] > 0.5)
        assert prediction.label == max(wanted, key=wanted.get)
    assert len({prediction.labels for prediction in predictions}) > 1
    assert sum(predictions[0].probabilities.values()) != pytest.approx(1.0)


def test_one_label_is_all_the_labels(model):
    assert not model.multi_label
    assert all(answer.labels == (answer.label,) for answer in model.predict(TEXTS))


def with_bias(folder, *logits):
    """Let the head answer with nearly these logits to every text."""
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] *= 1e-6
    weights["classifier.bias"] = torch.tensor(logits)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    ("logits", "line", "labels"),
    [
        ((2.0, -1.0, 0.5), "joy|love\t0.881|0.622\ta day\n", ["joy", "love"]),
        ((-2.0, 1.0, -0.5), "fear\t0.731\ta day\n", ["fear"]),
        ((-2.0, -1.0, -0.5), "-\t-\ta day\n", []),
    ],
)
def test_several_labels_are_written(several, capsys, logits, line, labels):
    folder = with_bias(several, *logits)
    classify(folder, texts=["a day"])
    assert capsys.readouterr().out == line
    classify(folder, texts=["a day"], output="jsonl")
    row = json.loads(capsys.readouterr().out)
    assert row["labels"] == labels
    assert row["label"] == THREE[max(range(3), key=logits.__getitem__)]
    wanted = torch.tensor(logits).sigmoid().tolist()
    assert list(row["probabilities"].values()) == pytest.approx(wanted, abs=1e-4)


def test_impossible_inputs_are_refused_before_a_model_loads(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="texts or --file, not both"):
        classify("nowhere", texts=["a"], file=tmp_path / "x")
    monkeypatch.setattr("sys.stdin", Terminal())
    with pytest.raises(ConfigError, match="nothing to read"):
        classify("nowhere")


def test_a_file_that_cannot_be_read_is_named(folder, tmp_path):
    with pytest.raises(DataError, match=r"missing\.txt cannot be read"):
        classify(str(folder), file=tmp_path / "missing.txt")
    latin = tmp_path / "latin.txt"
    latin.write_bytes("schön".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8"):
        classify(str(folder), file=latin)


def test_pairs_are_read_whole(model):
    first, second = model.predict(["a film", "a film"], ["what a day", "sad and rude"])
    assert first.probabilities != pytest.approx(second.probabilities)
    assert model.logits([]).shape == (0, 2)


# --- Cascade -------------------------------------------------------------------------------------


@pytest.fixture
def teacher(make_model):
    """A larger model, whose classes stand in another order."""
    return Classifier.from_pretrained(
        make_model("teacher", labels=LABELS[::-1], hidden_size=32, initializer_range=0.5)
    )


def test_the_teacher_answers_what_the_student_is_not_sure_of(model, teacher):
    own, others = model.predict(LONG), teacher.predict(LONG)
    surety = sorted(answer.probabilities[answer.label] for answer in own)
    threshold = surety[5]
    answers = Cascade(model, teacher, threshold).predict(LONG)
    assert sum(answer.from_teacher for answer in answers) == 5
    for answer, mine, other in zip(answers, own, others, strict=True):
        wanted = other if mine.probabilities[mine.label] < threshold else mine
        assert answer.text == mine.text
        assert answer.label == wanted.label
        assert tuple(answer.probabilities) == LABELS
        assert answer.probabilities == pytest.approx(wanted.probabilities, abs=1e-5)
    assert {answer.label for answer in answers} == set(LABELS)


@pytest.mark.parametrize(("threshold", "asked"), [(0.0, False), (1.0, True)])
def test_a_threshold_of_0_asks_nobody_and_of_1_about_all(model, teacher, threshold, asked):
    answers = Cascade(model, teacher, threshold).predict(LONG)
    assert {answer.from_teacher for answer in answers} == {asked}
    assert Cascade(model, teacher, threshold).predict([]) == []


def test_a_cascade_of_several_labels_asks_by_the_least_sure_choice(several):
    model = Classifier.from_pretrained(several)
    sureties = [
        min(max(share, 1 - share) for share in answer.probabilities.values())
        for answer in model.predict(LONG)
    ]
    threshold = sorted(sureties)[4]
    answers = Cascade(model, model, threshold).predict(LONG)
    assert [answer.from_teacher for answer in answers] == [one < threshold for one in sureties]


def test_a_teacher_of_another_task_is_refused(model, several):
    with pytest.raises(ModelError, match="take two models of one task"):
        Cascade(model, Classifier.from_pretrained(several), 0.9)
    with pytest.raises(ConfigError, match=r"threshold is 1\.5"):
        Cascade(model, model, 1.5)


def test_classify_says_how_many_texts_the_teacher_was_asked_about(folder, teacher, capsys):
    path = teacher.model.classifier.path
    classify(str(folder), texts=LONG, cascade=path, threshold=1.0, output="jsonl")
    printed = capsys.readouterr()
    assert all(json.loads(line)["from_teacher"] for line in printed.out.splitlines())
    assert printed.err == "the teacher was asked about 14 of 14 texts\n"


def test_a_teacher_that_only_numbers_its_classes_is_told_their_names(make_model, folder, capsys):
    numbered = make_model("numbered", labels=("LABEL_0", "LABEL_1"), initializer_range=0.5)
    with pytest.raises(ModelError, match="take two models of one task"):
        classify(str(folder), texts=["a"], cascade=str(numbered))
    names = ["positive", "negative"]
    classify(str(folder), texts=TEXTS, cascade=str(numbered), threshold=1.0,
             cascade_label_names=names)  # fmt: skip
    told = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
    wanted = Classifier.from_pretrained(numbered).predict(TEXTS)
    assert told == [names[int(answer.label[-1])] for answer in wanted]
    with pytest.raises(ModelError, match="has 2 classes, but label_names gives 1"):
        Classifier.from_pretrained(numbered, label_names=["one"])


# --- What people do ------------------------------------------------------------------------------


def test_a_single_text_is_no_list(model):
    with pytest.raises(DataError, match="put it in brackets"):
        model.predict("hello")


@pytest.mark.parametrize("pairs", [["x"], ["x", "y", "z"]])
def test_every_text_has_one_pair(model, pairs):
    with pytest.raises(DataError, match="There are 2 texts"):
        model.predict(["a b", "c d"], pairs)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_binary_junk_on_standard_input_is_no_text(folder, locale):
    code = f"from kd.cli import main; main(['classify', '--model', {str(folder)!r}])"
    environment = {**os.environ, "LC_ALL": locale}
    done = subprocess.run([sys.executable, "-c", code], input=b"\xff\xfe\x80 abc\n",
                          capture_output=True, env=environment)  # fmt: skip
    assert done.returncode == 2
    assert b"standard input is not UTF-8: convert it first." in done.stderr
    assert done.stdout == b""


@pytest.mark.parametrize(("name", "shown"), [("süß", b"s\\xfc\\xdf"), ("\ud83d", b"\\ud83d")])
def test_a_label_is_shown_where_its_letters_cannot_be(make_model, name, shown):
    folder = make_model(labels=(name, "plain"))
    code = f"from kd.cli import main; main(['classify', '--model', {str(folder)!r}, 'a b'])"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert shown in done.stdout


# --- The hub -------------------------------------------------------------------------------------


def test_a_model_of_the_hub_is_the_same_by_every_backend(make_model, tmp_path):
    """A cache of the hub as a download leaves it, with and without ONNX; no network."""
    made = make_model(initializer_range=0.5)
    exported = TorchModel.load(str(made))
    snapshots = {}
    for name in ("whole", "plain"):
        repository = tmp_path / "hub" / f"models--user--{name}"
        snapshots[name] = repository / "snapshots" / ("a" * 40)
        shutil.copytree(made, snapshots[name])
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("a" * 40)
        write_facts(snapshots[name], Facts(LABELS, False, 64, temperature=2.5))
    (snapshots["whole"] / "onnx").mkdir()
    inputs = convert(exported.classifier, snapshots["whole"] / ONNX)
    write_facts(snapshots["whole"], Facts(LABELS, False, 64, inputs, temperature=2.5))
    code = f"""
import json
from kd import Classifier
for name, backend in [("whole", "auto"), ("whole", "torch"), ("plain", "auto"), ("plain", "torch")]:
    model = Classifier.from_pretrained("user/" + name, backend)
    answer = model.predict([{TEXTS[0]!r}])[0].probabilities
    print(json.dumps([model.backend, model.temperature, answer]))
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one[:2] for one in found] == [["onnx", 2.5], *[["torch", 2.5]] * 3]
    for *_, answer in found:
        assert answer == pytest.approx(found[0][2], abs=1e-5)
