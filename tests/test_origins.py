import json

import pytest
import yaml

from kd.layout import Facts, write_facts
from kd.origins import run_of, teachers_of
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
    assert teachers_of(run) == found


def test_a_run_without_a_recipe_has_no_teacher(run):
    assert teachers_of(run) == []
    (run / "config.yaml").write_text("model: [")
    assert teachers_of(run) == []


def test_an_exported_folder_knows_its_run(run, tmp_path):
    folder = tmp_path / "shipped"
    folder.mkdir()
    assert run_of(folder) is None
    for measured, found in [({"run": str(run)}, run), ({"run": "gone"}, None), (None, None)]:
        write_facts(folder, Facts(LABELS, False, 64, measured=measured))
        assert run_of(str(folder)) == found
    assert run_of(str(run.parent)) == run_of(run) == run_of(run / "student") == run
