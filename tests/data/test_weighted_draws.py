"""Weights of samples: how often an epoch draws each, and what classes and statistics become of them."""

import numpy as np
import pytest
import torch

from longtail.data import FeatureSet
from longtail.data.feature_set import class_masses, feature_statistics
from longtail.data.samplers import Sampler

LABELS = torch.tensor([0] * 11 + [1] * 6 + [2] * 3)


@pytest.mark.parametrize("weight", [1.0, 0.1, 1 / 3, 7e5])
def test_equal_weights_draw_what_none_do(weight):
    plain, weighted = Sampler("instance", LABELS), Sampler("instance", LABELS, weights=torch.full((20,), weight))
    for epoch in range(50):
        a, b = plain.draws(3, epoch), weighted.draws(3, epoch)
        assert torch.equal(a.ids, b.ids)
        assert torch.equal(a.keys, b.keys)


def test_every_epoch_draws_in_proportion_up_to_rounding():
    weights = torch.linspace(0.0, 3.0, 20, dtype=torch.float64)
    expected = 20 * weights / weights.sum()
    sampler = Sampler("instance", LABELS, weights=weights)
    total, classes = torch.zeros(20), torch.zeros(3)
    masses = torch.zeros(3, dtype=torch.float64).index_add_(0, LABELS, expected)
    for epoch in range(400):
        ids = sampler.draws(0, epoch).ids
        drawn = torch.bincount(ids, minlength=20)
        assert len(ids) == 20
        assert ((drawn - expected).abs() < 1).all()
        of_class = torch.bincount(LABELS[ids], minlength=3)
        assert ((of_class - masses).abs() < 1).all()  # the classes get their shares as closely
        total += drawn
        classes += of_class
    # Systematic sampling has a standard error below 0.5 / sqrt(400) of each mean.
    np.testing.assert_allclose(total / 400, expected, atol=4 * 0.5 / 20)
    np.testing.assert_allclose(classes / 400, masses, atol=4 * 0.5 / 20)
    assert total[0] == 0


def test_draws_hang_on_seed_and_epoch_alone_and_come_in_another_order():
    sampler = Sampler("instance", LABELS, weights=torch.arange(1.0, 21.0))
    assert torch.equal(sampler.draws(1, 4).ids, sampler.draws(1, 4).ids)
    assert not torch.equal(sampler.draws(1, 4).ids, sampler.draws(1, 5).ids)
    assert not torch.equal(sampler.draws(1, 4).ids, sampler.draws(2, 4).ids)
    assert not torch.equal(sampler.draws(1, 4).ids, sampler.draws(1, 4).ids.sort().values)


def test_a_sample_that_is_drawn_again_has_another_key():
    draws = Sampler("instance", LABELS, weights=torch.tensor([0.0] * 17 + [1.0] * 3)).draws(0, 0)
    assert set(draws.ids.tolist()) == {17, 18, 19}
    assert len(set(draws.keys.tolist())) == 20
    assert torch.equal(draws.keys % 20, draws.ids)


def test_weights_go_with_one_sampler():
    with pytest.raises(ValueError, match="'instance', not with 'class_balanced'"):
        Sampler("class_balanced", LABELS, weights=torch.ones(20))


def test_class_masses():
    whole = class_masses(LABELS, torch.full((20,), 3.0), 4)
    assert whole.tolist() == [33, 18, 9, 0]
    weights = torch.where(LABELS == 2, 1e-12, torch.rand(20, generator=torch.Generator().manual_seed(0)).double())
    masses = class_masses(LABELS, weights, 4)
    expected = torch.bincount(LABELS, weights)
    shares = masses.double() / masses.sum()
    torch.testing.assert_close(shares[:2], expected[:2] / expected.sum(), rtol=1e-5, atol=0)
    assert masses.tolist()[2:] == [1, 0]  # what weighs anything at all is not forgotten


def test_a_feature_set_with_weights():
    features = torch.randn(20, 1, 4, generator=torch.Generator().manual_seed(0))
    weights = (torch.arange(20) % 4).double()
    data = FeatureSet(features, LABELS, ("a", "b", "c"), weights=weights)
    repeated = torch.arange(20).repeat_interleave(weights.long())
    twin = FeatureSet(features[repeated], LABELS[repeated], ("a", "b", "c"))
    assert torch.equal(data.class_counts, twin.class_counts)
    for ours, theirs in zip(feature_statistics(features, weights), feature_statistics(features[repeated]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    part = data.subset(torch.tensor([5, 1]))
    assert part.weights.tolist() == [1.0, 1.0]
    assert data.fingerprint() != FeatureSet(features, LABELS, ("a", "b", "c")).fingerprint()
