"""What teacher and student cost and what they are worth, side by side: table, JSON, picture.

Every model has a process of its own, and they answer by turns, so that a busy machine slows all
alike. This room trains nothing, and writes into no run but its own.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Column, Table

from kd.backends import BackendName
from kd.console import print_line, print_table
from kd.errors import ConfigError, DataError, KDError, ModelError
from kd.files import replacing
from kd.layout import FILES, read_facts
from kd.measuring import WARM_TEXTS, Contender
from kd.origins import run_of, teachers_of
from kd.pictures import Point, pareto
from kd.predictions import VALIDATION, Predictions, read_predictions
from kd.runs import claim, is_reference, resolve

__all__ = ["bench"]

_MOST_TEXTS = 2000


def bench(
    model: str,
    teacher: str | None = None,
    file: Path | None = None,
    batch_sizes: tuple[int, ...] = (1, 8, 32, 128),
    threads: list[int] | None = None,
    repeats: int = 5,
    root: str | None = None,
) -> None:
    """Measure a student in PyTorch, ONNX and int8 beside its teacher: size, speed, accuracy.

    Args:
        model: Exported folder, or run such as runs/quickstart.
        teacher: Run, model folder or hub id; null is the run's own. The members of an ensemble
            answer one after the other.
        file: Read the texts that are timed from the lines of this file; null takes validation
            texts of the run.
        batch_sizes: Texts that come at once, such as [1,32].
        threads: Of the processor, such as [1,2]; null is one, and one for each core.
        repeats: Turns of each model; medians are told.
        root: Folder of the runs; null is that of the model's run, or runs.

    Raises:
        ConfigError: If a number is below 1, or there are no texts.
    """
    counts = sorted(set(threads or [1, _cores()]), reverse=True)
    sizes = sorted({1, *batch_sizes})
    for option, values in (("batch_sizes", sizes), ("threads", counts), ("repeats", [repeats])):
        if min(values) < 1:
            raise ConfigError(f"bench: {option} is {min(values)}: give 1 or more.")
    folder, version, measured = _find(model)
    has_rows = version is not None and (version / VALIDATION).is_file()
    rows = read_predictions(version / VALIDATION) if version and has_rows else None
    texts, pairs = _texts(rows, file)
    known = {who: score["accuracy"] for who, score in (measured.get("scores") or {}).items()}
    if rows is not None:
        own = {"torch": rows.student, "teacher": rows.teacher}
        known = {n: rows.accuracy(x) for n, x in own.items() if x is not None} | known
    contenders = list(_contenders(folder, version, teacher, known))
    lines: list[dict[str, Any]] = []
    spread: list[float] = []
    for count in counts:
        print_line(f"measuring with {count} thread{'s' * (count > 1)}")
        with ExitStack() as stack:
            contenders = [one for one in contenders if _starts(one, stack, count, texts, pairs)]
            for size in sizes * repeats:
                for one in contenders:
                    one.take_turn(size)
            parameters = next(one.parameters for one in contenders if one.role == "student")
            for one in contenders:
                one.parameters = one.parameters or parameters  # of ONNX, which does not tell
                one.finish(rows)
        lines += [one.as_plain(count, sizes) for one in contenders]
        rates = [one.rates(size) for one in contenders for size in sizes]
        spread += [max(turns) / min(turns) - 1 for turns in rates if len(turns) > 1]
    results = {
        "run": str(version) if version else None,
        "rows": len(rows) if rows else measured.get("rows") or 0,
        "texts": len(texts),
        "repeats": repeats,
        "spread": median(spread) if spread else 0.0,
        "machine": _machine(),
        "models": lines,
    }
    path = _write(results, root, version or folder)
    _show(results, sizes)
    print_line(f"run = {path}")
    _conclude(lines)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _find(model: str) -> tuple[Path, Path | None, Mapping[str, Any]]:
    """Return the folder of a student, its run if that is here, and what its export measured."""
    version = run_of(model)
    if is_reference(model):
        return resolve(model).student, version, {}
    folder = Path(model)
    if not folder.is_dir():
        raise ModelError(f"{model} is no folder: give what `kd export` wrote, or a run.")
    facts = read_facts(folder)
    measured = (facts.measured if facts else None) or {}
    if version is None:
        made_by = measured.get("run") or "the run"
        print_line(f"note: {made_by} that {model} was exported from is not here")
    return folder, version, measured


def _texts(
    rows: Predictions | None, file: Path | None
) -> tuple[Sequence[str], Sequence[str] | None]:
    """Return what is timed, lines of a file or texts of a run, and their second texts."""
    texts: Sequence[str] = rows.texts if rows else []
    pairs = rows.pairs if rows else None
    if file is not None:
        try:
            lines = file.read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file} cannot be read as UTF-8 text: {error}.") from error
        texts, pairs = [line for line in lines if line.strip()], None
    if not texts:
        raise ConfigError("bench has no texts: give --file, with a text in each line.")
    return texts[:_MOST_TEXTS], pairs and pairs[:_MOST_TEXTS]


def _contenders(
    folder: Path, version: Path | None, teacher: str | None, known: Mapping[str, float]
) -> Iterator[Contender]:
    """Yield the models that there are, and say which are missing."""
    if teacher is not None:
        path = str(resolve(teacher).student) if is_reference(teacher) else teacher
        yield Contender("teacher", "torch", [path])
    elif paths := [one.path for one in teachers_of(version)] if version else []:
        yield Contender("teacher", "torch", paths, True, known.get("teacher"))
    else:
        print_line("note: no teacher is known, --teacher names one")
    yield Contender("student", "torch", [str(folder)], False, known.get("torch"))
    backends: tuple[BackendName, ...] = ("onnx", "int8")
    for backend in backends:
        name = FILES[backend]
        if (folder / name).is_file():
            yield Contender("student", backend, [str(folder)], True, known.get(backend))
        else:
            print_line(f"note: {folder} has no {name}, `kd export` makes it")


def _starts(
    one: Contender,
    stack: ExitStack,
    threads: int,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
) -> bool:
    """Start a model's process; tell whether it runs, as one that is optional need not."""
    try:
        stack.enter_context(one.start(threads, texts, pairs))
    except KDError as error:
        if not one.is_optional:
            raise
        print_line(f"note: {one.name} is left out: {error}")
        return False
    return True


def _machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    info = Path("/proc/cpuinfo")
    names = re.findall("model name\\s*: (.*)", info.read_text()) if info.is_file() else []
    return {
        "processor": next(iter(names), platform.processor()),
        "cores": _cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "onnxruntime", "tokenizers")},
    }


def _write(results: Mapping[str, Any], root: str | None, made_from: Path) -> Path:
    """Write the figures, and the picture of those whose accuracy is known, as a run."""
    version = Path(results["run"]) if results["run"] else Path("runs", "bench", "version_0")
    run = claim(root or version.parent.parent, version.parent.name, command="bench")
    with run.recorded():
        run.update(references={"run" if results["run"] else "model": str(made_from)})
        run.write_text("bench.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
        points: dict[str, Point] = {}
        for line in results["models"]:
            name, latency = line["name"], line["latency_ms"]["p50"]
            is_better = name not in points or latency < points[name].latency_ms
            if line["accuracy"] is not None and is_better:
                is_teacher = line["role"] == "teacher"
                points[name] = Point(name, line["accuracy"], line["megabytes"], latency, is_teacher)
        if points:
            with replacing(run.path / "pareto.png") as file:
                file.write(pareto(list(points.values())).png())
        run.finish("finished")
    return run.path


def _show(results: Mapping[str, Any], sizes: Sequence[int]) -> None:
    """Print the table and how it was made."""
    headings = ["params", "MB", "accuracy", "p50 ms", "p95", "p99"]
    headings += [*(f"{size}/s" for size in sizes), "peak MB", "start s"]
    table = Table(
        "", *(Column(heading, justify="right") for heading in headings), box=None, pad_edge=False
    )
    threads = 0
    for line in results["models"]:
        if line["threads"] != threads:
            threads = line["threads"]
            table.add_row(f"{threads} thread{'s' * (threads > 1)}")
        table.add_row(
            f" {line['role'] if line['role'] == 'teacher' else line['backend']}",
            f"{line['parameters'] / 1e6:,.2f}M",
            f"{line['megabytes']:,.1f}",
            "" if line["accuracy"] is None else f"{line['accuracy']:.1%}",
            *(f"{value:.3g}" for value in line["latency_ms"].values()),
            *("" if rate is None else f"{rate:,.0f}" for rate in line["rows_per_second"].values()),
            f"{line['peak_megabytes']:,.0f}",
            f"{line['cold_start_seconds']:.1f}",
        )
    print_table(table)
    print_line(
        f"N/s: texts a second, N at once, of {results['texts']:,} in their order, tokenisation "
        f"included.\nAfter {WARM_TEXTS} texts to warm up, medians of {results['repeats']} turns, "
        f"fewer where a model is slow; turns differ by {results['spread']:.0%}.\nAccuracy is on "
        f"{results['rows']:,} rows; start is from a fresh process to its first answer.\n"
        "The last line takes each at its best."
    )


def _conclude(lines: Sequence[Mapping[str, Any]]) -> None:
    """Print what the last student is, of the fewest bits, beside the teacher or else PyTorch."""

    def fastest(line: Mapping[str, Any]) -> float:
        alike = (one["rows_per_second"].values() for one in lines if one["name"] == line["name"])
        return float(max(rate or 0.0 for rates in alike for rate in rates))

    def times(ratio: float) -> str:
        return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"

    small = lines[-1]
    other = min(lines, key=lambda line: (line["role"] != "teacher", line["backend"] != "torch"))
    if small["name"] != other["name"]:
        speed, space = fastest(small) / fastest(other), other["megabytes"] / small["megabytes"]
        who = "the teacher" if other["role"] == "teacher" else "PyTorch"
        share = f"1/{times(space)} of" if space > 1 else f"{times(1 / space)} times"
        print_line(
            f"{small['backend']} answers {times(speed)} times as many texts a second as {who} "
            f"and takes {share} its space"
        )
