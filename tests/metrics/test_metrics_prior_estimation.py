"""The estimated prior against scipy's maximum of the same likelihood, and against a shift that is known."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from longtail.metrics import chance_error, estimate_error, estimate_prior


def images_of(prior, number, seed, distance=2.0):
    """Gaussians around C corners: returns (exact logits under ``base`` = uniform, labels)."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(len(prior), number, p=prior)
    points = generator.normal(size=(number, len(prior)))
    points[np.arange(number), labels] += distance
    return torch.from_numpy(distance * points), torch.from_numpy(labels)


def log_likelihood(prior, logits, base):
    """Mean log-likelihood ratio of a prior, the slow way."""
    posterior = torch.softmax(logits.double(), 1).numpy()
    ratios = [q / b for q, b in zip(prior, base, strict=True)]
    return float(np.mean([math.log(sum(r * p for r, p in zip(ratios, row, strict=True))) for row in posterior]))


@pytest.mark.parametrize("base", [[1 / 3] * 3, [0.7, 0.2, 0.1]])
def test_it_is_the_maximum_that_scipy_finds(base):
    logits, _ = images_of([0.1, 0.3, 0.6], 60, seed=1, distance=1.0)
    logits += torch.tensor(base).log() - math.log(1 / 3)
    found = estimate_prior(logits, torch.tensor(base), tolerance=1e-10, max_iterations=100_000)

    def loss(free):
        weights = np.exp(free - free.max())
        return -log_likelihood(weights / weights.sum(), logits, base)

    best = minimize(loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 10_000})
    expected = np.exp(best.x - best.x.max())
    assert found.prior.numpy() == pytest.approx(expected / expected.sum(), abs=1e-4)
    assert log_likelihood(found.prior.tolist(), logits, base) >= -best.fun - 1e-9
    assert found.gap <= 1e-10


def test_every_step_climbs_and_the_gap_is_a_bound():
    logits, _ = images_of([0.02, 0.08, 0.3, 0.6], 200, seed=2, distance=1.2)
    base = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    far = estimate_prior(logits, base, tolerance=1e-12, max_iterations=20_000)
    steps = torch.tensor(far.log_likelihoods)
    assert len(steps) > 10
    assert bool((steps.diff() >= -1e-12).all())
    assert far.log_likelihoods[0] == pytest.approx(0, abs=1e-12)  # the ratio to the likelihood under the base prior
    assert far.log_likelihoods[-1] == pytest.approx(log_likelihood(far.prior.tolist(), logits, base.tolist()), abs=1e-9)
    for iterations in (1, 3, 10):
        early = estimate_prior(logits, base, tolerance=1e-12, max_iterations=iterations)
        assert len(early.log_likelihoods) == iterations + 1
        assert early.log_likelihoods == far.log_likelihoods[: iterations + 1]
        assert 0 < far.log_likelihoods[-1] - early.log_likelihoods[-1] <= early.gap


def test_a_known_shift_is_found_and_accuracy_rises():
    prior = np.array([0.55, 0.25, 0.1, 0.05, 0.03, 0.02])
    logits, labels = images_of(prior, 20_000, seed=3)
    base = torch.tensor(prior[::-1].copy())  # trained on the reverse
    logits = logits + base.log()
    found = estimate_prior(logits, base)
    assert found.prior.numpy() == pytest.approx(prior, abs=0.01)
    assert float(found.prior.sum()) == pytest.approx(1, abs=1e-12)
    adapted = logits + found.prior.log() - base.log()
    assert (adapted.argmax(1) == labels).double().mean() > (logits.argmax(1) == labels).double().mean() + 0.05


def test_no_shift_stays_and_extremes_do_not_overflow():
    base = torch.tensor([0.5, 0.3, 0.2])
    alike = estimate_prior(base.log().expand(5, 3), base)
    assert alike.prior.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=1e-6)
    sure = torch.tensor([[1000.0, 0, 0], [0, 1000.0, 0], [1000.0, 0, 0], [0, 1000.0, -1000.0]])
    found = estimate_prior(sure, torch.full((3,), 1 / 3))
    assert found.prior.tolist() == pytest.approx([0.5, 0.5, 0], abs=1e-9)
    one = estimate_prior(torch.tensor([[3.0, 0.0]]), torch.tensor([1.0, 1.0]), tolerance=1e-4)
    assert one.prior[0] > 0.999  # the most likely prior of one image is its class alone
    zero = estimate_prior(torch.zeros(4, 2), torch.tensor([1.0, 0.0]))  # no class is ruled out by a base of 0
    assert zero.prior.tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(
    ("logits", "base", "naming"),
    [
        (torch.zeros(0, 3), torch.ones(3), "N > 0"),
        (torch.zeros(3), torch.ones(3), "shape"),
        (torch.zeros(2, 3), torch.ones(2), "base_prior"),
        (torch.zeros(2, 3), torch.zeros(3), "0 in every class"),
        (torch.full((2, 3), math.nan), torch.ones(3), "not finite"),
    ],
)
def test_what_does_not_fit_is_refused(logits, base, naming):
    with pytest.raises(ValueError, match=naming):
        estimate_prior(logits, base)


@pytest.mark.parametrize(
    ("prior", "images"),
    [(np.full(10, 0.1), 20), (np.full(10, 0.1), 649), (np.array([0.9, 0.05, 0.03, 0.02]), 300), (np.full(2, 0.5), 50)],
)
def test_the_error_by_chance_is_that_of_drawn_images(prior, images):
    drawn = np.random.default_rng(0).multinomial(images, prior, size=4000) / images
    error = 0.5 * np.abs(drawn - prior).sum(1).mean()
    assert chance_error(torch.from_numpy(prior), images) == pytest.approx(error, rel=0.08)


def test_a_class_that_is_ruled_out_by_few_images_still_counts():
    alone = torch.tensor([1.0] + [0.0] * 9)
    # By hand for 20 images: (20 + 0.5) / 25 for the class, 0.5 / 25 for each of nine others.
    deviation = math.sqrt(0.82 * 0.18 / 20) + 9 * math.sqrt(0.02 * 0.98 / 20)
    assert chance_error(alone, 20) == pytest.approx(math.sqrt(2 / math.pi) / 2 * deviation)
    assert chance_error(alone, 20) > 0.1 > chance_error(alone, 200)


def test_weights_stand_for_copies():
    logits, labels = images_of([0.3, 0.3, 0.4], 50, seed=4, distance=1.5)
    times = torch.tensor([5, 1, 1])[labels]
    base = torch.tensor([0.5, 0.3, 0.2])
    whole = estimate_prior(logits.repeat_interleave(times, dim=0), base, tolerance=1e-10, max_iterations=50_000)
    weighted = estimate_prior(logits, base, tolerance=1e-10, max_iterations=50_000, weights=5 * times)
    assert weighted.prior.tolist() == pytest.approx(whole.prior.tolist(), abs=1e-6)
    assert weighted.log_likelihoods == pytest.approx(whole.log_likelihoods[: len(weighted.log_likelihoods)], abs=1e-8)
    assert weighted.prior.tolist() != pytest.approx(estimate_prior(logits, base).prior.tolist(), abs=1e-2)
    for weights in (torch.ones(49), torch.zeros(50)):
        with pytest.raises(ValueError, match="weights"):
            estimate_prior(logits, base, weights=weights)


def test_the_error_on_known_images():
    """A model that knows is right; one that calls the rare class the frequent one loses all of it where it is even."""
    labels = torch.tensor([0] * 90 + [1] * 10)
    base = torch.tensor([0.5, 0.5])
    assert estimate_error(20.0 * torch.eye(2)[labels], labels, base) == pytest.approx(0, abs=1e-4)
    blind = torch.tensor([20.0, 0.0]).expand(100, 2)
    assert estimate_error(blind, labels, base) == pytest.approx(0.5, abs=1e-4)  # 0.1 as they are
