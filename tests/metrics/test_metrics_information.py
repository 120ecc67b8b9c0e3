"""The mutual-information bound on data whose information is known exactly."""

import math

import pytest
import torch
from scipy.integrate import quad

from longtail.metrics import inputs, label_entropy_bits, mutual_information_bits

MEANS = (-1.0, 1.0)


def gaussian_information(prior):
    """I(Z; Y) in bits of z ~ N(mean of y, 1), by numeric integration."""

    def density(z, mean):
        return math.exp(-((z - mean) ** 2) / 2) / math.sqrt(2 * math.pi)

    def integrand(z):
        mixture = sum(p * density(z, m) for p, m in zip(prior, MEANS, strict=True))
        return sum(p * density(z, m) * math.log2(density(z, m) / mixture) for p, m in zip(prior, MEANS, strict=True))

    return quad(integrand, -12, 12, epsabs=1e-10)[0]


def gaussian_case(prior, images=200_000, seed=0):
    """Features and labels with exactly the shares of `prior`."""
    labels = (torch.arange(images) >= round(prior[0] * images)).long()
    noise = torch.randn(images, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.tensor(MEANS)[labels].double() + noise, labels


def posterior_logits(features, prior):
    means = torch.tensor(MEANS, dtype=torch.float64)
    return -((features[:, None] - means) ** 2) / 2 + torch.tensor(prior, dtype=torch.float64).log()


@pytest.mark.parametrize("train_prior", [(0.5, 0.5), (0.97, 0.03)])
@pytest.mark.parametrize("test_prior", [(0.5, 0.5), (0.2, 0.8), (0.95, 0.05)])
def test_exact_posterior_gives_the_information_under_the_test_labels(train_prior, test_prior):
    features, labels = gaussian_case(test_prior)
    bits = mutual_information_bits(posterior_logits(features, train_prior), labels, torch.tensor(train_prior))
    # Standard error of a mean of 200,000 log ratios of spread near 1 bit: 0.002.
    assert bits == pytest.approx(gaussian_information(test_prior), abs=0.006)


def test_a_wrong_model_stays_below_the_information():
    features, labels = gaussian_case((0.5, 0.5))
    truth = gaussian_information((0.5, 0.5))
    exact = posterior_logits(features, (0.5, 0.5))
    prior = torch.full((2,), 0.5)
    assert mutual_information_bits(exact * 3, labels, prior) < truth - 0.05
    assert mutual_information_bits(exact * 0.2, labels, prior) < truth - 0.05


def test_a_misleading_model_goes_below_zero_unclipped():
    labels = torch.tensor([0, 1, 0, 1])
    logits = torch.tensor([[-9.0, 9.0], [9.0, -9.0], [-9.0, 9.0], [9.0, -9.0]])
    # Each label has log-odds -18, so L = log(1 + e^18) nats.
    expected = 1 - math.log1p(math.exp(18)) / math.log(2)
    assert mutual_information_bits(logits, labels, torch.ones(2) / 2) == pytest.approx(expected, rel=1e-12)


def test_features_independent_of_labels_tell_nothing():
    generator = torch.Generator().manual_seed(1)
    labels = (torch.rand(5000, generator=generator) ** 3 * 10).long()
    prior = torch.rand(10, generator=generator) + 0.1
    # Logits that are their own prior and nothing else: exactly no information.
    constant = prior.log().expand(5000, 10)
    assert mutual_information_bits(constant, labels, prior) == pytest.approx(0.0, abs=1e-6)
    noisy = constant + torch.randn(5000, 10, generator=generator)
    assert mutual_information_bits(noisy, labels, prior) < -0.1


def test_separable_classes_give_the_label_entropy():
    labels = torch.tensor([0] * 8 + [1] * 4 + [2] * 2 + [4] * 2)
    logits = torch.nn.functional.one_hot(labels, 6) * 200.0
    bits = mutual_information_bits(logits, labels, torch.ones(6))
    assert label_entropy_bits(labels, 6) == pytest.approx(1.75, abs=1e-12)
    assert bits == pytest.approx(1.75, abs=1e-12)


def test_agrees_with_a_loop_and_absent_classes_drop_out(monkeypatch):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(60, 7, generator=generator, dtype=torch.float64) * 2
    labels = torch.tensor([0, 2, 2, 3, 6, 6] * 10)
    prior = torch.rand(7, generator=generator, dtype=torch.float64)
    prior[1] = 0  # no training image, no test image
    share = {c: labels.tolist().count(c) / 60 for c in set(labels.tolist())}
    loss = 0.0
    for row, y in zip(logits.tolist(), labels.tolist(), strict=True):
        weights = {c: math.exp(row[c]) / float(prior[c]) * share[c] for c in share}
        loss -= math.log2(weights[y] / sum(weights.values())) / 60
    entropy = -sum(p * math.log2(p) for p in share.values())
    monkeypatch.setattr(inputs, "BLOCK_NUMBERS", 7 * 9)
    assert mutual_information_bits(logits, labels, prior) == pytest.approx(entropy - loss, abs=1e-12)
    logits[:, 1] = 1e6
    assert mutual_information_bits(logits, labels, prior) == pytest.approx(entropy - loss, abs=1e-12)


def test_a_single_class_tells_nothing():
    labels = torch.full((5,), 2)
    assert label_entropy_bits(labels, 4) == 0.0
    assert mutual_information_bits(torch.randn(5, 4), labels, torch.ones(4)) == 0.0


def test_bad_prior_is_named():
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="logit_prior is 0 for class 1"):
        mutual_information_bits(logits, labels, torch.tensor([0.5, 0.0, 0.5]))
    with pytest.raises(ValueError, match=r"logit_prior must have the shape \[3\]"):
        mutual_information_bits(logits, labels, torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="finite and not negative"):
        mutual_information_bits(logits, labels, torch.tensor([0.5, 0.5, 0.5]).log())
