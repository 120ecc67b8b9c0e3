"""Images with the same pixels, within the training set, within the test set and across both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longtail.data.check_images import Paths


@dataclass(frozen=True)
class Duplicates:
    """Groups of images with the same pixels; every group is a list of positions in the data's order.

    Attributes:
        groups: all groups, by their first position.
        within_train: the training images of each group that has two or more of them.
        within_test: the test images of each group that has two or more of them.
        across: the groups with training and test images.
        conflicting: the groups with more than one label.
        labels: int64 ``[N]``, as given.
        is_test: bool ``[N]``, as given.
    """

    groups: list[list[int]]
    within_train: list[list[int]]
    within_test: list[list[int]]
    across: list[list[int]]
    conflicting: list[list[int]]
    labels: NDArray[np.int64]
    is_test: NDArray[np.bool_]


def find_duplicates(digests: ArrayLike, labels: ArrayLike, is_test: ArrayLike) -> Duplicates:
    """Group images by the hash of their pixels, in O(N log N).

    Args:
        digests: int64 ``[N]``, arrays or CPU tensors; 0 = not known, equal to nothing.
        labels: integers ``[N]``.
        is_test: bool ``[N]``.
    """
    hashes, classes = np.asarray(digests, dtype=np.int64), np.asarray(labels, dtype=np.int64)
    test = np.asarray(is_test, dtype=bool)
    if not hashes.shape == classes.shape == test.shape or hashes.ndim != 1:
        raise ValueError(f"three arrays of one length, not {hashes.shape}, {classes.shape} and {test.shape}")
    order = np.argsort(hashes, kind="stable")  # stable: equal ones stay in the data's order
    order = order[hashes[order] != 0]
    ends = np.flatnonzero(np.diff(hashes[order])) + 1
    bounds = np.concatenate([[0], ends, [len(order)]])
    large = np.flatnonzero(np.diff(bounds) > 1)
    groups = sorted(order[start:end].tolist() for start, end in zip(bounds[large], bounds[large + 1], strict=True))
    train_parts = [[index for index in group if not test[index]] for group in groups]
    test_parts = [[index for index in group if test[index]] for group in groups]
    return Duplicates(
        groups=groups,
        within_train=[part for part in train_parts if len(part) > 1],
        within_test=[part for part in test_parts if len(part) > 1],
        across=[group for group, a, b in zip(groups, train_parts, test_parts, strict=True) if a and b],
        conflicting=[group for group in groups if len(set(classes[group].tolist())) > 1],
        labels=classes,
        is_test=test,
    )


def duplicate_notes(
    duplicates: Duplicates,
    paths: Paths,
    class_names: Sequence[str],
    what: str = "image",
    alike: str = "pixel by pixel",
) -> tuple[str, ...]:
    """Return a sentence for each kind of duplicates that there is, worst first, with a count and one example.

    Args:
        duplicates: what :func:`find_duplicates` found.
        paths: paths by position.
        class_names: one a class, in label order.
        what: each of them is.
        alike: in which way they are equal.
    """
    notes = []
    labels, is_test = duplicates.labels, duplicates.is_test
    if duplicates.across:
        count = sum(int(is_test[group].sum()) for group in duplicates.across)
        group = duplicates.across[0]
        test = next(index for index in group if is_test[index])
        train = next(index for index in group if not is_test[index])
        notes.append(
            f"{count} test {what}{' is' if count == 1 else 's are'} also in the training set (first: "
            f"{paths[test]} = {paths[train]}): {'its' if count == 1 else 'their'} figures flatter the model."
        )
    if duplicates.conflicting:
        count = len(duplicates.conflicting)
        group = duplicates.conflicting[0]
        other = next(index for index in group if labels[index] != labels[group[0]])
        pair = (f"{paths[index]} as {class_names[labels[index]]}" for index in (group[0], other))
        notes.append(
            f"{count} {what}{' is' if count == 1 else 's are'} there under more than one class (first: "
            f"{' = '.join(pair)}): no model can be right about {'it' if count == 1 else 'them'} every time."
        )
    for kind, parts, consequence in (
        ("training", duplicates.within_train, "each is learned from more than once"),
        ("test", duplicates.within_test, "each counts more than once in every figure"),
    ):
        if parts:
            count, (first, second, *_) = sum(len(part) - 1 for part in parts), parts[0]
            notes.append(
                f"{count} {kind} {what}{' repeats another' if count == 1 else 's repeat others'} {alike} "
                f"(first: {paths[first]} = {paths[second]}): {consequence}."
            )
    return tuple(notes)
