import numpy as np
import pytest
import torch
from torch.nn import functional
from torchmetrics.functional.classification import multiclass_calibration_error

from kd.calibration import (
    Bin,
    calibration_error,
    choices,
    cross_fitted,
    fit_temperature,
    is_right,
    probabilities,
    reliability,
)


def overconfident(rows=4000, classes=3, factor=3.0, seed=0):
    """Logits whose softmax is right as it stands, times a factor, and labels drawn from it."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, (rows, classes))
    shares = probabilities(logits)
    truth = np.array([random.choice(classes, p=share) for share in shares])
    return (logits * factor).astype(np.float32), truth


def test_probabilities_are_those_of_torch():
    logits = np.array([[4.0, -2.0, 0.5], [1e4, -1e4, 0.0]], dtype=np.float32)
    given = torch.from_numpy(logits).double()
    assert probabilities(logits) == pytest.approx(given.softmax(-1).numpy())
    assert probabilities(logits, temperature=2.0) == pytest.approx((given / 2).softmax(-1).numpy())
    assert probabilities(logits, multi_label=True) == pytest.approx(given.sigmoid().numpy())


def test_the_temperature_that_was_put_in_is_found():
    logits, truth = overconfident()
    assert fit_temperature(logits, truth) == pytest.approx(3.0, rel=0.1)
    assert fit_temperature(logits / 6, truth) == pytest.approx(0.5, rel=0.1)
    best = fit_temperature(logits, truth)

    def loss(temperature):
        scaled = torch.from_numpy(logits) / temperature
        return functional.cross_entropy(scaled, torch.from_numpy(truth))

    assert loss(best) <= min(loss(best * 1.05), loss(best / 1.05))


def test_the_temperature_of_several_labels_is_found():
    random = np.random.default_rng(1)
    logits = random.normal(0, 2, (3000, 4))
    truth = (random.random(logits.shape) < probabilities(logits, multi_label=True)).astype(int)
    found = fit_temperature((logits * 2).astype(np.float32), truth, multi_label=True)
    assert found == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("size", [3.0, 30.0])
def test_few_rows_that_are_all_right_make_nobody_sure(size):
    logits = np.array([[size, 0.0], [0.0, size]] * 10, dtype=np.float32)
    found = fit_temperature(logits, np.array([0, 1] * 10))
    assert 0.4 < found <= 1.01


def test_the_calibration_error_is_that_of_torchmetrics():
    logits, truth = overconfident()
    found = probabilities(logits)
    wanted = multiclass_calibration_error(
        torch.from_numpy(found).float(), torch.from_numpy(truth), num_classes=3, n_bins=15
    )
    assert calibration_error(reliability(found, truth)) == pytest.approx(float(wanted), abs=1e-4)


def test_a_temperature_from_other_rows_mends_the_calibration():
    logits, truth = overconfident()
    before = calibration_error(reliability(probabilities(logits), truth))
    after = calibration_error(reliability(cross_fitted(logits, truth), truth))
    assert before > 0.15
    assert after < 0.04


def test_no_row_is_answered_by_a_temperature_that_has_seen_it():
    logits, truth = overconfident(rows=40)
    found = cross_fitted(logits, truth)
    for row in range(0, 40, 7):
        changed = truth.copy()
        changed[row] = (truth[row] + 1) % 3
        assert cross_fitted(logits, changed)[row] == pytest.approx(found[row], abs=0)


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows_are_no_fault(rows):
    logits, truth = overconfident(rows=rows) if rows else (np.zeros((0, 3), np.float32), [])
    assert cross_fitted(logits, np.array(truth, dtype=int)).shape == (rows, 3)


def test_bins_by_hand():
    found = np.array([[0.9, 0.1], [0.92, 0.08], [0.4, 0.6]])
    bins = reliability(found, np.array([0, 1, 1]), bins=10)
    assert [one.rows for one in bins] == [1, 2]
    assert bins[0] == Bin(1, pytest.approx(0.6), 1.0)
    assert bins[1] == Bin(2, pytest.approx(0.91), 0.5)
    assert calibration_error(bins) == pytest.approx((0.4 + 2 * 0.41) / 3)
    assert calibration_error([]) == 0.0


def test_what_is_right_of_several_labels_is_a_share():
    found = np.array([[0.9, 0.2, 0.6], [0.1, 0.2, 0.3]])
    truth = np.array([[1, 1, 1], [0, 0, 0]])
    assert choices(found, multi_label=True).tolist() == [[1, 0, 1], [0, 0, 0]]
    assert is_right(found, truth, multi_label=True).tolist() == [pytest.approx(2 / 3), 1.0]
    assert is_right(found, np.array([0, 2])).tolist() == [1.0, 1.0]
    (first, *_) = reliability(found, truth, multi_label=True, bins=10)
    assert (first.rows, first.confidence) == (1, pytest.approx(0.6))
