"""The table of faults: what happens, what kd promises then, and which guard keeps the promise.

A test shows a row by the mark ``@pytest.mark.fault(row)``; rows are those of the README's table,
which ``python -m tests.faults --table`` prints. ``python -m tests.faults`` takes the guards away in
a copy of the checkout, row after row, and expects every test of the row to fail there.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from kd.console import print_line

ROOT = Path(__file__).parents[1]
SHOWN = 3  # names of tests in a line of the README's table
LONGEST = 1200  # seconds that the tests of a row may take without their guards
FAILED = "failure"  # these are words of pytest's report
RESULTS = (FAILED, "error", "skipped")


class Guard(NamedTuple):
    """A place of the package that keeps a promise, and how it would be without."""

    file: str
    text: str
    without: str


@dataclass(frozen=True)
class Fault:
    """A row of the table."""

    row: int
    fault: str
    promise: str
    guards: tuple[Guard, ...] = ()


IN_PLACE = Guard(
    "kd/files.py",
    'temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")\n    try:\n'
    '        with temporary.open("xb") as file:',
    'temporary = path\n    try:\n        with temporary.open("wb") as file:',
)

NOISE = Guard("kd/module.py", "torch.default_generator.manual_seed(seed)", "pass")
FINITE = Guard("kd/guards.py", "if bool(torch.isfinite(losses).all()):", "if True:")

FAULTS = (
    Fault(
        1,
        "kill -9 at any moment of a save, `TMPDIR` on another device",
        "the newest committed checkpoint loads",
        (IN_PLACE,),
    ),
    Fault(
        2,
        "the disk is full while a checkpoint is saved",
        "the old checkpoint loads; the error says how many MB are needed and free",
        (IN_PLACE, Guard("kd/checkpoints.py", "if error.errno not in _DISK_FULL:", "if True:")),
    ),
    Fault(
        3,
        "no room or right to write in the run's folder",
        "refused before a model loads; a save that fails is an error, never silence",
        (
            Guard("kd/files.py", "temporary.unlink()\n        raise", "temporary.unlink()"),
            Guard(
                "kd/runs.py",
                "path = _next_version(folder)\n    except (OSError, ValueError) as error:",
                "path = _next_version(folder)\n    except ZeroDivisionError as error:",
            ),
        ),
    ),
    Fault(
        4,
        "a checkpoint is cut off, empty or has a flipped bit",
        "found by its size and sha256 and said so; `auto` goes on with an older whole one",
        (Guard("kd/checkpoints.py", "if found is not None and found not in marked:", "if False:"),),
    ),
    Fault(
        5,
        "a flipped bit in an exported folder or a finished run",
        "`kd export --verify` names the file; a run's manifest has its checksums",
        (
            Guard("kd/layout.py", "if found[name] != wanted[name]:", "if False:"),
            Guard("kd/runs.py", "elif found[name] != wanted:", "elif False:"),
        ),
    ),
    Fault(
        6,
        "temporary files that kills have left",
        "they count for nothing, and only kd's own are swept away",
        (
            Guard(
                "kd/files.py",
                "if _LEFTOVER.fullmatch(path.name) and path.stat().st_mtime <= newest:",
                "if True:",
            ),
            Guard("kd/shards.py", "    sweep(folder, _OLD)\n", ""),
            Guard("kd/runs.py", ' and path.suffix != ".tmp":', ":"),
            Guard("kd/recipes.py", "            sweep_after(found)\n", ""),
        ),
    ),
    Fault(
        7,
        "a training is cut off in mid-epoch, in an accumulation, in a validation, at an end",
        "what continues it ends with the same weights, optimizer, metrics and rows, bit for bit",
        (NOISE,),
    ),
    Fault(8, "the same on two ranks", "the same, bit for bit", (NOISE,)),
    Fault(
        9,
        "what a resume restores is left out: position, noise, schedules",
        "the comparison of the rows above sees each of them",
        (
            Guard(
                "tests/soak.py", "    found = []\n    for name in", "    return []\n    for name in"
            ),
        ),
    ),
    Fault(
        10,
        "a resume with another number of workers",
        "variants follow from (seed, text), whatever makes them; kd has no other workers",
        (
            Guard(
                "kd/data/augment.py",
                'int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")',
                "None",
            ),
        ),
    ),
    Fault(
        11,
        "SIGTERM or Ctrl-C to the first process, to one of the others, to all",
        "all leave after the same step, it is saved, the exit code is 143 or 130",
        (Guard("kd/saving.py", "        self.signals.hold()\n", ""),),
    ),
    Fault(
        12,
        "SIGUSR1 from SLURM ahead of the time limit",
        "saved, then queued again; that job goes on with its own run and no other",
        (
            Guard(
                "kd/recipes.py", "                    requeue(job)\n", "                    pass\n"
            ),
        ),
    ),
    Fault(
        13,
        "a second signal before or inside the save",
        "the process ends at once; the last whole save is taken",
        (Guard("kd/signals.py", "if not (self._holds and is_first):", "if not self._holds:"),),
    ),
    Fault(
        14,
        "one rank fails or is killed, or torchrun is",
        "all are gone within a minute, the first error stands above, the exit code is not 0",
        (
            Guard("kd/guards.py", "    if is_of_ranks:\n", "    if False:\n"),
            Guard("kd/recipes.py", "        follow_launcher()\n", ""),
        ),
    ),
    Fault(
        15,
        "the loss is not a finite number",
        "no step is made; step, term, learning rate and rows are told; no checkpoint has it",
        (FINITE,),
    ),
    Fault(
        16,
        "a gradient or a weight is not a finite number",
        "no step is made, nothing is saved",
        (
            FINITE,
            Guard("kd/guards.py", "if broken := _find_not_finite(weights.items()):", "if False:"),
        ),
    ),
    Fault(
        17,
        "float16 overflows under a scaler",
        "its steps are left out, but not 20 in a row",
        (
            Guard(
                "kd/guards.py", "    if scaled and self._skipped < _MOST_SKIPPED:", "    if False:"
            ),
        ),
    ),
    Fault(
        18,
        "the same recipe is run twice",
        "a new version each time; no byte of the earlier one changes",
        (
            Guard(
                "kd/runs.py",
                "itertools.count(max(taken, default=-1) + 1):\n        with suppress("
                'FileExistsError):\n            path = folder / f"version_{number}"\n'
                "            path.mkdir()",
                "itertools.count():\n        with suppress(FileExistsError):\n"
                '            path = folder / f"version_{number}"\n'
                "            path.mkdir(exist_ok=True)",
            ),
        ),
    ),
    Fault(
        19,
        "many runs start in one instant",
        "each has a folder of its own",
        (Guard("kd/runs.py", "path.mkdir()\n", "path.mkdir(exist_ok=True)\n"),),
    ),
    Fault(
        20,
        "a second process wants what another one writes",
        "a run that lives is refused, naming its process; a resume is a version of its own; "
        "annotations have one writer",
        (
            Guard("kd/checkpoints.py", "pid = writer(read_manifest(version))", "pid = None"),
            Guard(
                "kd/rationales/store.py",
                "fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
                "pass",
            ),
        ),
    ),
    Fault(
        21,
        "a checkpoint from a URL, a malicious one, `TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1`",
        "URLs are refused before any network; only tensors and plain values are ever loaded",
        (
            Guard("kd/checkpoints.py", "if _URL.match(str(path)):", "if False:"),
            Guard("kd/checkpoints.py", "weights_only=True, mmap=False", "weights_only=False"),
        ),
    ),
    Fault(
        22,
        "kd's own checkpoints under `weights_only=True`",
        "they load: tensors and plain values, no random states, no objects",
        (
            Guard(
                "kd/module.py",
                'checkpoint["student"] = identity(self.student.info)',
                'checkpoint["student"] = self.student.info',
            ),
        ),
    ),
    Fault(
        23,
        "a run's name is `../../x`, absolute, `a/b`, NUL, 300 characters, `CON` or an emoji",
        "refused before anything is written; no link leads out of the root",
        (
            Guard(  # absolute names stay refused: they would be written where they lead
                "kd/runs.py",
                'if not _NAME.fullmatch(name) or ".." in name or name.endswith(".") or '
                "_RESERVED.match(name):",
                'if not name or name.startswith("/"):',
            ),
            Guard(
                "kd/runs.py",
                'if "://" in str(root) or not folder.resolve().is_relative_to('
                "Path(root).resolve()):",
                "if False:",
            ),
        ),
    ),
    Fault(
        24,
        "an API key in the environment or on the command line",
        "keys are named, never taken, as options; what looks like one is masked in every file",
        (
            Guard("kd/redaction.py", "return _SECRET_VALUE.sub(_MASK, text)", "return text"),
            Guard(
                "kd/redaction.py",
                "redacted.append(argument[: match.end()] + _MASK if match else argument)",
                "redacted.append(argument)",
            ),
        ),
    ),
    Fault(
        25,
        "a hostile recipe: `class_path: os.system`, an unknown module, tags, bombs",
        "one sentence; nothing outside of kd and of Lightning's parts is imported",
        (
            Guard("kd/parsing.py", 'import_path_denylist=["*"]', "import_path_denylist=[]"),
            Guard("kd/parsing.py", "    yaml.compose(text, Loader=_Plain)\n", ""),
        ),
    ),
    Fault(
        26,
        "a model folder with code of its own",
        "it is never run, and nobody is asked; one sentence says so",
        (
            Guard(
                "kd/configuration.py",
                "path, revision=revision, trust_remote_code=False",
                "path, revision=revision, trust_remote_code=True",
            ),
        ),
    ),
    Fault(
        27,
        "a column or split that is not there",
        "told before a model loads, with those that are there and the key to set",
        (
            Guard("kd/data/rows.py", "if name in table.frame.columns:", "if True:"),
            Guard("kd/data/sources.py", 'if piece.partition("[")[0] not in splits:', "if False:"),
            Guard("kd/recipes.py", 'datamodule.read("fit")\n', "pass\n"),
        ),
    ),
    Fault(
        28,
        "a label is missing",
        "told with file and line, or kept as unlabelled if that is asked for; other labels stay "
        "whole numbers",
        (
            Guard("kd/data/rows.py", 'if empty and fields.on_empty_label == "error":', "if False:"),
            Guard(
                "kd/data/sources.py",
                "DataFrame(dict(columns), dtype=object)",
                "DataFrame(dict(columns))",
            ),
        ),
    ),
    Fault(
        29,
        "a text is null, empty, blank, a number or bytes",
        "told with file and line, or dropped if that is asked for; when classifying, its number",
        (
            Guard("kd/data/rows.py", 'if bad and fields.on_bad_row == "error":', "if False:"),
            Guard(
                "kd/inference.py",
                "enumerate(read):\n        if not text.strip():",
                "enumerate(read):\n        if False:",
            ),
        ),
    ),
    Fault(
        30,
        "lone surrogates, NUL, odd Unicode, words and texts without end",
        "repaired alike in training and inference, and cut before they are tokenised",
        (
            Guard(
                "kd/texts.py",
                'if (text.isascii() and "\\0" not in text) or _UNSAFE.search(text) is None:',
                "if True:",
            ),
            Guard("kd/texts.py", "if len(text) <= longest:", "if True:"),
        ),
    ),
    Fault(
        31,
        "texts of which a vocabulary knows nothing, such as emoji alone",
        "`fit` and `doctor` warn of the share of unknown tokens",
        (Guard("kd/checks/models.py", "warns=unknown >= _UNKNOWN", "warns=False"),),
    ),
    Fault(
        32,
        "a file in another encoding, binary, with an open quote, ragged, or a header alone",
        "one sentence with file, line and what to set; the cause, not the library's words",
        (
            Guard(
                "kd/data/sources.py",
                "except UnicodeDecodeError as error:",
                "except ZeroDivisionError as error:",
            ),
            Guard("kd/data/sources.py", "if control > len(head) / 20 and", "if False and"),
            Guard("kd/data/sources.py", "quoting=quoting, strict=True", "quoting=quoting"),
            Guard("kd/data/sources.py", "if len(record) != len(names):", "if False:"),
            Guard("kd/data/sources.py", "if frame.empty:", "if False:"),
            Guard(
                "kd/data/sources.py",
                "isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__",
                "None",
            ),
        ),
    ),
    Fault(
        33,
        "a label that is no class, -1, -100",
        "told with file, line and the classes; -1 hides a label only where the source says so",
        (
            Guard("kd/data/rows.py", "if unknown:\n", "if False:\n"),
            Guard("kd/data/rows.py", 'meanings.setdefault("-1")  # null', "pass  # null"),
        ),
    ),
    Fault(
        34,
        "the teacher's classes are in another order, or have no names",
        "aligned by name; nameless ones must be named",
        (
            Guard(
                "kd/layers.py",
                "find_head(network), _order(stored, wanted)",
                "find_head(network), _order(stored, stored)",
            ),
            Guard("kd/layers.py", "if _order(stored, wanted) is not None:", "if True:"),
        ),
    ),
    Fault(
        35,
        "the teacher has other classes than the data",
        "refused, with both lists",
        (
            Guard("kd/layers.py", "if _order(stored, wanted) is not None:", "if True:"),
            Guard("kd/models.py", "if len(names) != network.config.num_labels:", "if False:"),
        ),
    ),
    Fault(
        36,
        "the teacher has another tokenizer",
        "each model reads its own tokens; what compares token by token is refused",
        (
            Guard(
                "kd/objectives/layers.py",
                "if student.vocabulary != teacher.vocabulary:",
                "if False:",
            ),
            Guard("kd/data/encode.py", "return self.vocabulary, self", 'return "", self'),
        ),
    ),
    Fault(
        37,
        "texts, or `data.max_length`, are longer than the model reads",
        "cut where the model ends; the export says where",
        (
            Guard("kd/views.py", "min(max_length, limit),", "max_length,"),
            Guard(
                "kd/classifiers.py",
                "self.tokenizer.model_max_length = min(max_length, self.max_length)",
                "pass",
            ),
        ),
    ),
    Fault(
        38,
        "a teacher's cache is damaged, or is another teacher's",
        "found by its checksum, removed, told and asked anew",
        (
            Guard("kd/shards.py", "if digest not in path.name:", "if False:"),
            Guard("kd/shards.py", "if shard.teacher != teacher:", "if False:"),
        ),
    ),
    Fault(
        39,
        "an API answers 429, 500, nothing, junk, another label, or a kill tears its last answer",
        "asked again where that helps; no row is lost or given a class it has not; a budget holds",
        (
            Guard("kd/rationales/api.py", "if response.status == 429:", "if False:"),
            Guard(
                "kd/rationales/api.py",
                'elif reply.status in ("empty", "http_error") and tries <',
                'elif reply.status == "none" and tries <',
            ),
            Guard(
                "kd/rationales/replies.py",
                '_matched(found["label"], labels)\n',
                '_matched(found["label"], labels) or labels[0]\n',
            ),
            Guard("kd/rationales/store.py", 'b"\\n" * self._torn + line', "line"),
            Guard(
                "kd/annotate.py",
                "if max_cost is not None and (tally.dollars or 0.0) >= max_cost:",
                "if False:",
            ),
        ),
    ),
    Fault(
        40,
        "Ctrl-C or a kill while the teacher fills its cache",
        "the next start asks only what is missing, and ends in the same bytes",
        (
            Guard(
                "kd/cache.py",
                "found, _ = locate(shards, texts.keys, fields, accepted)",
                "found = np.full(len(texts), -1)",
            ),
        ),
    ),
    Fault(
        41,
        "the hub is out of reach",
        "one sentence with the keys to check",
        (
            Guard(
                "kd/configuration.py",
                "except OSError as error:",
                "except ZeroDivisionError as error:",
            ),
            Guard(
                "kd/data/sources.py",
                "except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as",
                "except ZeroDivisionError as",
            ),
        ),
    ),
    Fault(
        42,
        "W&B or the network is gone, before or in the middle of a run",
        "training goes on; the log is kept in the run, and one line says how to send it",
        (Guard("kd/tracking.py", "self._fall_back(error, mode)", "raise"),),
    ),
    Fault(
        43,
        "a process that makes variants is killed, as by a full memory",
        "one sentence with the number to lower; rows lie in memory, so there are no data workers",
        (
            Guard(
                "kd/data/variants.py",
                "except BrokenProcessPool as error:",
                "except ZeroDivisionError as error:",
            ),
        ),
    ),
    Fault(
        44,
        "`kd serve`: bodies and texts without end, junk, slow or too many clients",
        "limits of bytes, texts, characters, queue and time; 4xx or 503 in one sentence; this "
        "machine alone unless told",
        (
            Guard("kd/serve.py", "if taken > self.limits.max_bytes:", "if False:"),
            Guard("kd/serve.py", "if len(texts) > self.max_texts:", "if False:"),
            Guard("kd/serve.py", "if len(text) > self.max_characters:", "if False:"),
            Guard("kd/serve.py", "if self.requests >= self.limits.max_queue:", "if False:"),
            Guard("kd/serve.py", "asyncio.timeout_at(deadline)", "asyncio.timeout_at(None)"),
            Guard(
                "kd/serve.py",
                "asyncio.timeout(limits.timeout_seconds)",
                "asyncio.timeout(None)",
            ),
            Guard("kd/serve.py", "if repaired(text) != text:", "if False:"),
            Guard("kd/serve.py", "if self.key and not", "if False and not"),
            Guard("kd/serve.py", 'host: str = "127.0.0.1"', 'host: str = "0.0.0.0"'),
            Guard("kd/serve.py", "if not ipaddress.ip_address(address).is_loopback:", "if False:"),
        ),
    ),
    Fault(
        45,
        "a training without end",
        "memory, threads and open files stay as they are",
        (
            Guard(  # nothing holds a leak back, so here is one
                "kd/throughput.py",
                "self.tokens += batch.tokens\n",
                "self.tokens += batch.tokens\n"
                "        self.held = [*getattr(self, 'held', ()), b'x' * (1 << 20)]\n",
            ),
        ),
    ),
)


def marked() -> dict[int, list[str]]:
    """Return the tests of each row, as pytest names them."""
    found: dict[int, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                for row in _rows(function):
                    name = f"{path.relative_to(ROOT).as_posix()}::{function.name}"
                    found.setdefault(row, []).append(name)
    return found


def _rows(function: ast.FunctionDef) -> Iterator[int]:
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.fault":
            yield ast.literal_eval(decorator.args[0])


def table() -> str:
    """Return the table as the README has it."""
    tests = marked()
    lines = ["| # | what happens | what kd does | shown by |", "|--:|---|---|---|"]
    for one in FAULTS:
        names = [name.partition("::")[2] for name in tests.get(one.row, [])]
        shown = ", ".join(f"`{name}`" for name in names[:SHOWN])
        shown += f" and {len(names) - SHOWN} more" * (len(names) > SHOWN)
        lines.append(f"| {one.row} | {one.fault} | {one.promise} | {shown or '-'} |")
    return "\n".join(lines) + "\n"


def copy_checkout(target: Path) -> None:
    """Copy what git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def without(guards: tuple[Guard, ...], checkout: Path) -> None:
    """Take guards away in a checkout."""
    for file, text, instead in guards:
        source = (checkout / file).read_text()
        if source.count(text) != 1:
            raise ValueError(f"{file} has {source.count(text)} times: {text}")
        (checkout / file).write_text(source.replace(text, instead))


def outcomes(checkout: Path, tests: list[str]) -> dict[str, str]:
    """Run tests in a checkout; return what became of each: failed, if one of its cases did."""
    found = dict.fromkeys(tests, "did not run")
    if not tests:  # else pytest would run all there are
        return found
    report = checkout / "outcomes.xml"
    command = [sys.executable, "-m", "pytest", "-m", "", f"--junitxml={report}", *tests]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(command, cwd=checkout, env=environment, capture_output=True, timeout=LONGEST)
    if report.is_file():
        for case in ElementTree.parse(report).iter("testcase"):
            place = case.attrib["classname"].replace(".", "/")
            name = f"{place}.py::{case.attrib['name'].partition('[')[0]}"
            result = next((c.tag for c in case if c.tag in RESULTS), "passed")
            if found.get(name, FAILED) != FAILED:
                found[name] = result
    return found


def break_guards(rows: list[int]) -> bool:
    """Print what becomes of the tests of some rows without their guards; return if all fail."""
    tests, all_fail = marked(), True
    for one in FAULTS:
        if one.row not in rows or not one.guards:
            continue
        with tempfile.TemporaryDirectory(prefix="kd-faults-") as folder:
            copy_checkout(Path(folder))
            without(one.guards, Path(folder))
            found = outcomes(Path(folder), tests.get(one.row, []))
        for name, result in found.items() or [("no test has its mark", "nothing")]:
            print_line(f"{one.row:>3}  {result:<12} {name}")
            all_fail = all_fail and result == FAILED
    return all_fail


def main() -> None:
    """Break guards, or print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--table", action="store_true", help="print the README's table instead")
    parser.add_argument("--rows", help="rows to break, such as 1,4; all by default")
    given = parser.parse_args()
    if given.table:
        sys.stdout.write(table())
        return
    rows = given.rows.split(",") if given.rows else [one.row for one in FAULTS]
    raise SystemExit(not break_guards([int(row) for row in rows]))


if __name__ == "__main__":
    main()
