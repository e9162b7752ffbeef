"""What others wrote runs no code, fills no memory and leaves no folder; keys stay unwritten."""

from __future__ import annotations

import ast
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from kd.cli import main
from kd.conversion import convert
from kd.errors import ConfigError, ModelError
from kd.inference import Classifier
from kd.layout import ONNX, Facts, write_facts
from kd.models import EncoderClassifier
from kd.parsing import check_groups
from tests.conftest import LABELS, TEXTS, MakeModel
from tests.rationales.server import AnnotationServer

PACKAGE = Path(__file__).parents[1] / "kd"
COMMANDS = ["fit", "annotate", "doctor", "compare"]


def touching(path: Path) -> str:
    """Return code that writes a file."""
    return f"import pathlib\npathlib.Path({str(path)!r}).touch()"


class Evil:
    """Writes a file where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that code of others writes if it runs; a module of such code lies on the path."""
    path = tmp_path / "canary"
    (tmp_path / "hostile_module.py").write_text(f"{touching(path)}\nclass Evil: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    assert not path.exists(), "code of others ran"


def sentence(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that is refused, and return its one sentence."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    assert stop.value.code == 2
    told = capsys.readouterr()
    if words[0] == "doctor":  # which tells it in its report
        return "".join(line for line in told.out.splitlines() if line.startswith("error "))
    assert told.err.startswith("kd: error: ")
    assert told.err.count("\n") == 1
    return told.err


def written(folder: Path, content: str | bytes) -> Path:
    """Write a recipe."""
    recipe = folder / "hostile.yaml"
    recipe.write_bytes(content if isinstance(content, bytes) else content.encode())
    return recipe


# --- the package itself --------------------------------------------------------------------------

RUNS_CODE = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
ALLOWED = {
    ("checkpoints.py", "pickle"),  # the name of an exception
    ("data/variants.py", "joblib"),  # processes of our own, and no file
}


def dangers(name: str, source: str) -> list[str]:
    """Return what in a module could run what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        elif isinstance(node, ast.Call):
            found += dangerous_call(name, node)
        for module in modules:
            top = module.split(".")[0]
            if top in RUNS_CODE and (name, top) not in ALLOWED:
                found.append(f"imports {module}")
    return found


def dangerous_call(name: str, node: ast.Call) -> list[str]:
    called = ast.unparse(node.func)
    given = {word.arg: ast.unparse(word.value) for word in node.keywords}
    rules = {
        "runs a text": called in ("eval", "exec", "compile", "os.system", "os.popen"),
        "runs a shell": given.get("shell", "False") != "False",
        "unpickles": called.split(".")[-1] == "load"
        and called.split(".")[0] in ("torch", "pickle")
        and (name, given.get("weights_only")) != ("checkpoints.py", "True"),
        "unpickles arrays": given.get("allow_pickle", "False") != "False",
        "runs a model's code": given.get("trust_remote_code", "False") != "False",
        "may ask whether to run a model's code": called.startswith("Auto")
        and called.endswith(".from_pretrained")
        and "trust_remote_code" not in given,
        "makes objects of YAML": called in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"),
    }
    return [f"{rule}: {called}" for rule, is_broken in rules.items() if is_broken]


def test_nothing_that_is_read_is_run() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        assert not dangers(name, path.read_text()), name


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load('x', weights_only=True)",
        "eval('1')",
        "subprocess.run('ls', shell=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "numpy.load(path, allow_pickle=True)",
        "AutoConfig.from_pretrained(path)",
        "AutoConfig.from_pretrained(path, trust_remote_code=True)",
    ],
)
def test_the_rule_can_fail(source: str) -> None:
    assert dangers("models.py", source)


# --- recipes -------------------------------------------------------------------------------------

STUDENT = "model: {student: {class_path: EncoderClassifier, init_args: {path: nowhere}}}\n"
TAUGHT = STUDENT.replace("}}}", "}}, teacher: {class_path: ModelTeacher, init_args: {path: x}}}")
ANNOTATOR = "annotator: {class_path: APIAnnotator, init_args: {model: x}}\n"


NAMES = ["os.system", "subprocess.Popen", "builtins.eval", "torch.load"]
NAMES += ["kd.runs.os.system", "kd.runs.subprocess.Popen"]


def naming(name: str, place: str) -> str:
    """A recipe that names a class where one is expected."""
    said = f"{{class_path: {name}, init_args: {{args: [touch x]}}}}"
    return {
        "student": f"model: {{student: {said}}}\n",
        "objective": STUDENT.replace("}}}", f"}}}}, objectives: {{a: {said}}}}}"),
        "callback": f"{STUDENT}trainer: {{callbacks: [{said}]}}\n",
        "logger": f"{STUDENT}trainer: {{logger: {said}}}\n",
        "hook": f"{STUDENT}trainer: {{callbacks: [{{class_path: LambdaCallback, init_args: "
        f"{{on_fit_start: {name}}}}}]}}\n",
        "annotator": f"annotator: {said}\n",
    }[place]


@pytest.mark.fault(25)
@pytest.mark.parametrize(
    ("name", "place"),
    [(name, "student") for name in NAMES]
    + [
        ("hostile_module.Evil", place)
        for place in ("student", "objective", "callback", "logger", "hook")
    ],
)
def test_a_class_of_others_is_not_even_imported(
    name: str, place: str, canary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = written(tmp_path, naming(name, place))
    assert "may not import" in sentence(capsys, "fit", f"--config={recipe}")
    assert "hostile_module" not in sys.modules


@pytest.mark.fault(25)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_imports_it(
    command: str, canary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = "annotator" if command == "annotate" else "student"
    recipe = written(tmp_path, naming("hostile_module.Evil", place))
    assert "may not import" in sentence(capsys, command, f"--config={recipe}")


LAUGHS = "".join(f"l{n}: &l{n} [{','.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 12))
HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "a call": ("model: !!python/object/apply:os.system [touch x]\n", "no plain YAML"),
    "an object": ("model: !!python/object/new:subprocess.Popen [[touch, x]]\n", "no plain YAML"),
    "a module": ("model: !!python/module:hostile_module\n", "no plain YAML"),
    "a name": ("model: !!python/name:hostile_module.Evil\n", "no plain YAML"),
    "a tag": ("model: !include /etc/passwd\n", "no plain YAML"),
    "laughs": (f"l0: &l0 [x,x,x,x,x,x,x,x,x]\n{LAUGHS}", "nothing is repeated by *name"),
    "laughs in a text": (
        "trainer: {logger: '{l0: &l0 [x,x,x,x,x,x,x,x,x], " + LAUGHS.replace("\n", ", ") + "}'}\n",
        "nothing is repeated by *name",
    ),
    "deep in a text": (f"trainer: {{logger: '{'[' * 100_000}'}}\n", "nested more than 50 times"),
    "itself": ("model: &m {student: *m}\n", "nothing is repeated by *name"),
    "a megabyte of [": ("model: " + "[" * 10**6, "nested more than 50 times"),
    "a megabyte of {": ("model: " + "{a: " * 250_000 + "}" * 250_000, "nested more than 50 times"),
    "binary": (bytes(range(256)) * 40, "no text in UTF-8"),
    "a pickle": (b"\x80\x04cos\nsystem\n(S'touch x'\ntR.", "no text in UTF-8"),
    "UTF-16": (STUDENT.encode("utf-16"), "no text in UTF-8"),
    "twice": (STUDENT + STUDENT, "the key model is there twice"),
    "twice inside": ("data: {fold: [0, 2], fold: [1, 2]}\n", "the key fold is there twice"),
    "a list": ("- 1\n- 2\n", "no mapping of keys to values"),
    "a number": ("5\n", "no mapping of keys to values"),
    "empty": ("", "no mapping of keys to values"),
    "comment": ("# nothing\n", "no mapping of keys to values"),
    "NUL": (f"{STUDENT}a: b\0c\n", "no plain YAML: unacceptable character"),
    "half a pair": ('model: "\\ud800"\n', "no plain YAML"),
    "two documents": (f"{STUDENT}---\n{STUDENT}", "no plain YAML"),
    "open": ("model: {", "no plain YAML"),
    "a tab": ("model:\n\tstudent: x\n", "no plain YAML"),
    "keys of lists": ("model: {[1, 2]: 3}\n", "a key is a word"),
    "numbered": ("1: 2\n", "Key must be a string"),
    "a file of the system": ("model: /etc/passwd\n", "give a mapping of its keys"),
}


@pytest.mark.fault(25)
@pytest.mark.parametrize("quotes", ["", "'"], ids=["as it is", "in a text"])
@pytest.mark.parametrize(
    ("bomb", "told"),
    [("[&a [[[1, 1], [1, 1]], [[1, 1], [1, 1]]], *a, *a, *a]", "nothing is repeated"),
     ("[" * 60 + "]" * 60, "nested more than 50 times")],
    ids=["repeated", "deep"],
)  # fmt: skip
def test_a_bomb_is_refused_while_it_is_small(
    bomb: str, told: str, quotes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = written(tmp_path, f"trainer: {{logger: {quotes}{bomb}{quotes}}}\n")
    assert told in sentence(capsys, "fit", f"--config={recipe}")


@pytest.mark.parametrize(("content", "told"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_recipe_is_one_sentence(
    content: str | bytes,
    told: str,
    canary: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert told in sentence(capsys, "fit", f"--config={written(tmp_path, content)}")


@pytest.mark.parametrize("command", COMMANDS[1:])
@pytest.mark.parametrize("key", ["a call", "laughs", "binary", "a list"])
def test_it_is_so_for_every_command(
    command: str, key: str, canary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, told = HOSTILE[key]
    assert told in sentence(capsys, command, f"--config={written(tmp_path, content)}")


@pytest.mark.parametrize(
    ("group", "value"),
    [("data", "5"), ("data", "true"), ("run", "null"), ("trainer", "[1, 2]")],
)
def test_a_group_of_keys_is_a_mapping(
    group: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = written(tmp_path, f"{STUDENT}{group}: {value}\n")
    assert "give a mapping of its keys" in sentence(capsys, "fit", f"--config={recipe}")
    with pytest.raises(ConfigError, match="give a mapping of its keys"):
        check_groups({group: yaml.safe_load(value)}, [group])


@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_one_for_every_command(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = written(tmp_path, f"{ANNOTATOR if command == 'annotate' else TAUGHT}data: 5\n")
    assert "data is 5: give a mapping" in sentence(capsys, command, f"--config={recipe}")


@pytest.mark.parametrize(
    ("command", "file"),
    [("fit", file) for file in (".", "none.yaml", "", "a\0b", "x" * 5000, "/dev/null")]
    + [(command, ".") for command in COMMANDS[1:]],
)
def test_what_is_no_file_is_no_recipe(
    command: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(sentence(capsys, command, f"--config={file}")) < 6000


def test_a_recipe_of_another_command_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = written(tmp_path, ANNOTATOR)
    assert "is no key of this command" in sentence(capsys, "fit", f"--config={recipe}")
    recipe = written(tmp_path, STUDENT)
    assert "is no option" in sentence(capsys, "annotate", f"--config={recipe}")


# --- model folders -------------------------------------------------------------------------------

Spoil = Callable[[Path], object]


def configured(**changes: object) -> Spoil:
    return in_json("config.json", changes)


def in_json(name: str, changes: Mapping[str, object]) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def holding(name: str, content: bytes | str) -> Spoil:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data)


def cut(name: str) -> Spoil:
    return lambda folder: os.truncate(folder / name, 20_000)


def linked(name: str, target: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return spoil


def with_code(keeps_tokenizer: bool = True, **changes: object) -> Spoil:
    """Put code beside the model, and let its files ask for it."""

    def spoil(folder: Path) -> None:
        path = folder.parent / "canary"
        code = f"{touching(path)}\nfrom transformers import BertConfig as C\nM = T = C\n"
        (folder / "evil.py").write_text(code)
        names = {"AutoConfig": "evil.C", "AutoModelForSequenceClassification": "evil.M"}
        configured(auto_map=names, **changes)(folder)
        tokenizer = {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}, "tokenizer_class": "Evil"}
        in_json("tokenizer_config.json", tokenizer)(folder)
        if not keeps_tokenizer:
            (folder / "tokenizer.json").unlink()

    return spoil


def pickled(name: str, whole: bool) -> Spoil:
    """Put a pickle in the place of the weights, or a file of them with one inside."""

    def spoil(folder: Path) -> None:
        weights: dict[str, Any] = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        evil = Evil(folder.parent / "canary")
        torch.save(evil if whole else {**weights, "evil": evil}, folder / name)

    return spoil


def filled(value: float, part: str = "") -> Spoil:
    def spoil(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        for name in weights:
            if part in name:
                weights[name].fill_(value)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return spoil


def numbered(token: int) -> Spoil:
    """Give a word of the vocabulary another number."""

    def spoil(folder: Path) -> None:
        path = folder / "tokenizer.json"
        state = json.loads(path.read_text())
        state["model"]["vocab"]["i"] = token
        path.write_text(json.dumps(state))

    return spoil


def header(content: bytes, size: int | None = None) -> Spoil:
    start = struct.pack("<Q", len(content) if size is None else size)
    return holding("model.safetensors", start + content)


NO_NUMBER = "no number"
FOLDERS: dict[str, tuple[Spoil, str]] = {
    "code of an unknown family": (with_code(model_type="evil"), "which kd never runs"),
    "a tokenizer's code": (with_code(keeps_tokenizer=False), "no tokenizer that loads"),
    "a pickle as weights": (pickled("pytorch_model.bin", True), "do not load"),
    "a pickle among weights": (pickled("pytorch_model.bin", False), "do not load"),
    "a pickle as safetensors": (pickled("model.safetensors", True), "do not load"),
    "another family": (configured(model_type="nope"), "does not load"),
    "a list of families": (configured(model_type=["bert"]), "does not load"),
    "a width of a billion": (configured(hidden_size=10**9), "describes 13,000,"),
    "a billion words": (configured(vocab_size=10**9), "describes 16,000,"),
    "a billion layers": (configured(num_hidden_layers=10**9), "has num_hidden_layers=1000000000"),
    "a billion classes": (configured(num_labels=10**9), "has num_labels=1000000000"),
    "no heads": (configured(num_attention_heads=0), "do not load"),
    "an activation": (configured(hidden_act="os.system"), "do not load"),
    "kernels": (configured(_attn_implementation="evil/kernel"), "do not load"),
    "classes by name": (configured(id2label={"x": "a", "y": "b"}), "does not load"),
    "classes with a gap": (configured(id2label={"0": "a", "5": "b"}), "must go from 0 to 1"),
    "classes of one name": (configured(id2label={"0": "a", "1": "a"}), "two classes of one name"),
    "architectures": (configured(architectures=5, model_type="x"), "does not load"),
    "a configuration of []": (holding("config.json", "[]"), "does not"),
    "a configuration of {": (holding("config.json", "{"), "not valid JSON"),
    "a deep configuration": (holding("config.json", '{"a":' * 10**5), "does not load"),
    "a configuration elsewhere": (linked("config.json", "/etc/passwd"), "not valid JSON"),
    "a tokenizer of {": (holding("tokenizer.json", "{"), "no tokenizer that loads"),
    "a tokenizer of 5": (holding("tokenizer.json", "5"), "no tokenizer that loads"),
    "a deep tokenizer": (holding("tokenizer.json", "[" * 10**5), "no tokenizer that loads"),
    "a tokenizer of null": (holding("tokenizer_config.json", "null"), "no tokenizer that loads"),
    "a word beyond": (numbered(10**6), "do not belong together"),
    "a long text": (in_json("tokenizer_config.json", {"model_max_length": "x"}), "model_max_len"),
    "no text": (in_json("tokenizer_config.json", {"model_max_length": -5}), "model_max_length"),
    "no weights": (holding("model.safetensors", b""), "do not load"),
    "half the weights": (
        lambda folder: os.truncate(folder / "model.safetensors", 20_000),
        "do not",
    ),
    "a header of 2**60": (header(b"{}", 2**60), "do not load"),
    "a header of junk": (header(b"\xff" * 100), "do not load"),
    "no tensors": (header(b'{"__metadata__": {"format": "pt"}}'), "is missing or has another"),
    "weights elsewhere": (linked("model.safetensors", "/etc/passwd"), "do not load"),
    "NaN": (filled(float("nan")), NO_NUMBER),
    "an infinite head": (filled(float("inf"), "classifier"), NO_NUMBER),
    "kd.json of {": (holding("kd.json", "{"), "is broken"),
    "kd.json of null": (holding("kd.json", "null"), "is broken"),
    "a deep kd.json": (holding("kd.json", "[" * 10**5), "is broken"),
}


IN_TRAINING = ["code of an unknown family", "a pickle as weights", "a width of a billion"]
IN_TRAINING += ["a billion layers", "a tokenizer of 5", "a word beyond", "half the weights"]


@pytest.fixture
def hostile(
    request: pytest.FixtureRequest, make_model: MakeModel, canary: Path
) -> tuple[Path, str]:
    spoil, told = FOLDERS[request.param]
    folder = make_model("hostile")
    spoil(folder)
    return folder, told


@pytest.mark.parametrize("hostile", FOLDERS, indirect=True)
def test_a_hostile_folder_is_one_sentence(
    hostile: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, told = hostile
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))  # transformers may ask
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert told in sentence(capsys, "classify", f"--model={folder}", "--backend=torch", *TEXTS)


@pytest.mark.parametrize(
    ("hostile", "role"),
    [(name, "student") for name in IN_TRAINING] + [(name, "teacher") for name in IN_TRAINING[:2]],
    indirect=["hostile"],
)
def test_it_is_one_sentence_in_training(
    role: str,
    hostile: tuple[Path, str],
    make_model: MakeModel,
    csv_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, told = hostile
    words = [f"--data.source.train={csv_file}", f"--run.root={folder.parent / 'runs'}"]
    words += [f"--model.student.path={folder if role == 'student' else make_model()}"]
    if role == "teacher":
        words += [f"--model.teacher={{class_path: ModelTeacher, init_args: {{path: {folder}}}}}"]
        words += ["--model.objectives.logits=LogitKD"]
    assert told in sentence(capsys, "fit", *words)


@pytest.mark.fault(21)
@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_checkpoint_runs_nothing_whatever_the_environment_says(
    command: str,
    make_model: MakeModel,
    csv_file: Path,
    canary: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"state_dict": {}, "evil": Evil(canary)}, canary.parent / "evil.ckpt")
    words = [f"--model.student.path={make_model()}", f"--run.root={canary.parent / 'runs'}"]
    words += [f"--data.source.{role}={csv_file}" for role in ("train", "test")]
    told = sentence(capsys, command, *words, f"--ckpt_path={canary.parent / 'evil.ckpt'}")
    assert "could run code" in told


@pytest.mark.fault(26)
@pytest.mark.parametrize(
    "hostile", ["code of an unknown family", "a tokenizer's code"], indirect=True
)
def test_nobody_is_asked_whether_code_may_run(
    hostile: tuple[Path, str], canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, told = hostile
    answers = io.StringIO("y\n" * 9)
    monkeypatch.setattr("sys.stdin", answers)
    with pytest.raises(ModelError, match=told):
        Classifier.from_pretrained(folder)
    assert answers.tell() == 0
    assert not canary.exists()


@pytest.mark.filterwarnings("ignore")  # of transformers, that another tokenizer was wanted
def test_a_family_that_is_known_needs_no_code_of_others(
    make_model: MakeModel, canary: Path
) -> None:
    folder = make_model("hostile")
    with_code()(folder)
    assert len(Classifier.from_pretrained(folder).predict(TEXTS)) == len(TEXTS)


def test_a_name_of_a_million_letters_is_a_name(make_model: MakeModel) -> None:
    folder = make_model(labels=("a" * 10**6, "b"))
    (found,) = Classifier.from_pretrained(folder).predict(TEXTS[:1])
    assert len(max(found.probabilities)) in (1, 10**6)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A folder with a model for ONNX Runtime."""
    from tests.test_bench import make

    folder = Path(make(tmp_path_factory.mktemp("onnx") / "shipped", tokenizer))
    model = EncoderClassifier(path=str(folder))
    model.load(fresh_head=False)
    (folder / ONNX).parent.mkdir()
    write_facts(folder, Facts(LABELS, False, 64, convert(model, folder / ONNX)))
    return folder


def outside(folder: Path) -> None:
    """Let the model read its weights from a file of the system."""
    model = onnx.load(folder / ONNX)
    tensor = model.graph.initializer[0]
    size, tensor.data_location = len(tensor.raw_data), onnx.TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    for key, value in (("location", "../" * 9 + "etc/passwd"), ("length", str(size))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    (folder / ONNX).write_bytes(model.SerializeToString())


FACTS = {
    "labels": [[], ["a"], ["a", "b", "c"], [1, 2], 5, ["a", "a"]],
    "max_length": [0, -1, "x", 6.5],
    "inputs": [[], ["evil"], [1]],
    "temperature": [0, 1e-320, "x", [1], None, float("nan")],
    "prefix": [5, None],
    "format": [2, "1"],
    "evil": [1],
}


@pytest.mark.parametrize(
    "spoil",
    [holding(ONNX, b""), holding(ONNX, os.urandom(9999)), outside, numbered(10**6)]
    + [cut(ONNX), holding("tokenizer.json", "{")]
    + [in_json("kd.json", {key: value}) for key, values in FACTS.items() for value in values],
)
def test_a_hostile_onnx_folder_is_one_sentence(
    spoil: Spoil, shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(shipped, tmp_path / "hostile")
    spoil(folder)
    told = sentence(capsys, "classify", f"--model={folder}", *TEXTS)
    assert any(word in told for word in ("export", "has format", "two classes of one name"))


@pytest.mark.parametrize("content", ["", "[]", "5", "null", "{", "[" * 10**5, '{"a": 1}'])
def test_broken_checksums_are_one_sentence(
    content: str, make_model: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_model()
    (folder / "checksums.json").write_text(content)
    assert sentence(capsys, "export", f"--verify={folder}")


# --- addresses and places ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> Iterator[tuple[str, list[str]]]:
    """An address at which somebody listens, and what was asked there."""
    asked: list[str] = []

    class Listening(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Listening) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/x", asked
        server.shutdown()


ADDRESSES = ["http:", "https:", "s3:", "gs:", "ftp:", "file:", "hf:", "simplecache::http:"]
PLACES = {
    "a checkpoint": "--ckpt_path={}",
    "a recipe": "--config={}",
    "a data set": "--data.source.path={}",
    "a checkpoint's file": "--ckpt_path={}.ckpt",
    "a run to go on": "--run.resume={}",
    "a file": "--data.source.train={}.csv",
    "a student": "--model.student.path={}",
    "a tokenizer": "--model.student.init_args.tokenizer={}",
    "a teacher": "--model.teacher={{class_path: ModelTeacher, init_args: {{path: '{}'}}}}",
    "the root": "--run.root={}",
    "rationales": "--data.rationales={{path: '{}'}}",
}


@pytest.mark.parametrize(
    ("place", "address"),
    [(place, "http:") for place in PLACES] + [("a checkpoint", one) for one in ADDRESSES[1:]],
)
def test_an_address_is_refused_before_any_network(
    place: str,
    address: str,
    network: tuple[str, list[str]],
    make_model: MakeModel,
    csv_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, asked = network
    asked.clear()
    monkeypatch.chdir(tmp_path)
    words = {"--model.student.path": make_model(), "--data.source.train": csv_file}
    words |= {"--model.objectives.logits": "LogitKD"} if place == "a teacher" else {}
    if place == "a data set":
        del words["--data.source.train"]
    key, _, value = PLACES[place].format(url.replace("http:", address, 1)).partition("=")
    told = sentence(capsys, "fit", *(f"{k}={v}" for k, v in {**words, key: value}.items()))
    assert "127.0.0.1" in told
    assert not asked


@pytest.mark.fault(23)
@pytest.mark.parametrize(
    ("command", "name"),
    [("fit", name) for name in ("../../x", "/x", "a/b", "a\0b", "x" * 300, "CON", "😀", "~/x")]
    + [(command, "../x") for command in COMMANDS[1:]],
)
def test_no_name_leads_out_of_the_root(
    name: str,
    command: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = written(tmp_path, ANNOTATOR if command == "annotate" else TAUGHT)
    where = "--name={}" if command in ("annotate", "compare") else "--run.name={}"
    root = where.partition("name")[0] + f"root={tmp_path / 'runs'}"
    told = sentence(capsys, command, f"--config={recipe}", where.format(name), root)
    assert "run.name" in told
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("file", ["a\0b", "x" * 5000])
def test_a_path_that_cannot_be_is_one_sentence(
    file: str, make_model: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model()
    for words in ([f"--model={model}", f"--file={file}"], [f"--model={file}", "text"]):
        sentence(capsys, "classify", *words)
    for words in ("--model.student.path=", "--data.source.path=", "--data.source.train="):
        known = [f"--model.student.path={model}"] if "model" not in words else []
        sentence(capsys, "doctor", *known, f"{words}{file}")


# --- secrets -------------------------------------------------------------------------------------

KEYS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "MY_KEY")
KEYS += ("AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN")


@pytest.mark.fault(24)
@pytest.mark.filterwarnings("ignore")  # of the exporter
def test_a_canary_is_in_no_file_and_in_no_output(
    make_model: MakeModel,
    csv_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home, data, work = tmp_path / "home", tmp_path / "data", tmp_path / "work"
    for folder in (home, data, work):
        folder.mkdir()
        (folder / ".env").write_text("KEY=c4n4ry-of-a-file\n")
    (home / ".netrc").write_text("machine api.wandb.ai login user password c4n4ry-of-netrc\n")
    (data / "secret.csv").write_text("text,label\nc4n4ry of a neighbour,positive\n")
    rows = shutil.copy(csv_file, data / "train.csv")
    key = "gsk_c4n4ryA1b2C3d4E5f6G7h8"
    for name in KEYS:
        monkeypatch.setenv(name, key)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / ".netrc"))
    monkeypatch.chdir(work)
    odd = [f"--x-api-key={key}", "--password", key, f"Authorization: Bearer {key}", f"token={key}"]
    odd += [f"https://me:{key}@host/x", f'{{"headers": {{"api_key": "{key}"}}}}', f"HF_TOKEN={key}"]
    monkeypatch.setattr("sys.argv", ["kd", "fit", *odd])
    root = tmp_path / "runs"
    words = [f"--model.student.path={make_model()}", f"--data.source.train={rows}"]
    words += [f"--run.root={root}", "--trainer.max_epochs=1", "--data.max_length=16"]
    main(["fit", *words, "--trainer.accelerator=cpu"])
    main(["export", f"--run={root / 'run'}", f"--output={root / 'shipped'}", "--onnx=false"])
    main(["report", f"--run={root / 'run'}"])
    asked = {"model": "tiny", "provider": "custom", "structured": "none", "api_key_env": "MY_KEY"}
    with AnnotationServer(key=key, faults={"*": ["echo_key", "500", "echo_key"]}) as server:
        options = json.dumps({**asked, "base_url": server.url})
        said = ["annotate", f"--annotator={{class_path: APIAnnotator, init_args: {options}}}"]
        main([*said, f"--data.source.train={rows}", f"--root={root}", "--name=said"])
        assert server.requests > 30
    sentence(capsys, "fit", *words, f"--trainer.api_key={key}")
    files = [path for path in root.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"manifest.json", "config.yaml", "best.ckpt"}
    assert {path.name for path in files} >= {"report.html", "kd.json", "annotations.parquet"}
    told = capsys.readouterr()
    for content in (told.out.encode(), told.err.encode(), *(file.read_bytes() for file in files)):
        assert b"c4n4ry" not in content
    assert "***" in (root / "run" / "version_0" / "manifest.json").read_text()


# --- the audit -----------------------------------------------------------------------------------

VULNERABLE = {"name": "x", "version": "1", "vulns": [{"id": "GHSA-1", "fix_versions": ["2"]}]}
AUDITS = {
    "sound": ({"name": "x", "version": "1", "vulns": []}, "", 0, "nothing more"),
    "vulnerable": (VULNERABLE, "Found 1 known vulnerability", 1, "x 1 GHSA-1 fixed in 2"),
    "nobody knows": ({"skip_reason": "could not be audited"}, "", 0, "not audited: no network"),
    "nobody answers": (None, "ConnectionError: ...", 1, "not audited: no network"),
    "broken": (None, "error: unrecognized arguments", 2, "unrecognized arguments"),
}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not there")
@pytest.mark.parametrize("outcome", AUDITS)
def test_an_audit_fails_by_what_it_finds_and_not_for_want_of_a_network(
    outcome: str, tmp_path: Path
) -> None:
    found, said, code, told = AUDITS[outcome]
    shutil.copy(PACKAGE.parent / "Makefile", tmp_path)
    (tmp_path / ".venv").mkdir()
    lines = ["import json, sys", f"print({said or told!r}, file=sys.stderr)"]
    if found is not None:
        lines += [f"json.dump({{'dependencies': [{found!r}]}}, open(sys.argv[-1], 'w'))"]
    (tmp_path / "stand_in.py").write_text("\n".join([*lines, f"sys.exit({code})"]))
    words = [f"-o{made}" for made in ("install", ".venv/installed", ".venv/pip-audit")]
    words += [f"BIN={Path(sys.executable).parent}", f"AUDIT={sys.executable} stand_in.py"]
    done = subprocess.run(["make", *words, "audit"], cwd=tmp_path, capture_output=True, text=True)
    assert told in done.stdout
    assert bool(done.returncode) is (outcome in ("vulnerable", "broken"))
