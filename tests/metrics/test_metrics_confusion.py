"""Confusions against a plain count in Python and scikit-learn's matrix."""

from collections import Counter

import pytest
import torch
from sklearn.metrics import confusion_matrix

from longtail.metrics import GROUPS, confused_pairs, group_confusion
from longtail.metrics.confusion import pair_counts


def drawn(images, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (images,), generator=generator)
    predictions = torch.where(
        torch.rand(images, generator=generator) < 0.4,
        labels,
        torch.randint(0, classes, (images,), generator=generator),
    )
    return predictions, labels


@pytest.mark.parametrize(("images", "classes"), [(2, 2), (7, 3), (400, 12), (60, 200)])
def test_pairs_are_the_matrix_off_its_diagonal(images, classes):
    predictions, labels = drawn(images, classes)
    matrix = confusion_matrix(labels, predictions, labels=range(classes))
    true, predicted, counts = pair_counts(predictions, labels, classes)
    found = torch.zeros(classes, classes, dtype=torch.int64)
    found[true, predicted] = counts
    assert (found.numpy() + torch.diag(torch.from_numpy(matrix.diagonal().copy())).numpy() == matrix).all()
    pairs = confused_pairs(predictions, labels, classes, most=5)
    expected = sorted(counts.tolist(), reverse=True)[:5]
    assert [pair["count"] for pair in pairs] == expected
    for pair in pairs:
        assert pair["count"] == matrix[pair["true"], pair["predicted"]]
        assert pair["of"] == matrix[pair["true"]].sum()
        assert pair["true"] != pair["predicted"]


def test_of_equal_counts_the_largest_share_comes_first():
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    predictions = torch.tensor([1, 0, 0, 2, 0, 2])
    assert [(pair["true"], pair["of"]) for pair in confused_pairs(predictions, labels, 3)] == [(1, 1), (2, 2), (0, 3)]


def test_groups_against_a_plain_count():
    counts = torch.tensor([500, 101, 100, 20, 19, 1, 0])
    group = ["many", "many", "medium", "medium", "few", "few", "few"]
    predictions, labels = drawn(300, 7, seed=1)
    plain = Counter(
        (group[t], "right" if t == p else group[p]) for t, p in zip(labels.tolist(), predictions.tolist(), strict=True)
    )
    table = group_confusion(predictions, labels, counts)
    assert list(table) == list(GROUPS)
    for true, row in table.items():
        for kind in ("right", *GROUPS):
            assert row[kind] == plain[true, kind], (true, kind)
        assert row["images"] == sum(group[label] == true for label in labels.tolist())
    moved = group_confusion(predictions, labels, counts, edges=(1000, 600))
    assert moved["few"]["images"] == 300
    assert moved["many"] == {"images": 0, "right": 0, "many": 0, "medium": 0, "few": 0}
