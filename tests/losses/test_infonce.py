"""InfoNCE against loops and against supervised contrast with every image its own class."""

import doctest
import math

import pytest
import torch
from contrast_cases import exponential, normalised, unit

from longtail.losses import InfoNCELoss, SupConLoss, infonce


def slow_loss(first, second, temperature):
    """The 2B terms of SimCLR's Eq. 1, one view at a time."""
    views, size, total = [*first, *second], len(first), 0.0
    for i, view in enumerate(views):
        others = [exponential(view, other, temperature) for k, other in enumerate(views) if k != i]
        total -= math.log(exponential(view, views[(i + size) % (2 * size)], temperature) / sum(others))
    return total / len(views)


@pytest.mark.parametrize("size", [1, 2, 6])
@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0])
def test_agrees_with_loops(size, temperature):
    first, second = unit(size), unit(size, seed=1)
    loss = InfoNCELoss(temperature)(first, second)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(slow_loss(first, second, temperature), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("log", ["inside", "outside"])
def test_is_supervised_contrast_of_classes_of_one_image(log):
    views = unit(10).requires_grad_()
    own, (gradient,) = InfoNCELoss(0.2)(*views.chunk(2)), [None]
    (gradient,) = torch.autograd.grad(own, views)
    supervised = SupConLoss(0.2, log)(views, torch.arange(5).repeat(2))
    torch.testing.assert_close(own, supervised)
    torch.testing.assert_close(gradient, torch.autograd.grad(supervised, views)[0])


def test_gradcheck():
    assert torch.autograd.gradcheck(normalised(InfoNCELoss(0.3)), (unit(4).requires_grad_(), unit(4, seed=1)))


def test_small_temperatures_half_precision_and_autocast():
    first, second = unit(8, dtype=torch.bfloat16).requires_grad_(), unit(8, seed=1, dtype=torch.bfloat16)
    criterion = InfoNCELoss(0.005)
    loss = criterion(first, second)
    assert torch.equal(loss, criterion(first.float(), second.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(criterion(first.float(), second.float()), loss)
    loss.backward()
    assert loss.dtype == torch.float32
    assert first.grad.isfinite().all()


def test_one_image_has_nothing_to_be_told_from():
    views = unit(2).requires_grad_()
    loss = InfoNCELoss(0.1)(views[:1], views[1:])
    loss.backward()
    assert loss.item() == 0.0
    assert not views.grad.any()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_that_cannot_be_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        InfoNCELoss(temperature)


def test_views_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"both views must be \[B, D\]"):
        InfoNCELoss()(torch.zeros(2, 3), torch.zeros(3, 3))


def test_docstring_example():
    outcome = doctest.testmod(infonce)
    assert (outcome.attempted, outcome.failed) == (3, 0)
