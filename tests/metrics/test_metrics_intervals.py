"""Intervals against image-by-image resampling, scipy, printed tables and their own promise of coverage."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from longtail.metrics import bootstrap_intervals, intervals, mean_interval, wilson_interval

TOTAL = torch.tensor([40, 12, 12, 12, 5, 1, 0, 30])
CORRECT = torch.tensor([31, 5, 5, 9, 2, 1, 0, 30])
COUNTS = torch.tensor([500, 300, 200, 150, 50, 30, 10, 5])


def resample_images(resamples, seed):
    """Draw test images with replacement, class by class; yields samples of each figure."""
    generator = np.random.default_rng(seed)
    recall = np.full((len(TOTAL), resamples), np.nan)
    hits = np.zeros(resamples)
    for c, (k, n) in enumerate(zip(CORRECT.tolist(), TOTAL.tolist(), strict=True)):
        if n:
            images = np.arange(n) < k
            drawn = images[generator.integers(0, n, size=(resamples, n))].sum(axis=1)
            recall[c], hits = drawn / n, hits + drawn
    return {
        "top1": hits / int(TOTAL.sum()),
        "balanced_accuracy": np.nanmean(recall, axis=0),
        "many": recall[:4].mean(axis=0),
        "medium": recall[4:6].mean(axis=0),
        "few": recall[7],
    }


def test_bootstrap_agrees_with_resampling_image_by_image():
    found = bootstrap_intervals(CORRECT, TOTAL, COUNTS, resamples=20_000, seed=3)
    slow = resample_images(20_000, seed=4)
    assert list(found) == ["top1", "balanced_accuracy", "many", "medium", "few"]
    for name, samples in slow.items():
        if samples.min() == samples.max():  # no spread at all: no interval, rather than one of no width
            assert found[name] is None
            continue
        # Within Monte-Carlo error of the quantiles; figures that are a few images step by one image.
        step = {"medium": 0.1, "top1": 1 / 112}.get(name, 0.006)
        assert found[name] == pytest.approx(tuple(np.quantile(samples, [0.025, 0.975])), abs=step + 1e-9), name


def test_one_class_bootstrap_gives_the_binomial_quantiles():
    found = bootstrap_intervals(torch.tensor([700]), torch.tensor([1000]), torch.tensor([5]), resamples=200_000)
    expected = stats.binom(1000, 0.7).ppf([0.025, 0.975]) / 1000
    assert found["top1"] == pytest.approx(tuple(expected), abs=0.001)
    assert found["few"] == found["top1"]


def test_bootstrap_is_a_function_of_its_seed_alone():
    np.random.seed(1)  # noqa: NPY002 - the global generator is what must not be touched
    torch.manual_seed(1)
    before = np.random.get_state()[1].copy(), torch.get_rng_state().clone()  # noqa: NPY002
    first = bootstrap_intervals(CORRECT, TOTAL, COUNTS, seed=5)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    assert bootstrap_intervals(CORRECT, TOTAL, COUNTS, seed=5) == first
    assert bootstrap_intervals(CORRECT, TOTAL, COUNTS, seed=6) != first
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    bootstrap_intervals(CORRECT, TOTAL, COUNTS, seed=5)
    assert (np.random.get_state()[1] == before[0]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


def test_strata_blocks_only_split_the_draws(monkeypatch):
    whole = bootstrap_intervals(CORRECT, TOTAL, COUNTS, resamples=20_000)
    monkeypatch.setattr(intervals, "_BLOCK_STRATA", 2)
    split = bootstrap_intervals(CORRECT, TOTAL, COUNTS, resamples=20_000)
    for name, pair in whole.items():
        step = {"medium": 0.1, "top1": 1 / 112}.get(name, 0.006)
        assert split[name] == pytest.approx(pair, abs=step + 1e-9)


def test_bootstrap_has_no_interval_where_nothing_can_be_resampled():
    correct, total = torch.tensor([1, 0, 1, 0]), torch.tensor([1, 1, 1, 0])
    found = bootstrap_intervals(correct, total, torch.tensor([500, 400, 5, 50]))
    assert set(found.values()) == {None}
    found = bootstrap_intervals(torch.tensor([4, 1]), torch.tensor([8, 1]), torch.tensor([500, 5]))
    assert found["few"] is None
    assert found["medium"] is None
    assert found["many"][0] < 0.5 < found["many"][1]


def test_bootstrap_covers_the_truth_and_is_narrow_with_few_images_as_documented():
    generator = torch.Generator().manual_seed(0)
    truth = torch.linspace(0.2, 0.9, 100).double()

    def coverage(images, runs=300):
        total = torch.full((100,), images)
        inside = 0
        for run in range(runs):
            correct = torch.binomial(total.double(), truth, generator=generator)
            low, high = bootstrap_intervals(correct, total, total, resamples=400, seed=run)["top1"]
            inside += low <= float(truth.mean()) <= high
        return inside / runs

    # Standard error of a coverage over 300 runs near 0.95: 0.013.
    assert coverage(50) == pytest.approx(0.95, abs=0.04)
    # Width falls by sqrt((n - 1) / n) = 0.816 at n = 3: 1.96 * 0.816 = 1.6 deviations, 89 %.
    assert coverage(3) == pytest.approx(0.89, abs=0.05)


@pytest.mark.parametrize(("correct", "total"), [(0, 1), (1, 1), (0, 3), (2, 3), (7, 10), (50, 50), (333, 1000)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_agrees_with_scipy(correct, total, level):
    expected = stats.binomtest(correct, total).proportion_ci(level, method="wilson")
    assert wilson_interval(correct, total, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_ends_and_no_trial():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(0, 7)[0] == 0.0
    assert wilson_interval(7, 7)[1] == 1.0
    with pytest.raises(ValueError, match=r"correct must lie in 0\.\.total"):
        wilson_interval(3, 2)


def test_mean_interval_uses_the_tabulated_student_quantiles():
    # Two-sided 95 % quantiles as printed in tables: 12.706 (1 degree of freedom), 2.776 (4), 2.262 (9).
    for values, quantile in [([0.0, 2.0], 12.706), ([1.0, 2, 3, 4, 5], 2.776), (list(range(10)), 2.262)]:
        found = mean_interval(values)
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        half = quantile * deviation / math.sqrt(len(values))
        assert found.mean == pytest.approx(mean, abs=1e-12)
        # The tables round to three decimals.
        assert found.high - mean == pytest.approx(half, rel=0.0005 / quantile)
        assert mean - found.low == pytest.approx(half, rel=0.0005 / quantile)


def test_mean_interval_agrees_with_scipy_at_another_level():
    values = [0.51, 0.53, 0.50, 0.56]
    expected = stats.t.interval(0.8, 3, loc=np.mean(values), scale=stats.sem(values))
    assert mean_interval(values, 0.8)[1:] == pytest.approx(expected, abs=1e-12)


def test_one_seed_has_no_interval():
    assert mean_interval([0.4]) == (0.4, None, None)
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([])
    with pytest.raises(ValueError, match="finite"):
        mean_interval([0.1, math.nan])


def test_bad_input_is_named():
    one = torch.tensor([1])
    with pytest.raises(ValueError, match="correct must not exceed total"):
        bootstrap_intervals(torch.tensor([2]), one, one)
    with pytest.raises(ValueError, match="resamples must be at least 1"):
        bootstrap_intervals(one, one, one, resamples=0)
    with pytest.raises(ValueError, match=r"total must have the shape \[1\]"):
        bootstrap_intervals(one, torch.tensor([1, 1]), one)
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        wilson_interval(1, 2, 95)
