"""From a run to a folder that ships: weights, ONNX, calibration, model card, checksums.

``checkpoints/model`` in a run holds what its weights belong to (configuration and tokenizer), so
that any checkpoint can be exported, of a run that was cut off too. What ONNX and 8 bits change is
measured before they are delivered, on what the run said of its validation rows.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from safetensors import SafetensorError

from kd.backends import Model, ONNXModel, TorchModel
from kd.calibration import (
    calibration_error,
    choices,
    cross_fitted,
    fit_temperature,
    probabilities,
    reliability,
)
from kd.card import publishable, without_places, write_card
from kd.checkpoints import MODEL_FOLDER, SafeCheckpointIO
from kd.classifiers import TextClassifier
from kd.console import print_line, print_table
from kd.conversion import convert, quantise
from kd.errors import ConfigError, RunError
from kd.layout import INT8, ONNX, Facts, verify_folder, write_checksums, write_facts
from kd.models import choose_classifier
from kd.origins import comparison_of, recipe_of
from kd.predictions import VALIDATION, Predictions, read_predictions
from kd.runs import MANIFEST, read_manifest, versions

__all__ = ["export", "export_checkpoint"]

_LARGEST_DIFFERENCE = 1e-4  # of a logit, or of its size where above 1
_PROBES = 256  # texts that PyTorch and ONNX are compared on
_TOGETHER = 32  # of them in a batch, short ones padded to long ones
_LONGEST_PROBE = 512  # tokens, of a model without a limit
_BATCH = 64
_ROUNDING = 1e-9
_SHOWN = 3  # problems in an error


def export(
    run: Path | None = None,
    output: Path | None = None,
    checkpoint: Literal["best", "resume"] = "best",
    onnx: bool = True,
    max_accuracy_loss: float = 0.01,
    push: str | None = None,
    public: bool = False,
    verify: Path | None = None,
) -> None:
    """Write the student of a run as a folder that ships, or verify one: nothing of it has changed.

    Args:
        run: A version such as runs/quickstart/version_0; runs/quickstart is its newest fit,
            finished or not.
        output: The folder to write; it must not exist.
        checkpoint: The best one by validation, or the newest.
        onnx: Whether to write the student for ONNX Runtime too, with weights of 32 and of 8 bits.
        max_accuracy_loss: Accuracy that 8 bits may lose on the validation rows, or they are left
            out; 0.01 is one point. Where a text may have several classes, macro-F1 too.
        push: Put the folder on the Hugging Face hub under this name, user/name, privately; needs
            `hf auth login`. With verify, a folder that was exported before.
        public: Whether all the world may see what is pushed.
        verify: Tell whether this folder is as it was exported; instead of run and output.

    Raises:
        ConfigError: If options contradict each other, or a push would fail.
        RunError: If there is no such run or checkpoint, ONNX answers otherwise than PyTorch, or a
            folder is not as it was exported.
    """
    given = tuple(option is not None for option in (run, output, verify))
    if given not in ((True, True, False), (False, False, True)):
        raise ConfigError("export takes --run and --output, or --verify alone: give one of these.")
    if not 0.0 <= max_accuracy_loss <= 1.0:
        raise ConfigError(f"max_accuracy_loss is {max_accuracy_loss}: give 0 to 1.")
    if push is not None:
        _check_push(push)
    elif public:
        raise ConfigError("public tells who sees what is pushed: add --push user/name.")
    folder = output or verify
    assert folder is not None
    if run is not None:
        _export(_find(run), folder, checkpoint, onnx, max_accuracy_loss, push or str(folder))
    else:
        _verify(folder)
    if push is not None:
        _push(folder, push, public)


def export_checkpoint(run: Path, checkpoint: Literal["best", "resume"], folder: Path) -> None:
    """Write the student of a run as a folder that ``transformers`` loads.

    Args:
        run: A version folder.
        checkpoint: Which of its checkpoints.
        folder: Where to write; must not exist, so that nothing is mixed or lost.

    Raises:
        RunError: If the checkpoint is missing, or the folder is there.
    """
    model = _student(run, checkpoint)
    with _arriving(folder) as temporary:
        model.save(temporary)


def _find(run: Path) -> Path:
    fits = [path for path in versions(run) if read_manifest(path).get("command") == "fit"]
    version = run if (run / MANIFEST).is_file() else next(reversed(fits), None)
    if version is None:
        raise RunError(f"{run} is no run: give a folder such as runs/quickstart/version_0.")
    return version


def _student(run: Path, checkpoint: str) -> TextClassifier:
    file = run / "checkpoints" / f"{checkpoint}.ckpt"
    if not file.is_file():
        raise RunError(f"{run} has no {checkpoint} checkpoint: nothing was saved before it ended.")
    state = SafeCheckpointIO().load_checkpoint(file)["state_dict"]
    prefix = "student.network."
    weights = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
    described = run / MODEL_FOLDER
    return choose_classifier(described).from_folder(described, weights)


@contextmanager
def _arriving(folder: Path) -> Iterator[Path]:
    """Yield a folder of another name that takes its own once it is whole; after an error, none."""
    if folder.exists():
        raise RunError(f"{folder} is there already: give another output, or move it away.")
    temporary = folder.with_name(f".{folder.name}.{os.urandom(4).hex()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"{folder} cannot be written ({reason}): make room or rights there, or give another "
            "output."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _export(
    version: Path,
    output: Path,
    checkpoint: Literal["best", "resume"],
    onnx: bool,
    max_accuracy_loss: float,
    name: str,
) -> None:
    student = TorchModel(_student(version, checkpoint))
    models: dict[str, Model] = {"torch": student}
    rows = read_predictions(version / VALIDATION) if (version / VALIDATION).is_file() else None
    measured = _story(version, checkpoint, student.classifier)
    if rows is None:
        measured["notes"].append(f"the run has no {VALIDATION} (cut off, or old): not calibrated")
    facts = Facts(
        labels=student.labels,
        multi_label=student.multi_label,
        max_length=student.max_length,
        prefix=student.classifier.prefix,
        measured=measured,
    )
    with _arriving(output) as folder:
        student.classifier.save(folder)
        if onnx:
            (folder / ONNX).parent.mkdir()
            facts = replace(facts, inputs=convert(student.classifier, folder / ONNX))
            write_facts(folder, facts)
            models["onnx"] = ONNXModel(folder, "onnx")
            measured["parity"] = _check_parity(student, models["onnx"], rows)
        if onnx and rows is None:
            measured["notes"].append(f"{INT8} is left out: its loss cannot be measured")
        elif onnx:
            quantise(folder / ONNX, folder / INT8)
            models["int8"] = ONNXModel(folder, "int8")
        if rows is not None:
            logits = {who: _answers(model, rows) for who, model in models.items()}
            measured |= _measure(logits, rows)
            facts = replace(
                facts, temperature=fit_temperature(logits["torch"], rows.truth, rows.multi_label)
            )
        if "int8" in models and rows is not None:
            _check_int8(folder, measured, rows.multi_label, max_accuracy_loss)
        write_facts(folder, facts)
        write_card(folder, name, facts, recipe_of(version) or {})
        write_checksums(folder)
    _show(output, facts)


def _story(version: Path, checkpoint: str, student: TextClassifier) -> dict[str, Any]:
    """Return what is known of a student before its export is measured."""
    manifest, here = read_manifest(version), Path.cwd()
    return {
        "run": str(version.relative_to(here) if version.is_relative_to(here) else version),
        "checkpoint": checkpoint,
        **{fact: manifest.get(fact) for fact in ("status", "seed", "versions", "data")},
        "parameters": student.info.parameters,
        **dict.fromkeys(("rows", "scores", "agreement", "calibration_error", "parity")),
        "without_distillation": _without_distillation(version),
        "notes": [],
    }


def _without_distillation(version: Path) -> dict[str, Any] | None:
    """Return what a comparison beside the run found that the same student learns alone."""
    other, comparison = comparison_of(version) or (version, {"variants": []})
    for variant in comparison["variants"]:
        if "--model.teacher=null" in variant["options"]:
            seeds, place = len(variant["seeds"]), without_places(str(other))
            return {"accuracy": variant["mean"], "seeds": seeds, "run": place}
    return None


def _answers(model: Model, rows: Predictions) -> NDArray[np.float32]:
    """Return a model's logits of the rows, the classes in their order."""
    order = [model.labels.index(label) for label in rows.labels]
    return model.logits(rows.texts, rows.pairs, _BATCH)[:, order]


def _measure(logits: Mapping[str, NDArray[np.float32]], rows: Predictions) -> dict[str, Any]:
    """Return what teacher and student are worth on the rows, the student by each backend."""
    several, student = rows.multi_label, logits["torch"]
    everyone = {**({} if rows.teacher is None else {"teacher": rows.teacher}), **logits}
    chosen = {
        who: choices(probabilities(found, several), several) for who, found in everyone.items()
    }
    calibrated = {
        "before": probabilities(student, several),
        "after": cross_fitted(student, rows.truth, several),
    }
    return {
        "rows": len(rows),
        "scores": {
            who: {"accuracy": rows.accuracy(found), "f1": rows.f1(found)}
            for who, found in everyone.items()
        },
        "agreement": (
            float((chosen["teacher"] == chosen["torch"]).mean()) if "teacher" in chosen else None
        ),
        "calibration_error": {
            when: calibration_error(reliability(found, rows.truth, several))
            for when, found in calibrated.items()
        },
    }


def _check_parity(student: TorchModel, onnx: Model, rows: Predictions | None) -> dict[str, Any]:
    """Refuse ONNX that answers otherwise than PyTorch, texts alone or padded among others."""
    texts, pairs = _probes(student, rows)
    parts = [(slice(None), 1)]  # one by one, and then in batches of mixed lengths
    parts += [(slice(at, at + _TOGETHER), _TOGETHER) for at in range(0, len(texts), _TOGETHER)]
    differences = []
    for part, size in parts:
        wanted, found = (
            model.logits(texts[part], pairs and pairs[part], size) for model in (student, onnx)
        )
        apart = np.abs(found - wanted)
        differences.append((apart.max(), np.max(apart / np.maximum(1.0, np.abs(wanted)))))
    difference, relative = np.max(differences, axis=0).tolist()
    if not relative <= _LARGEST_DIFFERENCE:  # nor where it is no number
        raise RunError(
            f"The logits of ONNX differ from PyTorch's by {relative:.1e} of a logit, or of its "
            f"size where above 1, more than {_LARGEST_DIFFERENCE}: nothing is exported; "
            "--onnx=false leaves ONNX out."
        )
    return {"texts": len(texts), "difference": difference, "relative": relative}


def _probes(student: TorchModel, rows: Predictions | None) -> tuple[list[str], list[str] | None]:
    """Return texts of all lengths in a mixed order, one of them longer than the model reads."""
    random = np.random.default_rng(0)
    if rows is None:
        tokenizer = student.classifier.tokenizer
        assert tokenizer is not None
        words = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
        sizes = random.permutation(np.linspace(1, min(student.max_length, _LONGEST_PROBE), _PROBES))
        texts = [str(tokenizer.decode(random.choice(words, int(size)))) for size in sizes]
        return [*texts, " ".join(texts)], None
    by_length = np.argsort([len(text) for text in rows.texts], kind="stable")
    chosen = by_length[np.linspace(0, len(rows) - 1, min(len(rows), _PROBES)).astype(int)]
    mixed = random.permutation(chosen)
    texts = [rows.texts[place] for place in mixed]
    pairs = None if rows.pairs is None else [rows.pairs[place] for place in mixed]
    return [*texts, " ".join(texts)], pairs and [*pairs, pairs[0]]


def _check_int8(folder: Path, measured: dict[str, Any], multi_label: bool, most: float) -> None:
    """Leave 8 bits out where they lose too much: of several labels, which are mostly no, F1 too."""
    scores = measured["scores"]
    for score, name in (("accuracy", "accuracy"), ("f1", "macro-F1"))[: 1 + multi_label]:
        before, after = (scores[who][score] for who in ("torch", "int8"))
        if before - after > most + _ROUNDING:
            (folder / INT8).unlink()
            del scores["int8"]
            measured["notes"].append(
                f"{INT8} is left out: its {name}, {after:.1%} instead of {before:.1%}, loses more "
                f"than {most:.1%}"
            )
            return


def _show(folder: Path, facts: Facts) -> None:
    measured: Mapping[str, Any] = facts.measured or {}
    print_line(f"{measured['checkpoint']} checkpoint of {measured['run']} exported to {folder}")
    table = Table("", "MB", box=None, pad_edge=False)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size / 1e6
        table.add_row(path.relative_to(folder).as_posix(), f"{size:8.3f}")
    print_table(table)
    if parity := measured["parity"]:
        told = "{difference:.1e} at most, {relative:.1e} of a logit or of its size where above 1"
        print_line(f"parity = ONNX differs by {told.format(**parity)}, on {parity['texts']} texts")
    if scores := measured["scores"]:
        told = ", ".join(f"{who} {score['accuracy']:.1%}" for who, score in scores.items())
        print_line(f"accuracy = {told} of {measured['rows']:,} validation rows")
        before, after = measured["calibration_error"].values()
        print_line(
            f"temperature = {facts.temperature:.2f}, calibration error {before:.1%} -> {after:.1%}"
        )
    for note in measured["notes"]:
        print_line(f"note = {note}")
    print_line(f"check = kd export --verify {folder}")


def _verify(folder: Path) -> None:
    problems = verify_folder(folder)
    for problem in problems:
        print_line(problem)
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise RunError(
            f"{folder} is not as it was exported ({'; '.join(problems[:_SHOWN])}{more}): export it "
            "again."
        )
    print_line(f"{folder} is whole: every file is as it was exported")


def _check_push(name: str) -> None:
    from huggingface_hub import constants, get_token

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ConfigError(f"push is {name!r}: give user/name, as the hub spells it.")
    if constants.HF_HUB_OFFLINE:
        raise ConfigError("push needs the hub, and HF_HUB_OFFLINE is set: unset it.")
    if get_token() is None:
        raise ConfigError("push needs a login to the hub: run `hf auth login` first.")


def _push(folder: Path, name: str, public: bool) -> None:
    """Let a repository of the hub hold the folder; one that all see is not filled unasked."""
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        url = hub.create_repo(name, private=not public, exist_ok=True)
        if not hub.model_info(name).private and not public:
            raise ConfigError(f"{name} is public on the hub: add --public, or give another name.")
        with publishable(folder, name) as copy:
            hub.upload_folder(
                repo_id=name, folder_path=copy, commit_message="kd export", delete_patterns="onnx/*"
            )
        if public:
            hub.update_repo_settings(name, private=False)
    except ConfigError:
        raise
    except Exception as error:  # its client raises those of more than one HTTP library
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RunError(
            f"{folder} is whole, but was not pushed ({reason[:300]}); try again by kd export "
            f"--verify {folder} --push {name}."
        ) from error
    print_line(f"pushed = {url}, {'public' if public else 'private'}")
