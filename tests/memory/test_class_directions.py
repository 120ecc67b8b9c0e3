"""Means, directions and concentrations of classes against plain sums and the likelihood."""

import doctest
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from longtail.losses.bessel import bessel_ratio
from longtail.memory import ClassDirections, class_directions
from longtail.memory.class_directions import HIGHEST


def unit(rows, dim=4, seed=0):
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_the_mean_of_the_epoch_before_is_in_use():
    estimate, features, labels = ClassDirections(3, 4), unit(6), torch.tensor([0, 2, 0, 0, 2, 0])
    estimate.absorb(features[:4], labels[:4])
    estimate.absorb(features[4:], labels[4:])
    assert not estimate.known.any()
    estimate.start_epoch(1)
    assert estimate.known.tolist() == [True, False, True]
    for c in (0, 2):
        torch.testing.assert_close(estimate.means[c], features[labels == c].mean(0))
    kept = estimate.means.clone()
    estimate.absorb(unit(2, seed=1), torch.tensor([1, 0]))
    assert torch.equal(estimate.means, kept)
    estimate.start_epoch(1)  # as after an interruption: the epoch that it is in
    assert torch.equal(estimate.means, kept)
    assert estimate.counts.tolist() == [1.0, 1.0, 0.0]
    estimate.start_epoch(2)
    torch.testing.assert_close(estimate.means[:2], unit(2, seed=1)[[1, 0]])
    assert torch.equal(estimate.means[2], kept[2])  # not seen in this epoch
    assert not estimate.counts.any()


def test_a_row_that_is_not_finite_is_left_out():
    estimate, features = ClassDirections(2, 4), unit(3)
    features[1, 2] = float("inf")
    estimate.absorb(features, torch.tensor([0, 0, 1]))
    assert estimate.counts.tolist() == [1.0, 1.0]
    torch.testing.assert_close(estimate.sums, features[[0, 2]])


@pytest.mark.parametrize("dim", [3, 16, 128])
@pytest.mark.parametrize("k", [0.5, 10.0, 300.0, 20_000.0])
def test_concentration_is_near_the_likeliest(dim, k):
    """The mean of vMF(k) has the length A(k) = I_{D/2}(k) / I_{D/2-1}(k); the estimate inverts it approximately."""
    estimate = ClassDirections(1, dim)
    direction = unit(1, dim)
    estimate.means.copy_(bessel_ratio(dim / 2 - 1, torch.tensor(k, dtype=torch.float64)).float() * direction)
    directions, concentrations = estimate.parameters_of_classes()
    torch.testing.assert_close(directions, direction)
    assert concentrations.item() == pytest.approx(k, rel=0.12 if dim == 3 else 0.05)


def test_one_image_and_no_image():
    estimate = ClassDirections(2, 8)
    estimate.absorb(unit(1, 8).expand(5, 8), torch.zeros(5, dtype=torch.int64))
    estimate.start_epoch(1)
    directions, concentrations = estimate.parameters_of_classes()
    assert concentrations[0].item() == pytest.approx(HIGHEST, rel=0.2)
    assert concentrations[0] <= HIGHEST
    assert concentrations[1].item() == 0.0
    assert not directions[1].any()


def test_it_is_primed_by_the_first_images_of_each_class():
    labels, asked = torch.tensor([1, 0, 1, 1, 0, 1]), []

    def encode(ids, rounds):
        asked.extend(ids.tolist())
        assert not rounds.any()
        return unit(6)[ids]

    estimate = ClassDirections(3, 4)
    estimate.prime(labels, encode, images_per_class=3, batch_size=2)
    assert sorted(asked) == [0, 1, 2, 3, 4]
    torch.testing.assert_close(estimate.means[0], unit(6)[[1, 4]].mean(0))
    torch.testing.assert_close(estimate.means[1], unit(6)[[0, 2, 3]].mean(0))
    assert estimate.known.tolist() == [True, True, False]
    assert not estimate.counts.any()


def test_it_reads_nothing_from_its_device(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # unknown for such tensors
    estimate = ClassDirections(3, 4).to("meta")
    estimate.absorb(torch.zeros(2, 4, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta"))
    estimate.start_epoch(1)
    estimate.parameters_of_classes()


def test_docstring_example():
    outcome = doctest.testmod(class_directions)
    assert (outcome.attempted, outcome.failed) == (4, 0)
