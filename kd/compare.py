"""The control of an experiment: a recipe beside itself without its teacher, or beside any variants.

Each fit is an ordinary run, in a process of its own, and is found again when the command is given
again. What they said of the validation rows is all that is compared; no model is loaded here.
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass, field, replace
from io import StringIO
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from rich.box import ROUNDED
from rich.table import Column, Table

from kd.console import print_line, print_table
from kd.errors import ConfigError, RunError
from kd.files import replacing
from kd.fits import Fit, Training
from kd.pictures import Point, intervals, pareto
from kd.predictions import VALIDATION, read_predictions
from kd.runs import Run, check_name, claim
from kd.verdict import judge

__all__ = ["Variant", "compare"]

_HEADINGS = ("", "accuracy", "each seed", "parameters", "MB", "rows/s")
_METHOD = (
    "Accuracy is that of the validation rows. In brackets is the interval of 95%: rows by a paired "
    "bootstrap, seeds by Student's t with Welch's degrees of freedom. It leaves zero out, or there "
    "is no difference to speak of."
)


@dataclass
class Variant:
    """A recipe among those that are compared.

    Args:
        options: What is added to the command line of its fits.
        seeds: Its own; null takes those of the command.
        teacher: False takes the teacher away, with all that needs one.
    """

    options: list[str] = field(default_factory=list)
    seeds: list[int] | None = None
    teacher: bool = True


def compare(
    config: str,
    options: Sequence[str] = (),
    variants: dict[str, Variant] | None = None,
    against: str | None = None,
    seeds: tuple[int, ...] = (1, 2, 3),
    jobs: int = 1,
    name: str | None = None,
    root: str | None = None,
) -> None:
    """Train a recipe with and without its teacher, or any variants, and say which is better.

    Args:
        config: The recipe.
        options: Of kd fit, after ``--``, for all fits.
        variants: By name: options, seeds, and teacher: false to take it away; YAML, or its file.
            Null is the recipe as it is (distilled) and the same without its teacher (without).
        against: Variant that the others are compared with; null is without, or the first of yours.
        seeds: Of the fits of each variant.
        jobs: Fits at the same time; the first of each teacher trains it, and runs alone.
        name: Name of the run; the fits add the variant's. Null is the recipe's.
        root: Folder of all runs; null is the recipe's.

    Raises:
        ConfigError: If there is nothing to compare, or a recipe is wrong.
        RunError: If a fit fails, or the fits cannot be compared.
    """
    plan = dict(variants or {"distilled": Variant(), "without": Variant(teacher=False)})
    against = against or (next(iter(variants)) if variants else "without")
    _check(plan, against, seeds, jobs)
    given, recipes = [f"--config={config}", *options], {}
    for key, variant in plan.items():
        recipes[key] = _resolved([*given, *variant.options])
        if not variant.teacher:
            less = _without_teacher(recipes[key])
            print_line(f"{key} = {' '.join(less)}")
            plan[key] = replace(variant, options=[*variant.options, *less])
            recipes[key] = _resolved([*given, *plan[key].options])
    own = next(iter(recipes.values()))["run"]
    name, root = check_name(name or own["name"] or Path(config).stem), root or own["root"]
    fits = []
    for key, variant in plan.items():
        words = [*given, *variant.options, f"--run.root={root}"]
        words.append(f"--run.name={check_name(f'{name}_{key}')}")
        for seed in variant.seeds or seeds:
            recipe = {**recipes[key], "seed_everything": seed}
            fits.append(Fit(key, seed, [*words, f"--seed_everything={seed}"], recipe))
    run = claim(root, name, command="compare")
    print_line(f"run = {run.path}")
    with run.recorded():
        Training(run.path / "logs", Path(root), name, jobs).train(fits)
        run.update(references={fit.label: fit.version for fit in fits})
        facts = _judged(config, plan, fits, against)
        run.write_text("compare.json", json.dumps(facts, indent=2) + "\n")
        _show(run, facts)
        run.finish("finished")


def _check(plan: Mapping[str, Variant], against: str, seeds: Sequence[int], jobs: int) -> None:
    if len(plan) < 2 or against not in plan:
        known = ", ".join(plan)
        raise ConfigError(f"Compare two variants at least, against one of them: {known}.")
    for key, variant in plan.items():
        own = list(seeds if variant.seeds is None else variant.seeds)
        if not own or len(set(own)) < len(own):
            raise ConfigError(f"The seeds of {key} are {own}: give one at least, none twice.")
    if jobs < 1:
        raise ConfigError(f"jobs is {jobs}: give 1 or more.")


def _resolved(words: Sequence[str]) -> dict[str, Any]:
    """Return a recipe as its run will write it down, to the last default; nothing is loaded."""
    from kd.parsing import check_groups
    from kd.recipes import run_recipe  # torch comes with it, and help needs none

    with redirect_stdout(StringIO()) as said, suppress(SystemExit):
        run_recipe(["fit", *words, "--print_config"])
    recipe = dict(yaml.safe_load(said.getvalue()))
    check_groups(recipe, ("data", "model", "run", "trainer"))
    return recipe


def _without_teacher(recipe: Mapping[str, Any]) -> list[str]:
    """Return the options that take the teacher away, with all that needs one."""
    model, augment = recipe["model"], recipe["data"].get("augment")
    if model["teacher"] is None:
        raise ConfigError("model.teacher is null: name variants to compare, or another recipe.")
    named = {key: term for key, term in (model["objectives"] or {}).items() if term}
    kinds = {key: pkgutil.resolve_name(term["class_path"]) for key, term in named.items()}
    options = ["--model.teacher=null"]
    options += [f"--model.objectives.{key}=null" for key, one in kinds.items() if one.uses_teacher]
    if kinds and not any(kind.uses_labels for kind in kinds.values()):
        options.append("--model.objectives.labels=HardLabel")
    if augment and augment["labels"] != "keep":
        options.append("--data.augment.labels=keep")
    if recipe["run"]["monitor"] in ("val/agreement", "val/objective"):
        options.append("--run.monitor=val/accuracy")
    return options


def _judged(
    config: str, plan: Mapping[str, Variant], fits: Sequence[Fit], against: str
) -> dict[str, Any]:
    """Return what each variant is worth and what it costs, and the verdicts, as plain values."""
    right, rows = _right(fits)
    facts: dict[str, Any] = {"recipe": config, "rows": rows, "variants": [], "comparisons": []}
    results = [fit.manifest["results"] for fit in fits]
    facts["teacher"] = next((one["teacher"] for one in results if "teacher" in one), None)
    for key, variant in plan.items():
        mine = [fit for fit in fits if fit.variant == key]
        # equally large; what else the machine did made some slower
        fastest = max((fit.student for fit in mine), key=itemgetter("rows_per_second"))
        facts["variants"].append(
            {
                "name": key,
                "options": variant.options,
                "seeds": [fit.seed for fit in mine],
                "accuracy": right[key].mean(axis=1).tolist(),
                "mean": float(right[key].mean()),
                **{name: fastest[name] for name in ("parameters", "megabytes", "rows_per_second")},
                "steps": mine[0].steps,
                "runs": [str(fit.version) for fit in mine],
            }
        )
        if key != against:
            verdict = judge(right[key], right[against])
            told = {"variant": key, "against": against, **asdict(verdict)}
            facts["comparisons"].append({**told, "verdict": verdict.words})
    return facts


def _right(fits: Sequence[Fit]) -> tuple[dict[str, NDArray[np.float64]], int]:
    """Return what each row adds to the accuracy, `[seeds, rows]` by variant, and the rows."""
    said = [read_predictions(fit.version / VALIDATION) for fit in fits]
    first, found = said[0], dict[str, list[NDArray[np.float64]]]()
    for fit, one in zip(fits, said, strict=True):
        is_same = (one.labels, one.texts, one.pairs) == (first.labels, first.texts, first.pairs)
        if not (is_same and np.array_equal(one.truth, first.truth)):
            raise RunError(
                f"{fit.label} was validated on other rows than {fits[0].label}: give all the same "
                "data.source.validation, or the same data.split_seed."
            )
        found.setdefault(fit.variant, []).append(one.is_right(one.student))
    return {key: np.stack(rows) for key, rows in found.items()}, len(first)


def _show(run: Run, facts: Mapping[str, Any]) -> None:
    """Write what was found for people, and print it."""
    teacher = facts["teacher"]
    lines = [{"name": "teacher", "mean": teacher["accuracy"], **teacher}] if teacher else []
    lines += facts["variants"]
    columns = [Column(one, justify="right" if one else "left") for one in _HEADINGS]
    table, points, text = Table(*columns, box=ROUNDED), [], []
    for line in lines:
        is_teacher, speed = "runs" not in line, line["rows_per_second"]
        seeds = "" if is_teacher else "  ".join(f"{one:.1%}" for one in line["accuracy"])
        cells = [line["name"], f"{line['mean']:.1%}", seeds, f"{line['parameters']:,}"]
        cells += [f"{line['megabytes']:.1f}", f"{speed:,.0f}"]
        table.add_row(*cells)
        text.append(f"| {' | '.join(cells)} |")
        size = line["megabytes"]
        points.append(Point(line["name"], line["mean"], size, 1000 / speed, is_teacher))
    ends = [
        (one["variant"], *(100 * one[key] for key in ("difference", "low", "high")))
        for one in facts["comparisons"]
    ]
    pictures = [intervals(ends), pareto(points)]
    for picture in pictures:
        with replacing(run.path / f"{picture.name}.png") as file:
            file.write(picture.png())
    sentences = [_sentence(facts, one) for one in facts["comparisons"]]
    rule = f"|{' --- |' + ' ---: |' * (len(_HEADINGS) - 1)}"
    parts = [f"# {facts['recipe']}, compared", "\n".join(f"- {one}" for one in sentences)]
    parts += ["\n".join([f"| {' | '.join(_HEADINGS)} |", rule, *text]), _METHOD]
    parts += [f"![{picture.alt}]({picture.name}.png)" for picture in pictures]
    run.write_text("compare.md", "\n\n".join(parts) + "\n")
    print_table(table)
    for sentence in sentences:
        print_line(sentence)


def _sentence(facts: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return a verdict in words."""
    one, other = (
        next(line for line in facts["variants"] if line["name"] == found[key])
        for key in ("variant", "against")
    )
    does = "makes no difference" if found["verdict"] == "no difference" else found["verdict"]
    mid, low, high = (f"{100 * found[key]:+.1f}" for key in ("difference", "low", "high"))
    seeds, others = len(one["seeds"]), len(other["seeds"])
    many = f"{seeds} seed{'s' * (seeds > 1)}" if seeds == others else f"{seeds} and {others} seeds"
    if not found["knows_training"]:
        many += ", too few to know the luck of training"
    return (
        f"{one['name']} {does}: {mid} points of accuracy [{low}, {high}] over {other['name']} "
        f"({many}, {facts['rows']:,} rows, {one['steps']:,} steps each)"
    )
