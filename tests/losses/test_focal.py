"""Focal loss against loops and its limit, plain cross entropy."""

import doctest
import math

import pytest
import torch
import torch.nn.functional as F

from longtail.losses import FocalLoss, focal


def batch(size=7, classes=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(size, classes, generator=generator, dtype=dtype)
    return logits.requires_grad_(), torch.randint(0, classes, (size,), generator=generator)


def slow_loss(logits, labels, gamma):
    """-(1 - q)^gamma log q, one sample at a time."""
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        q = math.exp(row[label]) / math.fsum(math.exp(z) for z in row)
        total -= (1 - q) ** gamma * math.log(q)
    return total / len(labels)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_agrees_with_loops(gamma, classes):
    logits, labels = batch(classes=classes)
    loss = FocalLoss(gamma)(logits, labels)
    assert loss.item() == pytest.approx(slow_loss(logits.detach(), labels, gamma), rel=1e-9)


def test_gamma_zero_is_cross_entropy_exactly_and_is_the_limit():
    logits, labels = batch(dtype=torch.float32)
    assert torch.equal(FocalLoss(0.0)(logits, labels), F.cross_entropy(logits, labels))
    torch.testing.assert_close(FocalLoss(1e-7)(logits, labels), F.cross_entropy(logits, labels))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradcheck(gamma):
    assert torch.autograd.gradcheck(FocalLoss(gamma), batch())


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("gap", [60.0, -200.0, 1000.0])
def test_certain_labels_keep_a_finite_loss_and_gradient(gamma, gap):
    """In float32 1 - q is 0 at a gap of 60, where (1 - q)^(gamma - 1) log q would be infinity times 0."""
    logits = torch.tensor([[gap, 0.0, 0.0]], requires_grad=True)
    loss = FocalLoss(gamma)(logits, torch.tensor([0]))
    loss.backward()
    assert logits.grad.isfinite().all()
    log_others = math.log(2) - gap
    # Where q is all but 1, -log q is 1 - q.
    expected = math.exp(max((gamma + 1) * log_others, -700)) if gap > 0 else -gap + math.log(2)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-44)


def test_half_precision_is_computed_in_float32():
    logits, labels = batch(dtype=torch.bfloat16)
    assert torch.equal(FocalLoss()(logits, labels), FocalLoss()(logits.float(), labels))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(3), torch.tensor([0, 1]), r"logits must be \[B, C\]"),
        (torch.zeros(2, 2), torch.tensor([0]), r"labels must be int64 \[2\]"),
        (torch.zeros(1, 2), torch.tensor([0.0]), "labels must be int64"),
        (torch.zeros(1, 2), torch.tensor([2]), r"labels must lie in 0\.\.1, got 2\.\.2"),
    ],
)
def test_what_does_not_fit_is_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        FocalLoss()(logits, labels)


@pytest.mark.parametrize("gamma", [-1.0, math.nan, math.inf])
def test_gamma_must_be_one(gamma):
    with pytest.raises(ValueError, match="gamma"):
        FocalLoss(gamma)


def test_docstring_example():
    outcome = doctest.testmod(focal, extraglobs={"torch": torch})
    assert outcome.attempted >= 1
    assert outcome.failed == 0
