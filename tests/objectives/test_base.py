import pytest
import torch

from kd.errors import ConfigError
from kd.objectives import HardLabel, LogitKD, Objective
from kd.types import Batch, ModelInfo, Outputs

EVERY = [Objective, HardLabel, LogitKD]
INFO = ModelInfo(("a", "b"), 1, 1, 1, 1, "digest")
BATCH = Batch({}, torch.tensor([0, 1]), torch.arange(2))


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("weight", [-0.5, float("nan"), float("inf")])
def test_weight_must_be_a_number_from_zero(kind, weight):
    with pytest.raises(ConfigError, match=rf"{kind.__name__}\.weight is {weight}: give 0 or more"):
        kind(weight=weight)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("weight", [0, 0.0, 0.5, 3])
def test_weight_is_kept_as_given(kind, weight):
    assert kind(weight=weight).weight == weight


def test_base_gives_no_term():
    with pytest.raises(TypeError, match="Objective does not implement forward"):
        Objective()(Outputs(torch.zeros(2, 2)), None, BATCH)


def test_base_describes_itself_by_name_and_binds_to_anything():
    class FooKD(Objective):
        pass

    term = FooKD()
    assert term.bind(INFO, None) is None
    assert term.describe() == "FooKD"
    assert term.needs == {"logits"}
    assert term.uses_teacher
    assert not term.uses_labels


@pytest.mark.parametrize("kind", [HardLabel, LogitKD])
def test_term_is_not_multiplied_by_its_own_weight(kind):
    """The module weighs: values are logged as they are."""
    student, teacher = Outputs(torch.randn(2, 2)), Outputs(torch.randn(2, 2))
    terms = [kind(weight=weight) for weight in (0.1, 0.9)]
    for term in terms:
        term.bind(INFO, INFO)
    first, second = (term(student, teacher, BATCH) for term in terms)
    assert torch.equal(first, second)
    assert first.shape == ()


@pytest.mark.parametrize("kind", [HardLabel, LogitKD])
def test_term_adds_nothing_to_a_checkpoint(kind):
    term = kind()
    term.bind(INFO, INFO)
    assert not term.state_dict()
    assert not list(term.parameters())
