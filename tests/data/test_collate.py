import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn import functional

from kd.data import sample
from kd.data.collate import (
    EncodedRows,
    EvaluationBatches,
    TrainingBatches,
    bucketed_order,
    budgeted_order,
    label_tensor,
)
from kd.data.encode import Encoded, View, encode
from kd.models import EncoderClassifier
from kd.objectives import masked_cross_entropy
from kd.types import UNLABELLED, Row


def skewed(count, seed=0):
    """Lengths as of tweets and reviews: most are short, a few are long."""
    lengths = np.random.default_rng(seed).lognormal(2.5, 0.8, count)
    return np.clip(lengths, 2, 200).astype(np.int64)


def data_of(lengths, rows=None):
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.ones(starts[-1], dtype=np.int32)
    encoded = Encoded(ids=ids, types=None, starts=starts, padding=0)
    rows = rows or [Row(place, "a", label=place % 2) for place in range(len(lengths))]
    return EncodedRows(rows, {"student": encoded})


def indices(batches):
    return [batch.index.tolist() for batch in batches]


def is_idle(batch):
    return batch.weights is not None and not batch.weights.any()


def padding(batches):
    masks = [batch.views["student"]["attention_mask"] for batch in batches]
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100, 1234])
def test_every_row_comes_once_per_epoch(count):
    batches = TrainingBatches(data_of(skewed(count)), 8, seed=3)
    for _ in range(3):
        epoch = indices(batches)
        assert len(epoch) == len(batches)
        assert sorted(itertools.chain(*epoch)) == list(range(count))
        assert all(len(batch) <= 8 for batch in epoch)


def test_another_epoch_and_another_seed_have_another_order():
    lengths = skewed(300)

    def sets(seed, epoch):
        return [sorted(batch) for batch in bucketed_order(lengths, 8, seed, epoch)]

    first = sets(0, 0)
    assert first == sets(0, 0)
    for other in (sets(0, 1), sets(1, 0), sets(1, 1)):
        assert sorted(first) != sorted(other)  # other company, not only another order of batches


def test_order_depends_on_seed_and_epoch_and_on_nothing_else():
    data = data_of(skewed(200))
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    walked = TrainingBatches(data, 8, seed=5)
    epochs = [indices(walked) for _ in range(3)]
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert indices(TrainingBatches(data, 8, seed=5, position=(2, 0))) == epochs[2]
    assert torch.equal(state, torch.get_rng_state())  # else dropout would shift


def test_batches_of_an_epoch_do_not_rise_in_length():
    batches = bucketed_order(skewed(2000), 8, 0, 0)
    means = np.array([skewed(2000)[batch].mean() for batch in batches])
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("count", [64, 65, 66, 67, 70, 71])
def test_ranks_share_every_batch(count, ranks):
    data = data_of(skewed(count))
    alone = TrainingBatches(data, 8, seed=1)
    shares = [TrainingBatches(data, 8, seed=1, rank=rank, ranks=ranks) for rank in range(ranks)]
    for _ in range(2):
        for batch, *split in zip(alone, *shares, strict=True):
            parts = [[] if is_idle(part) else part.index.tolist() for part in split]
            assert sorted(itertools.chain(*parts)) == sorted(batch.index.tolist())
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert len({len(batches) for batches in (alone, *shares)}) == 1


def test_padding_is_far_below_that_of_random_batches():
    lengths = skewed(4000)
    data = data_of(lengths)
    order = np.random.default_rng(0).permutation(len(lengths))
    random = padding(data.batch(order[start : start + 16]) for start in range(0, 4000, 16))
    bucketed = padding(TrainingBatches(data, 16, seed=0))
    assert random > 0.4
    assert bucketed < random / 4
    assert padding(EvaluationBatches(data, 16)) < random / 4


@pytest.mark.parametrize("consumed", [0, 1, 5, 12, 13])
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_stopped_epoch_goes_on_with_exactly_the_remaining_batches(epoch, consumed):
    data = data_of(skewed(100))
    straight = TrainingBatches(data, 8, seed=4)
    epochs = [indices(straight) for _ in range(epoch + 2)]
    cut = TrainingBatches(data, 8, seed=4, position=(epoch, 0))
    walk = iter(cut)
    for _ in range(consumed):
        next(walk)
    assert len(epochs[0]) == 13
    resumed = TrainingBatches(data, 8, seed=4, position=cut.position)
    assert len(resumed) == 13  # Lightning counts the batches already consumed itself
    if consumed < 13:
        assert indices(resumed) == epochs[epoch][consumed:]
    assert indices(resumed) == epochs[epoch + 1]
    assert resumed.position == (epoch + 1, 13)


def test_position_counts_the_batches_that_were_given():
    batches = TrainingBatches(data_of(skewed(40)), 8, seed=0)
    seen = [batches.position]
    for _ in range(2):
        for _ in batches:
            seen.append(batches.position)
    wanted = [(0, 0), *((0, n) for n in range(1, 6)), *((1, n) for n in range(1, 6))]
    assert seen == wanted


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("count", [3, 7, 64, 65])
def test_evaluation_sees_every_row_once_over_all_ranks(count, ranks):
    data = data_of(skewed(count))
    shares = [EvaluationBatches(data, 4, rank, ranks) for rank in range(ranks)]
    for _ in range(2):
        found = [indices(share) for share in shares]
        assert [len(part) for part in found] == [len(share) for share in shares]
        seen = Counter(itertools.chain(*itertools.chain(*found)))
        assert seen == dict.fromkeys(range(count), 1)


def test_labels_and_indices_stand_beside_their_rows():
    encoded = data_of([3, 2, 4]).views["student"]
    rows = [Row(10, "a", 1), Row(20, "b"), Row(30, "c", 0)]
    batch = EncodedRows(rows, {"student": encoded}).batch(np.array([2, 1, 0]))
    assert len(batch) == 3
    assert batch.index.tolist() == [30, 20, 10]
    assert batch.labels.tolist() == [0, UNLABELLED, 1]
    mask = batch.views["student"]["attention_mask"]
    assert mask.sum(dim=1).tolist() == [4, 2, 3]


# --- Do bucketed batches train as well as random ones? -------------------------------------------

ROWS, BATCH, EPOCHS, SEEDS = 2000, 32, 4, 5


def random_order(lengths, seed, epoch):
    order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
    return [order[start : start + BATCH] for start in range(0, len(order), BATCH)]


def shuffled_order(lengths, seed, epoch):
    return bucketed_order(lengths, BATCH, seed, epoch)


def sorted_order(lengths, seed, epoch):
    order = np.argsort(lengths, kind="stable")
    return [order[start : start + BATCH] for start in range(0, len(order), BATCH)]


def corpus(split, count, skew):
    """Take rows of the built-in corpus; with a skew, texts of one class are longer than others."""
    size = sample.SPLITS[split]
    rows = [Row(i, text, label) for i, (text, label) in enumerate(sample.generate(split))]
    rank = np.argsort(np.argsort([len(row.text) for row in rows], kind="stable")) / size
    draw = np.random.default_rng(0).random(size)
    kept = [
        row
        for row, place, chance in zip(rows, rank, draw, strict=True)
        if not skew or chance < (place, 0.5, 1 - place)[row.label]
    ]
    return kept[:count]


class World:
    """Rows to train and validate on, and a tiny encoder from scratch for each seed."""

    def __init__(self, skew):
        rows = {
            "train": corpus("teacher", ROWS, skew),
            "validation": corpus("validation", 500, skew),
        }
        self.texts = [row.text for row in rows["train"]]
        model = self.encoder(0)
        view = View(model.tokenizer, 64, model.info.vocabulary)
        self.data = {
            name: EncodedRows(chosen, {"student": encode(chosen, view)})
            for name, chosen in rows.items()
        }

    def encoder(self, seed):
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        sizes |= {"intermediate_size": 64, "max_position_embeddings": 64, "model_type": "bert"}
        torch.manual_seed(seed)
        model = EncoderClassifier(config=sizes, vocabulary_size=2000)
        model.load(sample.LABELS, self.texts)
        return model

    def loss(self, order, seed, decays):
        """Train, and return the mean cross-entropy of the validation rows."""
        model, train = self.encoder(seed), self.data["train"]
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        steps = EPOCHS * -(-ROWS // BATCH)
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0 if decays else 1.0, steps)
        for epoch in range(EPOCHS):
            for chosen in order(train.lengths, seed, epoch):
                batch = train.batch(chosen)
                loss = masked_cross_entropy(model(batch.views["student"]).logits, batch.labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                decay.step()
        model.eval()
        total = 0.0
        with torch.no_grad():
            for batch in EvaluationBatches(self.data["validation"], 250):
                logits = model(batch.views["student"]).logits
                total += float(functional.cross_entropy(logits, batch.labels, reduction="sum"))
        return total / len(self.data["validation"])

    def losses(self, order, seeds, decays=True):
        return np.array([self.loss(order, seed, decays) for seed in range(seeds)])


@pytest.fixture
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def margin(first, second):
    """Two standard errors of the difference of two means, and a little."""
    return 2 * np.sqrt(first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second)) + 0.01


@pytest.mark.slow
@pytest.mark.usefixtures("_one_thread")
def test_bucketed_batches_train_as_well_as_random_ones_do():
    world = World(skew=False)
    random, bucketed = (world.losses(order, SEEDS) for order in (random_order, shuffled_order))
    assert random.mean() < 0.8  # far below that of guessing, 1.1
    assert bucketed.mean() < random.mean() + margin(random, bucketed), (random, bucketed)


@pytest.mark.slow
@pytest.mark.usefixtures("_one_thread")
def test_sorted_batches_train_worse_which_shows_that_losses_tell_a_bad_order():
    world = World(skew=True)
    random, bucketed, ordered = (
        world.losses(order, 3, decays=False)
        for order in (random_order, shuffled_order, sorted_order)
    )
    assert ordered.mean() > random.mean() + margin(random, ordered), (random, ordered)
    assert ordered.mean() > bucketed.mean() + margin(bucketed, ordered), (bucketed, ordered)


def test_budgeted_batches_hold_every_row_once_within_the_budget():
    lengths = np.random.default_rng(0).integers(3, 60, size=500)
    sizes = set()
    for epoch in range(4):
        batches = budgeted_order(lengths, 512, seed=1, epoch=epoch)
        assert sorted(np.concatenate(batches).tolist()) == list(range(500))
        assert all(len(batch) * lengths[batch].max() <= 512 for batch in batches)
        sizes.add(tuple(sorted(len(batch) for batch in batches)))
    assert len(sizes) == 1, "every epoch has the same steps"
    first = [budgeted_order(lengths, 512, 1, epoch)[0].tolist() for epoch in (0, 0, 1)]
    assert first[0] == first[1] != first[2]


def test_row_longer_than_the_budget_has_a_batch_of_its_own():
    batches = budgeted_order(np.array([5, 40, 5, 5]), 10, seed=0, epoch=0)
    assert sorted(map(len, batches)) == [1, 1, 2]


def test_budgeted_training_resumes_in_the_middle():
    data = data_of(np.random.default_rng(0).integers(3, 30, size=200))
    settings = {"batch_size": 8, "seed": 3, "tokens": 100}
    whole = TrainingBatches(data, **settings)
    seen = [batch.index.tolist() for batch in whole]
    assert len(seen) == len(whole)
    rest = TrainingBatches(data, **settings, position=(0, 5))
    assert [batch.index.tolist() for batch in rest] == seen[5:]
    assert len(list(rest)) == len(whole)


def test_equal_texts_have_equal_content_and_weights_ride_along():
    rows = [Row(0, "a b", 0), Row(1, "a b", 1, weight=0.5), Row(2, "a", 0, pair="b")]
    data = data_of([3, 3, 3], rows)
    batch = data.batch(np.array([2, 1, 0]))
    assert batch.content[1] == batch.content[2] != batch.content[0]
    assert batch.weights.tolist() == [1.0, 0.5, 1.0]
    assert data_of([3, 3]).batch(np.array([0])).weights is None


def test_several_labels_become_one_for_each_class_of_a_row():
    rows = [Row(0, "a", (0, 2)), Row(1, "a", ()), Row(2, "a"), Row(3, "a", (1,), weight=2.0)]
    starts = np.array([0, 3, 6, 9, 12])
    encoded = Encoded(ids=np.ones(12, np.int32), types=None, starts=starts, padding=0)
    batch = EncodedRows(rows, {"student": encoded}, 3).batch(np.array([3, 0, 2, 1]))
    none = [UNLABELLED] * 3
    assert batch.labels.tolist() == [[0, 1, 0], [1, 0, 1], none, [0, 0, 0]]
    assert batch.labels.dtype == torch.int64
    assert batch.weights.tolist() == [2.0, 1.0, 1.0, 1.0]
    assert len(batch) == 4


def test_labels_of_any_rows_as_a_tensor():
    rows = [Row(0, "a", 2), Row(1, "a"), Row(2, "a", 0)]
    assert label_tensor(rows).tolist() == [2, UNLABELLED, 0]
    assert label_tensor(rows[1:2], 2).tolist() == [[UNLABELLED] * 2]
    assert label_tensor([], 3).shape == (0, 3)
