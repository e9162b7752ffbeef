"""Texts, tables and recipes that nobody would write: an answer or one sentence, never a traceback.

Hypothesis draws the same examples in every run: 100 of each kind, and 1,000 in the slow tier.
"""

from __future__ import annotations

import copy
import csv
import gzip
import io
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.exceptions import MisconfigurationException

from kd.conversion import convert
from kd.data.datamodule import TextDataModule
from kd.data.rows import Fields, Table, canonical_rows, resolve_labels
from kd.data.sources import Source, read
from kd.errors import ConfigError, DataError, KDError
from kd.inference import Classifier
from kd.layout import ONNX, Facts, write_facts
from kd.models import EncoderClassifier
from kd.parsing import allow_imports, quieten
from kd.recipes import RecipeCLI
from tests.conftest import LABELS, SIZES, TEXTS, MakeModel

COUNTS = [100, pytest.param(1000, marks=pytest.mark.slow)]


def examples(count: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def one_sentence() -> Iterator[list[str]]:
    """Let errors of ours pass, if they say something and not too much; collects what they say."""
    told: list[str] = []
    try:
        yield told
    except KDError as error:
        told.append(str(error))
    assert all(0 < len(sentence) < 2000 for sentence in told)


# --- texts ---------------------------------------------------------------------------------------

ANY = st.characters(exclude_categories=())  # surrogates and NUL too
SHORT = "\0|\ud83d|\udc00|\u202e|\u200b|\ufeff|\r|\n| |\u00a0|\x1b[31m|[MASK]|<unk>|شكرا|love|%s|\\"
LONG = [
    "a" * 100_000,
    "\u0301" * 20_000,
    "字" * 50_000,
    "👩‍👩‍👧‍👦" * 2000,
    "not " * 30_000,
    "#" * 100_000,
]
PIECES = st.sampled_from([*SHORT.split("|"), *LONG])
STRANGE = st.text(ANY) | st.lists(st.text(ANY) | PIECES, max_size=4).map("".join)


@pytest.fixture(params=["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def classifier(request: pytest.FixtureRequest, make_model: MakeModel) -> Classifier:
    folder = make_model()
    if request.param == "onnx":
        model = EncoderClassifier(path=str(folder))
        model.load(fresh_head=False)
        (folder / ONNX).parent.mkdir()
        write_facts(folder, Facts(LABELS, False, 64, convert(model, folder / ONNX)))
    return Classifier.from_pretrained(folder, request.param)


@pytest.mark.fault(30)
@pytest.mark.parametrize("count", COUNTS)
def test_any_text_gets_an_answer_or_a_sentence(classifier: Classifier, count: int) -> None:
    @examples(count)
    @given(STRANGE)
    def check(text: str) -> None:
        if not text.replace("\0", "").strip():
            with pytest.raises(DataError, match="Text 1 of 1 is empty"):
                classifier.predict([text])
            return
        (found,) = classifier.predict([text])
        assert found.label in LABELS
        assert math.isclose(sum(found.probabilities.values()), 1.0)
        found.text.encode()

    check()


@pytest.mark.fault(29)
@pytest.mark.parametrize("text", [None, "", "  \n", 5, b"bytes", float("nan"), "\0", "\0 \0"])
def test_what_is_no_text_is_named(make_model: MakeModel, text: Any) -> None:
    with pytest.raises(DataError, match="Text 2 of 2 is empty"):
        Classifier.from_pretrained(make_model()).predict(["good", text])


# --- tables --------------------------------------------------------------------------------------

ENCODINGS = ["utf-8", "latin-1", "utf-16", "ascii", "cp1252", "utf-7", "utf-32-be", "koi8-r"]
ENCODINGS += ["rot13", "base64", "idna", "punycode", "unicode_escape", "undefined", "x" * 300, ""]
CELLS = st.text(ANY, max_size=20) | st.sampled_from(["", "1", "0", "-1", "1e400", "nan", "null"])
CELLS |= st.sampled_from([*LABELS, *TEXTS, '"', '""', '"a', ",", ";", "\t", "\n", "\r\n", "\0"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(ANY, max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "encoding": st.sampled_from(ENCODINGS),
        "header": st.booleans(),
        "columns": st.lists(st.text(max_size=3), max_size=4),
        "delimiter": st.sampled_from([",", ";", "\t", "|", "", "ab", "\n", '"', "\0", " ", "é"]),
        "quotes": st.booleans(),
    },
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "text_column": st.sampled_from(["text", "x", "", "0"]),
        "pair_column": st.sampled_from([None, "x", "text", "1"]),
        "label_column": st.sampled_from(["label", "text", None, "1"]),
        "label_map": st.dictionaries(st.sampled_from(["0", "1", "positive", ""]), CELLS),
        "label_names": st.lists(st.sampled_from([*LABELS, "0", ""]), max_size=3),
        "multi_label": st.booleans(),
        "label_separator": st.sampled_from(["|", ",", "\0", "ab"]),
        "weight_column": st.sampled_from([None, "x", "label"]),
        "on_empty_label": st.sampled_from(["error", "unlabelled"]),
        "on_bad_row": st.sampled_from(["error", "drop"]),
        "validation_fraction": st.floats(0.01, 0.99),
        "train_rows": st.none() | st.integers(1, 20),
        "labelled_rows": st.none() | st.integers(0, 20),
    },
)
COLUMNS = st.sampled_from(["text", "label", "x", "", "text "])
KINDS = {"csv": ".csv", "raw": ".csv", "json": ".jsonl", "list": ".json"}
ENDINGS = [".csv", ".csv", ".tsv", ".jsonl", ".json", ".parquet", ".csv.gz", ".jsonl.gz"]


@st.composite
def tables(draw: st.DrawFn) -> tuple[bytes, str, dict[str, Any], dict[str, Any]]:
    """A file as some program might write it, its ending, and what a recipe may say of it."""

    def usual() -> bool:
        return draw(st.integers(0, 4)) < 4

    columns = ["text", "label"] if usual() else draw(st.lists(COLUMNS, min_size=1, max_size=4))
    widths = {} if draw(st.booleans()) else {"min_size": len(columns), "max_size": len(columns)}
    rows = draw(st.lists(st.lists(CELLS, **widths), max_size=6))
    rows += [[TEXTS[n % 8], LABELS[n % 2]] for n in range(12 * usual())]
    kind = draw(st.sampled_from(list(KINDS)))
    if kind == "csv":
        file, quoting = io.StringIO(), csv.QUOTE_MINIMAL if usual() else csv.QUOTE_ALL
        writer = csv.writer(file, delimiter="," if usual() else ";", quoting=quoting)
        writer.writerows([columns, *rows])
        text = file.getvalue()
    elif kind == "raw":
        text = "\n".join(",".join(row) for row in [columns, *rows])
    else:
        values = [dict(zip(columns, row, strict=False)) for row in rows]
        if not usual():
            values.append({"text": draw(JSON), "label": draw(JSON)})
        lines = [json.dumps(value) for value in values]
        text = "\n".join(lines) if kind == "json" else f"[{','.join(lines)}]"
    content = text.encode("utf-8" if usual() else draw(st.sampled_from(ENCODINGS[:3])), "replace")
    if not usual():
        place = draw(st.integers(0, len(content)))
        content = content[:place] + draw(st.binary(max_size=3)) + content[place:]
    ending = KINDS[kind] if usual() else draw(st.sampled_from(ENDINGS))
    if ending.endswith(".gz") and usual():
        content = gzip.compress(content)
    kept = {"on_empty_label": "unlabelled", "on_bad_row": "drop"}
    return (
        content if usual() else draw(st.binary(max_size=400)),
        ending,
        {} if usual() else draw(OPTIONS),
        kept if usual() else draw(FIELDS),
    )


@pytest.mark.parametrize("count", COUNTS)
def test_any_table_gives_rows_or_a_sentence(tmp_path: Path, count: int) -> None:
    given_rows = 0

    @examples(count)
    @given(tables())
    def check(table: tuple[bytes, str, dict[str, Any], dict[str, Any]]) -> None:
        nonlocal given_rows
        content, ending, options, fields = table
        path = tmp_path / f"rows{ending}"
        path.write_bytes(content)
        with one_sentence() as told:
            data = TextDataModule(Source(train=str(path), **options), **fields)
            data.read("fit")
        if told:
            return
        given_rows += 1
        assert len(data.labels) > 1
        assert data.rows["train"]
        for row in data.rows["train"] + data.rows["validation"]:
            assert row.text.strip()
            row.text.encode()
        " ".join(data.labels).encode()

    check()
    assert given_rows > count / 20, "some of them are good"


@pytest.mark.fault(32)
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"text,label\ncaf\xe9,positive\n", "encoding=latin-1"),
        (bytes(range(256)) * 40, "looks binary"),
        (b'text,label\n"a,positive\nb,negative\n', "line 2: broken or unclosed quote"),
        (b"text,label\n", "holds no rows"),
        (b"", "holds no rows"),
        (b"text,label\na,b,c\n", "line 2: 3 fields instead of 2"),
    ],
)
def test_a_broken_table_is_told_by_its_line(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=told):
        read(Source(train=str(path)), "train")


# --- recipes -------------------------------------------------------------------------------------


class Built(RecipeCLI):
    """A fit that ends where it would claim its directory and load its models."""

    def before_instantiate_classes(self) -> None:
        self.resume_from = None

    def fit(self, *_: Any, **__: Any) -> None:
        pass


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    recipe = tmp_path_factory.mktemp("recipes") / "valid.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    allow_imports()
    quieten()
    return Built(["fit", f"--config={recipe}"], only_fill=True)


RECIPE: dict[str, Any] = {
    "seed_everything": 1,
    "run": {"name": "tiny", "root": "runs", "save_every": 10},
    "model": {
        "student": {
            "class_path": "EncoderClassifier",
            "init_args": {"config": {"model_type": "bert", **SIZES}, "dropout": 0.1},
        },
        "teacher": {"class_path": "ModelTeacher", "init_args": {"path": "teacher"}},
        "objectives": {
            "labels": {"class_path": "HardLabel", "init_args": {"weight": 0.5}},
            "logits": {"class_path": "LogitKD", "init_args": {"temperature": 2.0}},
        },
        "learning_rate": 1e-3,
    },
    "data": {
        "source": {"train": "rows.csv"},
        "label_names": ["a", "b"],
        "label_map": {"0": "a", "1": "b"},
        "batch_size": 8,
        "fold": [0, 2],
        "augment": {"augmenters": [{"class_path": "WordDrop"}], "variants": 1},
    },
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "callbacks": None},
}
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["os.system", "kd.LogitKD", "HardLabel", "auto", "null", "~", "/etc/passwd"])
    | st.sampled_from(["a: b", "[1, 2", "{", "*x", "&x y", "!!python/none", "\ud800", "\0", "- 1"])
    | JSON
    | st.sampled_from([RECIPE, RECIPE["model"]["student"], [RECIPE["model"]["objectives"]], [[]]])
)
KEYS = ["class_path", "init_args", "dict_kwargs", "weight", "path", "config", "x", "", "a.b", "--x"]
KEYS += ["model", "data.source", "__class__", "fit", "logger", "plugins", "devices", "strategy"]


@st.composite
def spoilt(draw: st.DrawFn) -> dict[str, Any]:
    """A recipe in which one to three things are not as they were."""
    recipe = copy.deepcopy(RECIPE)
    for _ in range(draw(st.integers(1, 3))):
        place: Any = recipe
        while True:
            key = draw(st.sampled_from(list(place) if isinstance(place, dict) else [0]))
            inner = place[key]
            if not (isinstance(inner, dict | list) and inner) or draw(st.integers(0, 2)) == 0:
                break
            place = inner
        change = draw(st.sampled_from(["drop", "replace", "replace", "rename", "add", "nest"]))
        if change == "replace" or isinstance(place, list):
            place[key] = copy.deepcopy(draw(VALUES))
        elif change == "nest":
            place[key] = draw(st.sampled_from([[inner], {"x": inner}, {key: inner}, str(inner)]))
        elif change == "add":
            place[draw(st.sampled_from(KEYS))] = copy.deepcopy(draw(VALUES))
        else:
            del place[key]
            if change == "rename":
                place[draw(st.sampled_from(KEYS))] = inner
        if not recipe:
            return recipe
    return recipe


@pytest.mark.filterwarnings("ignore")  # of the trainer, about its options
@pytest.mark.parametrize("count", COUNTS)
def test_any_recipe_is_built_or_explained(built: Built, tmp_path: Path, count: int) -> None:
    @examples(count)
    @given(spoilt())
    def check(recipe: dict[str, Any]) -> None:
        file = tmp_path / "spoilt.yaml"
        file.write_bytes(yaml.safe_dump(recipe).encode("utf-8", "surrogatepass"))
        # what Lightning refuses is made a ConfigError by `run_recipe`
        with one_sentence(), suppress(MisconfigurationException):
            built.parse_arguments(built.parser, ["fit", f"--config={file}"])
            built.instantiate_classes()

    check()


# --- what hypothesis and hostile files have found ------------------------------------------------


def test_a_label_is_valid_unicode(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": "x\\ud800"}\n{"text": "b", "label": "y\\u0000"}\n')
    table: Table = read(Source(train=str(path)), "train")
    labels = resolve_labels(table, Fields())
    assert labels == ("x\ufffd", "y")
    assert [row.label for row in canonical_rows(table, Fields(), labels)] == [0, 1]


def test_an_empty_path_is_no_path() -> None:
    with pytest.raises(ConfigError, match="takes a path or a config"):
        EncoderClassifier(path="")


@pytest.mark.parametrize("encoding", ["base64", "rot13"])
def test_a_codec_of_bytes_is_no_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,b\n")
    with pytest.raises(ConfigError, match=f"encoding={encoding} is unknown"):
        read(Source(train=str(path), encoding=encoding), "train")
