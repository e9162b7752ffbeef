import hashlib
import itertools
import os
import signal
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
import torch

import kd.shards
from kd.asking import Texts, layer_fields
from kd.cache import CachedTeacher
from kd.data.collate import EncodedRows
from kd.data.encode import Encoded, encode
from kd.errors import ConfigError, DataError
from kd.shards import ANSWERS
from kd.teachers import ModelTeacher
from kd.types import Row
from tests.conftest import LABELS, TEXTS

CPU = torch.device("cpu")
LOGITS = frozenset({"logits"})
EVERYTHING = frozenset({"logits", "hidden_states", "attentions", "values.1"})


class Counting(ModelTeacher):
    """A real teacher that counts the texts it is asked about."""

    asked = 0

    def __call__(self, batch, needs):
        self.asked += len(batch)
        return super().__call__(batch, needs)


def texts_of(count, seed=0):
    words = " ".join(TEXTS).replace(",", "").split()
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(words, random.integers(2, 12))) for _ in range(count)]


def loaded(path):
    teacher = Counting(str(path))
    teacher.load(LABELS)
    return teacher


def split_of(teacher, texts):
    rows = [Row(place, text, place % 2) for place, text in enumerate(texts)]
    views = {name: encode(rows, view) for name, view in teacher.views(32).items()}
    return EncodedRows(rows, {"student": next(iter(views.values())), **views})


def filled(path, texts, folder=None, needs=LOGITS, **settings):
    cached = CachedTeacher(loaded(path), **({"precision": "float32"} | settings))
    cached.keep_in(folder)
    split = split_of(cached, texts)
    cached.prepare([split], needs, CPU)
    return cached, split


def all_logits(cached, split):
    return cached(split.batch(np.arange(len(split))), LOGITS).logits


@pytest.fixture
def asked_before(make_model, tmp_path):
    path, texts = make_model(), texts_of(60)
    cached, split = filled(path, texts, tmp_path / "answers")
    cached.teacher.asked = 0
    return path, texts, tmp_path / "answers", all_logits(cached, split)


def test_answers_are_the_teachers(make_model):
    cached, split = filled(make_model(), texts_of(40))
    for chosen in (np.array([3, 1, 7]), np.arange(40)):
        batch = split.batch(chosen)
        live = cached.teacher(batch, LOGITS)
        assert torch.allclose(cached(batch, LOGITS).logits, live.logits, atol=1e-6)
        assert torch.equal(cached(batch, LOGITS).mask, live.mask)


def test_batch_asked_as_it_was_filled_is_equal_to_the_bit(make_model):
    cached, split = filled(make_model(), texts_of(40))
    texts = Texts.of([split])
    for chosen in texts.batches(4096):
        batch = texts.batch(chosen)
        with torch.inference_mode():
            live = cached.teacher(batch, LOGITS).logits
        assert torch.equal(cached(batch, LOGITS).logits, live)


def test_each_distinct_text_is_asked_once(make_model, tmp_path):
    texts = texts_of(30)
    cached, split = filled(make_model(), [*texts, *texts, "I Love This FILM", "i love this film"])
    assert cached.teacher.asked == len(set(texts)) + 1, "the tokenizer makes the two the same"
    all_logits(cached, split)
    assert cached.teacher.asked == len(set(texts)) + 1
    assert cached.filling.texts == cached.filling.asked == len(set(texts)) + 1


def test_second_run_asks_nothing(asked_before):
    path, texts, folder, before = asked_before
    cached, split = filled(path, texts[::-1], folder)
    assert cached.teacher.asked == 0
    assert cached.filling.asked == 0
    assert torch.equal(all_logits(cached, split), before.flip(0))


def test_disk_and_memory_are_equal_to_the_bit(asked_before):
    path, texts, _, before = asked_before
    cached, split = filled(path, texts, None)
    assert cached.teacher.asked > 0
    assert torch.equal(all_logits(cached, split), before)


@pytest.mark.fault(40)
def test_only_new_texts_are_asked(asked_before):
    path, texts, folder, before = asked_before
    cached, split = filled(path, [*texts, "a new one", "and another"], folder)
    assert cached.teacher.asked == 2
    assert torch.equal(all_logits(cached, split)[: len(texts)], before)


def test_answers_on_disk_are_let_go_and_each_file_is_read_once(asked_before, monkeypatch):
    path, texts, folder, before = asked_before
    monkeypatch.setattr("kd.asking._FLUSH_BYTES", 0)  # a shard for every batch
    monkeypatch.setattr("kd.cache._TOKENS", {"cpu": 20})
    written, alive, read = [], [], []

    def write(folder, shard):
        written.append(weakref.ref(shard))
        alive.append(sum(one() is not None for one in written))
        return kd.shards.write_shard(folder, shard)

    def noted(path, teacher, _read=kd.shards._read):
        read.append(path)
        return _read(path, teacher)

    monkeypatch.setattr("kd.cache.write_shard", write)
    monkeypatch.setattr("kd.shards._read", noted)
    cached, split = filled(path, [*texts, *texts_of(20, seed=1)], folder)
    assert len(written) > 3
    assert set(alive) == {1}
    assert sorted(read) == sorted(folder.glob(f"*/{ANSWERS}"))
    assert len(read) == 1 + len(written)
    assert torch.equal(all_logits(cached, split)[: len(texts)], before)


def split_of_ids(**views):
    """A split of rows whose token ids are given, by view of a teacher."""
    encoded = {
        f"teacher.{name}" if len(views) > 1 else "teacher": Encoded(
            ids=np.concatenate(rows).astype(np.int32),
            types=None,
            starts=np.cumsum([0, *map(len, rows)]),
            padding=0,
        )
        for name, rows in views.items()
    }
    count = len(next(iter(views.values())))
    return EncodedRows([Row(place, f"text {place}") for place in range(count)], encoded)


def test_texts_of_several_views_differ_though_their_ids_follow_one_another_alike():
    texts = Texts.of([split_of_ids(a=[[5, 6], [5], [5]], b=[[7], [6, 7], [6, 7]])])
    assert len(texts) == 2
    assert sorted(np.bincount(texts.slots).tolist()) == [1, 2]


def test_key_of_a_text_in_one_view_stays_as_it_was():
    """Else all that is cached of a teacher of one tokenizer would be asked anew."""
    texts = Texts.of([split_of_ids(a=[[5, 6]])])
    digest = hashlib.blake2b(np.array([5, 6], dtype=np.int32).tobytes(), digest_size=16)
    assert texts.keys.tobytes() == digest.digest()


def test_other_weights_are_another_teacher(asked_before, make_model):
    _, texts, folder, before = asked_before
    torch.manual_seed(9)
    cached, split = filled(make_model("other"), texts, folder)
    assert cached.teacher.asked == len(set(texts))
    assert not torch.equal(all_logits(cached, split), before)
    assert len(list(folder.iterdir())) == 2


def test_other_class_order_is_another_teacher(asked_before):
    path, texts, folder, before = asked_before
    cached = CachedTeacher(ModelTeacher(str(path)), precision="float32")
    cached.keep_in(folder)
    cached.load(LABELS[::-1])
    split = split_of(cached, texts)
    cached.prepare([split], LOGITS, CPU)
    assert torch.allclose(all_logits(cached, split), before.flip(1), atol=1e-6)


def test_path_is_not_part_of_the_key(make_model, tmp_path):
    path = make_model()
    before = loaded(path).key
    assert loaded(path.rename(tmp_path / "elsewhere")).key == before


def test_labels_and_place_of_a_row_do_not_matter(asked_before):
    path, texts, folder, before = asked_before
    cached = CachedTeacher(loaded(path), precision="float32")
    cached.keep_in(folder)
    rows = [Row(place * 7, text, None) for place, text in enumerate(texts)]
    view = next(iter(cached.views(32).values()))
    encoded = encode(rows, view)
    split = EncodedRows(rows, {"student": encoded, "teacher": encoded})
    cached.prepare([split], LOGITS, CPU)
    assert cached.teacher.asked == 0
    assert torch.equal(all_logits(cached, split), before)


@pytest.mark.fault(38)
@pytest.mark.parametrize("harm", ["flip", "remove"])
def test_damaged_entry_is_found_and_computed_anew(asked_before, harm, capsys):
    path, texts, folder, before = asked_before
    (shard,) = folder.glob(f"*/{ANSWERS}")
    content = bytearray(shard.read_bytes())
    shard.unlink()
    if harm == "flip":
        content[-1] ^= 4
        shard.write_bytes(content)
    capsys.readouterr()
    cached, split = filled(path, texts, folder)
    assert cached.teacher.asked == len(set(texts))
    assert torch.equal(all_logits(cached, split), before)
    assert ("removed, and what it held is asked anew" in capsys.readouterr().out) == (
        harm == "flip"
    )


def test_answers_of_another_teacher_are_not_taken(asked_before, make_model):
    _, texts, folder, _ = asked_before
    (shard,) = folder.glob(f"*/{ANSWERS}")
    torch.manual_seed(9)
    path = make_model("other")
    shard.parent.rename(folder / loaded(path).key)
    cached, split = filled(path, texts, folder)
    assert cached.teacher.asked == len(set(texts))
    assert torch.allclose(
        all_logits(cached, split), cached.teacher(split.batch(np.arange(60)), LOGITS).logits
    )


def test_every_field_comes_back(make_model, tmp_path):
    texts = texts_of(25)
    for folder in (None, tmp_path / "answers", tmp_path / "answers"):
        cached, split = filled(make_model(), texts, folder, EVERYTHING)
        batch = split.batch(np.array([4, 0, 9, 4]))
        kept, live = cached(batch, EVERYTHING), cached.teacher(batch, EVERYTHING)
        mask = live.mask[..., None].float()
        for layer in range(4):
            ours, theirs = kept.hidden_states[layer], live.hidden_states[layer]
            assert torch.allclose(ours, theirs * mask, atol=1e-6)
        pairs = mask * mask.transpose(1, 2)
        for layer in range(3):
            ours, theirs = kept.attentions[layer], live.attentions[layer]
            assert torch.allclose(ours, theirs * pairs[:, None], atol=1e-6)
        assert torch.allclose(kept.values[1], live.values[1] * mask, atol=1e-6)
        assert kept.values[0] is None, "not asked for"


def test_layers_are_kept_one_by_one(make_model, tmp_path):
    path, texts = make_model(), texts_of(25)
    filled(path, texts, tmp_path, frozenset({"hidden_states.2"}))
    (few,) = tmp_path.glob(f"*/{ANSWERS}")
    size = few.stat().st_size
    filled(path, texts, tmp_path / "all", frozenset({"hidden_states"}))
    (many,) = (tmp_path / "all").glob(f"*/{ANSWERS}")
    assert many.stat().st_size > 3 * size
    again, _ = filled(path, texts, tmp_path, frozenset({"hidden_states.2"}))
    assert again.teacher.asked == 0
    more, _ = filled(path, texts, tmp_path, frozenset({"hidden_states.1"}))
    assert more.teacher.asked == len(set(texts))


def test_needs_name_layers(make_model):
    info = loaded(make_model()).info
    assert layer_fields(frozenset({"logits", "hidden_states", "values.2"}), info) == {
        "logits",
        "values.2",
        *(f"hidden_states.{layer}" for layer in range(4)),
    }


def test_limit_is_known_before_the_teacher_is_asked(make_model):
    cached = CachedTeacher(loaded(make_model()), "float32", limit_gb=1e-5)
    split = split_of(cached, texts_of(50))
    with pytest.raises(
        ConfigError, match=r"49 texts would take 0.00.* GB, more than limit_gb=1e-05: raise it"
    ):
        cached.prepare([split], frozenset({"hidden_states"}), CPU)
    assert cached.teacher.asked == 0
    cached.prepare([split], LOGITS, CPU)
    assert cached.teacher.asked == len(Texts.of([split]))


def test_over_the_limit_the_teacher_answers_every_batch(make_model, capsys):
    cached = CachedTeacher(loaded(make_model()), "float32", limit_gb=1e-5, over_limit="ask")
    split = split_of(cached, texts_of(50))
    cached.prepare([split], frozenset({"hidden_states"}), CPU)
    assert "the teacher is asked in every step" in capsys.readouterr().out
    before = cached.teacher.asked
    batch = split.batch(np.arange(5))
    assert len(cached(batch, frozenset({"hidden_states"})).hidden_states) == 4
    assert cached.teacher.asked == before + 5
    assert cached(batch, LOGITS).hidden_states is None
    assert cached.teacher.asked == before + 5


def test_estimate_is_what_the_shards_hold(make_model, tmp_path):
    cached, split = filled(make_model(), texts_of(30), tmp_path, EVERYTHING)
    fields = layer_fields(EVERYTHING, cached.info)
    lengths = Texts.of([split]).lengths
    assert cached._size(lengths, fields, CPU) == cached.filling.size


def test_row_that_was_not_prepared_is_refused(make_model):
    cached, _ = filled(make_model(), texts_of(10))
    other = split_of(cached, ["quite another text"])
    with pytest.raises(DataError, match="was not filled with"):
        cached(other.batch(np.array([0])), LOGITS)


def test_plan_depends_on_the_texts_alone(make_model):
    teacher = loaded(make_model())
    texts = texts_of(80)
    plans = []
    for order in (texts, texts[::-1]):
        split = split_of(teacher, order)
        found = Texts.of([split])
        batches = found.batches(60)
        plans.append([[order[row] for row in found.places[batch, 1]] for batch in batches])
    assert plans[0] == plans[1]
    lengths = [found.lengths[batch].tolist() for batch in batches]
    assert all(len(batch) * max(batch) <= 60 for batch in lengths)
    in_order = list(itertools.chain.from_iterable(lengths))
    assert in_order == sorted(in_order, reverse=True), "the longest first: memory shows at once"
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(found)))


def test_bfloat16_says_how_far_it_is_off(make_model, tmp_path):
    path, texts = make_model(), texts_of(40)
    exact, split = filled(path, texts, tmp_path)
    quick, _ = filled(path, texts, tmp_path / "quick", precision="bfloat16")
    assert quick.filling.precision == "bfloat16"
    difference = (all_logits(quick, split) - all_logits(exact, split)).abs().max()
    assert 0 < difference < 0.05
    assert 0 < quick.filling.difference < 0.05
    assert "bfloat16 (a probability is off float32's by 0.0" in str(quick.filling)
    again, _ = filled(path, texts, tmp_path / "quick")
    assert again.filling.asked == again.filling.texts, "float32 takes no bfloat16 for an answer"
    served, _ = filled(path, texts, tmp_path, precision="bfloat16")
    assert served.filling.asked == 0, "but bfloat16 takes float32"


def test_lowering_leaves_the_weights_as_they_were(make_model):
    teacher = loaded(make_model())
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    key = teacher.key
    with teacher.lowered():
        query = teacher.model.loaded.base_model.encoder.layer[0].attention.self.query
        assert query.weight.dtype == torch.bfloat16
    after = teacher.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert teacher.key == key
    assert "forward" not in vars(teacher.model.loaded.classifier)


def test_unsafe_bfloat16_is_not_used(make_model, capsys):
    path = make_model()
    teacher = loaded(path)
    with torch.no_grad():
        head = teacher.model.loaded.classifier
        split = split_of(teacher, texts_of(40))
        head.weight.mul_(1e4)  # the last bits of the states decide
        head.bias.sub_(teacher(split.batch(np.arange(40)), LOGITS).logits.mean(dim=0))
    cached = CachedTeacher(teacher)
    cached._wanted = lambda device: "bfloat16"
    cached.prepare([split], LOGITS, CPU)
    assert cached.filling.precision == "float32"
    assert "so float32 is used" in capsys.readouterr().out


def test_limit_must_be_positive(make_model):
    with pytest.raises(ConfigError, match="limit_gb is 0"):
        CachedTeacher(ModelTeacher(str(make_model())), limit_gb=0)


FILL = """
import sys, torch
from pathlib import Path
from tests import test_cache
import kd.asking, kd.cache
kd.asking._FLUSH_SECONDS = 0.01
kd.cache._TOKENS = {"cpu": 100}
torch.set_num_threads(1)
test_cache.filled(sys.argv[1], test_cache.texts_of(3000, seed=5), Path(sys.argv[2]))
"""


@pytest.mark.fault(40)
@pytest.mark.slow
def test_filling_that_is_killed_ten_times_ends_in_the_same_bytes(make_model, tmp_path, monkeypatch):
    monkeypatch.setattr("kd.cache._TOKENS", {"cpu": 100})  # many batches, as of a long filling
    path = make_model(hidden_size=128, num_attention_heads=4)
    command = [sys.executable, "-c", FILL, str(path), str(tmp_path / "killed")]
    held = []
    for kill in range(10):
        process = subprocess.Popen(command, start_new_session=True)
        folder = tmp_path / "killed"
        shards = len(list(folder.glob("*/answers-*")))
        deadline = time.monotonic() + 120
        while len(list(folder.glob("*/answers-*"))) < shards + 1 + kill % 2:
            if process.poll() is not None or time.monotonic() > deadline:
                break
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        held.append(len(list(folder.glob("*/answers-*"))))
    assert held == sorted(held)
    assert held[-1] > held[0] >= 1
    texts = texts_of(3000, seed=5)
    resumed, split = filled(path, texts, tmp_path / "killed")
    whole, _ = filled(path, texts, tmp_path / "whole")
    assert 0 < resumed.teacher.asked < whole.teacher.asked
    assert torch.equal(all_logits(resumed, split), all_logits(whole, split))
