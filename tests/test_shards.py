import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from kd.errors import RunError
from kd.shards import (
    ANSWERS,
    Shard,
    add_facts,
    elements,
    locate,
    read_facts,
    read_shards,
    write_shard,
)


def keys_of(count, seed=0):
    return np.random.default_rng(seed).integers(0, 2**63, size=(count, 2)).astype(np.uint64)


def shard_of(keys, teacher="t", precision="float32", value=None):
    lengths = np.arange(2, 2 + len(keys), dtype=np.int64)
    logits = torch.randn(len(keys), 3) if value is None else torch.full((len(keys), 3), value)
    states = torch.randn(int(lengths.sum()), 4)
    attention = torch.randn(int((lengths**2).sum()) * 2)
    return Shard(
        teacher=teacher,
        precision=precision,
        keys=keys,
        lengths=lengths,
        shapes={"logits": (3,), "hidden_states.1": (-1, 4), "attentions.0": (2, -1, -1)},
        fields={
            "logits": logits.reshape(-1),
            "hidden_states.1": states.reshape(-1),
            "attentions.0": attention,
        },
    )


def test_what_is_written_is_read_to_the_bit(tmp_path):
    shard = shard_of(keys_of(5))
    path = write_shard(tmp_path / "new", shard)
    (read,), notes = read_shards(tmp_path / "new", "t")
    assert not notes
    assert read.path == path
    assert np.array_equal(read.keys, shard.keys)
    for row in range(5):
        for field in shard.fields:
            assert torch.equal(read.answer(field, row), shard.answer(field, row))
    assert read.answer("hidden_states.1", 3).shape == (5, 4)
    assert read.answer("attentions.0", 3).shape == (2, 5, 5)


def test_rows_follow_one_another():
    shard = shard_of(keys_of(3))
    states = shard.fields["hidden_states.1"].view(-1, 4)
    assert torch.equal(shard.answer("hidden_states.1", 1), states[2:5])
    assert torch.equal(shard.answer("logits", 2), shard.fields["logits"][6:9])


def test_same_answers_have_one_file(tmp_path):
    shard = shard_of(keys_of(4))
    assert write_shard(tmp_path, shard) == write_shard(tmp_path, shard)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.fault(6)
def test_what_a_kill_left_long_ago_is_swept_but_not_what_another_process_writes(tmp_path):
    write_shard(tmp_path, shard_of(keys_of(4)))
    old, new, foreign = (tmp_path / f".{n}.tmp" for n in ("a.0a1b2c3d", "b.0a1b2c3d", "notes"))
    for path in (old, new, foreign):
        path.write_text("half")
    for path in (old, foreign):
        os.utime(path, (1, 1))
    assert len(read_shards(tmp_path, "t")[0]) == 1
    assert {path for path in (old, new, foreign) if path.exists()} == {new, foreign}


def test_bytes_are_mapped_not_read(tmp_path):
    rows = 200_000
    shard = Shard(
        "t",
        "float32",
        keys_of(rows),
        np.ones(rows, dtype=np.int64),
        {"logits": (250,)},
        {"logits": torch.zeros(rows * 250)},
    )
    write_shard(tmp_path, shard)  # 200 MB
    script = (
        "import sys; from pathlib import Path; from kd.shards import read_shards\n"
        "held = lambda: int(next(l for l in open('/proc/self/status') if l.startswith('RssAnon'))"
        ".split()[1]) / 1000\n"
        "before = held(); s, _ = read_shards(Path(sys.argv[1]), 't')\n"
        "float(s[0].answer('logits', 7).sum()); print(held() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True
    )
    assert float(done.stdout) < 30, done.stderr


@pytest.mark.fault(38)
@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "junk"])
def test_damaged_shard_is_found_removed_and_told_of(tmp_path, harm):
    good, bad = write_shard(tmp_path, shard_of(keys_of(3))), None
    bad = write_shard(tmp_path, shard_of(keys_of(3, seed=1)))
    content = bytearray(bad.read_bytes())
    if harm == "flip":
        content[-3] ^= 1
    bad.write_bytes({"cut": content[:-9], "empty": b"", "junk": b"junk" * 99}.get(harm, content))
    shards, notes = read_shards(tmp_path, "t")
    assert [shard.path for shard in shards] == [good]
    assert not bad.exists()
    assert len(notes) == 1
    assert "damaged" in notes[0]
    assert str(bad) in notes[0]


@pytest.mark.fault(38)
def test_shard_of_another_teacher_is_stale(tmp_path):
    write_shard(tmp_path, shard_of(keys_of(3), teacher="old"))
    shards, notes = read_shards(tmp_path, "new")
    assert not shards
    assert "another teacher" in notes[0]
    assert not list(tmp_path.glob(ANSWERS))


def test_no_folder_is_no_shard(tmp_path):
    assert read_shards(tmp_path / "none", "t") == ([], [])


def test_shards_that_are_open_are_not_read_again(tmp_path):
    for seed in (1, 2):
        write_shard(tmp_path, shard_of(keys_of(3, seed)))
    known, _ = read_shards(tmp_path, "t")
    new = write_shard(tmp_path, shard_of(keys_of(3, seed=3)))
    known[0].path.write_bytes(b"who read this would find it damaged")
    shards, notes = read_shards(tmp_path, "t", known)
    assert not notes
    assert [shard.path for shard in shards] == sorted([new, *(shard.path for shard in known)])
    assert all(any(shard is one for shard in shards) for one in known)
    known[1].path.unlink()
    assert len(read_shards(tmp_path, "t", known)[0]) == 2, "what is gone is not held"


def test_facts_are_added_to_those_that_are_known(tmp_path):
    assert read_facts(tmp_path / "none") == {}
    add_facts(tmp_path, {"teacher": "a", "seconds": 0.1 + 0.2})
    add_facts(tmp_path, {"teacher": "b"})
    assert read_facts(tmp_path) == {"teacher": "b", "seconds": 0.1 + 0.2}
    assert not list(tmp_path.glob(ANSWERS))


@pytest.mark.parametrize("content", [b"{", b"3", b"[1]", b"\xff"])
def test_facts_that_cannot_be_read_are_not_known(tmp_path, content):
    add_facts(tmp_path, {"teacher": "a"})
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    assert read_facts(tmp_path) == {}
    add_facts(tmp_path, {"teacher": "b"})
    assert read_facts(tmp_path) == {"teacher": "b"}


def test_file_in_the_way_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written to .*: .*; make room"):
        write_shard(tmp_path / "file" / "answers", shard_of(keys_of(1)))


def test_locate_finds_each_key_and_only_those():
    keys = keys_of(10)
    shards = [shard_of(keys[:4]), shard_of(keys[4:7])]
    found, rows = locate(shards, keys, frozenset({"logits"}), ["float32"])
    assert found.tolist() == [0] * 4 + [1] * 3 + [-1] * 3
    assert rows[:7].tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert locate([], keys, frozenset(), ["float32"])[0].tolist() == [-1] * 10
    assert locate(shards, keys[:0], frozenset(), ["float32"])[0].tolist() == []


def test_both_halves_of_a_key_count():
    keys = np.array([[5, 1], [5, 2], [6, 1]], dtype=np.uint64)
    _, rows = locate([shard_of(keys)], keys[::-1].copy(), frozenset(), ["float32"])
    assert rows.tolist() == [2, 1, 0]
    other = np.array([[5, 3], [1, 5]], dtype=np.uint64)
    assert locate([shard_of(keys)], other, frozenset(), ["float32"])[0].tolist() == [-1, -1]


def test_precision_and_fields_decide():
    keys = keys_of(3)
    exact, quick = shard_of(keys), shard_of(keys, precision="bfloat16")
    for shards in ([exact, quick], [quick, exact]):
        found, _ = locate(shards, keys, frozenset({"logits"}), ["float32", "bfloat16"])
        assert all(shards[number] is exact for number in found)
    assert locate([quick], keys, frozenset({"logits"}), ["float32"])[0].tolist() == [-1] * 3
    lacking = locate([exact], keys, frozenset({"logits", "hidden_states.2"}), ["float32"])
    assert lacking[0].tolist() == [-1] * 3


def test_elements():
    lengths = np.array([1, 3])
    assert elements((4,), lengths).tolist() == [4, 4]
    assert elements((-1, 5), lengths).tolist() == [5, 15]
    assert elements((2, -1, -1), lengths).tolist() == [2, 18]
