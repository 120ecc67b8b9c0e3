"""Confident learning against the counts of Northcutt et al. made one image at a time."""

import numpy as np
import pytest
import torch

from longtail.metrics.label_errors import label_errors


def slow(logits, labels):
    """Suspects and expected errors, image by image, with the C x C count of the paper."""
    classes = len(logits[0])
    shares = [[float(np.exp(v - max(row)) / np.exp(np.array(row) - max(row)).sum()) for v in row] for row in logits]
    thresholds = []
    for c in range(classes):
        own = [share[c] for share, label in zip(shares, labels, strict=True) if label == c]
        thresholds.append(max(sum(own) / len(own), 1 / classes) if own else None)
    count = [[0] * classes for _ in range(classes)]
    suspects = []
    for share, label in zip(shares, labels, strict=True):
        above = [c for c in range(classes) if thresholds[c] is not None and share[c] >= thresholds[c]]
        if above:
            meant = max(above, key=lambda c: share[c])
            count[label][meant] += 1
        suspects.append(bool(above) and meant != label)
    expected = []
    for c in range(classes):
        images = sum(label == c for label in labels)
        off = sum(count[c]) - count[c][c]
        expected.append(images * off / sum(count[c]) if sum(count[c]) else 0.0)
    return suspects, expected


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_the_paper(seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 6, (150,), generator=generator)
    labels[labels == 5] = 0  # a class without an image
    logits = torch.randn(150, 6, generator=generator)
    logits[torch.arange(150), labels] += 1.5
    found = label_errors(logits, labels)
    suspects, expected = slow(logits.double().tolist(), labels.tolist())
    assert found.suspect.tolist() == suspects
    assert 3 < sum(suspects) < 100
    np.testing.assert_allclose(found.expected, expected, rtol=1e-12)


def test_wrong_labels_come_first():
    """Clear predictions, a few labels turned: those are found, in the order of how sure the model is, and no others."""
    generator = torch.Generator().manual_seed(0)
    true = torch.tensor([0] * 60 + [1] * 20 + [2] * 6)
    logits = 0.3 * torch.randn(86, 3, generator=generator)
    logits[torch.arange(86), true] += 4.0
    labels = true.clone()
    turned = [3, 17, 65, 82]
    logits[turned, true[turned]] += torch.tensor([2.0, 3.0, 4.0, 5.0])
    labels[turned] = (true[turned] + 1) % 3
    found = label_errors(logits, labels)
    assert found.suspect.nonzero().squeeze(1).tolist() == turned
    assert found.likelier[turned].tolist() == true[turned].tolist()
    shares = logits.double().softmax(1)
    margin = shares[turned, labels[turned]] - shares[turned, true[turned]]
    np.testing.assert_allclose(found.margin[turned], margin)
    by_class = found.first(labels)
    assert len(by_class) == logits.shape[1]
    assert sum(map(len, by_class)) == int(found.suspect.sum())
    first = by_class[1].tolist()
    assert sorted(first) == [3, 17]
    assert found.margin[first[0]] <= found.margin[first[1]]


def test_a_rare_class_with_low_probabilities_is_not_suspect():
    """All of a rare class's images get 0.3 for it and 0.6 for another: that is the model's doubt, not a wrong label."""
    likely = torch.tensor([[0.9, 0.1]] * 40 + [[0.6, 0.4]] * 5).log()
    found = label_errors(likely, torch.tensor([0] * 40 + [1] * 5))
    assert not found.suspect.any()
    assert found.expected.tolist() == [0.0, 0.0]


def test_a_class_that_is_never_named_makes_no_suspects():
    """Its mean probability is next to nothing, which other images reach too: that says nothing of their labels."""
    likely = torch.tensor([[0.5, 0.5 - 1e-12, 1e-12]] * 30 + [[0.5, 0.5, 1e-13]] * 2).double().log()
    found = label_errors(likely, torch.tensor([0] * 15 + [1] * 15 + [2] * 2))
    assert not (found.likelier[found.suspect] == 2).any()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="rows of logits"):
        label_errors(torch.zeros(3, 2), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="not finite"):
        label_errors(torch.tensor([[0.0, float("nan")]]), torch.tensor([0]))
