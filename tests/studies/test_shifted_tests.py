"""Test sets with other class frequencies: their make-up in closed form, accuracies against a slow loop over images."""

import math

import pytest
import torch

from longtail.data.counts import exponential_profile, long_tailed_indices
from longtail.studies.shifted_tests import IMBALANCES, accuracies, make_test_sets, sampled


def by_name(counts):
    return {each.name: each.prior for each in make_test_sets(torch.tensor(counts))}


def test_the_eleven_test_sets():
    sets = by_name([5, 100, 20])
    levels = [f"{way} {k}" for way, ks in (("forward", IMBALANCES), ("backward", IMBALANCES[::-1])) for k in ks]
    assert list(sets) == [*levels[:5], "uniform", *levels[5:]]
    # Ranks by training images are 2, 0, 1; at imbalance 25 shares are 1, 1/5, 1/25.
    total = 1 + 1 / 5 + 1 / 25
    assert sets["forward 25"].tolist() == pytest.approx([1 / 25 / total, 1 / total, 1 / 5 / total])
    assert sets["backward 25"].tolist() == pytest.approx([1 / total, 1 / 25 / total, 1 / 5 / total])
    assert sets["uniform"].tolist() == pytest.approx([1 / 3] * 3)
    for name, prior in sets.items():
        level = 1 if name == "uniform" else int(name.split()[1])
        assert float(prior.max() / prior.min()) == pytest.approx(level)
        assert math.fsum(prior.tolist()) == pytest.approx(1)


@pytest.mark.parametrize("level", IMBALANCES)
def test_a_sample_of_a_balanced_test_set_is_the_published_protocol(level):
    counts = list(range(100, 0, -1))
    labels = torch.arange(100).repeat(100)
    for name, order in (("forward", 1), ("backward", -1)):
        chosen = sampled(labels, by_name(counts)[f"{name} {level}"])
        wanted = exponential_profile(100, 100, level)[::order]
        found = torch.bincount(labels[chosen], minlength=100).tolist()
        assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= 1  # a power and its logarithm round apart
        assert sum(found) == pytest.approx(sum(wanted), abs=2)
        assert torch.equal(chosen, long_tailed_indices(labels, found, 0))


def test_a_sample_takes_every_image_of_the_scarcest_class():
    labels = torch.arange(3).repeat_interleave(torch.tensor([40, 10, 40]))
    found = torch.bincount(labels[sampled(labels, torch.tensor([0.25, 0.5, 0.25]).double())])
    assert found.tolist() == [5, 10, 5]
    labels = torch.arange(3).repeat_interleave(torch.tensor([40, 0, 40]))  # a class without test images
    assert torch.bincount(labels[sampled(labels, torch.tensor([0.4, 0.2, 0.4]).double())]).tolist() == [40, 0, 40]


def slow(logits, labels, base, prior, weights):
    """The three accuracies by loops over images and classes: weighted votes, and EM as in Saerens et al. by hand."""
    classes = len(base)
    rows = [[math.exp(v - max(row)) for v in row] for row in logits]
    posterior = [[v / sum(row) for v in row] for row in rows]

    def accuracy(new):
        right = 0.0
        for row, label, weight in zip(posterior, labels, weights, strict=True):
            scores = [row[c] * (1 if new is None else new[c] / base[c]) for c in range(classes)]
            right += weight * (scores.index(max(scores)) == label)
        return right / sum(weights)

    guess = list(base)
    for _ in range(20_000):
        sums = [0.0] * classes
        for row, weight in zip(posterior, weights, strict=True):
            adjusted = [row[c] * guess[c] / base[c] for c in range(classes)]
            for c in range(classes):
                sums[c] += weight * adjusted[c] / sum(adjusted)
        fresh = [value / sum(weights) for value in sums]
        settled = max(abs(a - b) for a, b in zip(fresh, guess, strict=True)) < 1e-9
        guess = fresh
        if settled:
            break
    off = sum(abs(a - b) for a, b in zip(guess, prior, strict=True)) / 2
    return {"unknown": accuracy(None), "known": accuracy(prior), "estimated": accuracy(guess)}, off


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["forward 50", "forward 5", "uniform", "backward 10", "backward 50"])
def test_accuracies_against_a_slow_loop(seed, name):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor([60, 9, 25, 2])
    labels = torch.arange(4).repeat_interleave(torch.tensor([30, 30, 30, 30]))
    logits = torch.randn(120, 4, generator=generator, dtype=torch.float64)
    logits[torch.arange(120), labels] += 1.5
    base = counts.double() / counts.sum()
    logits += base.log() * (seed != 1)
    implied = base if seed != 1 else torch.full((4,), 0.25, dtype=torch.float64)
    test_set = next(each for each in make_test_sets(counts) if each.name == name)
    found = accuracies(logits, labels, implied, test_set)
    weights = [float(test_set.prior[label]) / 30 for label in labels.tolist()]
    args = implied.tolist(), test_set.prior.tolist()
    expected, off = slow(logits.tolist(), labels.tolist(), *args, weights)
    assert {key: found["exact"][key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert found["exact"]["off"] == pytest.approx(off, abs=5e-3)
    chosen = sampled(labels, test_set.prior)
    share = torch.bincount(labels[chosen], minlength=4).double() / len(chosen)
    args = implied.tolist(), share.tolist(), [1.0] * len(chosen)
    expected, off = slow(logits[chosen].tolist(), labels[chosen].tolist(), *args)
    assert {key: found["sampled"][key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert found["sampled"]["off"] == pytest.approx(off, abs=5e-3)


def test_limits():
    """A perfect model is right everywhere; one that knows nothing answers with the most frequent class, once told."""
    labels = torch.arange(3).repeat_interleave(20)
    uniform = torch.full((3,), 1 / 3, dtype=torch.float64)
    perfect = torch.nn.functional.one_hot(labels, 3).double() * 50
    blank = torch.zeros(60, 3, dtype=torch.float64)
    for test_set in make_test_sets(torch.tensor([30, 20, 10])):
        found = accuracies(perfect, labels, uniform, test_set)
        for way in found.values():
            assert {way[key] for key in ("unknown", "known", "estimated")} == {1.0}
            assert way["off"] == pytest.approx(0, abs=1e-4)
        known = accuracies(blank, labels, uniform, test_set)["exact"]["known"]
        assert known == pytest.approx(float(test_set.prior.max()))
