"""Sources: every way to name data, and one sentence for every way it can be broken."""

import gzip
import subprocess
import sys

import pandas
import pytest

from kd.data.rows import Fields, canonical_rows, resolve_labels
from kd.data.sources import ROLES, Source, available_roles, read
from kd.errors import ConfigError, DataError


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


@pytest.fixture
def cache(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield datasets
    datasets.enable_progress_bars()


def message(source, role="train", error=DataError):
    with pytest.raises(error) as raised:
        read(source, role)
    return str(raised.value)


def records(table):
    return table.frame.to_dict("records")


# Files


def test_a_csv_file_stays_text(write):
    table = read(Source(train=write("a.csv", "text,label\nNA,1\nnull,\n 7 ,03\n")), "train")
    assert records(table) == [
        {"text": "NA", "label": "1"},
        {"text": "null", "label": ""},
        {"text": " 7 ", "label": "03"},
    ]


def test_places_are_lines_of_the_file(write):
    path = write("a.csv", 'text,label\n\n"two\nlines",1\nx,0\r\n\n"a ""b""",1')
    table = read(Source(train=path), "train")
    assert [table.place(i) for i in range(3)] == [f"{path}, line {n}" for n in (3, 5, 7)]
    assert table.frame["text"].tolist() == ["two\nlines", "x", 'a "b"']


def test_tsv_delimiter_byte_order_mark_and_plain_quotes(write):
    tabs = write("a.tsv", b"\xef\xbb\xbftext\tlabel\na,b\t1\n")
    assert records(read(Source(train=tabs), "train")) == [{"text": "a,b", "label": "1"}]
    semicolons = write("b.csv", 'text;label\n"so" he said;1\n')
    table = read(Source(train=semicolons, delimiter=";", quotes=False), "train")
    assert records(table) == [{"text": '"so" he said', "label": "1"}]


def test_a_headerless_file_without_names_is_numbered(write):
    table = read(Source(train=write("a.csv", "x,1\ny,0\n"), header=False), "train")
    assert list(table.frame.columns) == ["0", "1"]
    assert table.place(0).endswith("line 1")


def test_sentiment140_loads(write):
    path = write(
        "training.1600000.csv",
        b'"0","1","Mon Apr 06","NO_QUERY","bob","caf\xe9 is shut, ""sigh"""\n'
        b'"4","2","Mon Apr 06","NO_QUERY","eve","love it &amp; more"\n',
    )
    columns = ["target", "id", "date", "query", "user", "text"]
    source = Source(train=path, encoding="latin-1", header=False, columns=columns)
    fields = Fields(label_column="target", label_map={"0": "negative", "4": "positive"})
    table = read(source, "train")
    labels = resolve_labels(table, fields)
    rows = canonical_rows(table, fields, labels)
    assert labels == ("negative", "positive")
    assert [(row.text, row.label) for row in rows] == [
        ('café is shut, "sigh"', 0),
        ("love it &amp; more", 1),
    ]


def test_a_million_characters_pass(write):
    text = "x" * 1_000_000
    assert read(Source(train=write("a.csv", f"text\n{text}\n")), "train").frame["text"][0] == text


def test_json_lines_and_lists(write):
    lines = write("a.jsonl", '{"text": "a", "label": 1}\n\n{"text": "\\ud800", "label": null}\r\n')
    table = read(Source(train=lines), "train")
    assert records(table) == [{"text": "a", "label": 1}, {"text": "\ud800", "label": None}]
    assert table.place(1) == f"{lines}, line 3"
    separators = write("b.json", '{"text": "a\u2028b"}\n')
    assert read(Source(train=separators), "train").frame["text"][0] == "a\u2028b"
    listed = write("c.json", '[{"text": "a"},\n {"pair": 2}]')
    table = read(Source(train=listed), "train")
    assert records(table) == [{"text": "a", "pair": None}, {"text": None, "pair": 2}]
    assert table.place(1) == f"{listed}, row 2"


@pytest.mark.fault(28)
def test_parquet_keeps_whole_numbers_beside_a_hole(tmp_path):
    path = tmp_path / "fold=9" / "a.parquet"  # no partition is inferred from the folder
    path.parent.mkdir()
    frame = pandas.DataFrame({"text": ["a", None], "label": pandas.array([1, None], "Int64")})
    frame.to_parquet(path)
    table = read(Source(train=str(path)), "train")
    assert records(table) == [{"text": "a", "label": 1}, {"text": None, "label": None}]
    assert isinstance(table.frame["label"][0], int)


def test_gzip(write):
    csv = write("a.csv.gz", gzip.compress(b"text,label\na,1\n"))
    jsonl = write("a.jsonl.gz", gzip.compress(b'{"text": "a", "label": "1"}\n'))
    assert records(read(Source(train=csv), "train")) == records(read(Source(train=jsonl), "train"))


def test_files_folders_and_globs_are_concatenated(write, tmp_path):
    first = write("parts/1.csv", "text,label\na,1\n")
    second = write("parts/2.jsonl", '{"label": 0, "text": "b", "extra": 5}\n')
    write("parts/notes.txt", "not data")
    write("parts/meta.json", "{}")
    for train in ([first, second], str(tmp_path / "parts"), str(tmp_path / "parts" / "[12].*")):
        table = read(Source(train=train), "train")
        assert table.frame["text"].tolist() == ["a", "b"]
        assert table.place(0) == f"{first}, line 2"
        assert table.place(1) == f"{second}, line 1"


def test_roles_of_files(write):
    path = write("a.csv", "text\na\n")
    assert available_roles(Source(train=path, predict=[path])) == ("train", "predict")
    assert available_roles(Source(test=path)) == ("test",)
    assert read(Source(test=path), "test").origin == path


# Broken files


def test_missing_files_and_roles(write, tmp_path):
    path = write("a.csv", "text\na\n")
    text = message(Source(train="tweets.csv"))
    assert "data.source.train" in text
    assert "tweets.csv" in text
    assert "data.source.test" in message(Source(train=path), "test")
    (tmp_path / "empty").mkdir()
    assert "no data file" in message(Source(train=str(tmp_path / "empty")))


def test_unknown_extension_lists_the_known(write):
    text = message(Source(train=write("a.xlsx", "x")))
    assert "a.xlsx" in text
    assert all(known in text for known in (".csv", ".tsv", ".jsonl", ".parquet", ".gz"))


@pytest.mark.fault(32)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_wrong_encoding_suggests_latin_1(write, name):
    text = message(Source(train=write(name, b"text\n" + b"x\n" * 20_000 + b"\xe9\n")))
    assert name in text
    assert "utf-8" in text
    assert "data.source.encoding=latin-1" in text


def test_unknown_encoding(write):
    source = Source(train=write("a.csv", "text\na\n"), encoding="utf-9")
    assert "data.source.encoding=utf-9" in message(source, error=ConfigError)


@pytest.mark.fault(32)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_binary(write, name):
    source = Source(train=write(name, bytes(range(256)) * 4), encoding="latin-1")
    assert "binary" in message(source)
    wide = Source(train=write("b.csv", "text\na\n".encode("utf-16")))
    assert "data.source.encoding=utf-16" in message(wide)
    assert records(read(Source(train=wide.train, encoding="utf-16"), "train")) == [{"text": "a"}]


@pytest.mark.fault(32)
@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('text,label\na,1\n"b,0\nc,1\n', 3),  # never closed
        ('text,label\na,1\n"b', 3),
        ('text,label\n1,"b\n2,"c"\n', 2),  # closed by the next row's quote: would swallow it
    ],
)
def test_unclosed_quote(write, content, line):
    text = message(Source(train=write("a.csv", content)))
    assert f"a.csv, line {line}" in text
    assert "quote" in text
    assert "data.source.quotes=false" in text


@pytest.mark.fault(32)
@pytest.mark.parametrize(("row", "fields"), [("b", 1), ("b,c,1", 3)])
def test_ragged_line(write, row, fields):
    text = message(Source(train=write("a.csv", f"text,label\na,1\n{row}\n")))
    assert "a.csv, line 3" in text
    assert f"{fields} fields instead of 2" in text


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json"])
def test_empty_file(write, name):
    text = message(Source(train=write(name, "")))
    assert name in text
    assert "empty" in text or "no rows" in text


@pytest.mark.fault(32)
def test_header_only(write, tmp_path):
    assert "no rows" in message(Source(train=write("a.csv", "text,label\n")))
    pandas.DataFrame({"text": []}).to_parquet(tmp_path / "a.parquet")
    assert "no rows" in message(Source(train=str(tmp_path / "a.parquet")))


@pytest.mark.parametrize("line", ['{"text": "b"', "[1]", '"text"', "[" * 100_000])
def test_broken_json_line(write, line):
    assert "a.jsonl, line 2" in message(
        Source(train=write("a.jsonl", f'{{"text": "a"}}\n{line}\n'))
    )


def test_broken_json_list(write):
    assert "a.json, line 2" in message(
        Source(train=write("a.json", '[{"text": "a"},\n{"text" 1}]'))
    )


def test_other_unreadable_files(write):
    assert "a.parquet cannot be read" in message(Source(train=write("a.parquet", "no")))
    assert "a.csv.gz cannot be read" in message(Source(train=write("a.csv.gz", "no")))
    cut = gzip.compress(b"text\n" + bytes(range(48, 120)) * 99)[:-30]
    assert "b.csv.gz cannot be read" in message(Source(train=write("b.csv.gz", cut)))


def test_settings_that_cannot_work(write):
    path = write("a.csv", "text,text\na,1\n")
    assert "one name" in message(Source(train=path))
    columns = Source(train=path, columns=["text", "label"])
    assert "data.source.header=false" in message(columns, error=ConfigError)
    assert "data.source.delimiter" in message(Source(train=path, delimiter="||"), error=ConfigError)


# Folders and data sets


@pytest.mark.fault(27)
def test_a_folder_is_read_by_the_names_of_its_files(write, tmp_path):
    write("d/train-00000-of-00002.csv", "text,label\nNA,1\n")
    write("d/train-00001-of-00002.csv", "text,label\nb,0\n")
    write("d/data/dev.jsonl", '{"text": "c"}\n')
    write("d/labels.json", '{"label_names": ["no", "yes"]}')
    source = Source(path=str(tmp_path / "d"))
    assert available_roles(source) == ("train", "validation")
    assert read(source, "train").frame["text"].tolist() == ["NA", "b"]
    assert read(source, "validation").frame["text"].tolist() == ["c"]
    text = message(source, "test")
    assert "no split 'test'" in text
    assert "data.source.test" in text
    assert "train, dev" in text
    assert available_roles(Source(path=source.path, predict="dev"))[-1] == "predict"


def test_slices_and_several_splits(write, tmp_path):
    rows = "".join(f"{i},{i % 2}\n" for i in range(10))
    path = write("d/train.csv", "text,label\n" + rows)
    write("d/test.csv", "text,label\nx,1\n")
    source = Source(
        path=str(tmp_path / "d"), train="train[:20%]", validation=["train[-1:]", "test"]
    )
    table = read(source, "train")
    assert table.frame["text"].tolist() == ["0", "1"]
    held = read(source, "validation")
    assert held.frame["text"].tolist() == ["9", "x"]
    assert held.place(0) == f"{path}, row 10"
    for wrong, words in (("train[", "no slice"), ("train[50:]", "none of 10"), ("tra", "no split")):
        text = message(Source(path=source.path, train=wrong))
        assert words in text
        assert "data.source.train" in text


def test_paths_that_are_no_folder(write):
    path = write("a.csv", "text\na\n")
    assert "data.source.train" in message(Source(path=path))
    assert "no folder" in message(Source(path="./nowhere"))
    assert "no folder" in message(Source(path="a/b/c"))


@pytest.mark.fault(41)
def test_an_unknown_hub_id_is_one_sentence(monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError) as raised:
        read(Source(path="nobody/nothing", name="sentiment"), "train")
    text = str(raised.value)
    assert "data.source.path=nobody/nothing" in text
    assert "name=sentiment" in text
    assert "HF_HUB_OFFLINE" in text
    assert "\n" not in text
    assert isinstance(raised.value.__cause__, (OSError, datasets.exceptions.DatasetsError))


def classified(datasets):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    return datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features=features)


CONFIGURATIONS = """---
configs:
- config_name: sentiment
  data_files: [{split: train, path: s/*}, {split: valid, path: s/*}]
- config_name: irony
  data_files: [{split: train, path: s/*}]
---
"""


def test_load_dataset_reads_configurations_and_class_names(cache, write, tmp_path):
    write("hub/README.md", CONFIGURATIONS)
    (tmp_path / "hub" / "s").mkdir()
    classified(cache).to_parquet(tmp_path / "hub" / "s" / "x.parquet")
    source = Source(path=str(tmp_path / "hub"), name="sentiment", train="train[:1]")
    assert available_roles(source) == ("train", "validation")
    table = read(source, "train")
    assert table.label_names == {"label": ("no", "yes")}
    assert records(table) == [{"text": "a", "label": 1}]
    assert read(source, "validation").place(1).endswith("hub (sentiment), split valid, row 2")
    text = message(Source(path=source.path))
    assert "['sentiment', 'irony']" in text
    assert "name=None" in text
    assert "irnoy" in message(Source(path=source.path, name="irnoy"))


def test_class_names_in_a_plain_parquet_file(cache, tmp_path):
    classified(cache).to_parquet(tmp_path / "a.parquet")
    table = read(Source(train=str(tmp_path / "a.parquet")), "train")
    assert table.label_names == {"label": ("no", "yes")}


def test_save_to_disk(cache, tmp_path):
    cache.DatasetDict({"train": classified(cache)}).save_to_disk(tmp_path / "d")
    assert len(read(Source(path=str(tmp_path / "d")), "train").frame) == 2
    classified(cache).save_to_disk(tmp_path / "single")
    assert "single" in message(Source(path=str(tmp_path / "single")))


@pytest.mark.fault(32)
def test_the_cause_of_a_generation_error_is_told(cache, write, tmp_path):
    write("d/README.md", "---\nconfigs:\n- config_name: x\n  data_files: s/a.csv\n---\n")
    write("d/s/a.csv", b"text\n\xe9\n")
    text = message(Source(path=str(tmp_path / "d"), name="x"))
    assert "utf-8" in text
    assert "An error occurred" not in text


# The built-in corpus


def test_sample_is_the_default():
    assert available_roles(Source()) == ("train", "validation", "test")
    assert available_roles(Source(path="sample", unlabelled="unlabelled")) == ROLES[:4]
    table = read(Source(unlabelled="unlabelled[:3]"), "unlabelled")
    assert len(table.frame) == 3
    table = read(Source(), "train")
    labels = resolve_labels(table, Fields())
    assert labels == ("negative", "neutral", "positive")
    assert len(canonical_rows(table, Fields(), labels)) == 600
    assert "teacher, train" in message(Source(path="sample", train="big"))


def test_heavy_packages_are_imported_late():
    code = "import sys, kd.data.sources, kd.data.rows; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert not {"pandas", "datasets", "pyarrow", "sklearn", "lightning"} & loaded
