import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from kd.metrics import agreement_metric, classification_metrics


def measure(logits, labels, classes, chunk=7):
    metrics = classification_metrics(classes, "val/")
    for start in range(0, len(labels), chunk):
        metrics.update(logits[start : start + chunk], labels[start : start + chunk])
    return {name: value.item() for name, value in metrics.compute().items()}


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("skewed", [False, True])
def test_agree_with_sklearn(classes, skewed):
    rows = 100
    labels = torch.randint(classes, (rows,))
    if skewed:
        labels[: rows * 3 // 4] = 0
    logits = torch.randn(rows, classes) + 1.5 * torch.eye(classes)[labels]
    predicted = logits.argmax(-1)
    assert measure(logits, labels, classes) == pytest.approx(
        {
            "val/accuracy": accuracy_score(labels, predicted),
            "val/f1": f1_score(labels, predicted, average="macro"),
        },
        abs=1e-6,
    )


def test_accuracy_is_of_rows_and_f1_of_classes():
    """Always the large class: 90% of the rows, but half the classes at best."""
    logits = torch.tensor([[1.0, 0.0]]).repeat(10, 1)
    labels = torch.tensor([0] * 9 + [1])
    values = measure(logits, labels, 2)
    assert values["val/accuracy"] == pytest.approx(0.9)
    assert values["val/f1"] == pytest.approx((18 / 19 + 0) / 2)


def test_class_that_is_in_no_row_and_no_answer_counts_nowhere():
    logits = torch.tensor([[3.0, 0.0, -9.0], [0.0, 3.0, -9.0]])
    labels = torch.tensor([0, 1])
    assert measure(logits, labels, 3)["val/f1"] == f1_score([0, 1], [0, 1], average="macro") == 1.0


@pytest.mark.parametrize("chunk", [1, 3, 50])
def test_size_of_the_batches_does_not_matter(chunk):
    logits, labels = torch.randn(50, 3), torch.randint(3, (50,))
    assert measure(logits, labels, 3, chunk) == pytest.approx(measure(logits, labels, 3, 50))


def test_agreement_is_the_share_of_equal_answers():
    student, teacher = torch.randn(60, 4), torch.randn(60, 4)
    metric = agreement_metric(4)
    for start in range(0, 60, 16):
        rows = slice(start, start + 16)
        metric.update(student[rows], teacher[rows].argmax(-1))
    expected = (student.argmax(-1) == teacher.argmax(-1)).float().mean()
    assert metric.compute().item() == pytest.approx(expected.item())


def test_agreement_asks_for_no_label():
    metric = agreement_metric(2)
    metric.update(torch.tensor([[0.2, 0.1], [3.0, 9.0]]), torch.tensor([0, 1]))
    assert metric.compute().item() == 1.0


# --- Several labels ------------------------------------------------------------------------------


def measure_several(probabilities, labels, chunk=7):
    metrics = classification_metrics(labels.shape[1], "val/", multi_label=True)
    for start in range(0, len(labels), chunk):
        metrics.update(probabilities[start : start + chunk], labels[start : start + chunk])
    return {name: value.item() for name, value in metrics.compute().items()}


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_several_labels_agree_with_sklearn(classes, chunk):
    labels = (torch.rand(100, classes) < torch.linspace(0.05, 0.6, classes)).long()
    probabilities = (2.0 * torch.randn(100, classes) + labels - 0.5).sigmoid()
    chosen = (probabilities > 0.5).long()
    assert measure_several(probabilities, labels, chunk) == pytest.approx(
        {
            "val/accuracy": accuracy_score(labels.flatten(), chosen.flatten()),
            "val/f1": f1_score(labels, chosen, average="macro", zero_division=0),
        },
        abs=1e-6,
    )


def test_choices_by_hand():
    probabilities = torch.tensor([[0.9, 0.2, 0.5], [0.6, 0.7, 0.1]])
    labels = torch.tensor([[1, 0, 1], [0, 1, 0]])
    values = measure_several(probabilities, labels)
    assert values["val/accuracy"] == pytest.approx(4 / 6)  # 0.5 is not above 0.5
    assert values["val/f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_a_class_in_no_row_and_no_answer_has_no_f1():
    probabilities, labels = torch.tensor([[0.9, 0.1]]), torch.tensor([[1, 0]])
    assert measure_several(probabilities, labels) == {"val/accuracy": 1.0, "val/f1": 0.5}


def test_logits_would_be_taken_for_probabilities():
    """Why probabilities are asked for: 0.2 is a yes as a logit and a no as a probability."""
    metric = agreement_metric(2, multi_label=True)
    assert metric(torch.tensor([[0.2, 0.9]]), torch.tensor([[1, 1]])).item() == 0.5
    assert metric(torch.tensor([[0.2, 1.9]]), torch.tensor([[1, 1]])).item() == 1.0


def test_agreement_of_several_labels_is_the_share_of_equal_choices():
    student, teacher = torch.rand(60, 4), torch.rand(60, 4)
    metric = agreement_metric(4, multi_label=True)
    for start in range(0, 60, 16):
        rows = slice(start, start + 16)
        metric.update(student[rows], (teacher[rows] > 0.5).long())
    expected = ((student > 0.5) == (teacher > 0.5)).float().mean()
    assert metric.compute().item() == pytest.approx(expected.item())
