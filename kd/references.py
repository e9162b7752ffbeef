"""The models that a recipe names: found among the runs, and trained first where they are missing.

Rank 0 alone does this, before any model loads.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from kd.console import print_line
from kd.errors import ConfigError, RunError
from kd.runs import is_reference, resolve
from kd.teachers import Reference

__all__ = ["find_models"]


def find_models(
    references: Mapping[str, Reference | None], recipes: Sequence[Path], train_missing: bool
) -> dict[str, str]:
    """Find the student folder that each run reference stands for.

    Args:
        references: Model paths, each with the recipe that would train it.
        recipes: Files of the command line; a missing model's recipe may lie beside one of them.
        train_missing: Whether a model that is not there is trained.

    Returns:
        Folder by reference; paths of models are not in it.

    Raises:
        ConfigError: If a model and its recipe are both missing.
        RunError: If there is no finished run, or a training fails.
    """
    found: dict[str, str] = {}
    for path, reference in references.items():
        if reference and train_missing and not _is_trained(path):
            _train(Path(path), reference, recipes)
        if is_reference(path):
            found[path] = str(resolve(path).student)
            print_line(f"{path} = {found[path]}")
    return found


def _is_trained(path: str) -> bool:
    """Tell whether a path needs no recipe: a model folder, or a run with a finished student."""
    if not is_reference(path):
        return Path(path).exists()
    try:
        resolve(path)
    except RunError:
        return False
    return True


def _train(path: Path, reference: Reference, recipes: Sequence[Path]) -> None:
    """Run the recipe of a model, as an ordinary run in a process of its own."""
    places = [Path(reference.recipe)]
    places += [used.parent / places[0].name for used in recipes]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise ConfigError(
            f"The teacher {path} is not trained yet, and its recipe {reference.recipe} is not "
            "there: set model.teacher's recipe to a file."
        )
    print_line(f"{path} is not there yet: training it by {file}")
    command = [sys.executable, "-m", "kd", "fit", "--config", str(file)]
    command += [f"--run.root={path.parent}", f"--run.name={path.name}", *reference.options]
    if subprocess.run(command).returncode:
        raise RunError(f"The teacher {path} could not be trained by {file}: see above.")
