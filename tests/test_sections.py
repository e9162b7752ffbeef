import json

import pytest
import yaml

from kd.findings import Findings
from kd.page import Table
from kd.pictures import Picture
from kd.runs import claim
from kd.sections import page_of
from tests.test_findings import (
    COMPARED,
    SCRIPT,
    add,
    answers,
    compared,
    made_run,
    measured,
    of_several_classes,
)


def told(version):
    """Return the sections of a page as plain lines, by title; the verdict is that of no title."""
    page = page_of(Findings.of(version))
    found = {"": page.lead}
    for section in page.sections:
        lines = []
        for block in section.blocks:
            if isinstance(block, Table):
                lines += [block.caption, *(" | ".join(row) for row in (block.heading, *block.rows))]
            else:
                lines.append(block if isinstance(block, str) else
                             block.alt if isinstance(block, Picture) else block.text)  # fmt: skip
        found[section.title] = "\n".join(lines)
    return found


TITLES = ["", "Results", "Does distillation help?", "Training", "What is taken for what"]
TITLES += ["Can its confidence be believed?", "Student and teacher", "Where they differ"]
TITLES += ["Kinds of text", "Size, time, accuracy", "Asking the teacher when unsure", "Data"]
TITLES += ["How it was made"]


def test_results_are_told_with_their_doubts(tmp_path):
    said = told(made_run(tmp_path))
    assert list(said) == TITLES
    p = answers()
    line = f"student | {p.accuracy(p.student):.1%} ("
    assert line in said["Results"]
    assert "chosen on the same 200 rows" in said["Results"]
    assert "with the seed 7" in said["Results"]
    assert "| 1,000 | 0.004 | 5,000" in said["Results"]


def test_without_a_comparison_the_way_to_one_is_told(tmp_path):
    said = told(made_run(tmp_path))
    assert said[""].startswith("Not compared yet")
    assert "kd compare --config configs/tiny.yaml" in said["Does distillation help?"]


def test_the_verdict_of_a_comparison_comes_first(tmp_path):
    version = made_run(tmp_path)
    path = compared(version)
    said = told(version)
    assert said[""] == (
        "Distillation helps: +10.0 points of accuracy (95% interval +5.0 to +15.0)."
    )
    assert str(path) in said["Does distillation help?"]
    assert "without, mean of 2 seeds | 61.0% (60.0 to 62.0)" in said["Results"]
    assert "single seed" not in said["Does distillation help?"]


def test_a_comparison_of_another_recipe_is_not_told(tmp_path):
    version = made_run(tmp_path)
    compared(version, length=64)
    assert told(version)[""].startswith("Not compared yet")


def test_a_comparison_of_single_seeds_says_what_it_does_not_know(tmp_path):
    version = made_run(tmp_path)
    one = COMPARED["comparisons"][0] | {"knows_training": False}
    variants = [{**v, "accuracy": v["accuracy"][:1]} for v in COMPARED["variants"]]
    compared(version, comparisons=[one], variants=variants)
    said = told(version)
    assert "With a single seed" in said["Does distillation help?"]
    assert said[""].endswith("to +15.0; one seed, so the luck of training is not in it).")
    assert "\nwithout, one seed | " in said["Results"]


@pytest.mark.parametrize(
    ("verdict", "words"),
    [("hurts", "hurts: -10.0 points"), ("no difference", "makes no difference: -10.0 points")],
)
def test_variants_have_their_own_names_in_the_verdict(tmp_path, verdict, words):
    version = made_run(tmp_path)
    one = {"variant": "hot", "against": "cold", "difference": -0.1, "verdict": verdict}
    compared(version, comparisons=[COMPARED["comparisons"][0] | one])
    assert told(version)[""].startswith(f"hot, beside cold, {words}")


def test_speed_comes_from_the_bench_where_there_is_one(tmp_path):
    version = made_run(tmp_path)
    said = told(version)["Size, time, accuracy"]
    assert "taken in passing" in said
    assert ", 0.004 MB, 2 ms" in said  # 500 rows a second
    add(version, "bench", measured(version))
    said = told(version)
    assert "taken in passing" not in "".join(said.values())
    assert "student, int8 80.0%, 0.5 MB, 0.125 ms" in said["Size, time, accuracy"]
    assert "student, int8 80.0%, 0.5 MB, 0.25 ms" not in said["Size, time, accuracy"]
    assert said["Size, time, accuracy"].count("student, torch | ") == 2  # with 1 thread and 2


def test_accuracy_size_and_time_are_those_of_one_model(tmp_path):
    version = made_run(tmp_path)
    compared(version)
    bench = measured(version)
    add(version, "bench", bench)
    rows = [line.split(" | ") for line in told(version)["Results"].splitlines()]
    found = {row[0]: (row[1][:6], *row[5:]) for row in rows if len(row) == 8}
    assert list(found)[1:4] == ["teacher", "student, torch", "student, int8"]
    assert found["teacher"] == ("90.0% ", "1,000", "2", "25")
    assert found["student, torch"] == ("81.0% ", "1,000", "0.6", "0.5")
    assert found["student, int8"] == ("80.0% ", "1,000", "0.5", "0.125")
    assert found["without, mean of 2 seeds"][-1] == ""
    assert [row[2:5] for row in rows if row[0] == "student, int8"] == [[""] * 3]
    alone = [m for m in bench["models"] if m["role"] == "student"]
    add(version, "bench", {**bench, "models": [m | {"accuracy": None} for m in alone]})
    rows = [line.split(" | ") for line in told(version)["Results"].splitlines()]
    of = {row[0]: row for row in rows}
    assert of["student, int8"][1] == ""
    assert of["teacher"][6:] == ["0.004", ""]


def test_a_bench_of_single_texts_has_no_batches(tmp_path):
    version = made_run(tmp_path)
    bench = measured(version)
    models = [m | {"rows_per_second": {"1": 9.0}} for m in bench["models"]]
    add(version, "bench", {**bench, "models": models})
    assert "ms, p95 | peak MB" in told(version)["Size, time, accuracy"]


def test_what_was_measured_of_no_rows_is_not_drawn(tmp_path):
    version = made_run(tmp_path)
    bench = measured(version)
    add(version, "bench", {**bench, "models": [m | {"accuracy": None} for m in bench["models"]]})
    assert "Accuracy against time" not in told(version)["Size, time, accuracy"]


def test_a_run_without_a_teacher_says_so_in_each_place(tmp_path):
    said = told(made_run(tmp_path, answers(teacher=None), metrics=None))
    assert list(said) == TITLES
    places = [title for title, text in said.items() if "This run had no teacher" in text]
    assert places == [TITLES[2], TITLES[4], *TITLES[6:8], TITLES[10]]
    assert said[""].startswith("Trained without a teacher")
    assert "No loss was logged" in said["Training"]
    assert "No variants of rows were made." in said["Data"]
    assert "No rationales were read." in said["Data"]


def test_several_classes_are_told_too(tmp_path):
    said = told(made_run(tmp_path, of_several_classes()))
    assert "class against student's choice; found: bad" in said["What is taken for what"]
    assert "class against student's choice; both: bad" in said["Student and teacher"]


def test_flips_are_the_surest_first_and_not_all(tmp_path):
    lines = told(made_run(tmp_path))["Where they differ"].splitlines()
    assert lines[0].startswith("The teacher is right and the student wrong: ")
    assert lines[2].startswith(f"{SCRIPT} | ")
    second = next(place for place, line in enumerate(lines[1:], 1) if "student" in line[:12])
    assert second == 2 + 15  # its caption or sentence follows a caption, a heading and 15 rows


def test_few_rows_are_marked(tmp_path):
    assert "(few)" not in told(made_run(tmp_path))["Kinds of text"]
    assert "(few)" in told(made_run(tmp_path, answers(rows=40)))["Kinds of text"]


def with_teacher(version, teacher, references):
    recipe = yaml.safe_load((version / "config.yaml").read_text())
    recipe["model"]["teacher"] = teacher
    (version / "config.yaml").write_text(yaml.safe_dump(recipe))
    manifest = json.loads((version / "manifest.json").read_text())
    (version / "manifest.json").write_text(json.dumps({**manifest, "references": references}))


def test_the_cascade_names_its_teacher_and_not_what_the_student_started_from(tmp_path):
    version = made_run(tmp_path)
    taken = {"runs/start": "runs/start/version_0/student", "my runs/big": "my runs/big/student"}
    with_teacher(version, {"init_args": {"path": "my runs/big"}}, taken)
    said = told(version)["Asking the teacher when unsure"]
    assert "kd classify --model FOLDER --cascade 'my runs/big/student' --threshold 0.9" in said
    assert "\n0.9 | " in said


@pytest.mark.parametrize(
    "teacher",
    [
        {"init_args": {"teachers": [{"init_args": {"path": path}} for path in ("one", "two")]}},
        {"init_args": {"path": "one", "label_names": ["good", "so-so", "bad"]}},
    ],
    ids=["several", "with names of its own"],
)
def test_a_teacher_that_classify_cannot_ask_is_not_named(tmp_path, teacher):
    version = made_run(tmp_path)
    with_teacher(version, teacher, {})
    said = told(version)["Asking the teacher when unsure"]
    assert "kd export" in said
    assert "kd classify" not in said


@pytest.mark.parametrize("text", ["{half", "- a list", "data: word", "data: {source: \x00}"])
def test_a_recipe_that_cannot_be_read_is_told(tmp_path, text):
    version = made_run(tmp_path)
    (version / "config.yaml").write_text(text)
    said = told(version)
    assert "config.yaml is no recipe: where the rows" in said["Data"]
    assert "kd classify" not in said["Asking the teacher when unsure"]


def test_augmentation_and_rationales_are_summed_up(tmp_path):
    example = {"text": "so good", "variant": "so great", "fate": "kept"}
    version = made_run(tmp_path)
    (version / "augmentation.json").write_text(json.dumps({"made": 4321, "examples": [example]}))
    audit = {"labels": ["bad"], "probed": 1234}
    (version / "rationales.json").write_text(json.dumps({"empty": 17, "audit": audit}))
    said = told(version)["Data"]
    for line in ("made | 4,321", "so good | so great | kept", "empty | 17", "probed | 1,234"):
        assert line in said.splitlines()
    assert "path | sample" in said


def test_how_it_was_made_is_told_to_the_last_setting(tmp_path):
    said = told(made_run(tmp_path))["How it was made"]
    assert said.startswith("kd fit --config configs/tiny.yaml\n")
    for line in ("seed | 7", "steps | 100", "took | 30 s", "max_length: 48"):
        assert line in said
    assert "reference runs/big | runs/big/version_0/student" in said


def test_a_run_of_another_age_is_told_as_far_as_it_goes(tmp_path):
    version = made_run(tmp_path)
    (version / "config.yaml").unlink()
    manifest = json.loads((version / "manifest.json").read_text())
    manifest |= dict.fromkeys(("results", "seconds", "git", "references", "command_line"))
    (version / "manifest.json").write_text(json.dumps(manifest))
    said = told(version)
    assert list(said) == TITLES
    assert "kd compare --config RECIPE" in said["Does distillation help?"]
    assert "kd classify" not in said["Asking the teacher when unsure"]


def test_a_claimed_run_beside_it_disturbs_nothing(tmp_path):
    version = made_run(tmp_path)
    claim(tmp_path, version.parent.name, command="compare")  # still running
    assert told(version)[""].startswith("Not compared yet")
