import dataclasses

import pytest
import torch

from kd.types import UNLABELLED, Batch, ModelInfo, Outputs, Row


def batch_of(student, teacher=None):
    views = {"student": student} if teacher is None else {"student": student, "teacher": teacher}
    return Batch(views=views, labels=torch.tensor([1, UNLABELLED]), index=torch.tensor([5, 9]))


def inputs_of(value):
    ids = torch.full((2, 3), value)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def copy_pinned(monkeypatch):
    """Page-locked memory needs an accelerator: copy instead, and count."""
    pinned = []

    def pin_memory(tensor):
        pinned.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    return pinned


def test_batch_has_as_many_rows_as_labels():
    assert len(batch_of(inputs_of(1))) == 2


def test_unlabelled_is_what_pytorch_ignores():
    assert torch.nn.CrossEntropyLoss().ignore_index == UNLABELLED


def test_shared_views_stay_shared_on_another_device():
    shared = inputs_of(1)
    moved = batch_of(shared, shared).to("meta")
    assert moved.views["student"] is moved.views["teacher"]
    assert moved.views["student"]["input_ids"].device.type == "meta"
    assert moved.labels.device.type == moved.index.device.type == "meta"


def test_different_views_stay_different():
    moved = batch_of(inputs_of(1), inputs_of(2)).to("cpu")
    assert moved.views["student"] is not moved.views["teacher"]
    assert moved.views["student"]["input_ids"].unique().tolist() == [1]
    assert moved.views["teacher"]["input_ids"].unique().tolist() == [2]


def test_moving_keeps_every_value_and_the_first_batch():
    batch = batch_of(inputs_of(1), inputs_of(2))
    moved = batch.to(torch.device("cpu"), non_blocking=True)
    assert torch.equal(moved.labels, batch.labels)
    assert torch.equal(moved.index, batch.index)
    assert set(moved.views["teacher"]) == {"input_ids", "attention_mask"}
    batch.to("meta")
    assert batch.labels.device.type == "cpu"


def test_shared_views_are_pinned_once(monkeypatch):
    pinned = copy_pinned(monkeypatch)
    shared = inputs_of(1)
    batch = batch_of(shared, shared)
    moved = batch.pin_memory()
    assert len(pinned) == 4  # two of the view, labels, index
    assert moved.views["student"] is moved.views["teacher"]
    assert torch.equal(moved.views["teacher"]["input_ids"], shared["input_ids"])
    assert torch.equal(moved.labels, batch.labels)
    assert torch.equal(moved.index, batch.index)


def test_different_views_are_both_pinned(monkeypatch):
    pinned = copy_pinned(monkeypatch)
    moved = batch_of(inputs_of(1), inputs_of(2)).pin_memory()
    assert len(pinned) == 6
    assert moved.views["teacher"]["input_ids"].unique().tolist() == [2]


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (Row(0, "text"), "text"),
        (batch_of(inputs_of(1)), "labels"),
        (Outputs(torch.zeros(1, 2)), "logits"),
        (ModelInfo(("a", "b"), 1, 1, 1, 1, "digest"), "width"),
    ],
)
def test_values_cannot_be_changed(value, field):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, None)


def test_optional_fields_are_empty():
    outputs = Outputs(torch.zeros(1, 2))
    assert outputs.hidden_states is outputs.attentions is outputs.mask is None
    row = Row(0, "text")
    assert row.label is row.pair is row.origin is None
