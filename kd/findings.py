"""What a finished fit has left behind, read again: figures, pictures, and what others found of it.

All comes from files of the run, and of the newest `bench` and `compare` beside it; this room asks
no model and writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd import pictures
from kd.calibration import calibration_error, choices, cross_fitted, probabilities, reliability
from kd.errors import RunError
from kd.origins import comparison_of
from kd.pictures import Picture
from kd.predictions import VALIDATION, Predictions, read_predictions
from kd.runs import read_manifest, versions
from kd.slices import Curve, Flip, cascade_curve, flips, share_of

__all__ = ["Findings"]

_VALIDATED = {
    "val/accuracy": "accuracy",
    "val/f1": "macro-F1",
    "val/agreement": "agreement with the teacher",
}
_FOUND = ("found", "missed", "added", "left out")
_SAME = ("both", "teacher alone", "student alone", "neither")


@dataclass(frozen=True)
class Findings:
    """What is known of a run.

    Args:
        version: Its folder.
        predictions: What its student and teacher said of the validation rows.
    """

    version: Path
    predictions: Predictions

    @classmethod
    def of(cls, version: Path) -> Findings:
        """Read a version; `RunError` where it has no predictions of validation rows."""
        found = read_predictions(version / VALIDATION)
        if not len(found):
            raise RunError(f"{version / VALIDATION} has no rows: give the recipe validation rows.")
        return cls(version, found)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The story that the run tells of itself."""
        return read_manifest(self.version)

    @cached_property
    def bench(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest finished `bench` of this version that can be read, and what it measured."""
        for other in reversed(versions(self.version.parent)):
            with suppress(OSError, ValueError, RunError):
                manifest = read_manifest(other)
                run = (manifest.get("references") or {}).get("run")
                known = (manifest.get("command"), manifest.get("status")) == ("bench", "finished")
                if known and run and Path(run).resolve() == self.version.resolve():
                    return other, dict(json.loads((other / "bench.json").read_bytes()))
        return None

    @cached_property
    def compare(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest `compare` of this recipe, and what it found."""
        return comparison_of(self.version)

    @cached_property
    def logits(self) -> dict[str, NDArray[np.float32]]:
        """The logits by role, those of the student first."""
        p = self.predictions
        return {"student": p.student} | ({} if p.teacher is None else {"teacher": p.teacher})

    @cached_property
    def chosen(self) -> dict[str, NDArray[np.int64]]:
        """The choices by role."""
        several = self.predictions.multi_label
        return {
            role: choices(probabilities(logits, several), several)
            for role, logits in self.logits.items()
        }

    @cached_property
    def scores(self) -> dict[str, dict[str, Any]]:
        """Figures by role: what the fit has measured, and what its predictions tell."""
        p, found = self.predictions, {}
        for role, logits in self.logits.items():
            bins = reliability(probabilities(logits, p.multi_label), p.truth, p.multi_label)
            found[role] = {
                **((self.manifest.get("results") or {}).get(role) or {}),
                "accuracy": share_of(p.is_right(logits)),
                "f1": p.f1(logits),
                "calibration_error": calibration_error(bins),
            }
        if p.teacher is not None:
            same = self.chosen["student"] == self.chosen["teacher"]
            found["student"]["agreement"] = float(same.mean())
        return found

    @cached_property
    def calibrated_error(self) -> float:
        """The student's calibration error, after a temperature that was fitted on other rows."""
        p = self.predictions
        return calibration_error(reliability(self._calibrated, p.truth, p.multi_label))

    @cached_property
    def curve(self) -> Curve | None:
        """What it brings to ask the teacher; null without one."""
        return None if self.predictions.teacher is None else cascade_curve(self.predictions)

    @cached_property
    def flips(self) -> dict[str, list[Flip]]:
        """The rows, by the role that has them right where the other errs."""
        p = self.predictions
        return {role: flips(p, role == "teacher") for role in ("teacher", "student")}

    @cached_property
    def pictures(self) -> dict[str, Picture]:
        """Pictures of the training and of the answers, by name."""
        p, found = self.predictions, self._training()
        for role, chosen in self.chosen.items():
            axes = ("label", f"{role}'s choice")
            found.append(self._confusion(f"confusion_{role}", p.truth, chosen, axes, _FOUND))
        lines = {"before": probabilities(p.student, p.multi_label), "after": self._calibrated}
        found.append(
            pictures.reliability(
                {
                    f"{when} temperature": reliability(shares, p.truth, p.multi_label)
                    for when, shares in lines.items()
                }
            )
        )
        if self.curve is not None:
            both, axes = self.chosen, ("teacher's choice", "student's choice")
            found.append(
                self._confusion("agreement", both["teacher"], both["student"], axes, _SAME)
            )
            alone, c = self.scores["teacher"]["accuracy"].value, self.curve
            found.append(pictures.cascade(c.asked, c.accuracy, alone, c.chosen))
        return {picture.name: picture for picture in found}

    @cached_property
    def _calibrated(self) -> NDArray[np.float64]:
        p = self.predictions
        return cross_fitted(p.student, p.truth, p.multi_label)

    def _confusion(
        self,
        name: str,
        truth: NDArray[np.int64],
        chosen: NDArray[np.int64],
        axes: tuple[str, str],
        cells: tuple[str, ...],
    ) -> Picture:
        """Draw which classes are taken for which or, of several, what becomes of each."""
        from sklearn.metrics import confusion_matrix, multilabel_confusion_matrix

        labels = self.predictions.labels
        if not self.predictions.multi_label:
            counts = confusion_matrix(truth, chosen, labels=range(len(labels)))
            return pictures.matrix(name, counts, labels, labels, axes)
        counts = multilabel_confusion_matrix(truth, chosen).reshape(-1, 4)[:, [3, 2, 1, 0]]
        return pictures.matrix(name, counts, labels, cells, ("class", axes[1]))

    def _training(self) -> list[Picture]:
        """Draw the losses and what validation said, as far as they were logged."""
        import pandas as pd

        try:
            frame = pd.read_csv(self.version / "metrics.csv")
        except (OSError, ValueError):
            return []

        def lines(names: Mapping[str, str]) -> dict[str, list[tuple[float, float]]]:
            told = {label: frame[["step", name]].dropna() for name, label in names.items()}
            return {
                label: list(rows.itertuples(index=False, name=None))
                for label, rows in told.items()
                if len(rows)
            }

        names = list(map(str, frame))
        terms = {name: name.removeprefix("train/") for name in names if name.startswith("train/")}
        if "train/loss" in terms:
            terms["train/loss"] = "loss, the weighted sum"
        measured = {name: label for name, label in _VALIDATED.items() if name in names}
        teacher = frame.get("val/teacher_accuracy", pd.Series(dtype=float)).dropna()
        level = ("teacher's accuracy", float(teacher.iloc[-1])) if len(teacher) else None
        found = []
        if losses := lines(terms):
            found.append(pictures.curves("losses", losses, "loss"))
        if shares := lines(measured):
            found.append(pictures.curves("validation", shares, "share of rows", level, True))
        return found
