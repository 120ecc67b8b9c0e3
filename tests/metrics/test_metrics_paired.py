"""Paired differences: against scipy's t-test, against a bootstrap that draws images one by one, and by hand."""

import numpy as np
import pytest
import torch
from scipy import stats

from longtail.metrics import GROUPS, bootstrap_intervals, class_hits
from longtail.metrics.paired import paired_by_image, paired_by_seed


def test_by_seed_is_scipys_paired_t_interval():
    generator = np.random.default_rng(0)
    one = {seed: float(v) for seed, v in enumerate(generator.normal(0.6, 0.05, 6))}
    other = {seed: float(v) for seed, v in enumerate(generator.normal(0.5, 0.05, 8), start=2)}
    shared = [2, 3, 4, 5]
    test = stats.ttest_rel([one[s] for s in shared], [other[s] for s in shared])
    expected = test.confidence_interval(0.95)
    found = paired_by_seed(one, other)
    assert found.mean == pytest.approx(np.mean([one[s] - other[s] for s in shared]))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_by_seed_with_one_none_or_undefined():
    assert paired_by_seed({1: 0.5}, {2: 0.25}) is None
    assert paired_by_seed({1: 0.5, 3: 0.1}, {1: 0.25, 2: 0.5}) == (0.25, None, None)
    assert paired_by_seed({1: 0.5, 2: None, 3: 0.5}, {1: 0.25, 2: 0.5, 3: None}) == (0.25, None, None)


def slow_bootstrap(right, other, labels, counts, figures, resamples=4000):
    """Draw images with replacement within each class, one by one, and compute every figure anew."""
    generator = np.random.default_rng(1)
    right, other, labels = (x.numpy() for x in (right, other, labels))
    members = [np.flatnonzero(labels == c) for c in range(len(counts)) if (labels == c).any()]
    group_of = [0 if counts[c] > 100 else 2 if counts[c] < 20 else 1 for c in range(len(counts)) if (labels == c).any()]
    drawn = {name: [] for name in figures}
    for _ in range(resamples):
        picks = [generator.choice(m, len(m)) for m in members]
        recall = np.array([right[p].mean() - other[p].mean() for p in picks])
        every = np.concatenate(picks)
        drawn["top1"].append(right[every].mean() - other[every].mean())
        drawn["balanced_accuracy"].append(recall.mean())
        for position, name in enumerate(GROUPS):
            drawn[name].append(recall[np.array(group_of) == position].mean())
    return {name: np.quantile(values, [0.025, 0.975]) for name, values in drawn.items()}


@pytest.fixture
def answers():
    generator = torch.Generator().manual_seed(3)
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 25 + [3] * 12)
    right = torch.rand(len(labels), generator=generator) < 0.6
    other = right ^ (torch.rand(len(labels), generator=generator) < 0.25)
    return right, other, labels, torch.tensor([300, 50, 10, 5, 2])  # the last class has no test image


def test_by_image_is_the_slow_bootstrap(answers):
    right, other, labels, counts = answers
    found = paired_by_image(right, other, labels, counts, resamples=20_000)
    slow = slow_bootstrap(right, other, labels, counts.tolist(), found)
    for name, (low, high) in slow.items():
        width = high - low
        assert (found[name].low, found[name].high) == pytest.approx((low, high), abs=0.08 * width), name


def test_by_image_is_the_difference_of_the_two_figures(answers):
    right, other, labels, counts = answers
    found = paired_by_image(right, other, labels, counts, resamples=10)
    recall = [(right[labels == c].double().mean() - other[labels == c].double().mean()).item() for c in range(4)]
    assert found["top1"].mean == pytest.approx((right.double().mean() - other.double().mean()).item())
    assert found["balanced_accuracy"].mean == pytest.approx(np.mean(recall))
    assert [found[g].mean for g in GROUPS] == pytest.approx([recall[0], recall[1], (recall[2] + recall[3]) / 2])


def test_against_a_model_that_is_always_wrong_it_is_the_plain_bootstrap(answers):
    right, _, labels, counts = answers
    found = paired_by_image(right, torch.zeros_like(right), labels, counts, resamples=20_000)
    correct, total = class_hits(torch.where(right, labels, 4), labels, 5)
    plain = bootstrap_intervals(correct, total, counts, resamples=20_000, seed=5)
    for name, bounds in plain.items():
        assert (found[name].low, found[name].high) == pytest.approx(bounds, abs=0.02), name


def test_twins_have_no_interval_and_an_untested_group_no_difference():
    labels = torch.tensor([0, 0, 1, 1])
    right = torch.tensor([True, False, True, True])
    found = paired_by_image(right, right, labels, torch.tensor([200, 150, 50]))
    assert found["top1"] == found["many"] == (0.0, None, None)
    assert found["medium"] is None
    assert found["few"] is None


@pytest.mark.parametrize("change", ["shape", "kind", "empty"])
def test_what_does_not_fit_is_refused(answers, change):
    right, other, labels, counts = answers
    if change == "shape":
        right = right[:-1]
    if change == "kind":
        other = other.long()
    if change == "empty":
        right, other, labels = right[:0], other[:0], labels[:0]
    with pytest.raises(ValueError):
        paired_by_image(right, other, labels, counts)
