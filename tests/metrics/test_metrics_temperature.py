"""Temperature against scipy and against data whose temperature is known; strength of the prior against a loop."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from longtail.metrics import (
    adjusted_logits,
    choose_strength,
    expected_calibration_error,
    fit_temperature,
    inputs,
    negative_log_likelihood,
    prior_weights,
)
from longtail.metrics import temperature as fitting
from longtail.metrics.post_hoc import STRENGTHS


def random_case(seed, images=300, classes=6, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(images, generator=generator) ** 2 * classes).long()
    logits = scale * torch.randn(images, classes, generator=generator)
    logits[torch.arange(images), labels] += scale
    return logits, labels, torch.rand(images, generator=generator)


def slow_likelihood(logits, labels, temperature, weights):
    log_likelihood = log_softmax(logits.double().numpy() / temperature, axis=1)[np.arange(len(labels)), labels.numpy()]
    return -np.average(log_likelihood, weights=weights.double().numpy())


@pytest.mark.parametrize("scale", [0.3, 1.0, 8.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_fit_agrees_with_scipy_on_the_same_objective(scale, weighted):
    for seed in range(5):
        logits, labels, weights = random_case(seed, scale=scale)
        weights = weights if weighted else torch.ones(len(labels))
        best = minimize_scalar(
            lambda log_t, case=(logits, labels, weights): slow_likelihood(*case[:2], np.exp(log_t), case[2]),
            bounds=(np.log(0.01), np.log(100)),
            method="bounded",
            options={"xatol": 1e-10},
        )
        found = fit_temperature(logits, labels, weights if weighted else None)
        assert found == pytest.approx(np.exp(best.x), rel=1e-5)
        value = negative_log_likelihood(logits, labels, found, weights if weighted else None)
        assert value == pytest.approx(slow_likelihood(logits, labels, found, weights), rel=1e-12)
        assert value <= best.fun + 1e-12


def test_newton_needs_few_steps(monkeypatch):
    real, calls = fitting._objective, []
    monkeypatch.setattr(fitting, "_objective", lambda *given: calls.append(given) or real(*given))
    for seed, scale in enumerate((0.05, 0.3, 1.0, 8.0, 100.0)):
        calls.clear()
        fit_temperature(*random_case(seed, scale=scale)[:2])
        assert len(calls) < 30


def test_blocks_change_nothing(monkeypatch):
    logits, labels, weights = random_case(3)
    prior = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.05, 0.05])
    whole = fit_temperature(logits, labels, weights), choose_strength(logits, labels, prior)
    monkeypatch.setattr(inputs, "BLOCK_NUMBERS", 40)
    assert (fit_temperature(logits, labels, weights), choose_strength(logits, labels, prior)) == whole


def shifted(temperature, images=20_000):
    """Gaussian classes of unlike widths, seen under a long-tailed prior; the logits are right for a uniform prior."""
    generator = torch.Generator().manual_seed(1)
    prior = torch.tensor([0.75, 0.17, 0.06, 0.02], dtype=torch.float64)
    centres = 1.2 * torch.randn(4, 3, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(prior, images, replacement=True, generator=generator)
    widths = torch.tensor([2.5, 1.0, 0.6, 0.4], dtype=torch.float64)
    noise = torch.randn(images, 3, generator=generator, dtype=torch.float64)
    features = centres[labels] + widths[labels, None] * noise
    log_likelihood = -0.5 * (features[:, None] - centres).square().sum(2) / widths.square() - 3 * widths.log()
    return temperature * log_likelihood, labels, prior


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_weights_recover_a_known_temperature_from_images_of_another_prior(temperature):
    logits, labels, _ = shifted(temperature)
    uniform = torch.full((4,), 0.25)
    weights = prior_weights(labels, uniform)
    for label in range(4):  # every class speaks as loudly as the prior says
        assert float(weights[labels == label].sum()) == pytest.approx(len(labels) / 4)
    assert fit_temperature(logits, labels, weights) == pytest.approx(temperature, rel=0.05)
    # Without them the same logits look wrong, because the images do not have the prior that they imply.
    assert abs(fit_temperature(logits, labels) / temperature - 1) > 0.1


def test_calibration_error_with_weights_is_that_of_repeated_images():
    logits, labels, _ = random_case(2)
    confidence, right = torch.softmax(logits.double(), 1).max(1).values, logits.argmax(1) == labels
    times = torch.arange(len(labels)) % 4
    repeated = expected_calibration_error(confidence.repeat_interleave(times), right.repeat_interleave(times))
    assert expected_calibration_error(confidence, right, weights=times) == pytest.approx(repeated, rel=1e-12)


def test_where_the_likelihood_has_no_minimum():
    sure = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    assert fit_temperature(sure, torch.tensor([0, 1, 1])) == 1.0  # all right: T would fall for ever
    assert fit_temperature(sure, torch.tensor([1, 0, 0])) == 100.0  # all wrong: nothing is known
    assert fit_temperature(torch.zeros(3, 2), torch.tensor([0, 1, 0])) == 100.0
    # An image that does not count cannot be the wrong one.
    assert fit_temperature(sure, torch.tensor([0, 0, 1]), torch.tensor([1.0, 0.0, 1.0])) == 1.0
    nearly = torch.tensor([[1e-3, 0.0]] * 999 + [[1e-6, 0.0]])
    assert fit_temperature(nearly, torch.tensor([0] * 999 + [1])) == 0.01


@pytest.mark.parametrize(
    ("weights", "message"), [(torch.zeros(300), "all 0"), (-torch.ones(300), "negative"), (torch.ones(2), "shape")]
)
def test_weights_that_cannot_be_meant(weights, message):
    logits, labels, _ = random_case(0)
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, labels, weights)


def test_strength_against_a_loop_and_ties_to_the_smallest():
    for seed in range(5):
        logits, labels, _ = random_case(seed, images=120, scale=1.0)
        prior = torch.bincount(labels, minlength=6).double()
        logits = (logits + prior.log()).float()
        scores = []
        for strength in STRENGTHS:
            guessed = (logits.double().numpy() - strength * np.log(prior.numpy() / prior.sum().item())).argmax(1)
            scores.append(np.mean([np.mean(guessed[labels == c] == c) for c in range(6)]))
        assert choose_strength(logits, labels, prior) == STRENGTHS[int(np.argmax(np.round(scores, 12)))]
    assert choose_strength(10 * torch.eye(3), torch.arange(3), torch.tensor([0.5, 0.3, 0.2])) == 0.0


def test_full_strength_undoes_the_training_prior():
    logits, labels, prior = shifted(1.0)
    biased = logits + prior.log()
    assert torch.allclose(adjusted_logits(biased, prior, 1.0), logits)
    assert 0.7 <= choose_strength(biased, labels, prior) <= 1.3
    # A class of prior 0 is treated like the rarest other one, not favoured without end.
    assert torch.isfinite(adjusted_logits(logits, torch.tensor([0.5, 0.3, 0.2, 0.0]), 2.0)).all()
