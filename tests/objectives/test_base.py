import inspect
import math

import pytest
import torch

import kd.objectives
from kd.errors import ConfigError
from kd.objectives import HardLabel, LogitKD, Objective, Schedule
from kd.objectives.base import weighted_mean
from kd.types import Batch, ModelInfo, Outputs

EXPORTS = [getattr(kd.objectives, name) for name in kd.objectives.__all__]
EVERY = [kind for kind in EXPORTS if isinstance(kind, type) and issubclass(kind, Objective)]
INFO = ModelInfo(("a", "b"), 1, 1, 1, 1, "digest")
BATCH = Batch({}, torch.tensor([0, 1]), torch.arange(2))


class FooKD(Objective):
    """The least objective, with a setting that may be scheduled."""

    needs = frozenset({"hidden_states"})

    def __init__(self, weight=1.0, temperature=2.0, by_confidence=False):
        super().__init__(weight, by_confidence)
        self.temperature = self.scheduled("temperature", temperature, positive=True)


def rows(*weights):
    weights = torch.tensor(weights) if weights else None
    return Batch({}, torch.zeros(2, dtype=torch.long), torch.arange(2), weights=weights)


# every objective


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("weight", [-0.5, float("nan"), float("inf"), Schedule(1.0, end=-1.0)])
def test_weight_must_be_a_number_from_zero(kind, weight):
    with pytest.raises(ConfigError, match=rf"{kind.__name__}\.weight is {weight}: give 0 or more"):
        kind(weight=weight)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("weight", [0, 0.0, 0.5, 3])
def test_weight_is_kept_as_given(kind, weight):
    assert kind(weight=weight).weight == weight


@pytest.mark.parametrize("kind", EVERY)
def test_weight_may_be_scheduled(kind):
    term = kind(weight=Schedule(1.0, end=0.5))
    assert term.weight == 1.0
    term.advance(1.0)
    assert term.weight == 0.5
    assert term.shown("weight") == "1→0.5"


@pytest.mark.parametrize("kind", EVERY)
def test_first_setting_is_the_weight_and_the_last_of_a_taught_term_the_confidence(kind):
    settings = list(inspect.signature(kind).parameters.values())
    assert settings[0].name == "weight"
    assert 0 < settings[0].default <= 1
    assert all(setting.default is not inspect.Parameter.empty for setting in settings)
    if kind.uses_teacher:
        assert (settings[-1].name, settings[-1].default) == ("by_confidence", False)
        assert kind(by_confidence=True).by_confidence
        assert "logits" in kind(by_confidence=True).teacher_needs()


@pytest.mark.parametrize("kind", EVERY)
def test_description_begins_with_the_name(kind):
    assert kind().describe().split()[0] == kind.__name__


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


# the base


def test_base_gives_no_term():
    with pytest.raises(TypeError, match="Objective does not implement forward"):
        Objective()(Outputs(torch.zeros(2, 2)), None, BATCH)


def test_base_describes_itself_by_name_and_binds_to_anything():
    term = Objective()
    assert term.bind(INFO, None) is None
    assert FooKD().describe() == "FooKD"
    assert term.needs == {"logits"}
    assert term.uses_teacher
    assert not term.uses_labels


def test_binding_tells_whether_rows_may_have_several_labels():
    term = Objective()
    assert not term.multi_label
    term.bind(ModelInfo(("a", "b"), 1, 1, 1, 1, "digest", multi_label=True), None)
    assert term.multi_label
    term.bind(INFO, None)
    assert not term.multi_label


def test_teacher_is_asked_for_logits_too_where_its_confidence_counts():
    assert FooKD().teacher_needs() == {"hidden_states"}
    assert FooKD(by_confidence=True).teacher_needs() == {"hidden_states", "logits"}
    assert FooKD(by_confidence=True).needs == {"hidden_states"}, "the student is asked for less"


# schedules


def test_scheduled_settings_follow_the_run():
    term = FooKD(weight=Schedule(1.0, warmup=0.5), temperature=Schedule(4.0, end=2.0))
    assert (term.weight, term.temperature) == (0.0, 4.0)
    seen = []
    for progress in (0.25, 0.5, 1.0, 0.0):
        term.advance(progress)
        seen.append((term.weight, term.temperature))
    assert seen == [(0.5, 3.5), (1.0, 3.0), (0.0, 2.0), (0.0, 4.0)]


def test_settled_settings_stay():
    term = FooKD(weight=0.5, temperature=Schedule(4.0, end=2.0))
    term.advance(1.0)
    assert (term.weight, term.temperature) == (0.5, 2.0)


def test_schedules_of_two_terms_are_their_own():
    first, second = FooKD(weight=Schedule(1.0)), FooKD(weight=0.5)
    first.advance(1.0)
    second.advance(1.0)
    assert (first.weight, second.weight) == (0.0, 0.5)


def test_settings_are_shown_as_numbers_or_as_their_course():
    term = FooKD(weight=0.50, temperature=Schedule(4.0, end=2.0, warmup=0.0))
    assert (term.shown("weight"), term.shown("temperature")) == ("0.5", "4→2")
    term.advance(0.5)
    assert term.shown("temperature") == "4→2", "the equation is of the whole run"


@pytest.mark.parametrize(
    "value", [0, 0.0, -1.0, math.nan, math.inf, Schedule(4.0), Schedule(4.0, 1.0, warmup=0.1)]
)
def test_setting_that_is_or_becomes_impossible_is_refused(value):
    with pytest.raises(ConfigError, match=rf"FooKD\.temperature is {value}: it must be positive"):
        FooKD(temperature=value)


@pytest.mark.parametrize(
    ("weight", "counts"),
    [(0.0, False), (0.1, True), (Schedule(1.0), True), (Schedule(1.0, warmup=0.5), True)],
)
def test_term_has_a_weight_if_it_ever_counts(weight, counts):
    assert FooKD(weight=weight).has_weight is counts


def test_schedules_are_in_no_checkpoint():
    assert not FooKD(weight=Schedule(1.0)).state_dict()


# rows


def test_weighted_mean_by_hand():
    values = torch.tensor([1.0, 2.0, 6.0])
    assert weighted_mean(values, None).item() == 3.0
    assert weighted_mean(values, torch.tensor([2.0, 2.0, 1.0])).item() == pytest.approx(2.4)
    assert weighted_mean(values, torch.tensor([0.0, 5.0, 0.0])).item() == 2.0


def test_size_of_the_weights_does_not_matter():
    values, weights = torch.randn(8), torch.rand(8)
    expected = weighted_mean(values, weights)
    torch.testing.assert_close(weighted_mean(values, weights * 1000), expected)
    torch.testing.assert_close(weighted_mean(values, torch.full((8,), 0.1)), values.mean())


def test_rows_without_weight_give_zero_and_a_gradient_of_zero():
    values = torch.randn(4, requires_grad=True)
    mean = weighted_mean(values, torch.zeros(4))
    assert mean.item() == 0.0
    mean.backward()
    assert values.grad is not None
    assert not values.grad.any()


def test_rows_count_as_the_data_says():
    teacher = Outputs(torch.tensor([[5.0, 0.0], [0.0, 0.0]]))
    assert FooKD().row_weights(teacher, rows()) is None
    assert FooKD().row_weights(teacher, rows(1.0, 3.0)).tolist() == [1.0, 3.0]
    assert FooKD(by_confidence=True).row_weights(None, rows(1.0, 3.0)).tolist() == [1.0, 3.0]


def test_rows_count_by_the_largest_probability_of_the_teacher():
    term = FooKD(by_confidence=True)
    teacher = Outputs(torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]]))
    assert term.row_weights(teacher, rows()).tolist() == pytest.approx([0.75, 0.5])
    assert term.row_weights(teacher, rows(2.0, 0.0)).tolist() == pytest.approx([1.5, 0.0])


def test_confidence_in_several_labels_is_the_mean_over_the_classes():
    term = FooKD(by_confidence=True)
    term.multi_label = True
    # a class that is surely absent is as sure as one that is surely there
    teacher = Outputs(torch.tensor([[math.log(3.0), 0.0], [-math.log(3.0), 1e4]]))
    assert term.row_weights(teacher, rows()).tolist() == pytest.approx([0.625, 0.875])


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_confidence_is_a_finite_float32_without_a_gradient(multi_label, dtype):
    term = FooKD(by_confidence=True)
    term.multi_label = multi_label
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], dtype=dtype, requires_grad=True)
    sure = term.row_weights(Outputs(logits), rows())
    assert sure.tolist() == [1.0, 1.0]
    assert sure.dtype == torch.float32
    assert not sure.requires_grad
