"""Images with the same pixels."""

from collections import defaultdict

import numpy as np
import pytest
import torch

from longtail.data.duplicates import duplicate_notes, find_duplicates

PATHS = ["train/cat/0.jpg", "test/cat/1.jpg", "train/dog/2.jpg", "train/cat/3.jpg", "test/dog/4.jpg", "test/dog/5.jpg"]
CLASSES = ("cat", "dog")
LABELS = [0, 0, 1, 0, 1, 1]
IS_TEST = [False, True, False, False, True, True]


def slow_groups(digests, labels, is_test):
    members = defaultdict(list)
    for index, digest in enumerate(digests):
        if digest != 0:
            members[digest].append(index)
    groups = [group for group in members.values() if len(group) > 1]
    train = [[index for index in group if not is_test[index]] for group in groups]
    test = [[index for index in group if is_test[index]] for group in groups]
    return {
        "groups": groups,
        "within_train": [part for part in train if len(part) > 1],
        "within_test": [part for part in test if len(part) > 1],
        "across": [group for group, a, b in zip(groups, train, test, strict=True) if a and b],
        "conflicting": [group for group in groups if len({labels[index] for index in group}) > 1],
    }


@pytest.mark.parametrize("count", [0, 1, 2, 30, 400])
@pytest.mark.parametrize("kinds", [1, 5, 300])
def test_against_a_slow_version(count, kinds):
    rng = np.random.default_rng(count + kinds)
    digests = rng.integers(-kinds, kinds, count) * 2**40
    labels, is_test = rng.integers(0, 4, count), rng.random(count) < 0.3
    found = find_duplicates(digests, labels, is_test)
    for name, expected in slow_groups(digests.tolist(), labels.tolist(), is_test.tolist()).items():
        assert getattr(found, name) == expected, name


def test_unknown_pixels_are_equal_to_nothing():
    assert find_duplicates([0, 0, 5, 0], [0] * 4, [False] * 4).groups == []


def test_tensors_and_extreme_hashes():
    digests = torch.tensor([-(2**63), 2**63 - 1, 7, -(2**63), 2**63 - 1])
    found = find_duplicates(digests, torch.tensor([0, 1, 1, 0, 0]), torch.tensor([False, True, False, False, False]))
    assert found.groups == [[0, 3], [1, 4]]
    assert found.within_train == [[0, 3]]
    assert found.across == found.conflicting == [[1, 4]]


@pytest.mark.parametrize(("labels", "is_test"), [([0], [False, True]), ([0, 0], [True]), ([[0, 0]], [True, False])])
def test_lengths_that_differ(labels, is_test):
    with pytest.raises(ValueError, match="one length"):
        find_duplicates([1, 2], labels, is_test)


def test_a_million():
    digests = np.random.default_rng(0).integers(1, 2**62, 1_000_000)
    digests[500_000] = digests[10]
    found = find_duplicates(digests, np.zeros(1_000_000, dtype=np.int64), np.arange(1_000_000) >= 500_000)
    assert found.across == [[10, 500_000]]


def notes(digests):
    return duplicate_notes(find_duplicates(digests, LABELS, IS_TEST), PATHS, CLASSES)


def test_nothing_to_say():
    assert notes([1, 2, 3, 4, 5, 6]) == ()


def test_across():
    assert notes([7, 7, 1, 2, 3, 4]) == (
        "1 test image is also in the training set (first: test/cat/1.jpg = train/cat/0.jpg): its figures flatter the "
        "model.",
    )
    first, *_ = notes([7, 7, 8, 2, 8, 8])
    assert first == (
        "3 test images are also in the training set (first: test/cat/1.jpg = train/cat/0.jpg): their figures flatter "
        "the model."
    )


def test_conflicting():
    assert notes([7, 1, 7, 7, 2, 3]) == (
        "1 image is there under more than one class (first: train/cat/0.jpg as cat = train/dog/2.jpg as dog): no model "
        "can be right about it every time.",
        "2 training images repeat others pixel by pixel (first: train/cat/0.jpg = train/dog/2.jpg): each is learned "
        "from more than once.",
    )


def test_within_test():
    assert notes([1, 2, 3, 4, 9, 9]) == (
        "1 test image repeats another pixel by pixel (first: test/dog/4.jpg = test/dog/5.jpg): each counts more than "
        "once in every figure.",
    )
