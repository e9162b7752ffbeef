"""What the page about a run says: its sentences, tables and pictures, in their order.

This room chooses words; what they tell comes from :mod:`kd.findings`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from kd.calibration import fit_temperature
from kd.console import in_words
from kd.findings import Findings
from kd.origins import Taught, teachers_of
from kd.page import Block, Code, Page, Section, Table
from kd.pictures import Point, intervals, pareto
from kd.slices import FEW_ROWS, Share, interval_of, slices

__all__ = ["ROLES", "THRESHOLDS", "page_of"]

ROLES = ("teacher", "student")
"""In the order in which they are told."""

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Of the cascade, in its table."""

_LUCK = "one seed, so the luck of training is not in it"
_MOST_FLIPS = 15
_NO_TEACHER = "This run had no teacher to set beside its student."
_ALONE = "Trained without a teacher: there is no distillation to judge."
_SOURCE = ("path", "name", "revision", "train", "unlabelled", "validation", "test")
_WITH_AND_WITHOUT = ("distilled", "without")
_VERBS = {"helps": "helps", "no difference": "makes no difference", "hurts": "hurts"}


def page_of(found: Findings) -> Page:
    """Return the page about a run; a section for which something is missing says so."""
    sections = {
        "Results": _results,
        "Does distillation help?": _compared,
        "Training": _training,
        "What is taken for what": _confusions,
        "Can its confidence be believed?": _confidence,
        "Student and teacher": _agreement,
        "Where they differ": _flips,
        "Kinds of text": _slices,
        "Size, time, accuracy": _speed,
        "Asking the teacher when unsure": _cascade,
        "Data": _data,
        "How it was made": _made,
    }
    of_two, is_lonely = (_agreement, _flips, _cascade), found.predictions.teacher is None
    return Page(
        f"What {found.version.parent.name}, {found.version.name} is worth",
        " ".join(_verdicts(found)),
        [
            Section(title, [_NO_TEACHER] if is_lonely and told in of_two else list(told(found)))
            for title, told in sections.items()
        ],
        f"Made by kd report from {found.version}.",
    )


def _verdicts(found: Findings) -> Iterator[str]:
    """Yield a sentence for each comparison, which is what is to be known first."""
    if found.compare is None:
        is_alone = found.predictions.teacher is None
        yield _ALONE if is_alone else "Not compared yet: whether distillation helped is not known."
        return
    for one in found.compare[1]["comparisons"]:
        names = (one["variant"], one["against"])
        subject = "Distillation" if names == _WITH_AND_WITHOUT else "{}, beside {},".format(*names)
        difference, low, high = _points(one)
        luck = "" if one.get("knows_training", True) else f"; {_LUCK}"
        yield (
            f"{subject} {_VERBS[one['verdict']]}: {difference:+.1f} points of accuracy (95% "
            f"interval {low:+.1f} to {high:+.1f}{luck})."
        )


def _results(found: Findings) -> Iterator[Block]:
    rows_read = len(found.predictions)
    heading = ["model", "accuracy (95%)", "macro-F1", "agreement", "calibration error"]
    heading += ["parameters", "MB", "rows/s" if found.bench is None else "ms, p50"]
    rows = [row for role in ROLES if role in found.scores for row in _scored(found, role)]
    for one in found.compare[1]["variants"] if found.compare else ():
        seeds = [100 * accuracy for accuracy in one["accuracy"]]
        told = f"{one['mean']:.1%} ({min(seeds):.1f} to {max(seeds):.1f})"
        name = f"{one['name']}, " + (f"mean of {len(seeds)} seeds" if seeds[1:] else "one seed")
        speed = one["rows_per_second"] if found.bench is None else None
        rows.append([name, told, "", "", "", *_cost(one, speed)])
    caption = f"On {rows_read:,} validation rows; in brackets the interval of 95%"
    yield Table(caption + (", or the range of the seeds" if found.compare else ""), heading, rows)
    yield (
        f"This is one training, with the seed {found.manifest.get('seed')}, and its checkpoint was "
        f"chosen on the same {rows_read:,} rows, which flatters it a little: kd test measures it "
        "on rows that nothing was chosen on."
    )
    if found.bench is None:
        yield "Rows per second were taken in passing, at the end of the training."
    else:
        yield "Each line of kd bench has its own accuracy, size and time: of one text at a time."


def _scored(found: Findings, role: str) -> Iterator[list[str]]:
    """Yield the rows of a role: each form that `bench` measured, or else what the fit told."""
    score = found.scores[role]
    told = [f"{score['f1']:.1%}", _percent(score.get("agreement"))]
    told.append(f"{score['calibration_error']:.1%}")
    lines = [m for m in _measured(found.bench[1]) if m["role"] == role] if found.bench else []
    for one in lines:
        rows, accuracy = found.bench[1]["rows"] if found.bench else 0, one["accuracy"]
        share = _share(interval_of(accuracy, rows)) if rows and accuracy is not None else ""
        # the predictions of the fit are those of PyTorch
        own = told if one["backend"] == "torch" else [""] * len(told)
        yield [one["name"], share, *own, *_cost(one, one["latency_ms"]["p50"])]
    if not lines:
        speed = score.get("rows_per_second") if found.bench is None else None
        yield [role, _share(score["accuracy"]), *told, *_cost(score, speed)]


def _cost(one: Mapping[str, Any], speed: float | None) -> list[str]:
    """Return parameters, megabytes and how fast, as three cells."""
    return [_number(one.get("parameters")), _number(one.get("megabytes")), _number(speed)]


def _measured(bench: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what `bench` measured with the most threads."""
    most = max(one["threads"] for one in bench["models"])
    return [one for one in bench["models"] if one["threads"] == most]


def _compared(found: Findings) -> Iterator[Block]:
    if found.compare is None and found.predictions.teacher is None:
        yield _NO_TEACHER
        return
    if found.compare is None:
        yield "Nothing tells yet whether the student would do as well without its teacher. Compare:"
        yield Code(f"kd compare --config {_recipe(found.manifest)}")
        return
    version, said = found.compare
    yield intervals(
        [(f"{one['variant']} – {one['against']}", *_points(one)) for one in said["comparisons"]]
    )
    yield (
        f"By {version}, on {said['rows']:,} rows: equal steps and seeds, compared row by row. An "
        "interval that leaves zero out is more than chance."
    )
    if not all(one.get("knows_training", True) for one in said["comparisons"]):
        yield "With a single seed the interval does not know how far two trainings differ by luck."


def _training(found: Findings) -> Iterator[Block]:
    names = [name for name in ("losses", "validation") if name in found.pictures]
    yield from (found.pictures[name] for name in names)
    if "losses" not in names:
        yield "No loss was logged: the training ended before the first line of metrics.csv was due."


def _confusions(found: Findings) -> Iterator[Block]:
    yield found.pictures["confusion_student"]
    yield found.pictures.get("confusion_teacher", _NO_TEACHER)


def _confidence(found: Findings) -> Iterator[Block]:
    p = found.predictions
    yield found.pictures["reliability"]
    before, after = found.scores["student"]["calibration_error"], found.calibrated_error
    temperature = fit_temperature(p.student, p.truth, p.multi_label)
    yield (
        f"Confidence and the share that is right are {before:.1%} apart on average, and "
        f"{after:.1%} after a temperature that was fitted on one half of the rows and measured on "
        f"the other. On all rows it is {temperature:.2f}, by which kd export divides the logits; "
        "it changes no choice."
    )


def _agreement(found: Findings) -> Iterator[Block]:
    p = found.predictions
    assert p.teacher is not None
    yield found.pictures["agreement"]
    student, teacher = (p.is_right(logits) == 1 for logits in (p.student, p.teacher))
    cells = {
        "both are right": student & teacher,
        "the teacher alone is right": ~student & teacher,
        "the student alone is right": student & ~teacher,
        "both are wrong": ~student & ~teacher,
    }
    rows = [[name, f"{rows.sum():,}", f"{rows.mean():.1%}"] for name, rows in cells.items()]
    yield Table("Rows by who is right", ["", "rows", "share"], rows)


def _flips(found: Findings) -> Iterator[Block]:
    for right, wrong in (ROLES, ROLES[::-1]):
        every = found.flips[right]
        if not every:
            yield f"There is no row that the {right} has right and the {wrong} wrong."
            continue
        yield Table(
            f"The {right} is right and the {wrong} wrong: {len(every):,} rows, the surest mistakes "
            "first",
            ["text", "label", "student", "teacher", "surety"],
            [
                [one.text, one.label, one.student, one.teacher, f"{one.confidence:.0%}"]
                for one in every[:_MOST_FLIPS]
            ],
            words=4,
        )


def _slices(found: Findings) -> Iterator[Block]:
    roles = [role for role in ROLES if role in found.scores]
    rows = [
        [
            one.name,
            f"{one.rows:,}{' (few)' if one.rows < FEW_ROWS else ''}",
            *(_share(getattr(one, role)) for role in roles),
        ]
        for one in slices(found.predictions)
    ]
    yield Table("Accuracy with its interval of 95%", ["texts", "rows", *roles], rows)
    yield f"A kind of fewer than {FEW_ROWS} rows, marked as few, says little."


def _speed(found: Findings) -> Iterator[Block]:
    if found.bench is None:
        measured = {role: one for role, one in found.scores.items() if one.get("rows_per_second")}
        points = [
            Point(role, one["accuracy"].value, one["megabytes"], 1000 / one["rows_per_second"])
            for role, one in measured.items()
        ]
    else:
        points = [
            Point(one["name"], one["accuracy"], one["megabytes"], one["latency_ms"]["p50"])
            for one in _measured(found.bench[1])
            if one["accuracy"] is not None
        ]
    if points:
        yield pareto([replace(one, is_teacher=one.name == "teacher") for one in points])
    if found.bench is None:
        yield "In batches, taken in passing at the end of the training. One text at a time:"
        yield Code(f"kd bench --model {found.version}")
        return
    version, said = found.bench
    sizes = [size for size in said["models"][0]["rows_per_second"] if size != "1"]
    speeds = ["ms, p50", "ms, p95", *(f"rows/s by {size}" for size in sizes)]
    yield Table(
        f"By {version}, on {said['rows']:,} rows; rows/s by N: in batches of N texts",
        ["model", "threads", "accuracy", "MB", *speeds, "peak MB"],
        [
            [
                one["name"],
                _number(one["threads"]),
                _percent(one["accuracy"]),
                _number(one["megabytes"]),
                *(_number(one["latency_ms"][key]) for key in ("p50", "p95")),
                *(_number(one["rows_per_second"].get(size)) for size in sizes),
                _number(one["peak_megabytes"]),
            ]
            for one in said["models"]
        ],
    )


def _cascade(found: Findings) -> Iterator[Block]:
    curve = found.curve
    assert curve is not None
    yield found.pictures["cascade"]
    yield Table(
        "The student answers where it is surer than the threshold; else the teacher is asked",
        ["threshold", "texts asked about", "accuracy"],
        [[f"{t:g}", *(f"{share:.1%}" for share in curve.at(t))] for t in THRESHOLDS],
    )
    yield "By validation rows alone; the confidence is that after temperature, as exported by:"
    commands = [["kd", "export", "--run", str(found.version), "--output", "FOLDER"]]
    teachers = teachers_of(found.version)
    if len(teachers) == 1 and teachers[0] == Taught(teachers[0].path):  # classify takes no more
        asked = ["--cascade", teachers[0].path, "--threshold", "0.9"]
        commands.append(["kd", "classify", "--model", "FOLDER", *asked])
    yield Code("\n".join(map(shlex.join, commands)))


def _data(found: Findings) -> Iterator[Block]:
    file = found.version / "config.yaml"
    try:
        recipe = yaml.safe_load(_text(file) or "{}").get("data") or {}
        source = recipe.get("source") or {}
        shown = {key: source.get(key) for key in _SOURCE}
        yield _facts("Where the rows come from", {**shown, "max_length": recipe.get("max_length")})
    except (yaml.YAMLError, AttributeError):
        yield f"{file} is no recipe: where the rows come from is not known."
    for name, absent in (
        ("augmentation", "No variants of rows were made."),
        ("rationales", "No rationales were read."),
    ):
        text = _text(found.version / f"{name}.json")
        if text is None:
            yield absent
            continue
        said = json.loads(text)
        yield _facts(name.capitalize(), {**said, **(said.get("audit") or {})})
        if examples := said.get("examples"):
            rows = [[one["text"], one["variant"], one["fate"]] for one in examples]
            yield Table("Some variants", ["text", "variant", "fate"], rows, words=3)


def _made(found: Findings) -> Iterator[Block]:
    manifest = found.manifest
    seconds, git = manifest.get("seconds") or {}, manifest.get("git") or {}
    told = {
        "started": manifest.get("created"),
        "took": in_words(sum(seconds.values())) if seconds else None,
        "seed": manifest.get("seed"),
        "steps": (manifest.get("results") or {}).get("steps"),
        "git": f"{git['commit']}{', with changes' * git['dirty']}" if git else None,
        "W&B": manifest.get("wandb_id"),
        "resumed from": manifest.get("resumed_from"),
        "platform": manifest.get("platform"),
        **{f"version of {name}": one for name, one in (manifest.get("versions") or {}).items()},
        **{f"data, {name}": one for name, one in (manifest.get("data") or {}).items()},
        **{f"reference {name}": one for name, one in (manifest.get("references") or {}).items()},
    }
    yield Code(shlex.join(manifest.get("command_line") or []))
    yield _facts("The run", told)
    if recipe := _text(found.version / "config.yaml"):
        yield Code(recipe.rstrip(), title="The recipe to its last setting, config.yaml")


def _facts(caption: str, facts: Mapping[str, Any]) -> Table:
    """Return a table of what has one value; lists and nulls are left out."""
    rows = [
        [name, _number(value)]
        for name, value in facts.items()
        if value is not None and not isinstance(value, Mapping | list)
    ]
    return Table(caption, ["", ""], rows, words=2)


def _points(one: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return a difference and its interval, in points of accuracy."""
    return 100 * one["difference"], 100 * one["low"], 100 * one["high"]


def _recipe(manifest: Mapping[str, Any]) -> str:
    """Return the first file of a fit's command line."""
    words = [part for word in manifest.get("command_line") or () for part in word.split("=", 1)]
    return next((file for key, file in pairwise(words) if key == "--config"), "RECIPE")


def _share(share: Share) -> str:
    return f"{share.value:.1%} ({100 * share.low:.1f} to {100 * share.high:.1f})"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:,.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
