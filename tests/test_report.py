import json
import re
import resource
import signal

import pytest

from kd.cli import main
from kd.errors import RunError
from kd.findings import Findings
from kd.predictions import VALIDATION
from kd.report import report
from kd.runs import claim, read_manifest, verify
from tests.browser import chromium, overflow, watch
from tests.test_findings import SCRIPT, add, answers, compared, made_run, measured


def figures(folder):
    return json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    """Return a fit that was compared (version 1), benched (2) and reported (3)."""
    version = made_run(tmp_path_factory.mktemp("runs"))
    compared(version)
    add(version, "bench", measured(version))
    before = (version / "manifest.json").read_bytes()
    report(version.parent)
    assert (version / "manifest.json").read_bytes() == before
    return version


def test_a_report_is_a_run_of_its_own(version):
    folder = version.with_name("version_3")
    manifest = read_manifest(folder)
    assert (manifest["command"], manifest["status"]) == ("report", "finished")
    assert manifest["references"] == {
        "run": str(version),
        "compare": str(version.with_name("version_1")),
        "bench": str(version.with_name("version_2")),
    }
    assert verify(folder) == verify(version) == []
    drawn = re.findall(r"\]\((\w+\.png)\)", (folder / "report.md").read_text())
    assert set(drawn) == {path.name for path in folder.glob("*.png")}
    assert len(drawn) == len(set(drawn)) == 9


def test_figures_are_those_of_the_predictions(version):
    given, found = answers(), figures(version.with_name("version_3"))
    assert found["verdict"].startswith("Distillation helps: +10.0 points")
    assert (found["run"], found["rows"]) == (str(version), 200)
    student = found["models"]["student"]
    assert student["accuracy"]["value"] == pytest.approx(given.accuracy(given.student))
    assert student["calibrated_error"] < student["calibration_error"]
    right = [given.is_right(logits) == 1 for logits in (given.student, given.teacher)]
    assert found["flips"] == {
        "teacher is right": (~right[0] & right[1]).sum(),
        "student is right": (right[0] & ~right[1]).sum(),
    }
    asked = [line["asked"] for line in found["cascade"]]
    assert asked == sorted(asked)
    assert sum(one["rows"] for one in found["slices"] if one["name"].startswith("class")) == 200
    assert found["pictures"] == {
        one.name: one.alt for one in Findings.of(version).pictures.values()
    }


def test_a_report_can_be_written_elsewhere(tmp_path, capsys):
    version = made_run(tmp_path, answers(teacher=None), metrics=None)
    folder = tmp_path / "deep" / "page"
    report(version, folder)
    assert f"report = {folder / 'report.html'}" in capsys.readouterr().out
    assert figures(folder)["flips"] is figures(folder)["cascade"] is None
    assert [path.name for path in version.parent.iterdir()] == ["version_0"]
    with pytest.raises(RunError, match="is there already"):
        report(version, tmp_path / "deep")


def test_what_is_no_finished_fit_is_refused(tmp_path):
    version = made_run(tmp_path)
    with pytest.raises(RunError, match="is no run"):
        report(tmp_path / "nothing")
    claim(tmp_path, "other", command="bench")
    with pytest.raises(RunError, match="version_0 is a run of bench"):
        report(tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        report(version, tmp_path / "file" / "page")
    (version / VALIDATION).unlink()
    with pytest.raises(RunError, match=r"validation\.parquet is not there"):
        report(version)
    assert [path.name for path in version.parent.iterdir()] == ["version_0"]


def stop(number, frame):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("at_limit", "error", "status"),
    [(signal.SIG_IGN, RunError, "failed"), (stop, KeyboardInterrupt, "interrupted")],
)
def test_a_report_that_cannot_be_written_is_not_left_running(tmp_path, at_limit, error, status):
    version = made_run(tmp_path)
    example = {"text": "long " * 400_000, "variant": "", "fate": "kept"}
    (version / "augmentation.json").write_text(json.dumps({"examples": [example]}))
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, at_limit)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, most))  # the probe of a claim is smaller
    try:
        with pytest.raises(error):
            report(version)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        signal.signal(signal.SIGXFSZ, before)
    assert read_manifest(version.with_name("version_1"))["status"] == status


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_is_whole_in_a_browser(version, browser, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    complaints, asked = watch(page), []
    page.on("request", lambda request: asked.append(request.url))
    url = version.with_name("version_3").joinpath("report.html").as_uri()
    page.goto(url)
    assert asked == [url]
    assert complaints == []
    assert overflow(page) <= 0
    assert page.title() == "What tiny, version_0 is worth"
    assert SCRIPT in page.inner_text("main"), "a text is shown, not run"
    pictures = page.query_selector_all("svg[role=img]")
    assert len(pictures) == 9
    assert all(picture.get_attribute("aria-label") for picture in pictures)
    assert all(picture.bounding_box()["width"] > 250 for picture in pictures)
    ids = page.eval_on_selector_all("[id]", "all => all.map(one => one.id)")
    assert len(ids) == len(set(ids))
    colours = page.evaluate(
        "[getComputedStyle(document.querySelector('svg text')).fill,"
        " getComputedStyle(document.body).backgroundColor]"
    )
    ink, paper = (sum(map(int, re.findall(r"\d+", colour)[:3])) > 384 for colour in colours)
    assert (ink, paper) == ((False, True) if scheme == "light" else (True, False))
    page.close()


def test_a_real_fit_is_reported(tmp_path, make_model, csv_file):
    main(
        [
            "fit",
            f"--run.root={tmp_path / 'runs'}",
            "--run.name=real",
            "--model.student=EncoderClassifier",
            f"--model.student.path={make_model('base', num_hidden_layers=1)}",
            "--model.teacher=ModelTeacher",
            f"--model.teacher.path={make_model('teacher')}",
            "--model.objectives.logits=LogitKD",
            f"--data.source.train={csv_file}",
            "--trainer.max_epochs=1",
            "--trainer.accelerator=cpu",
        ]
    )
    report(tmp_path / "runs" / "real")
    assert set(figures(tmp_path / "runs" / "real" / "version_1")["models"]) == {
        "teacher",
        "student",
    }
