"""Where a model came from: its run, its recipe, the models that taught it, what it was compared to.

Read from what runs and exports say of themselves; no model is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd.errors import RunError
from kd.layout import read_facts
from kd.runs import is_reference, read_manifest, resolve, versions

__all__ = [
    "Taught",
    "comparison_of",
    "differences",
    "essence",
    "recipe_of",
    "run_of",
    "teachers_of",
]

_IN_CHECKPOINT = ("model.learning_rate", "model.weight_decay")


@dataclass(frozen=True)
class Taught:
    """A model that a run was taught by.

    Args:
        path: Its folder or hub id.
        label_names: Class names in the order of its logits, where it does not say them itself.
        revision: Branch, tag or commit on the hub.
        model_type: Its family, where its configuration does not say it.
    """

    path: str
    label_names: tuple[str, ...] | None = None
    revision: str | None = None
    model_type: str | None = None


def run_of(model: str | Path) -> Path | None:
    """Return the version folder of the run that made a model; null where that is not here.

    A run that has the place of another, with other data, is not the one.

    Args:
        model: An exported folder, a run, or a hub id.

    Returns:
        Such as ``runs/quickstart/version_0``.

    Raises:
        RunError: If it names a run that has no student.
    """
    if is_reference(model):
        return resolve(model).version
    facts = read_facts(Path(model))
    measured = (facts.measured if facts else None) or {}
    made_by = measured.get("run")
    if not made_by or not is_reference(made_by):
        return None
    version = resolve(made_by).version
    manifest = read_manifest(version)
    same = all(measured.get(fact) == manifest.get(fact) for fact in ("seed", "data"))
    return version if same else None


def essence(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe without where its run lies and what that went on from."""
    return {**recipe, "config": None, "run": recipe["run"]["monitor"]}


def recipe_of(version: Path) -> dict[str, Any] | None:
    """Return the :func:`essence` of what a fit was trained by.

    Args:
        version: A version folder.

    Returns:
        Its config.yaml; null where it is no fit, or cannot be read.
    """
    import yaml

    try:
        if read_manifest(version)["command"] != "fit":
            return None
        return essence(yaml.safe_load((version / "config.yaml").read_bytes()))
    except (OSError, yaml.YAMLError, RunError, KeyError, TypeError):
        return None


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return in what a recipe differs from the one that it continues, a line for each key.

    Args:
        old: The :func:`essence` of what is continued.
        new: That of what continues it.

    Returns:
        Lines such as ``trainer.max_epochs was 3 and is 5``.
    """
    before, now = _flat(old), _flat(new)
    lines = []
    for key in sorted({*before, *now}):
        was, is_now = before.get(key), now.get(key)
        if was != is_now:
            stays = "; the checkpoint has its own, which stays" if key in _IN_CHECKPOINT else ""
            lines.append(f"{key} was {was} and is {is_now}{stays}")
    return lines


def _flat(recipe: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in recipe.items():
        inner = _flat(value, f"{before}{key}.") if isinstance(value, Mapping) and value else None
        found |= {f"{before}{key}": value} if inner is None else inner
    return found


def comparison_of(version: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest finished ``compare`` beside a fit that trained the same recipe.

    Args:
        version: The fit.

    Returns:
        The run of ``compare`` and its compare.json; null where there is none.
    """
    own = recipe_of(version)
    for other in reversed(versions(version.parent)):
        try:
            manifest = read_manifest(other)
            if own is None or (manifest["command"], manifest["status"]) != ("compare", "finished"):
                continue
            facts = dict(json.loads((other / "compare.json").read_bytes()))
            fits = [recipe_of(Path(run)) for one in facts["variants"] for run in one["runs"]]
        except (OSError, ValueError, KeyError, TypeError, RunError):
            continue
        seed = {"seed_everything": own.get("seed_everything")}
        if own in [{**fit, **seed} for fit in fits if fit]:
            return other, facts
    return None


def teachers_of(version: Path) -> list[Taught]:
    """Return the models that answer a text together where a run asks its teacher.

    Args:
        version: A version folder.

    Returns:
        None without a teacher, several of an ensemble; of folds, one.
    """
    import yaml

    try:
        recipe = yaml.safe_load((version / "config.yaml").read_bytes())
        references = read_manifest(version).get("references") or {}
        named = list(_models(recipe["model"]["teacher"]))
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return []
    found = []
    for one in named:
        path = one["path"]
        fold = next((name for name in references if name.startswith(f"{path}_fold")), path)
        names = one.get("label_names")
        found.append(
            Taught(
                str(references.get(fold, path)),
                tuple(names) if names else None,
                one.get("revision"),
                one.get("model_type"),
            )
        )
    return found


def _models(part: object) -> Iterator[Mapping[str, Any]]:
    """Yield what says of a model where it is, in a teacher's part of a recipe."""
    if isinstance(part, Mapping):
        if isinstance(part.get("path"), str):
            yield part
        for inner in part.values():
            yield from _models(inner)
