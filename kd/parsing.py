"""The command line's safety and courtesy: what may be imported, and what an error meant."""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Iterable
from difflib import get_close_matches

from jsonargparse import set_parsing_settings

from kd.errors import ConfigError

__all__ = ["allow_imports", "explain"]

_ALLOWED = [
    "kd",
    "lightning.pytorch.accelerators",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.plugins",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
]
"""Import paths that a recipe may name."""

_VARIABLE = "KD_ALLOW_IMPORTS"
_LONGEST = 400  # characters of a parser's own words that are worth showing


def allow_imports() -> None:
    """Let recipes name classes of `kd` and of Lightning's parts only.

    ``KD_ALLOW_IMPORTS=my_package,other`` in the environment adds to them: such recipes are code.
    """
    more = [path for path in os.environ.get(_VARIABLE, "").split(",") if path]
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=[*_ALLOWED, *more],
        instantiate_subclass_spec_in_any=False,
    )


def explain(error: Exception, known: Iterable[str], classes: Iterable[type]) -> ConfigError:
    """Return a parser's error as one sentence, with the word that was perhaps meant.

    Args:
        error: What the parser raised.
        known: All keys of the command, such as ``model.learning_rate``.
        classes: Bases whose subclasses a recipe may name.

    Returns:
        The error to raise.
    """
    text = str(error)
    key = _first(r'Parser key "([^"]+)"', text)
    where = f" in {key}" if key else ""
    denied = _first(r"Importing '([^']+)' is not allowed", text)
    if denied:
        return ConfigError(
            f"The recipe names {denied}{where}, which it may not import: only classes of kd and of "
            f"Lightning's parts are allowed; add your own packages to {_VARIABLE}."
        )
    option = _first(r"Option '([^']+)' is not accepted", text)
    if option:
        owner = _first(r"given class_path '([^']+)'", text) or ""
        options = [*inspect.signature(_import(owner)).parameters] if owner else []
        owned = f" of {owner.rpartition('.')[2]}" if owner else ""
        return ConfigError(f"{option} is no option{owned}{where}{_near(option, options)}.")
    unknown = _first(r"does not accept option '([^']+)'", text) or _first(
        r"unrecognized arguments: --([^\s=]+)", text
    )
    if unknown:
        return ConfigError(f"{unknown} is no key of this command{_near(unknown, known)}.")
    name = _first(r"Expected a dot import path string: (\S+)", text)
    if name:
        names = [found.__name__ for base in classes for found in (base, *base.__subclasses__())]
        return ConfigError(f"{name}{where} is no class that kd knows{_near(name, names)}.")
    missing = _first(r"arguments are required: (?:\w+\.)?(\S+)", text)
    if missing:
        return ConfigError(f"{missing} is missing: set it in a recipe, or give --config FILE.")
    sentence = " ".join(text.replace('Parser key "', "").replace('":', ":").split())
    return ConfigError(sentence if len(sentence) < _LONGEST else sentence[:_LONGEST] + " …")


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match[1] if match else None


def _import(path: str) -> type:
    module, _, name = path.rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found


def _near(word: str, known: Iterable[str]) -> str:
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""
