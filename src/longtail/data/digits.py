"""Handwritten digits with a long tail: a real data set of 8x8 images that needs no download."""

from __future__ import annotations

import numpy as np
import torch

from longtail.data.arrays import pixel_statistics
from longtail.data.counts import class_profile, long_tailed_indices
from longtail.data.image_set import DataSplits, ImageSet

TEST_IMAGES_PER_CLASS = 40


def digits_lt(imbalance: float = 100, profile: str = "exponential", seed: int = 0) -> DataSplits:
    """Return scikit-learn's digits (1,797 gray 8x8 images, 10 classes) with a long-tailed training set.

    The test set is always the same 40 images a class. Of the rest, class c keeps what the profile says,
    starting from the number that every class can give (134), so that at imbalance 1 the training set is
    balanced.

    Args:
        imbalance: largest over smallest class before rounding down, at least 1.
        profile: ``"exponential"`` or ``"step"``.
        seed: which training images are kept; the test set does not depend on it.

    Raises:
        UserError: ``imbalance`` below 1 or not finite, or an unknown profile.
    """
    from sklearn.datasets import load_digits  # slow to import, and only this source needs it

    digits = load_digits()
    pixels = np.rint(digits.images * (255.0 / 16.0)).astype(np.uint8)  # stored as 0..16
    names = tuple(str(name) for name in digits.target_names)
    whole = ImageSet(torch.from_numpy(pixels)[:, None], torch.from_numpy(digits.target).long(), names)

    test_indices = long_tailed_indices(whole.labels, [TEST_IMAGES_PER_CLASS] * whole.num_classes, seed=0)
    in_pool = torch.ones(len(whole), dtype=torch.bool)
    in_pool[test_indices] = False
    pool = whole.subset(in_pool.nonzero().squeeze(1))

    n_max = int(pool.class_counts.min())
    counts = class_profile(profile, n_max, whole.num_classes, imbalance)
    train = pool.subset(long_tailed_indices(pool.labels, counts, seed))
    mean, std = pixel_statistics(train.images)
    return DataSplits("digits-lt", train, whole.subset(test_indices), mean, std, views="tiny")
