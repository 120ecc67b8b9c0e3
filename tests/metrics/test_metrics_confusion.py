"""Confusions against a plain count in Python and scikit-learn's matrix."""

from collections import Counter

import pytest
import torch
from sklearn.metrics import confusion_matrix

from longtail.metrics import GROUPS, called_one_class, confused_pairs, group_confusion
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


@pytest.mark.parametrize(
    ("predictions", "labels", "found"),
    [
        ("aaaaaaaaaa", "aaaaabbbcc", ("a", 10, 5, 5)),  # every image
        ("a" * 18 + "bc", "b" * 10 + "c" * 10, ("a", 18, 20, 18)),  # nine in ten
        ("a" * 17 + "bcc", "b" * 10 + "c" * 10, None),
        ("a" * 19 + "bc", "a" + "b" * 10 + "c" * 10, ("a", 19, 20, 18)),
        ("a" * 95 + "bbbbc", "a" * 95 + "bbbbc", None),  # all right, though nearly all are a
        ("a" * 100, "a" * 95 + "bbbbc", ("a", 100, 5, 5)),  # 95 % right, and nothing learned
        ("aaa", "aaa", None),  # one class was tested
    ],
)
def test_a_model_that_calls_everything_one_class(predictions, labels, found):
    guessed, true = (torch.tensor(["abc".index(sign) for sign in signs]) for signs in (predictions, labels))
    names = ("class", "called", "others", "others_called")
    expected = found and dict(zip(names, ("abc".index(found[0]), *found[1:]), strict=True))
    # Counted once more, one image at a time.
    top = Counter(predictions).most_common(1)[0][0]
    others = [p for p, t in zip(predictions, labels, strict=True) if t != top]
    assert (found is not None) == (bool(others) and others.count(top) >= 0.9 * len(others))
    assert called_one_class(guessed, true, 3) == expected
