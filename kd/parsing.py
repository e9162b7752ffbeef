"""The command line's safety and courtesy: what may be imported, what an error meant, silence."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import yaml
from jsonargparse import ArgumentError, Namespace, get_loader, set_loader, set_parsing_settings
from yaml.composer import ComposerError

from kd.errors import ConfigError

__all__ = ["allow_imports", "check_groups", "explain", "quieten"]

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
_DEEPEST = 50  # mappings and lists inside each other

_MODULE = r"\b(?:\w+\.)+(?=\w)"

_read_yaml = get_loader("yaml")


def allow_imports() -> None:
    """Let recipes name classes of `kd` and of Lightning's parts only, and be plain local YAML.

    ``KD_ALLOW_IMPORTS=my_package,other`` in the environment adds to them: such recipes are code.
    """
    set_loader("yaml", _load, exceptions=(yaml.YAMLError,))
    more = [path for path in os.environ.get(_VARIABLE, "").split(",") if path]
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=[*_ALLOWED, *more],
        instantiate_subclass_spec_in_any=False,
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,  # Lightning turned it on
    )


def check_groups(options: Namespace | Mapping[str, Any], groups: Iterable[str]) -> None:
    """Refuse a plain value where a recipe has a mapping, which the parser lets pass.

    Args:
        options: What was parsed of a command, or of a recipe.
        groups: Keys of the mappings, such as ``data``.

    Raises:
        ConfigError: If one is something else, as after ``data: 5``.
    """
    for group in groups:
        value = options.get(group)
        if not isinstance(value, Namespace | Mapping):
            raise ConfigError(f"{group} is {value!r:.60}: give a mapping of its keys to values.")


def explain(error: Exception, known: Iterable[str], classes: Iterable[type]) -> ConfigError:
    """Return a parser's error as one sentence, with the word that was perhaps meant.

    Args:
        error: What the parser raised.
        known: All keys of the command, such as ``model.learning_rate``.
        classes: Bases whose subclasses a recipe may name.

    Returns:
        The error to raise.
    """
    sentence = _named(str(error), known, classes) or _misread(error)
    return ConfigError(sentence if len(sentence) < _LONGEST else sentence[:_LONGEST] + " …")


def _named(text: str, known: Iterable[str], classes: Iterable[type]) -> str | None:
    """Return what is wrong with a name, if that is it."""
    key = _first(r'Parser key "([^"]+)"', text)
    where = f" in {key}" if key else ""
    denied = _first(r"Importing '([^']+)' is not allowed", text)
    if denied:
        return (
            f"The recipe names {denied}{where}, which it may not import: only classes of kd and of "
            f"Lightning's parts are allowed; add your own packages to {_VARIABLE}."
        )
    option = _first(r"Option '([^']+)' is not accepted", text)
    if option:
        owner = _first(r"given class_path '([^']+)'", text) or ""
        options = [*inspect.signature(_import(owner)).parameters] if owner else []
        owned = f" of {owner.rpartition('.')[2]}" if owner else ""
        return f"{option} is no option{owned}{where}{_near(option, options)}."
    unknown = _first(r"does not accept option '([^']+)'", text) or _first(
        r"unrecognized arguments: --([^\s=]+)", text
    )
    if unknown:
        return f"{unknown} is no key of this command{_near(unknown, known)}."
    name = _first(r"Expected a dot import path string: (\S+)", text)
    if name:
        names = [found.__name__ for base in classes for found in (base, *base.__subclasses__())]
        return f"{name}{where} is no class that kd knows{_near(name, names)}."
    missing = _first(r"arguments are required: (?:\w+\.)?(\S+)", text)
    if missing:
        return f"{missing} is missing: set it in a recipe, or give --config FILE."
    return None


def _misread(error: Exception) -> str:
    """Return what is wrong with a file or a value."""
    text = str(error)
    if isinstance(error, UnicodeDecodeError):
        return f"The recipe is no text in UTF-8 ({error.reason} at byte {error.start})."
    if not isinstance(error, ArgumentError):
        return f"The command line, or its recipe, cannot be followed: {' '.join(text.split())}."
    if "Unexpected config:" in text:
        return "The recipe is no mapping of keys to values."
    place = r'(.+?)\s+in "<unicode string>", ([\w ,]+)'
    if found := re.search(f"Problems parsing config: {place}", text, re.DOTALL):
        return f"The recipe is no plain YAML: {' '.join(found[1].split())}, {found[2]}."
    if found := re.search(r'Parser key "(.+)":\s+Unable to load config (.+)', text):
        return f"{found[1]} is {found[2]:.60}: give a mapping of its keys to values, or its file."
    if found := re.search("Given value: (.*)", text):  # the innermost of several
        before = text[: found.start()]
        kinds = re.findall(r"Subtypes: \[(.*)\]", before)[-1]
        kinds = re.sub(r"<class '(\S+)'>", r"\1", kinds).replace("NoneType", "null")
        key = ".".join(re.findall('Parser key "([^"]+)"', before))
        return f"{key} is {found[1]:.60}, which is none of {re.sub(_MODULE, '', kinds)}."
    if found := re.search(
        r'Parser key "(.+)":\s+Expected a <class .(\S+).>. Got value: (.*)', text
    ):
        return f"{found[1]} is {found[3]:.60}, which is no {found[2]}."
    return " ".join(text.replace('Parser key "', "").replace('":', ":").split())


class _RefusedError(ComposerError):
    """YAML, but more than it shows."""


class _Bounded(yaml.SafeLoader):
    """YAML as long as it looks: nothing repeated by name, no endless nesting.

    Nine lines of repetitions stand for a billion values; 100,000 brackets end the process.
    """

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent) and self._next().anchor in self.anchors:
            raise self._refusal("nothing is repeated by *name, write it out")
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._refusal(f"nested more than {_DEEPEST} times")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _refusal(self, problem: str, place: Any = None) -> _RefusedError:
        return _RefusedError(None, None, problem, (place or self._next()).start_mark)

    def _next(self) -> Any:
        return self.peek_event()  # type: ignore[no-untyped-call]


class _Plain(_Bounded):
    """YAML that means what it shows, also in its texts, which the parser reads as YAML again.

    Of two equal keys one would be lost.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set[str]()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._refusal("a key is a word", key)
            if key.value in seen:
                raise self._refusal(f"the key {key.value} is there twice", key)
            seen.add(key.value)
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if len(node.value) > _DEEPEST:  # a shorter one can do no harm
            try:
                yaml.compose(node.value, Loader=_Bounded)
            except _RefusedError as error:
                raise self._refusal(str(error.problem), node) from error
            except yaml.YAMLError:
                pass  # it is a text, and nothing else
        return node


def _load(text: str) -> Any:
    """Read YAML as jsonargparse does, if it is plain."""
    yaml.compose(text, Loader=_Plain)
    return _read_yaml(text)


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


def quieten() -> None:
    """Silence what is not news to a user; each with its reason."""
    import logging

    # Lightning 2.6 calls parts of jsonargparse that are going to be renamed
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*exists and is not empty.*",  # the run directory is ours, and holds config.yaml
        ".*LeafSpec.*is deprecated.*",  # lightning 2.6 on torch 2.13
        ".*does not have many workers.*",  # rows are in memory
        ".*smaller than the logging interval.*",  # it is a short epoch, not a fault
        ".*could not find the monitored key.*",  # where an epoch had no validation
        ".*your dataloader is not resumable.*",  # the data module keeps the position
    ):
        warnings.filterwarnings("ignore", message)
