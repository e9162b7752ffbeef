"""The runs that a recipe names: found, and teachers trained first where they are missing.

Rank 0 alone looks for models, before any of them loads.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from kd.classifiers import TextClassifier
from kd.console import print_line
from kd.errors import ConfigError, RunError
from kd.models import choose_classifier
from kd.runs import ANNOTATIONS, is_reference, read_manifest, resolve, versions
from kd.signals import ended
from kd.teachers import Reference

__all__ = ["find_annotations", "find_models", "find_recipe", "find_student", "is_trained"]


def find_annotations(path: str, taken: Mapping[str, str] | None = None) -> str:
    """Find the file that a run of ``annotate`` wrote.

    Args:
        path: Folder of the run, which means its newest finished version, or a version of it; any
            other path is the file itself.
        taken: What a run that is continued took its references for.

    Returns:
        Path of the file.

    Raises:
        RunError: If there is no run, or it has no finished version.
    """
    if taken and path in taken:
        return taken[path]
    folder = Path(path)
    if not os.path.exists(folder) and not folder.suffix:
        raise RunError(
            f"data.rationales.path={path} is not there: run kd annotate first, with a recipe such "
            "as configs/annotate_sst2.yaml."
        )
    if not os.path.isdir(folder):
        return path
    if (folder / ANNOTATIONS).is_file():
        return str(folder / ANNOTATIONS)
    states = {version: read_manifest(version) for version in versions(folder)}
    for version, manifest in reversed(states.items()):
        if manifest.get("status") == "finished" and (version / ANNOTATIONS).is_file():
            print_line(f"{path} = {version / ANNOTATIONS}")
            return str(version / ANNOTATIONS)
    told = ", ".join(f"{version.name} is {m.get('status')}" for version, m in states.items())
    raise RunError(
        f"data.rationales.path={path} has no finished run of kd annotate ({told or 'no run'}): "
        "give its command again, which goes on where it stopped."
    )


def find_student(path: str) -> TextClassifier:
    """Return the student of a run, or the model of any other path, not loaded yet."""
    kind = choose_classifier(resolve(path).student if is_reference(path) else path)
    return kind(path=path)


def find_models(
    references: Mapping[str, Reference | None],
    recipes: Sequence[Path],
    train_missing: bool,
    taken: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Find the student folder that each run reference stands for.

    Args:
        references: Model paths, each with the recipe that would train it.
        recipes: Files of the command line; a missing model's recipe may lie beside one of them.
        train_missing: Whether a model that is not there is trained.
        taken: What a run that is continued took its references for; folders still there are kept.

    Returns:
        Folder by reference; paths of models are not in it.

    Raises:
        ConfigError: If a model and its recipe are both missing.
        RunError: If there is no finished run, or a training fails.
    """
    found: dict[str, str] = {}
    for path, reference in references.items():
        if taken and os.path.isdir(taken.get(path, "")):
            found[path] = taken[path]
            continue
        if reference and train_missing and not is_trained(path):
            _train(Path(path), reference, recipes)
        if is_reference(path):
            found[path] = str(resolve(path).student)
            print_line(f"{path} = {found[path]}")
    return found


def is_trained(path: str) -> bool:
    """Tell whether a path needs no recipe: a model folder, or a run with a finished student."""
    if not is_reference(path):
        return os.path.exists(path)
    try:
        resolve(path)
    except RunError:
        return False
    return True


def find_recipe(reference: Reference, recipes: Sequence[Path]) -> Path | None:
    """Return the recipe that would train a model: by its path, or beside one that is used."""
    places = [Path(reference.recipe)]
    places += [used.parent / places[0].name for used in recipes]
    return next((place for place in places if os.path.isfile(place)), None)


def _train(path: Path, reference: Reference, recipes: Sequence[Path]) -> None:
    """Run the recipe of a model, as an ordinary run in a process of its own."""
    file = find_recipe(reference, recipes)
    if file is None:
        raise ConfigError(
            f"The teacher {path} is not trained yet, and its recipe {reference.recipe} is not "
            "there: set model.teacher's recipe to a file."
        )
    print_line(f"{path} is not there yet: training it by {file}")
    command = [sys.executable, "-m", "kd", "fit", "--config", str(file)]
    command += [f"--run.root={path.parent}", f"--run.name={path.name}", *reference.options]
    with ended(subprocess.Popen(command)) as process:
        code = process.wait()
    if code:
        raise RunError(f"The teacher {path} could not be trained by {file}: see above.")
