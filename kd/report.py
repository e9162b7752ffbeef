"""The command that tells what a run is worth: a page, its Markdown, its figures as JSON.

This room writes files; what stands in them comes from :mod:`kd.findings` and :mod:`kd.sections`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kd.console import print_line
from kd.errors import RunError
from kd.files import replacing
from kd.findings import Findings
from kd.page import as_html, as_markdown
from kd.runs import claim, resolve
from kd.sections import ROLES, THRESHOLDS, page_of
from kd.slices import slices

__all__ = ["report"]


def report(run: Path, output: Path | None = None) -> None:
    """Write what a run is worth: report.html, report.md with its pictures, and report.json.

    Args:
        run: Such as runs/quickstart, which is its newest finished fit, or a version of it.
        output: The folder to write, which must not exist; null is a new version beside the run.

    Raises:
        RunError: If there is no such fit, it wrote no validation.parquet, or the folder exists.
    """
    if output is not None and output.exists():
        raise RunError(f"{output} is there already: give another output, or move it away.")
    version = resolve(run).version
    found = Findings.of(version)
    page = page_of(found)
    files = {f"{picture.name}.png": picture.png() for picture in page.pictures()}
    files["report.html"] = as_html(page).encode()
    files["report.md"] = as_markdown(page).encode()
    files["report.json"] = (json.dumps(_figures(found, page.lead), indent=2) + "\n").encode()
    if output is None:
        claimed = claim(version.parent.parent, version.parent.name, command="report")
        beside = {"bench": found.bench, "compare": found.compare}
        read = {name: str(one[0]) for name, one in beside.items() if one}
        with claimed.recorded():
            claimed.update(references={"run": str(version), **read})
            _write(claimed.path, files)
            claimed.finish("finished")
    else:
        _write(output, files)
    print_line(page.lead)
    print_line(f"report = {(output or claimed.path) / 'report.html'}")


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with replacing(folder / name) as file:
                file.write(content)
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error.strerror}): make room.") from error


def _figures(found: Findings, verdict: str) -> dict[str, Any]:
    """Return what report.json holds."""
    p, curve = found.predictions, found.curve
    models = {
        role: {**one, "accuracy": asdict(one["accuracy"])} for role, one in found.scores.items()
    }
    models["student"]["calibrated_error"] = found.calibrated_error
    return {
        "run": str(found.version),
        "rows": len(p),
        "labels": p.labels,
        "verdict": verdict,
        "models": models,
        "slices": [asdict(one) for one in slices(p)],
        "flips": None if p.teacher is None else {
            f"{role} is right": len(found.flips[role]) for role in ROLES
        },
        "cascade": None if curve is None else [
            dict(zip(("threshold", "asked", "accuracy"), (t, *curve.at(t)), strict=True))
            for t in THRESHOLDS
        ],
        "compare": found.compare and str(found.compare[0]),
        "bench": found.bench and str(found.bench[0]),
        "pictures": {name: picture.alt for name, picture in found.pictures.items()},
    }  # fmt: skip
