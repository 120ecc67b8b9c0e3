"""The accuracy at another prior: by hand, and against test images drawn at that prior."""

import numpy as np
import pytest
import torch

from longtail.metrics import bootstrap_intervals
from longtail.metrics.at_prior import accuracy_at_prior, finite_shift


def test_by_hand():
    value, covered = accuracy_at_prior(
        torch.tensor([8, 1, 0]), torch.tensor([10, 4, 0]), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    )
    assert value.mean == pytest.approx((0.5 * 0.8 + 0.3 * 0.25) / 0.8)
    assert covered == pytest.approx(0.8)
    assert value.low < value.mean < value.high


def test_it_is_what_a_test_set_of_that_prior_gives():
    generator = np.random.default_rng(0)
    recall, prior = np.array([0.9, 0.5, 0.2]), np.array([0.7, 0.2, 0.1])
    labels = generator.choice(3, 400_000, p=prior)
    drawn = (generator.random(len(labels)) < recall[labels]).mean()
    value, covered = accuracy_at_prior(
        torch.tensor([90, 50, 20]), torch.tensor([100, 100, 100]), torch.from_numpy(prior)
    )
    assert covered == 1
    assert value.mean == pytest.approx(drawn, abs=0.003)


def test_at_the_uniform_prior_it_is_balanced_accuracy_with_its_interval():
    correct, total = torch.tensor([30, 11, 7, 2]), torch.tensor([40, 20, 20, 5])
    value, _ = accuracy_at_prior(correct, total, torch.ones(4), resamples=20_000)
    plain = bootstrap_intervals(correct, total, torch.tensor([200, 50, 30, 5]), resamples=20_000)
    assert (value.low, value.high) == pytest.approx(plain["balanced_accuracy"], abs=0.01)


def test_no_spread_no_interval_and_no_class_no_figure():
    value, _ = accuracy_at_prior(torch.tensor([3, 0]), torch.tensor([3, 4]), torch.tensor([0.25, 0.75]))
    assert value == (0.25, None, None)
    with pytest.raises(ValueError, match="no class"):
        accuracy_at_prior(torch.tensor([3, 0]), torch.tensor([3, 0]), torch.tensor([0.0, 1.0]))


def test_a_class_that_never_occurs_gets_no_probability():
    shift = finite_shift(torch.tensor([0.5, -torch.inf], dtype=torch.float64))
    assert torch.isfinite(shift).all()
    assert torch.softmax(torch.tensor([-50.0, 50.0]) + shift, 0).tolist() == [1.0, 0.0]
