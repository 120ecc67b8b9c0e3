"""Logarithms of Bessel functions against scipy, power series and closed forms."""

import doctest
import math

import numpy as np
import pytest
import torch
from scipy import special

from longtail.losses import bessel
from longtail.losses.bessel import bessel_ratio, log_bessel

ORDERS = [0, 0.5, 1, 3.5, 7, 15, 15.5, 16, 31, 63, 127, 511]


def by_series(order, x):
    """log(sum over j of (x^2 / 4)^j / (j! (v+1)...(v+j))) - x, all terms positive, summed exactly."""
    terms, term, j = [1.0], 1.0, 0
    while term > 1e-30 * terms[0] or j < x:
        j += 1
        term *= x * x / 4 / (j * (order + j))
        terms.append(term)
    return math.log(math.fsum(terms)) - x


@pytest.mark.parametrize("order", ORDERS)
def test_value_and_ratio_against_scipy(order):
    x = np.geomspace(1e-4, 1e5, 200)
    scaled, above = special.ive(order, x), special.ive(order + 1, x)
    usable = (scaled > 1e-280) & (above > 1e-280)  # scipy underflows at high orders; the series stands in below
    assert usable.sum() > 60
    with np.errstate(divide="ignore"):
        expected = special.gammaln(order + 1) + order * np.log(2 / x) + np.log(scaled)
    found = log_bessel(order, torch.from_numpy(x))
    np.testing.assert_allclose(found[usable], expected[usable], rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose(
        bessel_ratio(order, torch.from_numpy(x))[usable], above[usable] / scaled[usable], rtol=1e-9
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("x", [1e-8, 1e-3, 0.5, 3.0, 40.0, 300.0])
def test_value_against_the_power_series(order, x):
    found = log_bessel(order, torch.tensor(x, dtype=torch.float64))
    assert found.item() == pytest.approx(by_series(order, x), rel=1e-10, abs=1e-10)


def test_half_an_order_is_a_hyperbolic_sine():
    x = torch.tensor([0.3, 2.0, 30.0], dtype=torch.float64)
    torch.testing.assert_close(log_bessel(0.5, x), (x.sinh() / x).log() - x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(bessel_ratio(0.5, x), 1 / x.tanh() - 1 / x, rtol=1e-9, atol=0)


@pytest.mark.parametrize("order", [0, 7, 15.5, 63])
def test_gradcheck(order):
    x = torch.tensor([0.01, 1.0, 30.0, 400.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: log_bessel(order, x), (x,))


@pytest.mark.parametrize("order", ORDERS)
def test_both_ends_in_single_precision(order):
    x = torch.tensor([0.0, 1e-20, 1e-5, 1e5], requires_grad=True)
    value = log_bessel(order, x)
    value.sum().backward()
    assert value[0].item() == pytest.approx(0.0, abs=1e-6)
    assert value.isfinite().all()
    torch.testing.assert_close(x.grad[:3], torch.full((3,), -1.0))
    ratio = bessel_ratio(order, x.detach())
    assert (ratio >= 0).all()
    assert (ratio <= 1).all()
    torch.testing.assert_close(ratio[2], 1e-5 / torch.tensor(2.0 * (order + 1)))  # x / (2 v + 2) for small x
    exact = log_bessel(order, x.detach().double())
    torch.testing.assert_close(value.detach().double(), exact, rtol=1e-6, atol=5e-6)


def test_half_precision_is_computed_in_float32_and_a_negative_order_refused():
    x = torch.tensor([3.0], dtype=torch.bfloat16)
    assert torch.equal(log_bessel(7, x), log_bessel(7, x.float()))
    with pytest.raises(ValueError, match="order must be 0 or above"):
        log_bessel(-0.5, x)


def test_docstring_example():
    outcome = doctest.testmod(bessel)
    assert (outcome.attempted, outcome.failed) == (1, 0)
