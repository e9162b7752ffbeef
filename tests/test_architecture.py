"""The house rules of the package, each tested also by breaking it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "kd"
FILES = sorted(PACKAGE.rglob("*.py"))

FLOORS = {
    "calibration": 0,
    "guards": 1,
    "signals": 1,
    "errors": 0,
    "files": 0,
    "processes": 0,
    "pictures": 0,
    "redaction": 0,
    "texts": 0,
    "console": 0,
    "timing": 0,
    "types": 0,
    "vocabulary": 0,
    "layers": 1,
    "projections": 1,
    "shrink": 1,
    "pruning": 1,
    "budget": 1,
    "configuration": 1,
    "narrowing": 1,
    "classifiers": 1,
    "seq2seq": 1,
    "models": 1,
    "data": 1,
    "rationales": 1,
    "shards": 1,
    "page": 1,
    "predictions": 1,
    "verdict": 1,
    "views": 2,
    "teachers": 2,
    "ensembles": 2,
    "conversion": 2,
    "slices": 2,
    "objectives": 3,
    "metrics": 3,
    "optim": 3,
    "asking": 3,
    "answering": 3,
    "cache": 3,
    "loss": 3,
    "module": 4,
    "runs": 5,
    "checkpoints": 5,
    "callbacks": 5,
    "saving": 5,
    "throughput": 5,
    "tracking": 5,
    "layout": 5,
    "backends": 5,
    "inference": 6,
    "origins": 6,
    "annotate": 7,
    "answers": 7,
    "bench": 7,
    "card": 7,
    "checks": 7,
    "demo": 7,
    "export": 7,
    "findings": 7,
    "measuring": 7,
    "report": 7,
    "sections": 7,
    "serve": 7,
    "summary": 7,
    "delivery": 8,
    "parsing": 8,
    "references": 8,
    "recipes": 9,
    "compare": 10,
    "doctor": 10,
    "fits": 10,
    "cli": 11,
    "__main__": 12,
}
SAME_FLOOR = {  # rooms that build on a neighbour, in one direction only
    ("backends", "layout"),
    ("bench", "measuring"),
    ("cache", "asking"),
    ("callbacks", "checkpoints"),
    ("callbacks", "runs"),
    ("callbacks", "saving"),
    ("callbacks", "tracking"),
    ("checkpoints", "runs"),
    ("classifiers", "configuration"),
    ("classifiers", "layers"),
    ("classifiers", "projections"),
    ("compare", "fits"),
    ("data", "rationales"),
    ("ensembles", "teachers"),
    ("export", "card"),
    ("layout", "runs"),
    ("loss", "objectives"),
    ("models", "budget"),
    ("models", "classifiers"),
    ("models", "configuration"),
    ("models", "layers"),
    ("models", "projections"),
    ("models", "seq2seq"),
    ("models", "shrink"),
    ("narrowing", "budget"),
    ("pictures", "calibration"),
    ("report", "findings"),
    ("report", "sections"),
    ("sections", "findings"),
    ("saving", "checkpoints"),
    ("saving", "runs"),
    ("seq2seq", "classifiers"),
    ("seq2seq", "configuration"),
    ("seq2seq", "layers"),
    ("shrink", "budget"),
    ("shrink", "layers"),
    ("shrink", "narrowing"),
    ("shrink", "pruning"),
    ("teachers", "views"),
    ("tracking", "checkpoints"),
    ("tracking", "runs"),
    ("vocabulary", "errors"),
}
TOP_LEVEL = {
    "kd", "configs", "tests", "pyproject.toml", "README.md", "train.py", "constraints.txt",
    "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", ".ci", ".pre-commit-config.yaml",
    ".gitignore", ".git",
}  # fmt: skip
LONGEST_FILE = 400
LONGEST_FUNCTION = 80
LARGEST_PACKAGE = 25800  # a fifth of it docstrings, which are the CLI's help
LONGEST_RECIPE = 40
DEEPEST_CLASS = 2


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        modules = []
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
            if node.module == "kd":
                modules = [f"kd.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        for module in modules:
            if module.startswith("kd."):
                yield module.split(".")[1]


def wrong_imports(name: str, source: str) -> list[str]:
    return [
        f"{name} imports {other}"
        for other in imported_rooms(source)
        if other != name and FLOORS[other] >= FLOORS[name] and (name, other) not in SAME_FLOOR
    ]


def functions(source: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    nodes = ast.walk(ast.parse(source))
    return [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def long_functions(source: str) -> list[str]:
    return [
        node.name
        for node in functions(source)
        if (node.end_lineno or 0) - node.lineno + 1 > LONGEST_FUNCTION
    ]


def unannotated(source: str) -> list[str]:
    found = []
    for node in functions(source):
        arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        arguments += [arg for arg in (node.args.vararg, node.args.kwarg) if arg]
        bare = [arg.arg for arg in arguments if arg.annotation is None]
        if set(bare) - {"self", "cls"} or node.returns is None:
            found.append(node.name)
    return found


def exported(source: str) -> list[str] | None:
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return None


def public(source: str) -> set[str]:
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def wrong_exports(source: str) -> str | None:
    names = exported(source)
    if names is None:
        return "no __all__"
    # constants, then classes, then functions: the order that ruff keeps
    if names != sorted(names, key=lambda name: (not name.isupper(), name[0].islower(), name)):
        return "__all__ is not sorted"
    return None if set(names) == public(source) else f"{sorted(set(names) ^ public(source))}"


def depths(sources: list[str]) -> dict[str, int]:
    """Count the classes of the package above each class, itself included."""
    bases = {
        node.name: [ast.unparse(base).split(".")[-1] for base in node.bases]
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
    }

    def depth(name: str) -> int:
        return 1 + max((depth(base) for base in bases.get(name, []) if base in bases), default=0)

    return {name: depth(name) for name in bases}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_file_keeps_the_rules(path: Path) -> None:
    source = path.read_text()
    if path != PACKAGE / "__init__.py":
        assert not wrong_imports(room(path), source)
    assert source.count("\n") <= LONGEST_FILE
    assert not long_functions(source)
    assert not unannotated(source)
    assert ast.get_docstring(ast.parse(source)), "a module opens with what it is for"
    if path.name not in ("__init__.py", "__main__.py"):
        assert wrong_exports(source) is None
    assert path.stem not in {"utils", "util", "helpers", "common", "misc"}


def test_package_is_small_and_flat() -> None:
    sources = [path.read_text() for path in FILES]
    assert sum(source.count("\n") for source in sources) <= LARGEST_PACKAGE
    errors = {"KDError", "ConfigError", "DataError", "ModelError", "RunError"}
    deep = {name for name, depth in depths(sources).items() if depth > DEEPEST_CLASS}
    assert not deep - errors, "what Lightning and torch put above does not count"


def test_every_room_has_a_floor() -> None:
    assert {room(path) for path in FILES} - {"__init__"} == set(FLOORS)


def test_inference_starts_without_training_libraries() -> None:
    import subprocess
    import sys

    script = "import sys, kd.inference; print({'lightning', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stderr


def test_top_level_is_what_was_asked_for() -> None:
    import subprocess

    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT).stdout
    if listed:
        assert {line.split("/")[0] for line in listed.splitlines()} <= TOP_LEVEL


def test_recipes_are_short() -> None:
    recipes = sorted((ROOT / "configs").glob("*.yaml"))
    assert recipes
    for path in recipes:
        assert path.read_text().count("\n") <= LONGEST_RECIPE, path.name


def test_no_file_names_a_machine_or_a_registry() -> None:
    bad = (f"{ROOT}/", "index" + "-url", "pypi." + "org", "huggingface" + ".co/api")
    for path in [*FILES, *ROOT.glob("*.*"), *(ROOT / "configs").glob("*")]:
        if path.is_file():
            assert not [word for word in bad if word in path.read_text(errors="ignore")], path


def test_rules_can_fail() -> None:
    assert wrong_imports("objectives", "from kd.models import EncoderClassifier") == []
    assert wrong_imports("models", "from kd.objectives import Objective")
    assert wrong_imports("data", "def f() -> None:\n    import kd.teachers")
    assert long_functions("def f() -> None:\n" + "    x = 1\n" * LONGEST_FUNCTION)
    assert unannotated("def f(x) -> None: ...")
    assert unannotated("def f(x: int): ...")
    assert wrong_exports("__all__ = ['b', 'a']\na = 1\nb = 2")
    assert wrong_exports("__all__ = ['a']\ndef a(): ...\ndef b(): ...")
    assert depths(["class A: ...\nclass B(A): ...\nclass C(B): ..."])["C"] > DEEPEST_CLASS
