import copy

import pytest
from huggingface_hub import ModelCard, constants

from kd.card import write_card
from kd.layout import CARD, ONNX, Facts

MEASURED = {
    "run": "runs/tiny/version_3",
    "checkpoint": "best",
    "status": "finished",
    "seed": 7,
    "versions": {"python": "3.11", "torch": "2.13.0", "kd": None},
    "data": {"train": "abc"},
    "parameters": 4_386_178,
    "rows": 1000,
    "scores": {
        "teacher": {"accuracy": 0.946, "f1": 0.9459},
        "torch": {"accuracy": 0.81704, "f1": 0.81},
        "int8": {"accuracy": 0.815, "f1": 0.79},
    },
    "agreement": 0.836,
    "calibration_error": {"before": 0.107, "after": 0.045},
    "parity": {"texts": 257, "difference": 4.7e-6, "relative": 1.2e-6},
    "without_distillation": {"accuracy": 0.775, "seeds": 3, "run": "runs/tiny/version_4"},
    "notes": [],
}
UNKNOWN = {
    **dict.fromkeys(("scores", "agreement", "calibration_error", "parity", "rows", "seed", "data")),
    "without_distillation": None,
    "status": "interrupted",
    "notes": ["not calibrated"],
}
RECIPE = {
    "seed_everything": 7,
    "model": {
        "student": {
            "class_path": "kd.EncoderClassifier",
            "init_args": {"path": "me/base", "config": None, "dropout": 0.1},
        },
        "teacher": {"class_path": "kd.ModelTeacher", "init_args": {"path": "runs/large"}},
        "objectives": {
            "labels": {"class_path": "kd.HardLabel", "init_args": {"weight": 0.5}},
            "logits": {"class_path": "kd.LogitKD", "init_args": {"weight": {"end": 1.0}}},
            "gone": None,
        },
        "learning_rate": 2e-5,
    },
    "data": {"source": {"path": "me/tweets", "encoding": "utf-8"}, "max_length": 48},
    "trainer": {"max_steps": 2000, "logger": {"init_args": {"project": "mine"}}},
    "run": {"root": "runs"},
}


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a card and returns it."""
    (tmp_path / "onnx").mkdir()
    (tmp_path / ONNX).write_bytes(b"0" * 12_345)
    (tmp_path / "kd.json").write_text("{}")

    def write(
        recipe=RECIPE,
        name="me/tiny",
        multi_label=False,
        prefix="",
        labels=("bad", "so so"),
        **changes,
    ):
        measured = copy.deepcopy(MEASURED | changes)
        inputs = ("input_ids", "attention_mask", "token_type_ids")
        facts = Facts(labels, multi_label, 48, inputs, prefix, 1.7978, measured)
        write_card(tmp_path, name, facts, recipe)
        return ModelCard.load(tmp_path / CARD)

    return write


def test_the_hub_reads_what_the_model_is_and_what_it_is_worth(write):
    data = write().data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-classification")
    assert data.tags == ["knowledge-distillation", "onnx"]
    found = {one.metric_type: one.metric_value for one in data.eval_results}
    assert found == {"accuracy": 0.817, "f1": 0.81}
    assert {one.dataset_name for one in data.eval_results} == {"me/tweets"}
    assert {one.dataset_split for one in data.eval_results} == {"validation"}
    assert data.model_name == "tiny"


def test_a_base_model_is_named_only_if_it_surely_is_of_the_hub(write, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert write().data.base_model is None
    kept = tmp_path / "hub" / "models--me--base"
    (kept / "snapshots" / "abc").mkdir(parents=True)
    (kept / "snapshots" / "abc" / "config.json").write_text("{}")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    assert write().data.base_model == "me/base"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "base").mkdir(parents=True)
    assert write().data.base_model is None
    for path in ("./base", "/models/base", "runs/base/version_0/student", None):
        recipe = copy.deepcopy(RECIPE)
        recipe["model"]["student"]["init_args"]["path"] = path
        assert write(recipe).data.base_model is None


def test_results_stand_beside_each_other(write):
    text = write().text
    for line in (
        "| the teacher | 94.6% | 94.6% |",
        "| **this student**, PyTorch | 81.7% | 81.0% |",
        "| **this student**, ONNX with weights of 8 bits | 81.5% | 79.0% |",
        "| the same student without distillation, mean of 3 seeds | 77.5% | unknown |",
        "Measured on 1,000 validation rows of me/tweets.",
        "Teacher and student agree on 83.6% of the rows.",
        "calibration error is 10.7% without it and 4.5% with it",
        "The logits of ONNX differ from PyTorch's by 5e-06 at most, on 257 texts",
        "| `onnx/model.onnx` | 0.012 |",
        "alone and in padded batches: by 1e-06 of a logit, or of its size where above 1.",
        'one of the classes "bad", "so so".',
        "4,386,178 weights",
        "The validation rows chose the checkpoint and gave the temperature",
    ):
        assert line in text, line
    assert "learns without distillation is unknown" not in text


def test_the_card_tells_no_place_of_the_machine(write):
    recipe = copy.deepcopy(RECIPE)
    home = "/home/jane"
    recipe["model"]["student"]["init_args"]["path"] = f"{home}/base"
    recipe["model"]["teacher"]["init_args"]["path"] = f"{home}/runs/large/version_2/student"
    recipe["data"]["source"] = {"train": [f"{home}/a.csv", "b/c.csv"], "validation": f"{home}/d"}
    other = {"accuracy": 0.775, "seeds": 3, "run": f"{home}/runs/tiny/version_4"}
    card = write(recipe, run=f"{home}/runs/tiny/version_3", without_distillation=other)
    assert "jane" not in card.content
    assert "checkpoint of tiny/version\\_3, which is finished" in card.text
    assert "path: large/version_2/student\n" in card.text
    assert "validation rows of a.csv, b/c.csv." in card.text
    assert card.data.base_model is None


def test_names_of_classes_and_data_are_no_markup(write):
    recipe = RECIPE | {"data": {"source": {"path": "a|b`c"}}}
    text = write(recipe, labels=("<b>", "a`|b\nc")).text
    assert r'one of the classes "\<b\>", "a\`\|b c".' in text
    assert r"validation rows of a\|b\`c." in text


def test_the_training_is_told_and_nothing_of_the_settings_around_it(write):
    text = write().text
    assert "`loss = 0.5 * labels[HardLabel] + scheduled * logits[LogitKD]`" in text
    assert "      path: me/base\n      dropout: 0.1\n" in text
    assert "  max_steps: 2000\n```\n" in text
    assert (
        "seed 7;\nversions: python 3.11, torch 2.13.0;\nfingerprints of the data: train abc."
        in text
    )
    assert "project" not in text
    assert "null" not in text


def test_what_is_not_known_is_called_unknown(write):
    card = write(recipe={}, **UNKNOWN)
    assert card.data.eval_results is None
    assert card.data.tags == []
    for words in (
        "Unknown: the run has no validation rows to measure on.",
        "Unknown: the run has no `config.yaml` that can be read.",
        "None: the temperature is 1",
        "seed unknown;",
        "fingerprints of the data: unknown.",
        "Licence: unknown.",
        "Note: not calibrated.",
        "which is interrupted;",
    ):
        assert words in card.text, words
    assert "What the same student learns without distillation is unknown" in write(
        without_distillation=None
    ).text.replace("\n", " ")
    for words in ("distilled", "validation rows chose", "%", "None,", "without a teacher"):
        assert words not in card.text, words


def test_a_student_without_a_teacher_is_not_called_distilled(write):
    recipe = copy.deepcopy(RECIPE)
    recipe["model"]["teacher"] = None
    card = write(recipe, agreement=None, without_distillation=None)
    assert "knowledge-distillation" not in card.data.tags
    assert "distilled" not in card.text
    assert "without a teacher" in card.text
    assert "agree" not in card.text


def test_several_labels_and_models_that_write_are_told_as_they_are(write):
    text = write(multi_label=True, prefix='say "it": ').text
    assert "any number of the classes" in text
    assert "Accuracy is the share of right choices" in text
    assert "pipeline(" not in text
    assert r'tokenizer.encode("say \"it\": I am very happy today!")' in text


def test_a_newest_checkpoint_was_not_chosen(write):
    assert "chose the checkpoint" not in write(checkpoint="resume").text
