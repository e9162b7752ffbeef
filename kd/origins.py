"""Where a model came from: the run that made it, and the models that taught it there.

Read from what runs and exports say of themselves; no model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from kd.layout import read_facts
from kd.runs import is_reference, read_manifest, resolve

__all__ = ["run_of", "teachers_of"]


def run_of(model: str | Path) -> Path | None:
    """Return the version folder of the run that made a model; null where that is not here.

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
    made_by = (facts.measured or {}).get("run") if facts else None
    return resolve(made_by).version if made_by and is_reference(made_by) else None


def teachers_of(version: Path) -> list[str]:
    """Return the models that answer a text together where a run asks its teacher.

    Args:
        version: A version folder.

    Returns:
        Folders and hub ids: none without a teacher, several of an ensemble; of folds, one.
    """
    import yaml

    try:
        recipe = yaml.safe_load((version / "config.yaml").read_bytes())
        references = read_manifest(version).get("references") or {}
        named = list(_paths(recipe["model"]["teacher"]))
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return []
    found = []
    for path in named:
        fold = next((name for name in references if name.startswith(f"{path}_fold")), path)
        found.append(str(references.get(fold, path)))
    return found


def _paths(part: object) -> Iterator[str]:
    """Yield the paths of models in a teacher's part of a recipe."""
    if isinstance(part, Mapping):
        if isinstance(part.get("path"), str):
            yield part["path"]
        for inner in part.values():
            yield from _paths(inner)
