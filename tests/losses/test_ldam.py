"""LDAM against loops, its margins against the formula, and its limit, cross entropy of scaled cosines."""

import doctest
import math

import pytest
import torch
import torch.nn.functional as F

from longtail.losses import LDAMLoss, ldam
from longtail.models import CosineHead


def cosines(size=7, classes=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(size, classes, generator=generator, dtype=dtype) * 2 - 1
    return values, torch.randint(0, classes, (size,), generator=generator)


def slow_loss(values, labels, counts, max_margin, scale):
    """One sample at a time: the margin is taken off the cosine of the label, then all are scaled."""
    smallest, total = min(n for n in counts if n), 0.0
    for row, label in zip(values.tolist(), labels.tolist(), strict=True):
        row[label] -= max_margin * (smallest / counts[label]) ** 0.25
        total -= scale * row[label] - math.log(math.fsum(math.exp(scale * value) for value in row))
    return total / len(labels)


@pytest.mark.parametrize("counts", [[100, 20, 3, 1], [5, 5, 5, 5], [81, 0, 16, 1]])
@pytest.mark.parametrize(("max_margin", "scale"), [(0.5, 30.0), (0.2, 10.0), (0.0, 30.0)])
def test_agrees_with_loops(counts, max_margin, scale):
    values, labels = cosines()
    labels = torch.where(torch.tensor(counts)[labels] > 0, labels, 0)
    logits = (scale * values).requires_grad_()
    loss = LDAMLoss(counts, max_margin, scale)(logits, labels)
    assert loss.item() == pytest.approx(slow_loss(values, labels, counts, max_margin, scale), rel=1e-12)
    loss.backward()
    assert logits.grad.isfinite().all()


def test_margins():
    assert LDAMLoss([256, 0, 16, 1], max_margin=0.4).margins().tolist() == pytest.approx([0.1, 0, 0.2, 0.4])


def test_no_margin_is_cross_entropy_of_scaled_cosines_exactly():
    torch.manual_seed(0)
    head, features, labels = CosineHead(5, 4, scale=7.0), torch.randn(6, 5), cosines(6)[1]
    logits = head(features)
    assert torch.equal(LDAMLoss([9, 3, 2, 1], 0.0, 7.0)(logits, labels), F.cross_entropy(logits, labels))
    cos = F.cosine_similarity(features[:, None], head.weight[None], dim=2)
    expected = slow_loss(cos.detach().double(), labels, [9, 3, 2, 1], 0.3, 7.0)
    assert LDAMLoss([9, 3, 2, 1], 0.3, 7.0)(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_gradcheck():
    values, labels = cosines()
    assert torch.autograd.gradcheck(LDAMLoss([50, 8, 3, 1], 0.5, 3.0), ((3 * values).requires_grad_(), labels))


def test_half_precision_is_computed_in_float32():
    values, labels = cosines(dtype=torch.bfloat16)
    loss = LDAMLoss([50, 8, 3, 1])
    assert torch.equal(loss(values, labels), loss(values.float(), labels))


def test_state_holds_the_counts():
    other = LDAMLoss([1, 1])
    other.load_state_dict(LDAMLoss([16, 1]).state_dict())
    assert other.margins().tolist() == pytest.approx([0.25, 0.5])


@pytest.mark.parametrize(("max_margin", "scale"), [(-0.1, 30.0), (math.nan, 30.0), (0.5, 0.0)])
def test_settings_that_cannot_be_meant(max_margin, scale):
    with pytest.raises(ValueError, match="max_margin"):
        LDAMLoss([2, 1], max_margin, scale)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 1]), r"logits must be \[B, 2\]"),
        (torch.zeros(2, 2), torch.tensor([0]), r"labels must be int64 \[2\]"),
        (torch.zeros(1, 2), torch.tensor([-1]), "labels must lie in"),
        (torch.zeros(1, 2), torch.tensor([1]), "class whose count is 0"),
    ],
)
def test_what_does_not_fit_is_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        LDAMLoss([3, 0])(logits, labels)


def test_docstring_example():
    outcome = doctest.testmod(ldam)
    assert outcome.attempted >= 2
    assert outcome.failed == 0
