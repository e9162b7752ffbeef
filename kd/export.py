"""From a run to a folder that ships: weights, tokenizer, class names.

``checkpoints/model`` in a run holds what its weights belong to (configuration and tokenizer), so
that any checkpoint can be exported, of a run that was cut off too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from kd.checkpoints import MODEL_FOLDER, SafeCheckpointIO
from kd.errors import RunError
from kd.models import choose_classifier
from kd.runs import MANIFEST, read_manifest, versions

__all__ = ["export", "export_checkpoint"]


def export_checkpoint(run: Path, checkpoint: Literal["best", "resume"], folder: Path) -> None:
    """Write the student of a run as a folder that ``transformers`` loads.

    Args:
        run: A version folder.
        checkpoint: Which of its checkpoints.
        folder: Where to write; must not exist, so that nothing is mixed or lost.

    Raises:
        RunError: If the checkpoint is missing, or the folder is there.
    """
    file = run / "checkpoints" / f"{checkpoint}.ckpt"
    if not file.is_file():
        raise RunError(f"{run} has no {checkpoint} checkpoint: nothing was saved before it ended.")
    if folder.exists():
        raise RunError(f"{folder} is there already: give another output, or move it away.")
    state = SafeCheckpointIO().load_checkpoint(file)["state_dict"]
    prefix = "student.network."
    weights = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
    described = run / MODEL_FOLDER
    model = choose_classifier(described).from_folder(described, weights)
    temporary = folder.with_name(f".{folder.name}.tmp")
    model.save(temporary)
    temporary.rename(folder)


def export(run: Path, output: Path, checkpoint: Literal["best", "resume"] = "best") -> None:
    """Write the student of a run, finished or not, as a folder that transformers loads.

    Args:
        run: A version such as runs/quickstart/version_0; runs/quickstart is its newest fit.
        output: The folder to write; it must not exist.
        checkpoint: The best one by validation, or the newest.

    Raises:
        RunError: If there is no such run or checkpoint.
    """
    fits = [path for path in versions(run) if read_manifest(path).get("command") == "fit"]
    version = run if (run / MANIFEST).is_file() else next(reversed(fits), None)
    if version is None:
        raise RunError(f"{run} is no run: give a folder such as runs/quickstart/version_0.")
    export_checkpoint(version, checkpoint, output)
    print(f"{checkpoint} checkpoint of {version} exported to {output}")  # noqa: T201
