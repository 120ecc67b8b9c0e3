"""Shortlists: quantiles by hand, coverage of synthetic data within binomial bounds, and what must never break."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

from longtail.metrics import (
    class_set_figures,
    conformal_scores,
    conformal_thresholds,
    needed_images,
    rare_together,
    set_figures,
    shortlists,
)

TAIL = np.array([0.6, 0.25, 0.1, 0.05])


def draw(prior, number, generator):
    """Return (probabilities under the prior TAIL, labels) of images whose classes have ``prior``."""
    labels = generator.choice(len(prior), number, p=prior)
    points = generator.normal(size=(number, len(prior)))
    points[np.arange(number), labels] += 1.5
    logits = torch.from_numpy(1.5 * points + np.log(TAIL))
    return logits.softmax(1), torch.from_numpy(labels)


def own(scores, labels):
    return scores.gather(1, labels[:, None]).squeeze(1)


@pytest.mark.parametrize(
    ("n", "coverage", "place"),
    [
        (9, 0.9, 9),
        (8, 0.9, None),
        (10, 0.9, 10),
        (19, 0.9, 18),
        (99, 0.9, 90),
        (19, 0.95, 19),
        (9, 0.7, 7),
        (1, 0.5, 1),
        (1, 0.51, None),
        (0, 0.5, None),
    ],
)
def test_the_quantile_is_the_ceil_of_n_plus_1_times_coverage(n, coverage, place):
    scores = torch.arange(1, n + 1).double()[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    found = conformal_thresholds(scores, torch.zeros(n, dtype=torch.int64), 3, coverage)
    assert found.tolist() == [math.inf if place is None else place] * 3
    assert (needed_images(coverage) <= n) == (place is not None)


def test_groups_have_quantiles_of_their_own():
    scores, labels = torch.tensor([0.1, 0.2, 0.3, 0.7, 0.8, 0.9]), torch.tensor([0, 0, 0, 1, 1, 2])
    alone = conformal_thresholds(scores, labels, 4, 0.5, groups=torch.arange(4))
    assert alone.tolist() == pytest.approx([0.2, 0.8, 0.9, math.inf])
    paired = conformal_thresholds(scores, labels, 4, 0.5, groups=torch.tensor([5, 1, 1, 5]))
    assert paired.tolist() == pytest.approx([0.2, 0.8, 0.8, 0.2])


def test_weights_by_hand():
    # Class 1 will be three times as frequent: weights 1, 1, 3 of the scores, and 1 or 3 for the new image.
    scores, labels, weights = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0, 0, 1]), torch.tensor([1.0, 3.0])
    half = conformal_thresholds(scores, labels, 2, 0.5, weights=weights)
    assert half.tolist() == pytest.approx([0.3, 0.3])  # half of 5 + 1 is 3, half of 5 + 3 is 4: both beyond 1 + 1
    third = conformal_thresholds(scores, labels, 2, 0.25, weights=weights)
    assert third.tolist() == pytest.approx([0.2, 0.2])  # 1.5 and 2
    most = conformal_thresholds(scores, labels, 2, 0.8, weights=weights)
    assert most.tolist() == pytest.approx([0.3, math.inf])  # 4.8 of 5, 6.4 of 5
    assert torch.equal(
        conformal_thresholds(scores, labels, 2, 0.6, weights=torch.full((2,), 7.0)),
        conformal_thresholds(scores, labels, 2, 0.6),
    )


@pytest.mark.parametrize("rare", [1.0, 1e-12, 1e-17, 1e-40])
def test_a_class_alone_does_not_mind_how_rare_it_will_be(rare):
    scores = torch.linspace(0, 1, 40, dtype=torch.float64)
    labels, weights = torch.arange(40) % 2, torch.tensor([1.0, rare], dtype=torch.float64)
    found = conformal_thresholds(scores, labels, 2, 0.9, torch.arange(2), weights)
    assert torch.equal(found, conformal_thresholds(scores, labels, 2, 0.9, torch.arange(2)))


def test_scores_tell_tiny_probabilities_apart():
    scores = conformal_scores(torch.tensor([[1.0, 1e-20], [1.0, 3e-25]], dtype=torch.float64))
    assert scores[0, 1] < scores[1, 1]


def test_rare_classes_are_calibrated_together():
    assert needed_images(0.9) == 9
    assert rare_together(torch.tensor([50, 20, 9]), 0.9).tolist() == [0, 1, 2]
    assert rare_together(torch.tensor([50, 20, 8, 0, 1]), 0.9).tolist() == [0, 1, 5, 5, 5]
    assert rare_together(torch.tensor([50, 20, 8]), 0.9).tolist() == [0, 3, 3]  # the next class joins
    assert rare_together(torch.tensor([3, 2, 0]), 0.9).tolist() == [3, 3, 3]


@pytest.mark.parametrize("coverage", [0.7, 0.9])
@pytest.mark.parametrize("kind", ["marginal", "class", "prevalence"])
def test_exchangeable_data_is_covered(kind, coverage):
    """Over many draws of calibration and new image, hits are at least binomial with the share asked for."""
    generator, hits, of_class, shift = np.random.default_rng(0), 0, np.zeros((2, 4)), 0
    draws, new = 400, 25
    for _ in range(draws):
        probabilities, labels = draw(TAIL, 120, generator)
        fresh, truth = draw(TAIL, new, generator)
        prevalence = torch.from_numpy(TAIL) if kind == "prevalence" else None
        scores = own(conformal_scores(probabilities, prevalence), labels)
        groups = torch.arange(4) if kind == "class" else None
        thresholds = conformal_thresholds(scores, labels, 4, coverage, groups)
        sets = conformal_scores(fresh, prevalence) <= thresholds
        held = own(sets, truth)
        hits += int(held.sum())
        of_class += [np.bincount(truth, minlength=4), np.bincount(truth, weights=held, minlength=4)]
        shift += float(sets.double().sum(1).mean()) / draws
    assert shift < 4
    # New images share a calibration draw, which widens the spread: half the trials make a bound on the safe side.
    trials = draws * new // 2
    low, high = binom.interval(0.999, trials, coverage)
    extra = 4 * trials / 30 if kind == "class" else 4 * trials / 120  # at most 1 / (n + 1) above the target a group
    assert low <= hits / 2 <= high + extra
    if kind == "class":
        total, right = of_class
        for images, held in zip(total, right, strict=True):
            assert held / 2 >= binom.ppf(0.0005, images // 2, coverage)
        spread = right / total
        assert spread.max() - spread.min() < 0.12
    if kind == "marginal":  # what the other kinds are for: the rare class falls short
        assert of_class[1][3] / of_class[0][3] < coverage - 0.1


def test_another_class_prior_is_covered_with_weights_and_not_without():
    generator, target, hits = np.random.default_rng(1), TAIL[::-1], np.zeros(2)
    draws, new = 300, 25
    for _ in range(draws):
        probabilities, labels = draw(TAIL, 200, generator)
        fresh, truth = draw(target, new, generator)
        scores = own(conformal_scores(probabilities), labels)
        held_out = torch.bincount(labels, minlength=4).double()
        weights = torch.from_numpy(target.copy()) * len(labels) / held_out.clamp(min=1)
        for place, given in enumerate((weights, None)):
            thresholds = conformal_thresholds(scores, labels, 4, 0.9, weights=given)
            hits[place] += int(own(conformal_scores(fresh) <= thresholds, truth).sum())
    share = hits / (draws * new)
    assert 0.9 - 0.012 <= share[0] <= 0.95
    assert share[1] < 0.75


def test_prevalence_adjusted_sets_cover_classes_alike_at_the_same_size():
    generator = np.random.default_rng(2)
    probabilities, labels = draw(TAIL, 4000, generator)
    fresh, truth = draw(TAIL, 20_000, generator)
    found = {}
    for name, prevalence in (("marginal", None), ("prevalence", torch.from_numpy(TAIL))):
        thresholds = conformal_thresholds(own(conformal_scores(probabilities, prevalence), labels), labels, 4, 0.9)
        sets = conformal_scores(fresh, prevalence) <= thresholds
        found[name] = set_figures(own(sets, truth), sets.sum(1), truth, 4)
    assert found["prevalence"]["macro_coverage"] > found["marginal"]["macro_coverage"] + 0.1
    assert found["marginal"]["mean_size"] < found["prevalence"]["mean_size"] < found["marginal"]["mean_size"] + 0.6


def test_the_prevalence_adjusted_score():
    probabilities, prior = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([0.8, 0.15, 0.0])
    assert conformal_scores(probabilities).tolist()[0] == pytest.approx([-0.5, -0.3, -0.2])
    assert conformal_scores(probabilities, prior).tolist()[0] == pytest.approx([-0.625, -2, -0.2 / 0.15])


@pytest.mark.parametrize("kind", ["marginal", "class", "prevalence"])
def test_sets_nest_as_coverage_grows(kind):
    generator = np.random.default_rng(3)
    probabilities, labels = draw(TAIL, 150, generator)
    fresh, _ = draw(TAIL, 200, generator)
    prevalence = torch.from_numpy(TAIL) if kind == "prevalence" else None
    before = torch.zeros(200, 4, dtype=torch.bool)
    for coverage in (0.05, 0.3, 0.6, 0.8, 0.9, 0.95, 0.99):
        groups = rare_together(torch.bincount(labels, minlength=4), 0.5) if kind == "class" else None
        scores = own(conformal_scores(probabilities, prevalence), labels)
        thresholds = conformal_thresholds(scores, labels, 4, coverage, groups)
        sets = shortlists(conformal_scores(fresh, prevalence), thresholds, fresh.argmax(1))
        assert bool((before <= sets).all())
        assert bool(sets.gather(1, fresh.argmax(1, keepdim=True)).all())
        before = sets
    assert float(before.double().mean()) > 0.5


def test_a_score_at_the_threshold_is_in():
    scores = torch.tensor([[0.2, 0.5, 0.50001]])
    assert shortlists(scores, torch.full((3,), 0.5, dtype=torch.float64), torch.tensor([0])).tolist() == [
        [True, True, False]
    ]


def test_one_image_a_class_and_none_at_all():
    probabilities, labels = torch.eye(4) * 0.6 + 0.1, torch.arange(4)
    scores = own(conformal_scores(probabilities), labels)
    groups = rare_together(torch.ones(4), 0.9)
    thresholds = conformal_thresholds(scores, labels, 4, 0.9, groups)
    assert thresholds.tolist() == [math.inf] * 4
    possible = torch.tensor([True, True, False, True])
    sets = shortlists(conformal_scores(probabilities), thresholds, torch.arange(4), possible)
    assert sets.sum(1).tolist() == [3, 3, 4, 3]
    empty = conformal_thresholds(torch.empty(0), torch.empty(0, dtype=torch.int64), 2, 0.9)
    assert empty.tolist() == [math.inf] * 2
    alone = conformal_thresholds(scores[:1], labels[:1], 4, 0.5, weights=torch.zeros(4))
    assert not bool(alone.isnan().any())


def test_figures_by_hand():
    held, sizes = torch.tensor([True, True, False, True, False]), torch.tensor([1, 2, 1, 3, 1])
    labels = torch.tensor([0, 0, 0, 1, 1])
    found = set_figures(held, sizes, labels, 3, prior=torch.tensor([3.0, 1.0, 9.0]))
    assert found["coverage"] == pytest.approx(3 / 5)
    assert found["macro_coverage"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["weighted_coverage"] == pytest.approx((3 * 2 / 3 + 1 / 2) / 4)  # class 2 has no image
    assert found["mean_size"] == pytest.approx(8 / 5)
    coverages, means = class_set_figures(held, sizes, labels, 3)
    assert coverages == [pytest.approx(2 / 3), 0.5, None]
    assert means == [pytest.approx(4 / 3), 2.0, None]


@pytest.mark.parametrize("coverage", [0, 1, 1.5, -0.1, math.nan])
def test_a_coverage_that_is_none_is_refused(coverage):
    with pytest.raises(ValueError, match="coverage"):
        conformal_thresholds(torch.zeros(1), torch.zeros(1, dtype=torch.int64), 2, coverage)


def thresholds_in_a_loop(scores, labels, num_classes, coverage, groups, weights):
    """Group by group and class by class, as the definition reads."""
    found = []
    for own_class in range(num_classes):
        members = [i for i in range(len(labels)) if groups[labels[i]] == groups[own_class]]
        members.sort(key=lambda i: scores[i])
        total = sum(weights[labels[i]] for i in members) + weights[own_class]
        reached, threshold = 0.0, math.inf
        for i in members:
            reached += weights[labels[i]]
            if reached >= coverage * total * (1 - 1e-9):
                threshold = scores[i]
                break
        found.append(threshold)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_many_groups_at_once_are_the_groups_one_by_one(seed):
    generator = np.random.default_rng(seed)
    classes, images, coverage = 30, 150, generator.choice([0.5, 0.8, 0.9])
    labels = generator.integers(0, classes - 3, images)  # some classes without an image
    scores = generator.permutation(images) / images
    groups = generator.integers(0, 12, classes) * 7 - 20  # any numbers
    weights = np.ones(classes) if seed % 2 else generator.choice([0.0, 0.25, 1.7, 3.1], classes)
    found = conformal_thresholds(
        *map(torch.from_numpy, (scores, labels)), classes, coverage, *map(torch.from_numpy, (groups, weights))
    )
    expected = thresholds_in_a_loop(scores, labels, classes, coverage, groups, weights)
    known = weights > 0  # a class that never occurs has no threshold that matters
    np.testing.assert_array_equal(found.numpy()[known], np.array(expected)[known])


@pytest.mark.parametrize("seed", range(20))
def test_rare_classes_join_one_after_the_other(seed):
    generator = np.random.default_rng(seed)
    held_out = torch.from_numpy(generator.integers(0, 14, generator.integers(1, 9)))
    coverage = float(generator.choice([0.8, 0.9, 0.95, 0.99]))
    needed, together = needed_images(coverage), held_out < needed_images(coverage)
    for index in held_out.argsort(stable=True).tolist():
        if not bool(together.any()) or int(held_out[together].sum()) >= needed:
            break
        together[index] = True
    expected = torch.where(together, len(held_out), torch.arange(len(held_out)))
    assert torch.equal(rare_together(held_out, coverage), expected)
