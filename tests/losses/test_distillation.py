"""Distillation against loops and limits."""

import doctest
import math

import pytest
import torch
import torch.nn.functional as F

from longtail.losses import DistillationLoss, distillation


def logit_pair(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 6 * torch.randn(2, 5, 3, generator=generator, dtype=dtype)
    return student.requires_grad_(), teacher.requires_grad_()


def slow_loss(student, teacher, temperature):
    total = 0.0
    for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
        s_weights, t_weights = ([math.exp(v / temperature) for v in row] for row in (s_row, t_row))
        for s, t in zip(s_weights, t_weights, strict=True):
            p, q = t / sum(t_weights), s / sum(s_weights)
            total += p * math.log(p / q)
    return total / len(student) * temperature**2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_agrees_with_loops(temperature):
    student, teacher = logit_pair()
    loss = DistillationLoss(temperature)(student, teacher)
    assert loss.item() == pytest.approx(slow_loss(student, teacher, temperature), rel=1e-11)


def test_gradient_is_the_scaled_difference_of_predictions():
    student, teacher = logit_pair()
    DistillationLoss(4.0)(student, teacher).backward()
    expected = 4.0 / 5 * ((student / 4).softmax(1) - (teacher / 4).softmax(1))
    torch.testing.assert_close(student.grad, expected)
    assert teacher.grad is None


def test_gradcheck():
    student, teacher = logit_pair()
    assert torch.autograd.gradcheck(DistillationLoss(), (student, teacher.detach()))


def test_limits():
    student, teacher = logit_pair()
    assert DistillationLoss()(student, student).item() == pytest.approx(0.0, abs=1e-12)
    # A sure teacher at temperature 1 is a label.
    labels = torch.tensor([0, 2, 1, 1, 0])
    sure = 1e3 * F.one_hot(labels, 3).double()
    assert DistillationLoss(1.0)(student, sure).item() == pytest.approx(F.cross_entropy(student, labels).item())
    # As temperature rises the loss tends to half the mean squared distance of centred logits, divided by C.
    centred = (student - teacher) - (student - teacher).mean(1, keepdim=True)
    assert DistillationLoss(1e4)(student, teacher).item() == pytest.approx(
        (centred**2).sum(1).mean().item() / 6, rel=1e-2
    )


def test_half_precision_is_computed_in_float32():
    student, teacher = logit_pair(dtype=torch.bfloat16)
    loss = DistillationLoss()(student, teacher)
    assert torch.equal(loss, DistillationLoss()(student.float(), teacher.float()))


def test_what_does_not_fit_is_refused():
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            DistillationLoss(temperature)
    with pytest.raises(ValueError, match=r"must both be \[B, C\]"):
        DistillationLoss()(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"must both be \[B, C\]"):
        DistillationLoss()(torch.zeros(3), torch.zeros(3))


def test_docstring_example():
    outcome = doctest.testmod(distillation)
    assert outcome.attempted >= 2
    assert outcome.failed == 0
