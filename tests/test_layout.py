import json

import pytest

from kd.errors import ModelError, RunError
from kd.layout import (
    CHECKSUMS,
    FACTS,
    Facts,
    read_facts,
    verify_folder,
    write_checksums,
    write_facts,
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "a.txt").write_bytes(b"first\n")
    (tmp_path / "onnx" / "b.bin").write_bytes(bytes(range(64)))
    write_checksums(tmp_path)
    return tmp_path


def problems_of(folder):
    try:
        return verify_folder(folder)
    except RunError as error:
        return [str(error)]


def test_a_whole_folder_has_no_problem(folder):
    assert verify_folder(folder) == []
    assert list(json.loads((folder / CHECKSUMS).read_text())) == ["a.txt", "onnx/b.bin"]


@pytest.mark.fault(5)
@pytest.mark.parametrize("name", ["a.txt", "onnx/b.bin", CHECKSUMS])
@pytest.mark.parametrize("mask", [0x01, 0x07, 0x20, 0xFF])
def test_any_flipped_byte_is_found_also_of_the_checksums(folder, name, mask):
    content = (folder / name).read_bytes()
    for place, byte in enumerate(content):
        (folder / name).write_bytes(content[:place] + bytes([byte ^ mask]) + content[place + 1 :])
        assert problems_of(folder), f"byte {place} of {name}"
    (folder / name).write_bytes(content)
    assert verify_folder(folder) == []


def test_what_differs_is_named_file_by_file(folder):
    (folder / "a.txt").write_bytes(b"First\n")
    (folder / "onnx" / "b.bin").unlink()
    (folder / "onnx" / "c.bin").write_bytes(b"")
    assert verify_folder(folder) == [
        "a.txt: sha256 differs",
        "onnx/b.bin: missing",
        "onnx/c.bin: not of this export",
    ]


def test_what_the_hub_and_its_downloads_add_is_no_problem(folder):
    for name in (".gitattributes", ".git/HEAD", ".cache/huggingface/x.metadata"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("theirs")
    assert verify_folder(folder) == []


@pytest.mark.parametrize("name", [".git-credentials", ".gitignore", ".cachet"])
def test_what_only_begins_as_theirs_is_told(folder, name):
    (folder / name).write_text("secret")
    assert verify_folder(folder) == [f"{name}: not of this export"]


@pytest.mark.parametrize("text", ["[]", "{", '{"a.txt": 1}\n', "\udc80"])
def test_checksums_that_are_none_are_refused_or_told(folder, text):
    (folder / CHECKSUMS).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert problems_of(folder)


def test_a_folder_without_checksums_is_refused(tmp_path):
    with pytest.raises(RunError, match=f"has no {CHECKSUMS}: it is no folder of kd export"):
        verify_folder(tmp_path)


def test_facts_come_back_as_they_were_written(tmp_path):
    assert read_facts(tmp_path) is None
    facts = Facts(("a", "ü"), True, 48, ("input_ids",), "predict: ", 1.5, {"rows": 3})
    write_facts(tmp_path, facts)
    assert read_facts(tmp_path) == facts
    assert "ü" in (tmp_path / FACTS).read_text(encoding="utf-8")


def test_facts_of_a_later_format_or_broken_are_refused(tmp_path):
    write_facts(tmp_path, Facts(("a", "b"), False, 48))
    whole = json.loads((tmp_path / FACTS).read_text())
    (tmp_path / FACTS).write_text(json.dumps(whole | {"format": 2}))
    with pytest.raises(ModelError, match="has format 2, and this kd reads 1: update it"):
        read_facts(tmp_path)
    for broken in ("", "[]", "{}", json.dumps(whole | {"more": 1}), json.dumps(whole)[:-9]):
        (tmp_path / FACTS).write_text(broken)
        with pytest.raises(ModelError, match="is broken: export the run again"):
            read_facts(tmp_path)
    for temperature in (0, -1.5, "2", None, [1], float("nan"), float("inf")):
        (tmp_path / FACTS).write_text(json.dumps(whole | {"temperature": temperature}))
        with pytest.raises(ModelError, match="is broken: export the run again"):
            read_facts(tmp_path)
