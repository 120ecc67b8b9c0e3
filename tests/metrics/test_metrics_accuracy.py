"""Accuracy and its class averages, against scikit-learn and slow loops."""

import math

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score, top_k_accuracy_score

from longtail.metrics import (
    balanced_accuracy,
    class_hits,
    class_recall,
    harmonic_mean,
    inputs,
    macro_f1,
    topk_accuracy,
    worst_class,
)


def random_case(seed, images=300, classes=12):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(images, classes, generator=generator)
    labels = (torch.rand(images, generator=generator) ** 2 * classes).long()
    scores[torch.arange(images), labels] += 1
    return scores, labels


@pytest.mark.parametrize("k", [1, 2, 5, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_topk_agrees_with_scikit_learn(k, dtype):
    scores, labels = random_case(k)
    expected = top_k_accuracy_score(labels, scores, k=k, labels=range(12)) if k < 12 else 1.0
    assert topk_accuracy(scores.to(dtype), labels, k) == pytest.approx(expected, abs=1e-12)


def test_topk_ranks_ties_by_class_index():
    scores = torch.zeros(4, 4)
    labels = torch.arange(4)
    assert [topk_accuracy(scores, labels, k) for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]


def test_topk_in_half_precision_ranks_like_argmax():
    scores, labels = random_case(0)
    coarse = (scores * 4).round().to(torch.bfloat16)
    expected = float((coarse.argmax(1) == labels).double().mean())
    assert topk_accuracy(coarse, labels, 1) == pytest.approx(expected, abs=1e-12)


def test_blocks_of_rows_change_nothing(monkeypatch):
    scores, labels = random_case(1)
    whole = topk_accuracy(scores, labels, 3)
    monkeypatch.setattr(inputs, "BLOCK_NUMBERS", 12 * 7)
    assert topk_accuracy(scores, labels, 3) == whole
    monkeypatch.setattr(inputs, "BLOCK_NUMBERS", 1)
    assert topk_accuracy(scores, labels, 3) == whole


def test_means_over_classes_round_once_whatever_the_order():
    values = torch.tensor([1e16, 1.0, -1e16, 1.0], dtype=torch.float64)
    assert inputs.exact_mean(values) == inputs.exact_mean(values.flip(0)) == 0.5


def test_recall_agrees_with_a_loop_and_is_nan_without_test_images():
    scores, labels = random_case(2)
    labels[labels == 4] = 5
    predictions = scores.argmax(1)
    recall = class_recall(predictions, labels, 14)
    assert recall.dtype == torch.float64
    for c in range(14):
        of_class = [int(p) == c for p, y in zip(predictions, labels, strict=True) if int(y) == c]
        if of_class:
            assert float(recall[c]) == sum(of_class) / len(of_class)
        else:
            assert math.isnan(recall[c])
    assert [c for c in range(14) if math.isnan(recall[c])] == [4, 12, 13]


def test_balanced_accuracy_and_macro_f1_agree_with_scikit_learn():
    scores, labels = random_case(3)
    labels[labels == 11] = 0
    predictions = scores.argmax(1)
    predictions[predictions == 10] = 0
    labels[labels == 10] = 0  # class 10 occurs nowhere, class 11 only among the predictions
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = balanced_accuracy_score(labels, predictions)
    assert balanced_accuracy(class_recall(predictions, labels, 12)) == pytest.approx(expected, abs=1e-12)
    present = sorted(set(labels.tolist()) | set(predictions.tolist()))
    assert 11 in present
    assert 10 not in present
    expected = f1_score(labels, predictions, average="macro", labels=present)
    assert macro_f1(predictions, labels, 12) == pytest.approx(expected, abs=1e-12)
    assert macro_f1(predictions, labels, 12) == macro_f1(predictions, labels, 5000)


def test_worst_class_is_the_first_of_equals_and_never_an_untested_one():
    nan = math.nan
    assert worst_class(torch.tensor([nan, 0.5, 0.25, 0.25, 1.0])) == (2, 0.25)
    with pytest.raises(ValueError, match="no class has a test image"):
        worst_class(torch.tensor([nan, nan]))


def test_harmonic_mean_closed_forms():
    assert harmonic_mean(torch.tensor([0.5, 1.0, math.nan]).double()) == pytest.approx(2 / 3, abs=1e-12)
    # One dead class of four: 4 / (3 + 1 / floor), so the floor decides the figure.
    recall = torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert harmonic_mean(recall) == pytest.approx(4 / 103, abs=1e-12)
    assert harmonic_mean(recall, floor=0.1) == pytest.approx(4 / 13, abs=1e-12)
    with pytest.raises(ValueError, match="floor must lie above 0"):
        harmonic_mean(recall, floor=0.0)


def test_hits_of_one_image_classes():
    correct, total = class_hits(torch.tensor([0, 2, 2]), torch.tensor([0, 1, 2]), 4)
    assert correct.tolist() == [1, 0, 1, 0]
    assert total.tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3]), "labels hold 3, but with 3 classes they lie in 0..2"),
        (torch.tensor([-1, 0]), "labels hold -1"),
        (torch.tensor([0.0, 1.0]), "must be integers"),
        (torch.tensor([True, False]), "must be integers"),
        (torch.tensor([[0, 1]]), r"shape \[N\]"),
        (torch.tensor([0, 1, 2]), "2 rows of logits for 3 labels"),
    ],
)
def test_bad_labels_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        topk_accuracy(torch.zeros(2, 3), labels)


def test_other_bad_input_is_named():
    with pytest.raises(ValueError, match="empty"):
        topk_accuracy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.3"):
        topk_accuracy(torch.zeros(1, 3), torch.tensor([0]), 4)
    with pytest.raises(ValueError, match="1 predictions for 2 labels"):
        macro_f1(torch.tensor([0]), torch.tensor([0, 1]), 2)
    with pytest.raises(ValueError, match="predictions hold 9"):
        class_recall(torch.tensor([0, 9]), torch.tensor([0, 1]), 2)
    with pytest.raises(ValueError, match="floating-point"):
        topk_accuracy(torch.zeros(1, 3, dtype=torch.long), torch.tensor([0]))
