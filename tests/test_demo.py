import json
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml

from kd.demo import _examples
from kd.inference import Classifier
from kd.predictions import VALIDATION, Predictions, write_predictions
from tests.browser import chromium, overflow
from tests.conftest import LABELS, TEXTS

ROOT = Path(__file__).parents[1]
TEXT = "what a wonderful film"
TEACHER = "runs/teacher"


@pytest.fixture
def run(make_model, tmp_path):
    """A finished run whose teacher's recipe path stands for a folder, and that has validated."""
    version = tmp_path / "runs" / "x" / "version_0"
    version.mkdir(parents=True)
    make_model("student", initializer_range=0.5).rename(version / "student")
    teacher = make_model("teacher", hidden_size=32, initializer_range=0.5)
    manifest = {"status": "finished", "command": "fit", "references": {TEACHER: str(teacher)}}
    (version / "manifest.json").write_text(json.dumps(manifest))
    cached = {"class_path": "kd.CachedTeacher", "init_args": {"teacher": {"path": TEACHER}}}
    (version / "config.yaml").write_text(yaml.safe_dump({"model": {"teacher": cached}}))
    right = np.eye(2, dtype=np.float32)[[1, 1, 1, 1, 0, 0, 0, 0]]
    student = right.copy()
    student[1] = right[4]
    texts = ("a text that is much too long to be an example " * 5, *TEXTS[1:])
    rows = Predictions(LABELS, False, texts, None, right.argmax(axis=1), student, right)
    write_predictions(version / VALIDATION, rows)
    return version


@contextmanager
def opened(*arguments):
    """Open a page in a process of its own; its address is the last word of the first line."""
    script = f"from kd.demo import demo; demo(*{[str(one) for one in arguments]!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        process.told = process.stdout.readline()
        assert " is at " in process.told, process.stderr.read()
        process.url = re.search(r"http://127\.0\.0\.1:\d+/", process.told)[0]
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


def ask(page, text):
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_role("button", name="Classify").click()
    page.wait_for_function("document.querySelector('#verdict').innerText.includes('as fast')")


def shares(page, name):
    """Return what a column shows: the probability of each class, in per cent."""
    lines = page.locator(f"#{name}").inner_text().split("\n")
    return {lines[n - 1]: int(line[:-1]) for n, line in enumerate(lines) if line.endswith("%")}


def wanted(folder, text):
    (answer,) = Classifier.from_pretrained(folder).predict([text])
    return {label: pytest.approx(100 * p, abs=0.6) for label, p in answer.probabilities.items()}


@pytest.mark.slow
def test_a_browser_shows_student_and_teacher_side_by_side(run):
    teacher = Path(json.loads((run / "manifest.json").read_text())["references"][TEACHER])
    with opened(run.parent) as server, chromium() as browser:
        assert f"beside its teacher {teacher}" in server.told
        page = browser.new_page(viewport={"width": 1100, "height": 800})
        asked, complaints = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else 0)
        page.goto(server.url)
        ask(page, TEXT)
        assert shares(page, "student") == wanted(run / "student", TEXT)
        assert shares(page, "teacher") == wanted(teacher, TEXT)
        for name in ("student", "teacher"):
            told = page.locator(f"#{name}-time").inner_text()
            assert re.fullmatch(r"\d+\.\d\d ms with torch", told)
        left, right = (page.locator(f"#{name}").bounding_box() for name in ("student", "teacher"))
        assert left["y"] == right["y"]
        assert left["x"] + left["width"] <= right["x"]

        page.get_by_text(TEXTS[4]).click()  # an example
        page.wait_for_function(f"document.querySelector('textarea').value === {TEXTS[4]!r}")
        page.wait_for_timeout(2000)
        assert shares(page, "student") == wanted(run / "student", TEXTS[4])

        page.get_by_label("Text", exact=True).fill("  ")
        page.get_by_role("button", name="Classify").click()
        page.get_by_text("Type a text first.").wait_for()
        assert shares(page, "student") == {}

        page.set_viewport_size({"width": 375, "height": 760})
        assert overflow(page) == 0
        assert complaints == []
        assert len(asked) > 10
        assert [url for url in asked if not url.startswith((server.url, "data:", "blob:"))] == []


@pytest.mark.slow
def test_a_student_without_a_teacher_is_shown_alone(run):
    (run / "config.yaml").unlink()
    with opened(run) as server, chromium() as browser:
        assert "alone: give --teacher to see both" in server.told
        page = browser.new_page()
        page.goto(server.url)
        page.get_by_label("Text", exact=True).fill(TEXT)
        page.get_by_role("button", name="Classify").click()
        page.get_by_text("ms with torch").wait_for()
        assert shares(page, "student") == wanted(run / "student", TEXT)
        assert page.locator("#teacher").count() == 0


@pytest.mark.slow
def test_what_keeps_a_page_from_opening_is_said(run):
    with opened(run) as server:
        port = int(server.url.split(":")[2][:-1])
        script = "from kd.demo import demo; demo(*{!r}, port={})"
        for arguments, told in [
            ([str(run)], f"ConfigError: port {port} is taken: give another, or none"),
            ([str(run), "no/such"], "ModelError: no/such is neither a model folder"),
        ]:
            done = subprocess.run(
                [sys.executable, "-c", script.format(arguments, port)],
                capture_output=True,
                text=True,
                cwd=ROOT,
            )
            assert told in done.stderr


def test_examples_are_short_and_show_each_class_and_a_difference(run):
    assert _examples(run) == [TEXTS[1], TEXTS[2], TEXTS[4]]  # differ, both positive, both negative
    (run / VALIDATION).unlink()
    assert _examples(run) == []


def test_a_missing_extra_is_named_and_nothing_heavy_imported_before():
    script = "import sys, kd.demo; print({'torch', 'gradio', 'pandas'} & set(sys.modules)); "
    script += "sys.modules['gradio'] = None; kd.demo.demo('x')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"
    assert "ConfigError: kd demo needs gradio: pip install gradio" in done.stderr
