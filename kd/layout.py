"""The folder that ships: which files it has, what they say of it, and whether they are whole.

Written by `export`, read by the :class:`~kd.inference.Classifier` and by ``export --verify``. This
room knows no model, and starts without torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kd.errors import ModelError, RunError
from kd.files import replacing
from kd.runs import checksum

__all__ = [
    "CARD",
    "CHECKSUMS",
    "FACTS",
    "FILES",
    "INT8",
    "ONNX",
    "Facts",
    "read_facts",
    "verify_folder",
    "write_checksums",
    "write_facts",
]

ONNX = "onnx/model.onnx"
"""The student for ONNX Runtime; where transformers.js and Optimum look for it too."""

INT8 = "onnx/model_int8.onnx"
"""The same with weights of 8 bits."""

FACTS = "kd.json"
"""What the other files do not say."""

CARD = "README.md"
"""The model card, by the hub's name for it."""

CHECKSUMS = "checksums.json"
"""SHA-256 and size of every other file."""

FILES = {"onnx": ONNX, "int8": INT8}
"""The model of each backend of ONNX Runtime."""

_FORMAT = 1
_COLDEST = 1e-6  # temperature; divided by less, logits overflow


@dataclass(frozen=True)
class Facts:
    """What the folder says of itself, in ``kd.json``.

    Args:
        labels: Class names; their order is that of the logits.
        multi_label: Whether a text may have several classes.
        max_length: Tokens after which a text is cut.
        inputs: Names of what the ONNX models read, ``input_ids`` first.
        prefix: Words before the text, by which a sequence-to-sequence model knows its task.
        temperature: T that the logits are divided by before the softmax.
        measured: Figures by name: rows, accuracy, F1, calibration, parity, what was left out and
            why; for people.
    """

    labels: tuple[str, ...]
    multi_label: bool
    max_length: int
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    prefix: str = ""
    temperature: float = 1.0
    measured: dict[str, Any] | None = None


def write_facts(folder: Path, facts: Facts) -> None:
    """Write ``kd.json``."""
    text = json.dumps({"format": _FORMAT, **asdict(facts)}, indent=2, ensure_ascii=False)
    with replacing(folder / FACTS) as file:
        file.write(text.encode() + b"\n")


def read_facts(folder: Path) -> Facts | None:
    """Return what ``kd.json`` says; null where there is none, as in a folder of others.

    Args:
        folder: A model folder.

    Returns:
        The facts.

    Raises:
        ModelError: If the file is broken, or of a later format.
    """
    path = folder / FACTS
    try:
        found = json.loads(path.read_bytes())
        version = found.pop("format")
        if version != _FORMAT:
            raise ModelError(
                f"{path} has format {version!r:.20}, and this kd reads {_FORMAT}: update it."
            )
        lists = {name: tuple(found[name]) for name in ("labels", "inputs")}
        facts = Facts(**found | lists)
        names = (*facts.labels, *facts.inputs, facts.prefix)
        is_sound = all(isinstance(name, str) for name in names) and "input_ids" in facts.inputs
        is_sound = is_sound and isinstance(facts.max_length, int) and facts.max_length > 0
        if not (is_sound and _COLDEST < facts.temperature < math.inf):
            raise ValueError(facts)
        return facts
    except FileNotFoundError:
        return None
    except ModelError:
        raise
    except Exception as error:  # what hostile values raise has no common class
        raise ModelError(f"{path} is broken: export the run again.") from error


def write_checksums(folder: Path) -> None:
    """Write SHA-256 and size of every file: the last write of an export."""
    text = _as_text(_found(folder))  # before there is a temporary file
    with replacing(folder / CHECKSUMS) as file:
        file.write(text.encode())


def verify_folder(folder: Path) -> list[str]:
    """Return what differs from the checksums: a line for each file, none where all is whole.

    Args:
        folder: What `export` wrote.

    Returns:
        Lines such as ``onnx/model.onnx: sha256 differs``.

    Raises:
        RunError: If the folder has no checksums, or they cannot be read.
    """
    path = folder / CHECKSUMS
    try:
        text = path.read_bytes().decode()  # and no line ending is read as another
        wanted = dict(json.loads(text))
        found = _found(folder)
    except FileNotFoundError as error:
        raise RunError(f"{folder} has no {CHECKSUMS}: it is no folder of kd export.") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: export the run again.") from error
    if text != _as_text(wanted):
        return [f"{CHECKSUMS}: not as it was written"]
    lines = {name: f"{name}: missing" for name in wanted.keys() - found.keys()}
    lines |= {name: f"{name}: not of this export" for name in found.keys() - wanted.keys()}
    for name in wanted.keys() & found.keys():
        if found[name] != wanted[name]:
            lines[name] = f"{name}: sha256 differs"
    return [lines[name] for name in sorted(lines)]


def _as_text(checksums: Mapping[str, object]) -> str:
    return json.dumps(checksums, indent=2) + "\n"


def _found(folder: Path) -> dict[str, dict[str, str | int]]:
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        # the hub adds .gitattributes, a download .cache, a clone .git
        is_theirs = name == ".gitattributes" or name.startswith((".git/", ".cache/"))
        if path.is_file() and name != CHECKSUMS and not is_theirs:
            with path.open("rb") as file:
                found[name] = checksum(file)
    return found
