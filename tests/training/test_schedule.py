"""The learning rate against closed forms and the published CIFAR schedule."""

import math

import pytest

from longtail.training.schedule import learning_rate_factor

STEPS = 84  # CIFAR-100-LT, imbalance 100, batch 128


def published(epoch):
    """Rate of the paper's CIFAR runs after warm-up, as a factor: x0.1 after epoch 160, x0.01 after 180."""
    return 0.01 if epoch >= 180 else 0.1 if epoch >= 160 else 1.0


@pytest.mark.parametrize("epochs", [200, 400])
def test_published_cifar_schedule(epochs):
    stretch = epochs // 200
    for epoch in range(5 * stretch, epochs):
        for step in (0, STEPS - 1):
            factor = learning_rate_factor(epoch * STEPS + step, STEPS, epochs, schedule="step", warmup=0.025)
            assert factor == pytest.approx(published(epoch // stretch), rel=1e-12)


def test_warmup_rises_linearly_to_exactly_one_and_never_above():
    factors = [learning_rate_factor(s, STEPS, 200, schedule="step", warmup=0.025) for s in range(20 * STEPS)]
    rising = 5 * STEPS
    assert factors[:rising] == [(s + 1) / rising for s in range(rising)]
    assert max(factors) == 1.0
    assert factors[rising:] == [1.0] * (15 * STEPS)


def test_cosine_against_its_formula():
    total, rising = 40 * 7, round(0.1 * 40 * 7)
    for step in range(total):
        expected = (
            (step + 1) / rising if step < rising else (1 + math.cos(math.pi * (step - rising) / (total - rising))) / 2
        )
        assert learning_rate_factor(step, 7, 40, schedule="cosine", warmup=0.1) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.99])
@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_short_runs_stay_in_range(schedule, warmup, epochs):
    factors = [learning_rate_factor(s, 1, epochs, schedule=schedule, warmup=warmup) for s in range(epochs)]
    assert all(0 < factor <= 1 for factor in factors)


def test_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="unknown schedule 'linear'"):
        learning_rate_factor(0, 1, 1, schedule="linear")
