"""The command line: one ``main`` for ``python train.py``, ``kd`` and ``python -m kd``.

Only the command that runs is imported, so that help and version answer at once.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module, metadata
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from kd.errors import KDError, PauseError
from kd.redaction import mask
from kd.signals import INTERRUPTED, exit_when_terminated

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "fit": "train a student (or a teacher) from a recipe, export it, show what it is worth",
    "validate": "measure a run's student on its validation split",
    "test": "measure a run's student on its test split",
    "predict": "write a run's predictions for a split to parquet and csv",
    "annotate": "let an LLM explain the label of every training text; resumable",
    "cache": "let a recipe's teacher answer ahead of training; cache list and cache prune",
    "doctor": "examine a recipe before training: what is wrong, what it will take",
    "compare": "train with and without the teacher, or any variants: does it help?",
    "report": "write a page about a run: results, curves, errors, calibration",
    "export": "write a run's student as a folder that ships: ONNX, 8 bits, card, checksums",
    "bench": "measure teacher, student, ONNX and 8 bits: size, latency, memory, throughput",
    "classify": "classify texts, a file or standard input with an exported student",
    "serve": "answer texts over HTTP, with limits",
    "demo": "a web page with teacher and student side by side",
}
_RECIPE_COMMANDS = ("fit", "validate", "test", "predict")
_FUNCTIONS = {  # commands that are functions of the same name: signature and docstring say all
    "bench": "kd.bench",
    "classify": "kd.inference",
    "compare": "kd.compare",
    "demo": "kd.demo",
    "export": "kd.export",
    "report": "kd.report",
    "serve": "kd.serve",
}
_LONGEST = 2000  # characters of an error: a name in it may be a hostile one
_WORDS = {  # the parameter that takes all words which belong to no option
    "classify": ("texts", "The texts to classify."),
    "compare": ("options", "Of kd fit, after --, for all fits."),
}


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; an error that the user can mend is one sentence and exit code 2.

    Args:
        args: Command line without the program; null takes that of the process.

    Raises:
        SystemExit: With 0 after help or version, with 2 after an error, with 75 after a pause, with
            130 after Ctrl-C, with 143 after SIGTERM.
    """
    if isinstance(sys.stdout, TextIOWrapper):  # a label's name may have letters that it has not
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if args is None else args)
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        _write(_help())
        raise SystemExit(0)
    if command == "--version":
        _write(f"kd {_version()}")
        raise SystemExit(0)
    try:
        if command not in COMMANDS:
            raise _unknown(command)
        exit_when_terminated()
        _run(command, arguments)
    except KDError as error:
        sys.stdout.flush()
        kind = "paused" if isinstance(error, PauseError) else "error"
        sys.stderr.write(f"kd: {kind}: {mask(str(error))[:_LONGEST]}\n")
        raise SystemExit(error.exit_code) from error
    except KeyboardInterrupt as stop:
        sys.stderr.write("kd: stopped\n")
        raise SystemExit(INTERRUPTED) from stop
    except BrokenPipeError:
        # a reader such as head has enough; keep Python from complaining about it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(command: str, arguments: Sequence[str]) -> None:
    if command in _RECIPE_COMMANDS:
        from kd.recipes import run_recipe

        run_recipe(arguments)
    elif command == "annotate":
        _annotate(arguments[1:])
    elif command == "cache":
        _cache(arguments[1:])
    elif command == "doctor":
        from kd.doctor import doctor

        doctor(arguments[1:])
    else:
        function = getattr(import_module(_FUNCTIONS[command]), command)
        _call(command, function, arguments[1:], _WORDS.get(command))


def _annotate(arguments: Sequence[str]) -> None:
    """Build an annotator and its data from a recipe, and let it explain the texts."""
    from kd.annotate import annotate
    from kd.data import generated, synonyms  # noqa: F401 - recipes name their classes
    from kd.data.datamodule import TextDataModule
    from kd.parsing import allow_imports, check_groups, explain
    from kd.rationales import api, imported, local  # noqa: F401 - likewise
    from kd.rationales.annotators import Annotator

    allow_imports()
    parser = _parser("annotate", annotate)
    parser.add_argument("--config", action="config", help="A recipe in YAML.")
    parser.add_subclass_arguments(Annotator, "annotator", required=True)
    parser.add_class_arguments(TextDataModule, "data")
    built_apart: set[str | int] = {"annotator", "data", "recipe"}
    parser.add_function_arguments(annotate, skip=built_apart, as_group=False)
    _let_flags_stand_alone(parser, annotate)
    try:
        parsed = parser.parse_args(list(arguments))
        check_groups(parsed, ("data",))
        files = parsed.pop("config") or []
        parsed.name = parsed.name or (Path(str(files[0])).stem if files else "annotate")
        recipe = parser.dump(parsed, skip_unset=False)
        built = parser.instantiate(parsed)
    except KDError:
        raise
    except Exception as error:  # jsonargparse raises several kinds
        if isinstance(error.__cause__, KDError):  # of an option inside another
            raise error.__cause__ from None
        keys = [action.dest for action in parser._actions]
        raise explain(error, keys, (Annotator,)) from error
    annotate(**vars(built), recipe=recipe)


def _cache(arguments: Sequence[str]) -> None:
    """Fill a cache by a recipe, or list or prune what is there."""
    if arguments[:1] == ["list"]:
        from kd.answers import list_answers

        _call("cache list", list_answers, arguments[1:])
    elif arguments[:1] == ["prune"]:
        from kd.answers import prune_answers

        _call("cache prune", prune_answers, arguments[1:])
    else:
        from kd.recipes import run_recipe

        run_recipe(["fit", *arguments], only_fill=True)


def _call(
    name: str,
    function: Callable[..., None],
    arguments: Sequence[str],
    words: tuple[str, str] | None = None,
) -> None:
    """Call a function with arguments parsed by its signature, its docstring being the help.

    Args:
        name: Words of the command.
        function: What it does.
        arguments: What follows the command's name.
        words: Parameter that takes all words which belong to no option, and its help.
    """
    from kd.parsing import explain

    parser = _parser(name, function)
    skipped: set[str | int] | None = {words[0]} if words else None
    parser.add_function_arguments(function, skip=skipped, as_group=False, sub_configs=True)
    _let_flags_stand_alone(parser, function)
    if words:
        parser.add_argument(words[0], nargs="*", type=str, default=[], help=words[1])
    try:
        parsed = parser.parse_args(list(arguments))
    except Exception as error:  # jsonargparse raises several kinds
        raise explain(error, [action.dest for action in parser._actions], ()) from error
    function(**vars(parser.instantiate(parsed)))


def _parser(name: str, function: Callable[..., None]) -> ArgumentParser:
    """Return a command's parser, without options yet."""
    from jsonargparse import ArgumentParser

    return ArgumentParser(
        prog=f"kd {name}",
        description=(function.__doc__ or "").split("\n\n")[0],
        exit_on_error=False,
        allow_abbrev=False,
    )


def _let_flags_stand_alone(parser: ArgumentParser, function: Callable[..., None]) -> None:
    """Let an option that is false unless given need no value: ``--public`` is ``--public=true``."""
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is False:
            action = parser._option_string_actions[f"--{name}"]
            action.nargs, action.const = "?", "true"


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: kd COMMAND [OPTIONS]     (also: python train.py …, python -m kd …)",
            "",
            "Distil a large text classifier into a small, fast one, from one YAML file.",
            "",
            *lines,
            "",
            "kd COMMAND --help lists a command's options; a first run on built-in data:",
            "  kd fit --config configs/quickstart.yaml",
        ]
    )


def _version() -> str:
    try:
        return metadata.version("kd")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _unknown(command: str) -> KDError:
    from difflib import get_close_matches

    near = get_close_matches(command, COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(COMMANDS)}."
    return KDError(f"There is no command {command!r}: {hint}")


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")
