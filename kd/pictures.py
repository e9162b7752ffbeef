"""Every picture of the project, with what it shows in words; as SVG for pages, and as PNG.

Numbers in, pictures out: this room knows no run, no file and no model. Colours are Okabe and Ito's,
which colour-blind readers tell apart; the four used here stand out from white and from black, and
none carries a meaning alone. matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from io import BytesIO, StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kd.calibration import Bin, calibration_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Picture",
    "Point",
    "cascade",
    "curves",
    "intervals",
    "matrix",
    "pareto",
    "reliability",
]

_INK = "#1f2428"  # of text and axes; `currentColor` in a page
_BLUE, _VERMILLION, _GREEN, _PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
_STYLE: dict[Any, Any] = {  # matplotlib types its settings by a list of all their names
    "font.family": "DejaVu Sans",  # comes with matplotlib; a page has the reader's font instead
    "font.size": 9,
    "text.parse_math": False,  # a class may be named $
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), _INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), _INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": f"cycler('color', {[_BLUE, _VERMILLION, _GREEN, _PURPLE, _INK]})",
    "axes.axisbelow": True,
    "grid.color": _INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))  # beside the colours
_WIDTH, _HEIGHT = 4.8, 3.2  # inches: legible on a phone, and two beside each other on a desk
_DOTS_PER_INCH = 160
_MOST_CLASSES = 12  # of a matrix that can be read
_MOST_LETTERS = 22
_FEW = 5  # choices, whose share of right ones says nothing


@dataclass(frozen=True)
class Picture:
    """A picture and its words.

    Args:
        name: Of its file, without an ending; once in a page.
        alt: What it shows, with its figures, for who cannot see it.
        figure: The drawing, of matplotlib.
    """

    name: str
    alt: str
    figure: Figure

    def svg(self) -> str:
        """Return an ``<svg>`` to lie in a page, in the colour and font of the text around it."""
        text = StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with _style(**{"svg.fonttype": "none", "svg.hashsalt": "kd"}):
            self.figure.savefig(text, format="svg", transparent=True, metadata=no_metadata)
        drawn = text.getvalue()
        drawn = drawn[drawn.index("<svg") :].replace(_INK, "currentColor")
        drawn = drawn.replace("'DejaVu Sans'", "system-ui, sans-serif")
        drawn = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{self.name}-", drawn)
        drawn = re.sub(r' (?:width|height)="[\d.]+pt"', "", drawn, count=2)
        return drawn.replace("<svg", f'<svg role="img" aria-label="{escape(self.alt)}"', 1)

    def png(self) -> bytes:
        """Return the bytes of a PNG file, dark on white."""
        data = BytesIO()
        with _style():
            self.figure.savefig(data, format="png", dpi=_DOTS_PER_INCH, facecolor="white")
        return data.getvalue()


@dataclass(frozen=True)
class Point:
    """A model in the Pareto picture.

    Args:
        name: As it is written beside the point.
        accuracy: From 0 to 1.
        megabytes: Size of its weights.
        latency_ms: Milliseconds for a text.
        is_teacher: Whether it is drawn as the teacher.
    """

    name: str
    accuracy: float
    megabytes: float
    latency_ms: float
    is_teacher: bool = False


def curves(
    name: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    y_label: str,
    level: tuple[str, float] | None = None,
    is_share: bool = False,
) -> Picture:
    """Draw values over the steps of a training.

    Args:
        name: Of the picture.
        lines: (step, value) by name, in the order of the steps.
        y_label: What the values are.
        level: A value that does not change, with its name.
        is_share: Whether values go from 0 to 1, written as percentages.

    Returns:
        The picture.
    """
    form = "{:.1%}" if is_share else "{:.3g}"
    with _drawing() as (figure, axes):
        for place, (label, points) in enumerate(lines.items()):
            steps, values = zip(*points, strict=True)
            marker = "o" if len(points) < 12 else None
            dash = _DASHES[place % len(_DASHES)]
            axes.plot(steps, values, label=label, marker=marker, markersize=4, linestyle=dash)
        if level:
            axes.axhline(level[1], label=level[0], color=_INK, linestyle=":", linewidth=1.2)
        every = [value for points in lines.values() for _, value in points]
        if not is_share and min(every) > 0 and max(every) > 20 * min(every):
            axes.set_yscale("log")
            _plain_log(axes.yaxis)
        if is_share:
            _as_percent(axes.yaxis)
        axes.set(xlabel="step", ylabel=y_label)
        _legend(figure)
    told = [
        f"{label} from {form.format(points[0][1])} to {form.format(points[-1][1])}"
        for label, points in lines.items()
    ]
    told += [f"{level[0]} at {form.format(level[1])}"] if level else []
    last = max(points[-1][0] for points in lines.values())
    return Picture(
        name, f"{y_label.capitalize()} over {last:,.0f} steps: {'; '.join(told)}.", figure
    )


def matrix(
    name: str,
    counts: NDArray[np.int64],
    rows: Sequence[str],
    columns: Sequence[str],
    axes_names: tuple[str, str],
) -> Picture:
    """Draw how often what stands in the rows meets what stands in the columns.

    Args:
        name: Of the picture.
        counts: `[rows, columns]`. A square matrix of many classes is cut to those that are missed
            most often.
        rows: Names of the rows.
        columns: Names of the columns.
        axes_names: What the rows are, and what the columns.

    Returns:
        The picture.
    """
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    is_square = list(rows) == list(columns)
    kept = list(range(len(rows)))
    if len(rows) > _MOST_CLASSES:
        missed = (counts.sum(1) - np.diag(counts)) if is_square else counts[:, 1:-1].sum(1)
        kept = sorted(np.argsort(-missed, kind="stable")[:_MOST_CLASSES].tolist())
    cut = f" ({len(kept)} of {len(rows)}, missed most)" if len(kept) < len(rows) else ""
    row_name = axes_names[0] + cut
    across = kept if is_square else list(range(len(columns)))
    size = min(9.0, 80 / max(len(kept), len(across)))
    with _drawing(_WIDTH, min(_WIDTH, 1.5 + 0.45 * len(kept))) as (figure, axes):
        for down, row in enumerate(kept):
            for right, column in enumerate(across):
                share = float(shares[row, column])
                look: dict[str, Any] = {"color": _BLUE, "alpha": 0.04 + 0.5 * share, "linewidth": 0}
                axes.bar(right, 0.96, 0.96, down - 0.48, **look)
                text = f"{counts[row, column]:,}" + (f"\n{share:.0%}" if len(across) < 7 else "")
                axes.text(right, down, text, ha="center", va="center", size=size)
        axes.set(xlim=(-0.5, len(across) - 0.5), ylim=(len(kept) - 0.5, -0.5))
        turn: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
        names = [_short(columns[place]) for place in across]
        is_tight = max(map(len, names)) * len(names) > 40
        axes.set_xticks(range(len(across)), names, **(turn if is_tight else {}))
        axes.set_yticks(range(len(kept)), [_short(rows[place]) for place in kept])
        axes.set(ylabel=row_name, xlabel=axes_names[1])
        axes.grid(False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    first = {place: place if is_square else 0 for place in kept}
    said = [f"{rows[place]} {shares[place, first[place]]:.0%}" for place in kept]
    what = "on the diagonal" if is_square else columns[0]
    alt = f"Matrix, {row_name} against {axes_names[1]}; {what}: {', '.join(said)}."
    return Picture(name, alt, figure)


def reliability(lines: Mapping[str, Sequence[Bin]]) -> Picture:
    """Draw how often choices of each confidence are right, with a bubble of as many rows.

    Args:
        lines: Bins by name, as :func:`kd.calibration.reliability` returns them; bins of a few rows
            are left out.

    Returns:
        The picture.
    """
    told = []
    with _drawing() as (figure, axes):
        axes.plot((0, 1), (0, 1), color=_INK, linestyle=":", linewidth=1.2, label="as it should be")
        for place, (label, every) in enumerate(lines.items()):
            bins = [one for one in every if one.rows >= _FEW] or every
            sure, right = [one.confidence for one in bins], [one.accuracy for one in bins]
            colour = (_VERMILLION, _BLUE, _GREEN, _PURPLE)[place % 4]
            axes.plot(sure, right, color=colour, linestyle=_DASHES[place % 4 - 1], label=label)
            sizes = [8 + 180 * one.rows / sum(one.rows for one in every) for one in bins]
            axes.scatter(sure, right, s=sizes, color=colour, alpha=0.6, linewidths=0)
            told.append(f"{label} {calibration_error(list(every)):.1%}")
        lowest = min(one.confidence for bins in lines.values() for one in bins)
        axes.set(xlim=(min(0.5, lowest) - 0.02, 1.02), ylim=(-0.03, 1.03))
        axes.set(xlabel="confidence", ylabel="share that is right")
        _as_percent(axes.xaxis, axes.yaxis)
        _legend(figure)
    alt = f"Confidence against the share that is right; mean gap: {', '.join(told)}."
    return Picture("reliability", alt, figure)


def cascade(
    asked: NDArray[np.float64], accuracy: NDArray[np.float64], teacher: float, chosen: int
) -> Picture:
    """Draw what is gained when the teacher is asked where the student is unsure.

    Args:
        asked: Share of texts for which the teacher is asked, rising from 0 to 1.
        accuracy: Of student and teacher together, for each.
        teacher: Accuracy of the teacher alone.
        chosen: Position that is marked.

    Returns:
        The picture.
    """
    with _drawing() as (figure, axes):
        axes.plot(asked, accuracy, label="student, then teacher")
        axes.axhline(teacher, color=_VERMILLION, linestyle="--", label="teacher alone")
        axes.plot(asked[:1], accuracy[:1], "o", color=_BLUE, markersize=7, label="student alone")
        share, right = float(asked[chosen]), float(accuracy[chosen])
        mark = f"{right:.1%} with {share:.0%} asked"
        axes.plot([share], [right], "D", color=_GREEN, markersize=7, label=mark)
        axes.set(xlabel="texts for which the teacher is asked", ylabel="accuracy")
        _as_percent(axes.xaxis, axes.yaxis)
        _legend(figure)
    alt = (
        f"Accuracy against the share of texts for which the teacher is asked: {accuracy[0]:.1%} "
        f"with none, {mark}, {accuracy[-1]:.1%} with all; the teacher alone {teacher:.1%}."
    )
    return Picture("cascade", alt, figure)


def pareto(points: Sequence[Point]) -> Picture:
    """Draw models by time and accuracy, the larger the bubble the more megabytes.

    Args:
        points: The models.

    Returns:
        The picture; a line joins those that no other beats in both.
    """
    by_time = sorted(points, key=lambda point: (point.latency_ms, -point.accuracy))
    best = [p for i, p in enumerate(by_time) if all(p.accuracy > q.accuracy for q in by_time[:i])]
    largest = max(point.megabytes for point in points) or 1.0

    def time(point: Point) -> float:
        return max(point.latency_ms, 1e-3)

    with _drawing() as (figure, axes):
        axes.set_xscale("log")
        frontier: dict[str, Any] = {"color": _INK, "linestyle": ":", "linewidth": 1.2, "zorder": 1}
        axes.plot([time(p) for p in best], [p.accuracy for p in best], **frontier)
        for number, p in enumerate(points, start=1):
            look: dict[str, Any] = {"color": _BLUE, "alpha": 0.75, "linewidths": 0}
            look |= {"color": _VERMILLION, "marker": "s"} if p.is_teacher else {}
            label = f"{number}  {_short(p.name)}, {p.megabytes:,.3g} MB"
            size = 25 + 350 * p.megabytes / largest
            axes.scatter([time(p)], [p.accuracy], s=size, label=label, **look)
            above: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "bottom"}
            axes.annotate(str(number), (time(p), p.accuracy), (0, size**0.5 / 2), **above)
        axes.margins(0.12)
        _plain_log(axes.xaxis)
        _as_percent(axes.yaxis)
        axes.set(xlabel="milliseconds for a text", ylabel="accuracy")
        for handle in figure.legend(loc="outside upper left", ncols=2).legend_handles:
            handle.set_sizes([30])  # type: ignore[union-attr]
    told = [
        f"{p.name} {p.accuracy:.1%}, {p.megabytes:,.3g} MB, {p.latency_ms:,.3g} ms" for p in by_time
    ]
    alt = f"Accuracy against time and size: {'; '.join(told)}."
    return Picture("pareto", alt, figure)


def intervals(lines: Sequence[tuple[str, float, float, float]]) -> Picture:
    """Draw differences with their intervals; one that leaves zero out is coloured.

    Args:
        lines: Name, difference, low and high, in points of accuracy.

    Returns:
        The picture.
    """
    with _drawing(_WIDTH, 0.9 + 0.5 * len(lines)) as (figure, axes):
        axes.axvline(0, color=_INK, linestyle=":", linewidth=1.2)
        for place, (_, middle, low, high) in enumerate(lines):
            colour = _GREEN if low > 0 else _VERMILLION if high < 0 else _INK
            shape = ">" if low > 0 else "<" if high < 0 else "o"
            axes.plot((low, high), (place, place), color=colour, solid_capstyle="round")
            axes.plot([middle], [place], shape, color=colour, markersize=7)
        named = [
            f"{_short(name)}\n{mid:+.1f} ({low:+.1f} to {high:+.1f})"
            for name, mid, low, high in lines
        ]
        axes.set_yticks(range(len(lines)), named)
        axes.set(ylim=(len(lines) - 0.5, -0.5), xlabel="difference in accuracy, in points")
        axes.margins(x=0.15)
        axes.tick_params(axis="y", length=0)
    told = [f"{name} {middle:+.1f}, {low:+.1f} to {high:+.1f}" for name, middle, low, high in lines]
    alt = f"Differences in accuracy, in points, with their intervals: {'; '.join(told)}."
    return Picture("intervals", alt, figure)


@contextmanager
def _style(**more: Any) -> Iterator[None]:
    """Draw in the project's style, whatever the user has set."""
    import matplotlib

    with matplotlib.rc_context(_STYLE | more), warnings.catch_warnings():
        # a class name in a script that the font lacks: a page shows it none the less
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


@contextmanager
def _drawing(width: float = _WIDTH, height: float = _HEIGHT) -> Iterator[tuple[Figure, Axes]]:
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        axes.grid(True)
        axes.tick_params(length=3)
        yield figure, axes


def _legend(figure: Figure) -> None:
    """Put the legend above the axes, where it hides nothing."""
    figure.legend(loc="outside upper left", ncols=2)


def _as_percent(*axes: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    for axis in axes:
        axis.set_major_formatter(PercentFormatter(1.0))


def _plain_log(axis: Any) -> None:
    """Write the ticks of a logarithmic axis as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())


def _short(name: str) -> str:
    """Leave out the middle of a long name: both its ends may tell it from others."""
    half = _MOST_LETTERS // 2
    return name if len(name) <= _MOST_LETTERS else f"{name[:half]}…{name[1 - half :]}"
