"""The digits source against scikit-learn's own arrays."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from longtail.data.counts import exponential_profile, step_profile
from longtail.data.digits import digits_lt
from longtail.errors import UserError


@pytest.fixture(scope="module")
def original():
    """Map each image's bytes to the positions in scikit-learn's data that hold it."""
    digits = load_digits()
    positions = {}
    for i, image in enumerate(digits.images):
        as_bytes = bytes(round(v * 255 / 16) for v in image.reshape(-1).tolist())
        positions.setdefault(as_bytes, []).append(i)
    return positions, digits.target


def _positions(images, positions):
    found = [positions[bytes(image.reshape(-1).tolist())] for image in images.images]
    assert all(len(where) == 1 for where in found)  # no image occurs twice, so bytes identify it
    return [where[0] for where in found]


def test_images_labels_and_disjoint_splits(original):
    positions, target = original
    splits = digits_lt(imbalance=100)
    assert splits.train.images.dtype == torch.uint8
    assert splits.train.images.shape == (329, 1, 8, 8)
    train, test = _positions(splits.train, positions), _positions(splits.test, positions)
    assert len(set(train) | set(test)) == len(train) + len(test)
    assert splits.train.labels.tolist() == target[train].tolist()
    assert splits.test.labels.tolist() == target[test].tolist()
    assert splits.train.class_names == splits.test.class_names == tuple("0123456789")
    assert (splits.name, splits.views) == ("digits-lt", "tiny")


@pytest.mark.parametrize(("profile", "counts_of"), [("exponential", exponential_profile), ("step", step_profile)])
@pytest.mark.parametrize("imbalance", [1, 10, 100])
def test_counts(profile, counts_of, imbalance):
    splits = digits_lt(imbalance=imbalance, profile=profile)
    smallest_pool = min(np.bincount(load_digits().target)) - 40
    assert smallest_pool == 134
    assert splits.train.class_counts.tolist() == counts_of(134, 10, imbalance)
    assert splits.test.class_counts.tolist() == [40] * 10


def test_seed_changes_the_training_images_only_and_repeats(original):
    positions, _ = original
    first, again, other = digits_lt(seed=0), digits_lt(seed=0), digits_lt(seed=1)
    assert torch.equal(first.train.images, again.train.images)
    assert set(_positions(first.train, positions)) != set(_positions(other.train, positions))
    assert torch.equal(first.test.images, other.test.images)
    assert torch.equal(digits_lt(imbalance=7).test.images, first.test.images)


def test_statistics_are_those_of_the_kept_training_pixels():
    splits = digits_lt(imbalance=20)
    pixels = splits.train.images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(splits.mean, [pixels.mean()], rtol=1e-12)
    np.testing.assert_allclose(splits.std, [pixels.std()], rtol=1e-12)
    assert digits_lt(imbalance=1).mean != splits.mean


def test_bad_options():
    with pytest.raises(UserError, match="imbalance"):
        digits_lt(imbalance=0.5)
    with pytest.raises(UserError, match=r"unknown profile 'stop'.*'step'"):
        digits_lt(profile="stop")
