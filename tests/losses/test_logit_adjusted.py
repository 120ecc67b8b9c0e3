"""Logit-adjusted cross entropy against loops and plain cross entropy."""

import doctest
import math

import pytest
import torch
import torch.nn.functional as F

from longtail.losses import LogitAdjustedCrossEntropy, logit_adjusted


def batch(size=7, classes=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(size, classes, generator=generator, dtype=dtype)
    return logits.requires_grad_(), torch.randint(0, classes, (size,), generator=generator)


def slow_loss(logits, labels, counts, strength):
    """-log( p_y^s exp(z_y) / sum_c p_c^s exp(z_c) ), one sample and one class at a time."""
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        weights = [(n / sum(counts)) ** strength * math.exp(z) for n, z in zip(counts, row, strict=True)]
        total -= math.log(weights[label] / sum(weights))
    return total / len(labels)


@pytest.mark.parametrize("counts", [[1, 1, 1, 1], [100, 20, 3, 1], [5, 0, 2, 9]])
@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_agrees_with_loops(counts, strength):
    logits, labels = batch()
    labels = torch.where(torch.tensor(counts)[labels] > 0, labels, 0)
    loss = LogitAdjustedCrossEntropy(torch.tensor(counts), strength)(logits, labels)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(slow_loss(logits.detach(), labels, counts, strength), rel=1e-12)
    loss.backward()
    assert logits.grad.isfinite().all()
    assert not logits.grad[:, torch.tensor(counts) == 0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_prior_is_plain_cross_entropy_exactly(dtype):
    logits, labels = batch(dtype=dtype)
    assert torch.equal(
        LogitAdjustedCrossEntropy([50, 0, 3, 1], prior_strength=0.0)(logits, labels),
        F.cross_entropy(logits, labels),
    )


def test_gradcheck():
    logits, labels = batch()
    assert torch.autograd.gradcheck(LogitAdjustedCrossEntropy([50, 8, 3, 1]), (logits, labels))


def test_half_precision_is_computed_in_float32():
    logits, labels = batch(dtype=torch.bfloat16)
    criterion = LogitAdjustedCrossEntropy([50, 8, 3, 1])
    assert torch.equal(criterion(logits, labels), criterion(logits.float(), labels))
    criterion(logits, labels).backward()
    assert logits.grad.dtype == torch.bfloat16


def test_state_holds_the_counts():
    saved = LogitAdjustedCrossEntropy([7, 2]).state_dict()
    other = LogitAdjustedCrossEntropy([1, 1])
    other.load_state_dict(saved)
    assert other.class_counts.tolist() == [7, 2]
    assert other(torch.zeros(1, 2), torch.tensor([1])).item() == pytest.approx(math.log(9 / 2))


def test_a_class_of_count_zero_cannot_be_a_label():
    criterion = LogitAdjustedCrossEntropy([5, 0])
    assert criterion(torch.tensor([[0.0, 50.0]]), torch.tensor([0])).item() == 0.0
    with pytest.raises(ValueError, match="class whose count is 0"):
        criterion(torch.zeros(2, 2), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([[1, 2]], r"must be \[C\]"),
        ([], r"must be \[C\]"),
        ([3, -1], "not negative"),
        ([1.0, math.nan], "finite"),
        ([0, 0], "all zero"),
        ([True, False], "numbers of samples"),
    ],
)
def test_counts_that_cannot_be_counts_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        LogitAdjustedCrossEntropy(torch.tensor(counts))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 1]), r"logits must be \[B, 2\]"),
        (torch.zeros(2, 2), torch.tensor([0]), r"labels must be int64 \[2\]"),
        (torch.zeros(1, 2), torch.tensor([0.0]), "labels must be int64"),
        (torch.zeros(1, 2), torch.tensor([2]), r"labels must lie in 0\.\.1, got 2\.\.2"),
        (torch.zeros(1, 2), torch.tensor([-1]), "labels must lie in"),
    ],
)
def test_what_does_not_fit_is_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        LogitAdjustedCrossEntropy([1, 2])(logits, labels)


def test_docstring_example():
    outcome = doctest.testmod(logit_adjusted)
    assert outcome.attempted >= 2
    assert outcome.failed == 0
