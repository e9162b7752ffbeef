import subprocess
import sys
from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from kd.calibration import Bin
from kd.pictures import Point, cascade, curves, intervals, matrix, pareto, reliability

LABELS = ("bad", "<b>$x$</b>", "日本 😀", "a class with a very long name indeed")
STEPS = [(50.0, 2.0), (100.0, 0.05), (150.0, 0.04)]


def confusion(labels=LABELS, **changes):
    counts = np.full((len(labels), len(labels)), 2) + 6 * np.eye(len(labels), dtype=int)
    given = {"rows": labels, "columns": labels, "axes_names": ("label", "choice"), **changes}
    return matrix("confusion", given.pop("counts", counts), **given)


PICTURES = {
    "losses": lambda: curves("losses", {"labels": STEPS, "logits": STEPS[:1]}, "loss"),
    "shares": lambda: curves("shares", {"f1": [(1, 0.5)]}, "share", ("teacher", 0.9), True),
    "diverged": lambda: curves("diverged", {"labels": [*STEPS, (200.0, float("inf"))]}, "loss"),
    "confusion": confusion,
    "reliability": lambda: reliability({"before": [Bin(90, 0.9, 0.8), Bin(10, 0.5, 0.7)]}),
    "cascade": lambda: cascade(np.array([0, 0.5, 1.0]), np.array([0.8, 0.9, 0.88]), 0.88, 1),
    "pareto": lambda: pareto([Point("teacher", 0.9, 400, 30, True), Point("student", 0.8, 1, 0)]),
    "intervals": lambda: intervals([("a", 2.0, 1.0, 3.0), ("b", -2.0, -3.0, -1.0)]),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_svg_in_the_colours_of_its_page_and_a_png(name):
    picture = PICTURES[name]()
    assert picture.name == name
    root = ElementTree.fromstring(picture.svg())
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == picture.alt
    assert "viewBox" in root.attrib
    assert not {"width", "height"} & set(root.attrib), "the page chooses its size"
    assert "currentColor" in picture.svg()
    assert "#1f2428" not in picture.svg()
    assert "fill: #ffffff" not in picture.svg(), "the page shows through"
    ids = [one.attrib["id"] for one in root.iter() if "id" in one.attrib]
    assert ids
    assert all(one.startswith(f"{name}-") for one in ids), "pictures of a page share no id"
    assert PICTURES[name]().svg() == PICTURES[name]().svg()
    png = Image.open(BytesIO(picture.png()))
    assert min(png.size) > 150
    assert png.getpixel((0, 0))[:3] == (255, 255, 255)


def test_what_a_page_lays_side_by_side_points_to_itself_only():
    root = ElementTree.fromstring(PICTURES["losses"]().svg())
    ids = {one.attrib["id"] for one in root.iter() if "id" in one.attrib}
    links = [value for one in root.iter() for key, value in one.attrib.items() if "href" in key]
    assert links
    assert {link.removeprefix("#") for link in links} <= ids


def test_class_names_are_shown_as_they_are():
    texts = [one.text for one in ElementTree.fromstring(confusion().svg()).iter() if one.text]
    assert {"<b>$x$</b>", "日本 😀", "a class wit…ame indeed"} <= set(map(str.strip, texts))


def test_alternative_texts_tell_the_figures():
    assert "labels from 2 to 0.04" in PICTURES["losses"]().alt
    assert "teacher at 90.0%" in PICTURES["shares"]().alt
    assert "before 11.0%" in PICTURES["reliability"]().alt  # 0.9 · 0.1 + 0.1 · 0.2
    assert "90.0% with 50% asked" in PICTURES["cascade"]().alt
    assert "a +2.0, +1.0 to +3.0" in PICTURES["intervals"]().alt
    assert "bad 57%" in confusion().alt  # 8 of 14


def test_losses_of_different_sizes_share_a_logarithmic_axis():
    assert PICTURES["losses"]().figure.axes[0].get_yscale() == "log"
    assert PICTURES["shares"]().figure.axes[0].get_yscale() == "linear"


def test_of_many_classes_those_missed_most_are_kept():
    labels = [f"c{place}" for place in range(30)]
    counts = np.diag(np.full(30, 100))
    counts[7:19, 0] = 9
    picture = confusion(labels, counts=counts)
    axes = picture.figure.axes[0]
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown == labels[7:19] == [label.get_text() for label in axes.get_xticklabels()]
    assert axes.get_ylabel() == "label (12 of 30, missed most)"
    assert axes.get_ylabel() in picture.alt


def test_of_several_classes_each_row_has_its_cells():
    cells = ("found", "missed", "added", "left out")
    counts = np.array([[3, 1, 2, 4], [5, 0, 0, 5]])
    picture = confusion(("joy", "anger"), counts=counts, columns=cells)
    shown = [label.get_text() for label in picture.figure.axes[0].get_xticklabels()]
    assert tuple(shown) == cells
    assert "found: joy 30%, anger 50%" in picture.alt


def test_the_line_joins_models_that_no_other_beats():
    points = [
        Point("slow and good", 0.9, 400, 30, True),
        Point("slower and worse", 0.89, 400, 40),
        Point("quick", 0.8, 1, 0.3),
        Point("as quick and worse", 0.7, 1, 0.3),
    ]
    line = pareto(points).figure.axes[0].lines[0]
    assert list(line.get_xdata()) == [0.3, 30]
    assert list(line.get_ydata()) == [0.8, 0.9]


def test_an_interval_with_zero_in_it_has_no_colour():
    lines = [("helps", 2.0, 1.0, 3.0), ("hurts", -2.0, -3.0, -1.0), ("who knows", 0.5, -1.0, 2.0)]
    drawn = intervals(lines).figure.axes[0].lines[2::2]
    assert [line.get_color() for line in drawn] == ["#009E73", "#D55E00", "#1f2428"]
    assert [line.get_marker() for line in drawn] == [">", "<", "o"]


def test_bins_of_few_choices_are_not_drawn():
    bins = [Bin(1, 0.4, 1.0), Bin(50, 0.8, 0.7)]
    line = reliability({"before": bins}).figure.axes[0].lines[1]
    assert list(line.get_xdata()) == [0.8]
    assert len(reliability({"before": bins[:1]}).figure.axes[0].lines[1].get_xdata()) == 1


def test_drawing_changes_no_setting_and_importing_loads_no_library():
    script = (
        "import sys, kd.pictures as k; assert 'matplotlib' not in sys.modules\n"
        "import matplotlib; before = matplotlib.rcParams.copy()\n"
        "k.intervals([('a', 1.0, 0.0, 2.0)]).png()\n"
        "assert matplotlib.rcParams.copy() == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules; print('good')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "good", done.stderr
