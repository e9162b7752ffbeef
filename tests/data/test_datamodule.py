import json
from types import SimpleNamespace

import pytest
import torch

from kd.data.datamodule import TextDataModule
from kd.data.encode import View
from kd.data.sources import Source
from kd.errors import ConfigError, DataError
from kd.types import UNLABELLED
from kd.vocabulary import digest, train_wordpiece
from tests.conftest import LABELS, TEXTS


def write_csv(path, rows, header="text,label"):
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    return str(path)


@pytest.fixture
def connected(csv_file, tokenizer):
    """Return a function that makes a data module whose student reads with the tiny tokenizer."""

    def make(unlabelled=True, teacher=None, stage="fit", source=None, **options):
        data = TextDataModule(source or Source(train=str(csv_file)), **options)
        views = {"student": View(tokenizer, 32, digest(tokenizer))}
        if teacher is not None:
            views["teacher"] = View(teacher, 32, digest(teacher))
        data.setup(stage)
        data.connect(views, unlabelled)
        return data

    return make


def labels_of(batches):
    return [label for batch in batches for label in batch.labels.tolist()]


def indices(batches):
    return [index for batch in batches for index in batch.index.tolist()]


def test_a_csv_becomes_batches_and_a_stratified_validation_split(connected):
    data = connected(batch_size=8, validation_fraction=0.2)
    assert data.labels == LABELS
    train, validation = list(data.train_dataloader()), list(data.val_dataloader())
    assert [len(batch) for batch in train] == [8, 8, 8, 8]
    assert sorted(labels_of(validation)) == [0] * 4 + [1] * 4
    assert sorted(labels_of(train)) == [0] * 16 + [1] * 16
    assert sorted(indices(train) + indices(validation)) == list(range(40))
    lines = [row.text for row in data.rows["train"]]
    assert list(data.texts()) == lines
    assert "32 labelled" in data.summary()
    assert "8 validation rows" in data.summary()


def test_validation_rows_are_the_same_for_every_training_seed(connected, monkeypatch):
    held_out, orders = [], []
    for seed in ("1", "2"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        data = connected()
        held_out.append(indices(data.val_dataloader()))
        orders.append(indices(data.train_dataloader()))
    assert held_out[0] == held_out[1]
    assert orders[0] != orders[1]
    assert indices(connected(split_seed=1).val_dataloader()) != held_out[0]


def test_explicit_validation_is_used_and_nothing_is_held_out(connected, csv_file, tmp_path):
    rows = [("a dull day", "negative"), ("a warm day", "positive"), ("a warm film", "positive")]
    source = Source(train=str(csv_file), validation=write_csv(tmp_path / "v.csv", rows))
    data = connected(source=source)
    assert sorted(labels_of(data.val_dataloader())) == [0, 1, 1]
    assert len(indices(data.train_dataloader())) == 40


def test_test_and_predict_rows_are_read_when_they_are_asked_for(connected, csv_file, tmp_path):
    test = write_csv(tmp_path / "t.csv", [("a dull day", "negative"), ("a warm day", "positive")])
    predict = write_csv(tmp_path / "p.csv", [("one",), ("two",), ("three",)], header="text")
    source = Source(train=str(csv_file), test=test, predict=predict)
    data = connected(source=source)
    assert set(data.rows) == {"train", "validation"}
    data.setup("test")
    data.setup("predict")
    assert sorted(labels_of(data.test_dataloader())) == [0, 1]
    assert labels_of(data.predict_dataloader()) == [UNLABELLED] * 3
    assert sorted(indices(data.predict_dataloader())) == [0, 1, 2]


@pytest.fixture
def with_unlabelled(csv_file, tmp_path):
    more = write_csv(tmp_path / "more.csv", [(f"what a film {n}",) for n in range(10)], "text")
    return Source(train=str(csv_file), unlabelled=more)


def test_unlabelled_rows_are_kept_for_a_teacher_and_masked(connected, with_unlabelled):
    data = connected(source=with_unlabelled, unlabelled=True)
    batches = list(data.train_dataloader())
    assert labels_of(batches).count(UNLABELLED) == 10
    assert len(set(indices(batches))) == 46  # no index twice, although two files count from 0
    assert UNLABELLED not in labels_of(data.val_dataloader())
    assert "36 labelled, 10 unlabelled, 4 validation rows" in data.summary()


def test_unlabelled_rows_are_left_out_where_nothing_learns_from_them(connected, with_unlabelled):
    data = connected(source=with_unlabelled, unlabelled=False)
    batches = list(data.train_dataloader())
    assert UNLABELLED not in labels_of(batches)
    assert len(indices(batches)) == 36
    assert "10 unlabelled, left out" in data.summary()


def test_labelled_rows_hide_the_labels_of_all_others(connected):
    masked = connected(labelled_rows=10)
    found = labels_of(masked.train_dataloader())
    assert [found.count(label) for label in (0, 1, UNLABELLED)] == [5, 5, 26]
    assert len(labels_of(masked.val_dataloader())) == 4
    assert len(indices(connected(labelled_rows=10, unlabelled=False).train_dataloader())) == 10


def test_train_rows_choose_some_and_leave_validation_alone(connected):
    few, more, every = connected(train_rows=8), connected(train_rows=20), connected()
    chosen = [indices(data.train_dataloader()) for data in (few, more, every)]
    assert list(map(len, chosen)) == [8, 20, 36]
    assert set(chosen[0]) < set(chosen[1]) < set(chosen[2])
    assert sorted(labels_of(few.train_dataloader())) == [0] * 4 + [1] * 4
    held_out = [indices(data.val_dataloader()) for data in (few, more, every)]
    assert held_out[0] == held_out[1] == held_out[2]


def test_views_of_one_vocabulary_are_encoded_once(connected, monkeypatch):
    calls = []

    def counted(rows, view):
        calls.append(view.vocabulary)
        return encode(rows, view)

    from kd.data.encode import encode

    monkeypatch.setattr("kd.data.datamodule.encode", counted)
    data = connected(teacher=train_wordpiece(TEXTS, 200))
    batch = next(iter(data.train_dataloader()))
    assert batch.views["student"] is batch.views["teacher"]
    assert len(calls) == 1
    data.train_dataloader()
    assert len(calls) == 1


def test_a_teacher_of_another_vocabulary_reads_its_own_ids(connected):
    other = train_wordpiece(["zebra xylophone", *TEXTS[:2]], 90)
    data = connected(teacher=other)
    batch = next(iter(data.train_dataloader()))
    texts = {row.index: row.text for row in data.rows["train"]}
    for place, index in enumerate(batch.index.tolist()):
        inputs = batch.views["teacher"]
        length = int(inputs["attention_mask"][place].sum())
        assert inputs["input_ids"][place, :length].tolist() == other(texts[index])["input_ids"]


def test_pairs_have_segments(connected, tmp_path):
    rows = [(f"a film {n}", f"what a day {n}", str(n % 2)) for n in range(20)]
    source = Source(train=write_csv(tmp_path / "pairs.csv", rows, "text,second,label"))
    data = connected(source=source, pair_column="second")
    types = next(iter(data.train_dataloader())).views["student"]["token_type_ids"]
    assert set(types.flatten().tolist()) == {0, 1}


@pytest.mark.fault(30)
def test_lone_surrogates_of_a_file_do_not_reach_the_tokenizer(connected, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": f"broken \ud83d film {n}", "label": n % 2} for n in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = connected(source=Source(train=str(path)))
    assert len(indices(data.train_dataloader())) == 18
    for row in data.rows["train"]:
        row.text.encode("utf-8")


# --- What is checked, and when -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "options", "named"),
    [
        ([("a", "x"), ("b", "x")], {}, "label_column"),
        ([("a", "x"), ("b", "y")], {"text_column": "tweet"}, "text_column"),
        ([("a", "x"), ("b", "y")], {"label_column": "stars"}, "label_column"),
        ([("a", "x"), ("", "y")], {}, "line 3"),
        ([("a", "x"), ("b", "y"), ("c", "")], {}, "on_empty_label"),
        ([("a", "x"), ("b", "y")], {"label_names": ["x", "z"]}, "label_map"),
        ([("a", "x"), ("b", "y")] * 9, {"train_rows": 500}, r"data\.train_rows is 500"),
        ([("a", "x"), ("b", "y")] * 9, {"labelled_rows": 17}, r"data\.labelled_rows is 17"),
    ],
)
def test_bad_rows_are_refused_by_read_alone(tmp_path, rows, options, named):
    data = TextDataModule(Source(train=write_csv(tmp_path / "rows.csv", rows)), **options)
    with pytest.raises(DataError, match=named):
        data.read("fit")


def test_a_bad_validation_row_is_found_by_read_too(tmp_path, csv_file):
    bad = write_csv(tmp_path / "v.csv", [("a", "negative"), ("b", "odd")])
    with pytest.raises(DataError, match=r"v\.csv, line 3"):
        TextDataModule(Source(train=str(csv_file), validation=bad)).read("fit")


def test_a_validation_split_without_labels_is_refused(tmp_path, csv_file):
    bad = write_csv(tmp_path / "v.csv", [("a", ""), ("b", "")])
    source = Source(train=str(csv_file), validation=bad)
    with pytest.raises(DataError, match=r"v\.csv has a label"):
        TextDataModule(source, on_empty_label="unlabelled").read("fit")


@pytest.mark.parametrize("stage", ["test", "predict"])
def test_a_stage_without_data_is_refused_with_its_key(csv_file, stage):
    with pytest.raises(DataError, match=rf"data\.source\.{stage}"):
        TextDataModule(Source(train=str(csv_file))).read(stage)


def test_a_second_read_costs_nothing(csv_file):
    data = TextDataModule(Source(train=str(csv_file)))
    data.read("fit")
    rows = data.rows["train"]
    csv_file.unlink()
    data.read("fit")
    data.setup("validate")
    assert data.rows["train"] is rows


def test_no_row_is_left_when_none_has_a_label_and_nothing_else_learns(connected):
    data = connected(labelled_rows=0, unlabelled=False)
    with pytest.raises(DataError, match="No row is left"):
        data.train_dataloader()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_size": 0}, r"data\.batch_size"),
        ({"eval_batch_size": -1}, r"data\.eval_batch_size"),
        ({"max_length": 2}, r"data\.max_length"),
        ({"validation_fraction": 0.0}, r"data\.validation_fraction"),
        ({"validation_fraction": 1.5}, r"data\.validation_fraction"),
        ({"validation_fraction": float("nan")}, r"data\.validation_fraction"),
        ({"train_rows": 0}, r"data\.train_rows"),
        ({"labelled_rows": -1}, r"data\.labelled_rows"),
        ({"label_separator": ""}, r"data\.label_separator"),
    ],
)
def test_odd_numbers_are_refused_at_construction(options, named):
    with pytest.raises(ConfigError, match=named):
        TextDataModule(**options)


# --- Fingerprints, ranks and the position --------------------------------------------------------


def test_fingerprints_tell_a_changed_row(csv_file):
    def prints(**options):
        data = TextDataModule(Source(train=str(csv_file)), **options)
        data.read("fit")
        return data.fingerprints()

    first = prints()
    assert set(first) == {"train", "validation"}
    assert prints() == first
    assert prints(split_seed=1) != first
    assert prints(label_names=["positive", "negative"])["train"] != first["train"]
    text = csv_file.read_text()
    csv_file.write_text(text.replace("positive", "?", 1).replace("?", "negative"))
    assert prints() != first
    csv_file.write_text(text.replace("love", "like"))
    assert prints() != first


def as_rank(data, rank, ranks):
    here = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(global_rank=rank, world_size=ranks, strategy=here)
    return data


def test_two_ranks_share_what_one_would_read(connected):
    alone = list(connected(batch_size=8).train_dataloader())
    ranks = [list(as_rank(connected(batch_size=8), r, 2).train_dataloader()) for r in range(2)]
    for batch, *parts in zip(alone, *ranks, strict=True):
        assert sorted(batch.index.tolist()) == sorted(indices(parts))
    validation = [as_rank(connected(), r, 2).val_dataloader() for r in range(2)]
    assert sorted(indices(validation[0]) + indices(validation[1])) == sorted(
        indices(connected().val_dataloader())
    )


def test_fewer_rows_than_ranks_are_refused(connected):
    with pytest.raises(DataError, match="validation split has 4 rows for 8 ranks"):
        as_rank(connected(), 0, 8).val_dataloader()
    with pytest.raises(ConfigError, match=r"data\.batch_size"):
        as_rank(connected(batch_size=4), 0, 8).train_dataloader()


def test_the_position_is_saved_and_taken_up(connected):
    straight = connected(batch_size=8).train_dataloader()
    epochs = [[batch.index.tolist() for batch in straight] for _ in range(2)]
    data = connected(batch_size=8)
    assert data.state_dict() == {"epoch": 0, "batch": 0}
    walk = iter(data.train_dataloader())
    next(walk), next(walk)
    state = json.loads(json.dumps(data.state_dict()))  # plain values
    assert state == {"epoch": 0, "batch": 2}
    resumed = connected(batch_size=8)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    loader = resumed.train_dataloader()
    assert [batch.index.tolist() for batch in loader] == epochs[0][2:]
    assert [batch.index.tolist() for batch in loader] == epochs[1]


def test_what_is_amiss_is_noted(tmp_path):
    train, validation = tmp_path / "train.csv", tmp_path / "validation.csv"
    train.write_text("text,label\nfine,good\nbad,poor\n,good\nweak,poor\n")
    validation.write_text("text,label\nfine,good\nother,poor\n")
    source = Source(train=str(train), validation=str(validation))
    data = TextDataModule(source=source, on_bad_row="drop")
    data.read("fit")
    assert len(data.notes) == 1
    assert "note: 1 rows of" in data.summary()
    validation.write_text("text,label\nnew,good\nother,poor\n")
    train.write_text("text,label\nfine,good\nbad,poor\n")
    data = TextDataModule(source=source)
    data.read("fit")
    assert data.notes == []


# --- Several labels, and weights -----------------------------------------------------------------


@pytest.fixture
def several(tmp_path):
    """Forty rows: joy, fear, both, or none of them."""
    sets = ("joy", "fear", "fear|joy", "|")
    rows = [(f"{TEXTS[n % 8]} {n}".replace(",", ""), sets[n % 4], str(n % 3)) for n in range(40)]
    return write_csv(tmp_path / "several.csv", rows, "text,label,importance")


def test_rows_of_several_labels_reach_the_batches(connected, several, tmp_path):
    predict = write_csv(tmp_path / "p.csv", [("one",), ("two",)], header="text")
    source = Source(train=several, predict=predict)
    data = connected(source=source, multi_label=True, batch_size=8, validation_fraction=0.2)
    assert data.labels == ("fear", "joy")
    assert data.multi_label
    train, validation = list(data.train_dataloader()), list(data.val_dataloader())
    assert [batch.labels.shape for batch in train] == [(8, 2)] * 4
    for batches, rows in ((train, 32), (validation, 8)):
        found = labels_of(batches)
        assert len(found) == rows
        assert found.count([0, 0]) == found.count([0, 1]) == rows // 4
        assert found.count([1, 0]) + found.count([1, 1]) == rows // 2
    assert "any of the classes fear, joy" in data.summary()
    data.setup("predict")
    assert labels_of(data.predict_dataloader()) == [[UNLABELLED] * 2] * 2


def test_unlabelled_rows_stand_beside_rows_of_no_class(connected, several):
    data = connected(source=Source(train=several), multi_label=True, labelled_rows=12)
    found = labels_of(data.train_dataloader())
    assert found.count([UNLABELLED] * 2) == 24
    assert found.count([0, 0]) == 3
    assert len(found) == 36


def test_lists_are_refused_where_a_row_has_one_label(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "a", "label": ["x"]}, {"text": "b", "label": ["x", "y"]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1: .*data\.multi_label=true"):
        TextDataModule(Source(train=str(path))).read("fit")


def test_weights_are_read_where_rows_are_trained_on(connected, several, tmp_path):
    held_out = write_csv(tmp_path / "v.csv", [("a film", "joy"), ("a day", "fear")])
    source = Source(train=several, validation=held_out)
    data = connected(source=source, multi_label=True, weight_column="importance")
    for batch in data.train_dataloader():
        assert batch.weights.tolist() == [float(index % 3) for index in batch.index.tolist()]
    assert all(batch.weights is None for batch in data.val_dataloader())
    data = connected(source=Source(train=several), multi_label=True, weight_column="importance")
    assert all(batch.weights is None for batch in data.val_dataloader())
    more = write_csv(tmp_path / "more.csv", [("a film",)], header="text")
    source = Source(train=several, validation=held_out, unlabelled=more)
    with pytest.raises(DataError, match=r"more\.csv has no column 'importance'"):
        connected(source=source, multi_label=True, weight_column="importance")


def test_a_bad_weight_is_named_with_file_and_line(tmp_path):
    rows = [("a", "x", "1"), ("b", "y", "-2")]
    path = write_csv(tmp_path / "rows.csv", rows, "text,label,w")
    with pytest.raises(DataError, match=r"rows\.csv, line 3: the weight is '-2'"):
        TextDataModule(Source(train=path), weight_column="w").read("fit")


def test_fingerprints_tell_a_changed_weight(several):
    def prints(**options):
        data = TextDataModule(Source(train=several), multi_label=True, **options)
        data.read("fit")
        return data.fingerprints()

    assert prints() == prints()
    assert prints(weight_column="importance") != prints()
