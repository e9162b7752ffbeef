import math
import warnings

import pytest
import torch
from torch import nn

from kd.errors import ConfigError
from kd.models import EncoderClassifier
from kd.optim import build_adamw, build_schedule, rate_factor
from tests.conftest import FAMILIES, LABELS


def groups_of(optimizer):
    return {group["weight_decay"]: group["params"] for group in optimizer.param_groups}


def ids(values):
    return {id(value) for value in values}


# Groups


@pytest.mark.parametrize("family", FAMILIES)
def test_biases_and_norms_are_not_decayed(make_model, family):
    model = EncoderClassifier(path=str(make_model(family=family)))
    model.load(LABELS)
    groups = groups_of(build_adamw(model.named_parameters(), 1e-3, 0.01))
    assert set(groups) == {0.01, 0.0}
    plain = set()
    for module in model.modules():
        kind = type(module).__name__
        own = dict(module.named_parameters(recurse=False))
        plain |= (
            ids(own.values())
            if "Norm" in kind
            else ids([own["bias"]] if own.get("bias") is not None else [])
        )
    assert plain
    assert ids(groups[0.0]) == plain
    assert ids(groups[0.01]) == ids(model.parameters()) - plain
    assert sum(map(len, groups.values())) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    groups = groups_of(build_adamw(model.named_parameters(), 1e-3, 0.01))
    assert ids(groups[0.01]) == {id(model[2].weight)}
    assert ids(groups[0.0]) == ids([model[1].weight, model[1].bias, model[2].bias])


def test_group_without_parameters_is_left_out():
    optimizer = build_adamw(nn.Linear(2, 2, bias=False).named_parameters(), 1e-3, 0.01)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01]


def test_decay_shrinks_matrices_only():
    model = nn.Linear(3, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = build_adamw(model.named_parameters(), 0.1, 0.5)
    for value in model.parameters():
        value.grad = torch.zeros_like(value)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before["weight"] * (1 - 0.1 * 0.5))
    assert torch.equal(model.bias, before["bias"])
    assert optimizer.defaults["lr"] == 0.1
    assert optimizer.defaults["fused"]


# The rate


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("linear", [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0, 0]),
        ("constant", [1 / 3, 2 / 3] + [1] * 10),
        (
            "cosine",
            [1 / 3, 2 / 3] + [(1 + math.cos(math.pi * k / 8)) / 2 for k in range(9)] + [0],
        ),
    ],
)
def test_ten_steps_two_of_warm_up(schedule, factors):
    assert [rate_factor(step, 10, 2, schedule) for step in range(12)] == pytest.approx(factors)


def test_cosine_is_half_way_down_in_the_middle():
    assert rate_factor(6, 10, 2, "cosine") == pytest.approx(0.5)
    assert rate_factor(4, 10, 2, "cosine") > rate_factor(4, 10, 2, "linear")
    assert rate_factor(8, 10, 2, "cosine") < rate_factor(8, 10, 2, "linear")


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (2, 1), (7, 7), (100, 6), (0, 0)])
def test_every_step_of_a_run_has_a_rate(schedule, steps, warmup):
    factors = [rate_factor(step, steps, warmup, schedule) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    rising, falling = factors[:warmup], factors[warmup:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert not falling or falling[0] == 1.0
    assert math.isfinite(rate_factor(steps + 50, steps, warmup, schedule))


def rates(schedule, steps, share, count):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = build_schedule(optimizer, steps, share, schedule)
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(count):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return seen, scheduler


def test_optimizer_gets_the_rates():
    seen, _ = rates("linear", 10, 0.2, 11)
    factors = [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0]
    assert seen == pytest.approx([0.5 * factor for factor in factors])


@pytest.mark.parametrize(("share", "peak"), [(0.0, 0), (0.06, 6), (0.5, 50), (1.0, 100)])
def test_warm_up_is_a_share_of_the_steps(share, peak):
    seen, _ = rates("linear", 100, share, 100)
    assert seen.index(max(seen)) == min(peak, 99)
    assert (max(seen) == 0.5) == (peak < 100)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_endless_run_needs_a_constant_rate(schedule):
    with pytest.raises(
        ConfigError,
        match=rf"'{schedule}' needs an end: set trainer\.max_epochs .*schedule=constant",
    ):
        rates(schedule, float("inf"), 0.1, 1)
    assert rates("constant", float("inf"), 0.1, 5)[0] == [0.5] * 5


def test_state_of_the_schedule_is_plain_data():
    """Checkpoints are read without unpickling code."""
    seen, _ = rates("cosine", 20, 0.1, 20)
    _, first = rates("cosine", 20, 0.1, 8)
    state = first.state_dict()
    assert state["lr_lambdas"] == [None]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    resumed = build_schedule(optimizer, 20, 0.1, "cosine")
    resumed.load_state_dict(state)
    optimizer.step()
    resumed.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(seen[9])
