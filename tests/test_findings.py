import json
from dataclasses import replace

import numpy as np
import pytest

from kd.errors import RunError
from kd.findings import Findings
from kd.predictions import VALIDATION, Predictions, write_predictions
from kd.runs import claim

LABELS = ("bad", "so-so", "good")
RECIPE = """\
seed_everything: {seed}
run: {{root: runs, name: {name}, monitor: val/accuracy}}
model: {{teacher: {{class_path: kd.ModelTeacher, init_args: {{path: runs/big}}}}}}
data: {{source: {{path: sample, train: train}}, max_length: {length}}}
"""
SCRIPT = "<script>document.title = 'taken over'</script> so bad"
METRICS = """\
epoch,step,train/labels,train/logits,train/loss,val/accuracy,val/f1,val/agreement,val/teacher_accuracy
0,49,1.2,3.4,2.3,,,,
0,49,,,,0.6,0.5,0.7,0.9
1,99,0.4,0.6,0.5,,,,
1,99,,,,0.8,0.7,0.75,0.95
"""
COMPARED = {
    "recipe": "configs/tiny.yaml",
    "rows": 200,
    "variants": [
        {"name": name, "accuracy": [mean, mean + 0.02], "mean": mean + 0.01, "parameters": 1000,
         "megabytes": 0.004, "rows_per_second": 5000.0, "seeds": [1, 2], "runs": []}
        for name, mean in (("distilled", 0.7), ("without", 0.6))
    ],
    "comparisons": [
        {"variant": "distilled", "against": "without", "difference": 0.1, "low": 0.05,
         "high": 0.15, "verdict": "helps"}
    ],
}  # fmt: skip


def measured(version):
    """Return what `bench` writes of a version: three models, by one thread and by two."""

    def model(name, p50, accuracy, megabytes, threads):
        latency = {"p50": p50, "p95": 2 * p50, "p99": 3 * p50}
        rates = {str(size): size / p50 for size in (1, 8)}
        role, _, backend = name.partition(", ")
        facts = {"name": name, "role": role, "backend": backend or "torch", "threads": threads}
        facts |= {"accuracy": accuracy, "megabytes": megabytes}
        facts |= {"parameters": 1000, "peak_megabytes": 90.0}
        return {**facts, "latency_ms": latency, "rows_per_second": rates}

    kinds = [("teacher", 50.0, 0.9, 2.0), ("student, torch", 1.0, 0.81, 0.6)]
    kinds += [("student, int8", 0.25, 0.8, 0.5)]
    models = [
        model(name, p50 / threads, *facts, threads)
        for threads in (1, 2)
        for name, p50, *facts in kinds
    ]
    return {"run": str(version), "rows": 200, "models": models}


def answers(rows=200, seed=0, **changes):
    """Return predictions of a teacher that is mostly right and a student that is less so."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, len(LABELS), rows)
    signs = 4.0 * np.eye(len(LABELS))[truth]
    student, teacher = (
        (strength * signs + random.normal(size=signs.shape) * 2).astype(np.float32)
        for strength in (0.7, 1.5)
    )
    texts = tuple(f"film {place} was{' not' * (place % 3)} it" for place in range(rows))
    given = Predictions(LABELS, False, texts, None, truth, student, teacher)
    wrong = int(np.flatnonzero((given.is_right(teacher) == 1) & (given.is_right(student) == 0))[0])
    student[wrong] = np.roll(8 * np.eye(len(LABELS))[truth[wrong]], 1)  # the surest mistake of all
    texts = (*texts[:wrong], SCRIPT, *texts[wrong + 1 :])
    return replace(given, texts=texts, **changes)


def of_several_classes():
    given = answers()
    truth = (np.eye(len(LABELS), dtype=int)[given.truth] + (given.student > 3)).clip(0, 1)
    return replace(given, multi_label=True, truth=truth.astype(np.int64))


def made_run(root, given=None, metrics=METRICS, name="tiny", seed=7, length=48):
    """Write what a fit leaves behind, and return its version folder."""
    given = given or answers()
    run = claim(root, name, command="fit", argv=["kd", "fit", "--config", "configs/tiny.yaml"])
    run.write_text("student/config.json", "{}")
    run.write_text("config.yaml", RECIPE.format(seed=seed, name=name, length=length))
    if metrics:
        run.write_text("metrics.csv", metrics)
    write_predictions(run.path / VALIDATION, given)
    figures = {"parameters": 1000, "megabytes": 0.004, "rows_per_second": 5000.0}
    results = {"student": figures | {"accuracy": given.accuracy(given.student)}, "steps": 100}
    if given.teacher is not None:
        results["teacher"] = figures | {"accuracy": 0.9, "rows_per_second": 500.0}
        run.update(references={"runs/big": "runs/big/version_0/student"})
    run.update(seed=seed, results=results, seconds={"training": 30.0})
    run.finish("finished")
    return run.path


def add(version, command, facts, status="finished"):
    """Write what another command found, as a run beside the fit."""
    run = claim(version.parent.parent, version.parent.name, command=command, argv=[])
    if command == "bench" and isinstance(facts, dict) and facts["run"]:
        run.update(references={"run": facts["run"]})
    run.write_text(f"{command}.json", facts if isinstance(facts, str) else json.dumps(facts))
    run.finish(status)
    return run.path


def compared(version, length=48, **changes):
    """Write what `compare` found, beside the fit, of a fit with another seed."""
    name = f"{version.parent.name}_distilled"
    fit = made_run(version.parent.parent, name=name, seed=1, length=length)
    facts = {**COMPARED, **changes}
    first, *others = facts["variants"]
    variants = [{**first, "runs": [str(fit)]}, *others]
    return add(version, "compare", {**facts, "variants": variants})


def test_scores_are_those_of_the_predictions_and_of_the_manifest(tmp_path):
    found = Findings.of(made_run(tmp_path))
    p = found.predictions
    student = found.scores["student"]
    assert student["accuracy"].value == pytest.approx(p.accuracy(p.student))
    assert student["accuracy"].low < student["accuracy"].value < student["accuracy"].high
    same = (p.student.argmax(1) == p.teacher.argmax(1)).mean()
    assert student["agreement"] == pytest.approx(same)
    assert (student["parameters"], student["f1"]) == (1000, p.f1(p.student))
    assert "agreement" not in found.scores["teacher"]
    assert found.scores["teacher"]["accuracy"].value > student["accuracy"].value


def test_the_newest_finished_bench_of_this_version_is_taken(tmp_path):
    version = made_run(tmp_path)
    other = made_run(tmp_path)
    assert Findings.of(version).bench is Findings.of(version).compare is None
    add(version, "bench", {"run": str(version), "models": ["old"]})
    taken = add(version, "bench", {"run": str(version), "models": ["new"]})
    add(version, "bench", {"run": str(other), "models": []})
    add(version, "bench", {"run": str(tmp_path / "elsewhere" / "version_0"), "models": []})
    add(version, "bench", {"run": None, "models": []})
    add(version, "bench", {"run": str(version), "models": ["half"]}, status="interrupted")
    path, facts = Findings.of(version).bench
    assert (path, facts["models"]) == (taken, ["new"])


@pytest.mark.parametrize("broken", ["bench.json", "manifest.json"])
def test_a_bench_that_cannot_be_read_hides_no_other(tmp_path, broken):
    version = made_run(tmp_path)
    paths = [add(version, "bench", {"run": str(version), "models": []}) for _ in range(3)]
    for path in (paths[0], paths[2]):
        (path / broken).write_text("{half")
    assert Findings.of(version).bench[0] == paths[1]


def test_only_a_comparison_of_the_same_recipe_is_taken(tmp_path):
    version = made_run(tmp_path)
    add(version, "compare", "{half")
    taken = compared(version)
    compared(version, length=64)
    add(version, "compare", "{half")
    assert Findings.of(version).compare[0] == taken


ALONE = ["losses", "validation", "confusion_student", "reliability"]
BOTH = ["losses", "validation", "confusion_student", "confusion_teacher", "reliability"]
BOTH += ["agreement", "cascade"]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (answers(), BOTH),
        (of_several_classes(), BOTH),
        (answers(teacher=None), ALONE),
        (replace(of_several_classes(), teacher=None), ALONE),
        (answers(rows=12), BOTH),
    ],
    ids=["both", "several", "alone", "several, alone", "few"],
)
def test_a_run_has_the_pictures_that_it_has_answers_for(tmp_path, given, names):
    found = Findings.of(made_run(tmp_path, given)).pictures
    assert list(found) == names
    for name, picture in found.items():
        assert picture.name == name
        assert picture.alt.endswith(".")


def test_losses_are_drawn_by_term_and_the_teacher_as_a_level(tmp_path):
    found = Findings.of(made_run(tmp_path)).pictures
    assert "labels from 1.2 to 0.4; logits from 3.4 to 0.6" in found["losses"].alt
    assert "loss, the weighted sum from 2.3 to 0.5" in found["losses"].alt
    assert "accuracy from 60.0% to 80.0%" in found["validation"].alt
    assert "teacher's accuracy at 95.0%" in found["validation"].alt


@pytest.mark.parametrize("metrics", [None, "\n", "epoch,step\n0,49\n", "step,train/loss\n9,\n"])
def test_a_run_that_logged_nothing_has_no_curves(tmp_path, metrics):
    found = Findings.of(made_run(tmp_path, metrics=metrics)).pictures
    assert not {"losses", "validation"} & set(found)


def test_confusions_count_each_row_once(tmp_path):
    found = Findings.of(made_run(tmp_path))
    for name in ("confusion_student", "confusion_teacher", "agreement"):
        axes = found.pictures[name].figure.axes[0]
        assert sum(int(text.get_text().split("\n")[0]) for text in axes.texts) == 200
    p = found.predictions
    corner = found.pictures["confusion_student"].figure.axes[0].texts[0].get_text()
    assert corner.startswith(str(((p.truth == 0) & (p.student.argmax(1) == 0)).sum()))


def test_of_several_classes_the_first_cell_is_what_was_found(tmp_path):
    found = Findings.of(made_run(tmp_path, of_several_classes()))
    p = found.predictions
    told = [text.get_text() for text in found.pictures["confusion_student"].figure.axes[0].texts]
    chosen = p.student[:, 0] > 0
    wanted = [chosen & (p.truth[:, 0] == 1), ~chosen & (p.truth[:, 0] == 1)]
    wanted += [chosen & (p.truth[:, 0] == 0), ~chosen & (p.truth[:, 0] == 0)]
    assert [int(text.split("\n")[0]) for text in told[:4]] == [each.sum() for each in wanted]


def test_a_run_without_validation_rows_is_refused(tmp_path):
    version = made_run(tmp_path)
    (version / VALIDATION).unlink()
    with pytest.raises(RunError, match="is not there"):
        Findings.of(version)
