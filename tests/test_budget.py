import math
import os
import re
from functools import partial

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from kd import budget
from kd.budget import NARROWABLE, Shape, choose, resized, shape_of, spread
from kd.errors import ConfigError
from tests.conftest import FAMILIES

SIZES = {**FAMILIES, "xlm-roberta": FAMILIES["roberta"]}


def on_meta(family="bert", **changes):
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(
            AutoConfig.for_model(family, **changes)
        )


def count_inner(shape):
    """The parameters of a BERT with two labels outside its embeddings, by hand."""
    width, inner = shape.width, shape.intermediate
    attention = 4 * (width * width + width) + 2 * width
    feed_forward = 2 * width * inner + inner + width + 2 * width
    head = width * width + width + 2 * width + 2
    return 2 * width + shape.layers * (attention + feed_forward) + head


def count(shape, vocabulary=30522):
    return count_inner(shape) + (vocabulary + 512 + 2) * shape.width


@pytest.fixture
def slow_layers(monkeypatch):
    """A clock that does not depend on the machine: a millisecond per layer and 64 of width."""

    def latency(network, shape):
        asked.append(shape)
        return shape.layers * shape.width / 64

    asked = []
    monkeypatch.setattr(budget, "_latency_ms", latency)
    return asked


# Sizes


@pytest.mark.parametrize("family", SIZES)
def test_shape_is_read_and_written_under_the_familys_names(family):
    config = AutoConfig.for_model(family, **SIZES[family])
    assert shape_of(config) == Shape(3, 16, 2, 32)
    other = resized(config, Shape(2, 8, 1, 20))
    assert shape_of(other) == Shape(2, 8, 1, 20)
    assert shape_of(config) == Shape(3, 16, 2, 32)
    network = AutoModelForSequenceClassification.from_config(other)
    assert network.get_input_embeddings().embedding_dim == 8
    stacks = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    assert 2 in map(len, stacks)
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    assert {20, 40} & {linear.out_features for linear in linears}  # ModernBERT has two in one


def test_shape_is_shown_in_words():
    assert str(Shape(3, 192, 6, 768)) == "3 layers of 192, 6 heads"
    assert str(Shape(1, 64, 1, 256)) == "1 layer of 64, 1 head"


@pytest.mark.parametrize(
    ("total", "layers", "kept"),
    [
        (12, 12, list(range(12))),
        (12, 3, [0, 6, 11]),
        (12, 4, [0, 4, 7, 11]),
        (12, 1, [0]),
        (6, 2, [0, 5]),
        (1, 1, [0]),
    ],
)
def test_layers_are_spread_from_the_first_to_the_last(total, layers, kept):
    assert spread(AutoConfig.for_model("bert", num_hidden_layers=total), layers) == kept


def test_spread_layers_are_as_many_as_asked():
    for total in range(1, 30):
        config = AutoConfig.for_model("bert", num_hidden_layers=total)
        for layers in range(1, total + 1):
            kept = spread(config, layers)
            assert len(set(kept)) == layers
            assert kept == sorted(kept)
            assert 0 <= kept[0] <= kept[-1] < total


def test_kinds_of_attention_follow_the_layers():
    config = AutoConfig.for_model("modernbert", **SIZES["modernbert"])
    config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    assert resized(config, Shape(2, 16, 2, 32)).layer_types == ["full_attention"] * 2


# Parameters


SHARES = (1, 3 / 4, 2 / 3, 1 / 2, 1 / 3, 1 / 4, 1 / 6, 1 / 12)
NUMBERS = sorted({round(12 * share) for share in SHARES})
SHAPES = [Shape(layers, 64 * heads, heads, 256 * heads) for layers in NUMBERS for heads in NUMBERS]


@pytest.mark.parametrize("limit", [3_000_000, 60_000_000, 80_000_000])
def test_choice_is_the_largest_that_fits_and_the_deepest_of_those(limit):
    """An independent count and search, for BERT-base."""
    shape, line = choose(on_meta(), limit, None)
    fitting = [other for other in SHAPES if count(other) <= limit]
    assert shape in fitting
    most = max(map(count_inner, fitting))
    assert count_inner(shape) > most / 1.1
    step = round(math.log(count_inner(shape), 1.1))
    for other in fitting:
        assert other.layers <= shape.layers or round(math.log(count_inner(other), 1.1)) < step
    assert f"{count(shape) / 1e6:.3g}M parameters of at most {limit / 1e6:.3g}M; next " in line


def test_line_says_why():
    shape, line = choose(on_meta(vocab_size=5000), 4_000_000, None)
    assert shape == Shape(6, 192, 3, 768)
    assert round(count(shape, 5000) / 1e6, 2) == 3.77
    assert round(count(Shape(4, 256, 4, 1024), 5000) / 1e6, 2) == 4.64
    assert line == (
        "shape = 6 layers of 192, 3 heads: 3.77M parameters of at most 4M; next larger 4 layers of "
        "256, 4 heads, has 4.64M"
    )
    shape, line = choose(on_meta(), 3_000_000, None)
    assert line.endswith("next larger 4 layers of 128, 2 heads, has 4.78M")  # the next by size


def test_whole_source_is_chosen_where_it_fits():
    assert count(Shape(12, 768, 12, 3072)) == 109_483_778  # as BERT-base is known to have
    shape, line = choose(on_meta(), 109_483_778, None)
    assert shape == Shape(12, 768, 12, 3072)
    assert line == "shape = 12 layers of 768, 12 heads: 109M parameters of at most 109M"
    assert choose(on_meta(), 109_483_777, None)[0] != shape


@pytest.mark.parametrize("family", NARROWABLE)
def test_count_is_that_of_the_network(family):
    network = on_meta(family, **{**SIZES[family], "vocab_size": 50})
    sizes = {}
    for limit in (2500, 4500, 6000, 10_000):
        try:
            shape, _ = choose(network, limit, None)
        except ConfigError:
            continue
        real = AutoModelForSequenceClassification.from_config(resized(network.config, shape))
        sizes[shape] = sum(weight.numel() for weight in real.parameters())
        assert sizes[shape] <= limit
    assert len(sizes) >= 2


def test_other_families_lose_layers_only():
    network = on_meta("modernbert", **SIZES["modernbert"], vocab_size=100, pad_token_id=0)
    whole = sum(weight.numel() for weight in network.parameters())
    assert choose(network, whole, None)[0] == Shape(3, 16, 2, 32)
    assert choose(network, whole - 1, None)[0] == Shape(2, 16, 2, 32)
    with pytest.raises(ConfigError, match="smallest student, 1 layer of 16, 2 heads, has"):
        choose(network, 100, None)


def test_electra_is_never_as_wide_as_its_embeddings():
    network = on_meta("electra", hidden_size=256, embedding_size=128, num_attention_heads=4)
    chosen = {choose(network, limit, None)[0].width for limit in (4_200_000, 6_000_000, 9_000_000)}
    assert chosen == {64, 192, 256}


def test_impossible_number_of_parameters_is_refused():
    with pytest.raises(ConfigError) as error:
        choose(on_meta(), 1_000_000, None)
    assert str(error.value) == (
        "Shrink's max_parameters=1000000 cannot be met, as the smallest student, 1 layer of 64, 1 "
        f"head, has {count(Shape(1, 64, 1, 256)) / 1e6:.3g}M: allow more, or keep fewer tokens "
        "with vocabulary and minimum_count."
    )


# Latency


def test_latency_limits_the_choice(slow_layers):
    shape, line = choose(on_meta(), None, 12.0)
    assert shape.layers * shape.width / 64 <= 12
    assert line.startswith(f"shape = {shape}: {count(shape) / 1e6:.3g}M parameters, ")
    assert re.search(
        r"M parameters, [\d.]+ ms of at most 12 ms; next larger .* takes [\d.]+ ms$", line
    )
    assert len(set(slow_layers)) == len(slow_layers)  # nothing is measured twice


def test_both_limits_hold(slow_layers):
    shape, line = choose(on_meta(), 6_000_000, 5.0)
    assert count(shape) <= 6_000_000
    assert shape.layers * shape.width / 64 <= 5
    assert all(count(asked) <= 6_000_000 for asked in slow_layers)
    assert "M parameters of at most 6M, " in line
    assert " ms of at most 5 ms; next larger" in line


def test_impossible_latency_is_refused(slow_layers):
    with pytest.raises(ConfigError, match=r"max_latency_ms=0\.5 cannot be met, as the smallest stu"
                       r"dent, 1 layer of 64, 1 head, takes 1 ms: allow more"):  # fmt: skip
        choose(on_meta(), None, 0.5)
    with pytest.raises(ConfigError, match=r"max_parameters=5000000 and max_latency_ms=0\.5 cannot"):
        choose(on_meta(), 5_000_000, 0.5)


@pytest.mark.parametrize("family", SIZES)
def test_latency_is_measured_on_one_thread(family, monkeypatch):
    network = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(family, **{**SIZES[family], "pad_token_id": 5})
    )
    threads = []
    original = type(network).forward

    def forward(self, *args, **kwargs):
        threads.append((torch.get_num_threads(), kwargs["input_ids"].shape, self.training))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(network), "forward", forward)
    torch.set_num_threads(2)
    try:
        shape, line = choose(network, None, 10_000.0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert shape == Shape(3, 16, 2, 32)
    assert set(threads) == {(1, (1, 32), False)}
    assert len(threads) > 4
    assert re.search(r"parameters, [\d.]+ ms of at most 10000 ms$", line)


def test_more_layers_take_longer():
    config = AutoConfig.for_model("bert", **{**SIZES["bert"], "hidden_size": 128})
    network = AutoModelForSequenceClassification.from_config(config)
    short, long = (budget._latency_ms(network, Shape(n, 128, 2, 512)) for n in (1, 12))
    assert 0 < short < long / 3 < 1000


def slowed(network, shape, by):
    return shape.layers * by


def test_all_ranks_take_the_first_ones_choice(tmp_path, monkeypatch):
    """Two processes measure different latencies, and must still build the same student."""
    network, children = on_meta(), []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                torch.distributed.init_process_group(
                    "gloo", f"file://{tmp_path}/meet", rank=rank, world_size=2
                )
                monkeypatch.setattr(budget, "_latency_ms", partial(slowed, by=1 + rank))
                shape, line = choose(network, None, 4.0)
                (tmp_path / str(rank)).write_text(f"{shape.layers} {line}")
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    first, second = ((tmp_path / str(rank)).read_text() for rank in range(2))
    assert first == second
    assert first.startswith("4 ")  # alone, the second would have taken two
