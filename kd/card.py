"""The model card: what a shipped folder says of itself to people, and to the hub's search.

Every figure was measured, and what is not known is called so. This room knows no model; ``card.md``
beside it has the words.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import yaml

from kd.layout import CARD, CHECKSUMS, ONNX, Facts, read_facts, write_checksums, write_facts
from kd.page import as_plain

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

__all__ = ["publishable", "without_places", "write_card"]

_ROLES = {
    "teacher": "the teacher",
    "torch": "**this student**, PyTorch",
    "onnx": "**this student**, ONNX",
    "int8": "**this student**, ONNX with weights of 8 bits",
}
_EXCERPT = {
    "model": "student teacher objectives learning_rate weight_decay warmup schedule",
    "data": "source train_rows labelled_rows batch_size max_length augment",
    "trainer": "max_epochs max_steps",
}
_RUN = re.compile(r"[^/]+/version_\d+(/student)?$")


def write_card(folder: Path, name: str, facts: Facts, recipe: Mapping[str, Any]) -> None:
    """Write the card of a folder that has all but its checksums.

    Args:
        folder: What is exported.
        name: By which it will be loaded: a path, or a name on the hub.
        facts: Of the export, with what was measured.
        recipe: The run's ``config.yaml``; empty where it is not known.
    """
    from huggingface_hub import ModelCard

    measured = without_places(facts.measured or {})
    excerpt = _without_nulls(
        {
            part: {key: recipe[part].get(key) for key in keys.split()}
            for part, keys in _EXCERPT.items()
            if part in recipe
        }
    )
    known = without_places(excerpt)
    model = known.get("model", {})
    source = known.get("data", {}).get("source", {})
    origin = source.get("path") or source.get("train") or ("sample" if recipe else "unknown")
    origin = origin if isinstance(origin, str) else ", ".join(origin)
    card = ModelCard.from_template(
        _metadata(Path(name).name, origin, measured, excerpt.get("model", {})),
        template_str=files("kd").joinpath("card.md").read_text(encoding="utf-8"),
        title=Path(name).name,
        name=name,
        facts=facts,
        measured=measured,
        roles=_ROLES,
        alone=measured["without_distillation"],
        classes=", ".join(f'"{as_plain(label)}"' for label in facts.labels),
        source=as_plain(origin),
        files={
            path.relative_to(folder).as_posix(): path.stat().st_size / 1e6
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
        onnx=ONNX if (folder / ONNX).is_file() else None,
        model=model,
        loss=_equation(model.get("objectives", {})),
        excerpt=yaml.safe_dump(known, sort_keys=False, allow_unicode=True, width=90),
        percent=lambda share: f"{share:.1%}",
        told=_told,
        plain=as_plain,
    )
    card.save(folder / CARD)


@contextmanager
def publishable(folder: Path, name: str) -> Iterator[Path]:
    """Yield a copy for the hub of what the checksums know, which tells no place of this machine.

    Args:
        folder: What was exported.
        name: On the hub, by which the card's code loads it there.

    Yields:
        The copy, whole by checksums of its own.
    """
    with TemporaryDirectory() as temporary:
        copy = Path(temporary)
        for file in json.loads((folder / CHECKSUMS).read_bytes()):
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / file, copy / file)
        facts = read_facts(copy)
        assert facts is not None
        write_facts(copy, replace(facts, measured=without_places(facts.measured)))
        card = (copy / CARD).read_text(encoding="utf-8")
        if known := re.search(r'from_pretrained\((".*")\)', card):
            card = card.replace(known[1], json.dumps(name))
        (copy / CARD).write_text(card, encoding="utf-8")
        write_checksums(copy)
        yield copy


def without_places(value: Any) -> Any:
    """Return facts or settings in which an absolute path is its last name; of a run, its last two.

    So what is published tells nothing of the machine; names of the hub and relative paths stay.
    """
    if isinstance(value, dict):
        return {key: without_places(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(one) for one in value]
    if not isinstance(value, str) or not Path(value).is_absolute():
        return value
    run = _RUN.search(Path(value).as_posix())
    return run.group() if run else Path(value).name


def _metadata(
    title: str, origin: str, measured: Mapping[str, Any], model: Mapping[str, Any]
) -> ModelCardData:
    from huggingface_hub import EvalResult, ModelCardData

    path = model.get("student", {}).get("init_args", {}).get("path")
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=origin,
            dataset_name=origin,
            dataset_split="validation",
            metric_type=metric,
            metric_value=round(value, 4),
        )
        for metric, value in (measured["scores"] or {}).get("torch", {}).items()
    ]
    tags = ["knowledge-distillation"] if model.get("teacher") else []
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=[*tags, *(["onnx"] if measured["parity"] else [])],
        base_model=path if path and _is_of_hub(path) else None,
        model_name=title,
        eval_results=results or None,
    )


def _is_of_hub(path: str) -> bool:
    """Tell whether a name is surely the hub's: it lies in its cache, and is no folder here."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(path, "config.json")
    except HFValidationError:
        return False
    return isinstance(cached, str) and not Path(path).exists()


def _equation(objectives: Mapping[str, Any]) -> str:
    terms = []
    for name, term in objectives.items():
        settings = term.get("init_args", {})
        weight = settings.get("weight", 1)
        shown = weight if isinstance(weight, int | float) else "scheduled"
        terms.append(f"{shown} * {name}[{term['class_path'].rpartition('.')[2]}]")
    return " + ".join(terms)


def _without_nulls(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_nulls(one) for key, one in value.items() if one is not None}


def _told(facts: Mapping[str, Any] | None) -> str:
    told = [f"{key} {value}" for key, value in (facts or {}).items() if value is not None]
    return ", ".join(told) or "unknown"
