import json

import pytest
import yaml

from kd.layout import Facts, write_facts
from kd.origins import Taught, comparison_of, run_of, teachers_of
from tests.conftest import LABELS


@pytest.fixture
def run(make_model, tmp_path):
    version = tmp_path / "runs" / "x" / "version_0"
    version.mkdir(parents=True)
    make_model("student").rename(version / "student")
    references = {"runs/a": "runs/a/version_3/student", "runs/b_fold0": "f0", "runs/b_fold1": "f1"}
    manifest = {"status": "finished", "command": "fit", "references": references}
    (version / "manifest.json").write_text(json.dumps(manifest))
    return version


@pytest.mark.parametrize(
    ("teacher", "found"),
    [
        ({"init_args": {"path": "runs/a"}}, ["runs/a/version_3/student"]),
        (
            {"init_args": {"teacher": {"init_args": {"path": "runs/a"}}}},
            ["runs/a/version_3/student"],
        ),
        ({"init_args": {"path": "user/name", "recipe": None}}, ["user/name"]),
        ({"init_args": {"teachers": {"one": {"path": "x"}, "two": {"path": "y"}}}}, ["x", "y"]),
        ({"class_path": "OutOfFoldTeacher", "init_args": {"path": "runs/b"}}, ["f0"]),
        (None, []),
    ],
    ids=["run", "cache", "hub", "ensemble", "folds", "none"],
)
def test_the_teachers_are_those_of_the_recipe(run, teacher, found):
    (run / "config.yaml").write_text(yaml.safe_dump({"model": {"teacher": teacher}}))
    assert [one.path for one in teachers_of(run)] == found


def test_a_run_without_a_recipe_has_no_teacher(run):
    assert teachers_of(run) == []
    (run / "config.yaml").write_text("model: [")
    assert teachers_of(run) == []


def test_a_teacher_keeps_the_names_of_its_classes(run):
    given = {"path": "user/name", "label_names": ["a", "b"], "revision": "v2"}
    (run / "config.yaml").write_text(yaml.safe_dump({"model": {"teacher": {"init_args": given}}}))
    assert teachers_of(run) == [Taught("user/name", ("a", "b"), "v2")]


def write_fit(version, seed, **recipe):
    version.mkdir(parents=True, exist_ok=True)
    manifest = {"status": "finished", "command": "fit", "seed": seed, "data": {"train": "x"}}
    (version / "manifest.json").write_text(json.dumps(manifest))
    place = {"name": version.parent.name, "monitor": "val/accuracy", "resume": None}
    whole = {"seed_everything": seed, "run": place, "config": ["x.yaml"], **recipe}
    (version / "config.yaml").write_text(yaml.safe_dump(whole))
    return version


def write_comparison(version, *fits, status="finished", text=None):
    version.mkdir(parents=True)
    manifest = {"status": status, "command": "compare"}
    (version / "manifest.json").write_text(json.dumps(manifest))
    facts = {"variants": [{"name": "distilled", "runs": [str(fit) for fit in fits]}]}
    (version / "compare.json").write_text(text or json.dumps(facts))
    return version


def test_a_comparison_is_of_the_recipe_or_of_no_interest(tmp_path):
    root = tmp_path / "runs"
    run = write_fit(root / "x" / "version_0", 42, model={"student": "small"})
    same = write_fit(root / "x_distilled" / "version_0", 1, model={"student": "small"})
    other = write_fit(root / "x_distilled" / "version_1", 42, model={"student": "large"})
    assert comparison_of(run) is None
    write_comparison(root / "x" / "version_1", other)
    assert comparison_of(run) is None, "it compared another student"
    right = write_comparison(root / "x" / "version_2", other, same)
    write_comparison(root / "x" / "version_3", same, status="failed")
    write_comparison(root / "x" / "version_4", same, text='{"variants": [{"na')
    write_comparison(root / "x" / "version_5", root / "gone")
    found = comparison_of(run)
    assert found is not None
    assert found[0] == right
    assert found[1]["variants"][0]["name"] == "distilled"


def test_a_run_with_other_data_in_the_same_place_is_another(run, tmp_path):
    folder = tmp_path / "shipped"
    folder.mkdir()
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "seed": 1, "data": {"train": "a"}}))
    for facts, found in [({"seed": 1, "data": {"train": "a"}}, run), ({"seed": 2}, None)]:
        write_facts(folder, Facts(LABELS, False, 64, measured={"run": str(run), **facts}))
        assert run_of(folder) == found


def test_an_exported_folder_knows_its_run(run, tmp_path):
    folder = tmp_path / "shipped"
    folder.mkdir()
    assert run_of(folder) is None
    for measured, found in [({"run": str(run)}, run), ({"run": "gone"}, None), (None, None)]:
        write_facts(folder, Facts(LABELS, False, 64, measured=measured))
        assert run_of(str(folder)) == found
    assert run_of(str(run.parent)) == run_of(run) == run_of(run / "student") == run
