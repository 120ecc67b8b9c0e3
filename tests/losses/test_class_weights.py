"""Class weights against their formulas in exact fractions, their limits, and what they do to each loss."""

import doctest
import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F

from longtail.losses import FocalLoss, LDAMLoss, LogitAdjustedCrossEntropy, balancing_weights, class_weights


def exact(counts, weigh):
    """Weights in fractions, scaled to the mean 1 over the classes that have samples."""
    raw = [weigh(n) if n else Fraction(0) for n in counts]
    scale = sum(n > 0 for n in counts) / sum(raw)
    return [float(weight * scale) for weight in raw]


@pytest.mark.parametrize("counts", [[500, 40, 7, 1], [3, 0, 2, 0], [5, 5, 5], [1]])
def test_inverse_frequency_and_effective_number(counts):
    expected = exact(counts, lambda n: Fraction(1, n))
    assert balancing_weights(counts, "inverse").tolist() == pytest.approx(expected, rel=1e-14)
    for beta in (0.5, 0.9, 0.9999):
        b = Fraction(beta)
        expected = exact(counts, lambda n, b=b: (1 - b) / (1 - b**n))
        assert balancing_weights(counts, "effective", beta).tolist() == pytest.approx(expected, rel=1e-12)


def test_limits_of_the_effective_number():
    counts = torch.tensor([100_000, 400, 0, 3, 1])
    assert balancing_weights(counts, "effective", 0.0).tolist() == [1, 1, 0, 1, 1]
    torch.testing.assert_close(
        balancing_weights(counts, "effective", 1 - 2.0**-50),
        balancing_weights(counts, "inverse"),
        rtol=1e-9,
        atol=0,
    )
    weights = balancing_weights(counts, "effective", 0.99)
    assert weights.diff()[[0, 3]].gt(0).all()  # between the two: the rarer, the more


@pytest.mark.parametrize(
    ("kind", "beta", "message"),
    [("effective", 1.0, "below 1"), ("effective", -0.1, "at least 0"), ("none", 0.5, "'inverse' or 'effective'")],
)
def test_what_is_no_weighting_is_refused(kind, beta, message):
    with pytest.raises(ValueError, match=message):
        balancing_weights([3, 1], kind, beta)
    with pytest.raises(ValueError, match="not negative"):
        balancing_weights([3, -1], "inverse")


COUNTS = [40, 9, 3, 1]
LOSSES = {
    "cross_entropy": lambda weights: LogitAdjustedCrossEntropy(COUNTS, 0.0, weights),
    "logit_adjusted": lambda weights: LogitAdjustedCrossEntropy(COUNTS, 1.0, weights),
    "focal": lambda weights: FocalLoss(2.0, weights),
    "focal_0": lambda weights: FocalLoss(0.0, weights),
    "ldam": lambda weights: LDAMLoss(COUNTS, 0.5, 2.0, weights),
}


def batch(size=9, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(size, 4, generator=generator, dtype=dtype)
    return logits, torch.randint(0, 4, (size,), generator=generator)


@pytest.mark.parametrize("name", LOSSES)
def test_weights_make_the_weighted_mean_of_the_single_losses(name):
    logits, labels = batch()
    weights = balancing_weights(COUNTS, "effective", 0.9)
    single = LOSSES[name](None)
    values = [float(single(logits[[i]], labels[[i]])) for i in range(len(labels))]
    own = [float(weights[label]) for label in labels]
    expected = math.fsum(w * v for w, v in zip(own, values, strict=True)) / math.fsum(own)
    assert LOSSES[name](weights)(logits, labels).item() == pytest.approx(expected, rel=1e-12)
    # All alike is no weighting, and only their ratios count.
    plain = single(logits, labels)
    torch.testing.assert_close(LOSSES[name](torch.full((4,), 7.0))(logits, labels), plain, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_weights_change_in_place_and_lie_in_the_state(name):
    logits, labels = batch()
    weights = balancing_weights(COUNTS, "inverse")
    loss = LOSSES[name](torch.ones(4, dtype=torch.float64))
    before = loss(logits, labels)
    loss.class_weights.copy_(weights)
    assert loss(logits, labels) != before
    assert torch.equal(loss(logits, labels), LOSSES[name](weights)(logits, labels))
    assert torch.equal(loss.state_dict()["class_weights"], weights)
    assert "class_weights" not in LOSSES[name](None).state_dict()
    weights.zero_()  # the loss has its own copy
    assert LOSSES[name](torch.ones(4, dtype=torch.float64))(logits, labels) == before


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck_with_weights(name):
    logits, labels = batch()
    loss = LOSSES[name](balancing_weights(COUNTS, "inverse"))
    assert torch.autograd.gradcheck(loss, (logits.requires_grad_(), labels))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(3), r"\[4\]|\[B, 3\]"),
        (torch.ones(4, dtype=torch.int64), "must be floats"),
        (torch.tensor([1.0, -1, 1, 1]), "not negative"),
        (torch.tensor([1.0, math.nan, 1, 1]), "finite"),
        (torch.zeros(4), "all zero"),
    ],
)
def test_what_are_no_weights_is_refused(name, weights, message):
    logits, labels = batch()
    with pytest.raises(ValueError, match=message):
        LOSSES[name](weights)(logits, labels)


@pytest.mark.parametrize("name", LOSSES)
def test_under_autocast_and_in_half_precision_it_is_computed_in_float32(name):
    logits, labels = batch(dtype=torch.bfloat16)
    loss = LOSSES[name](balancing_weights(COUNTS, "inverse").float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(logits, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(logits.float(), labels))
    exact_value = loss(logits.double(), labels)
    torch.testing.assert_close(value.double(), exact_value, rtol=1e-6, atol=0)


def test_a_weighted_count_of_zero_drops_out():
    """A class without samples: no weight, no share of the softmax with a prior, and no NaN."""
    counts, labels = [5, 0, 2], torch.tensor([0, 2, 2])
    logits = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = LogitAdjustedCrossEntropy(counts, 1.0, balancing_weights(counts, "inverse"))(logits, labels)
    kept = logits.detach()[:, [0, 2]] + torch.tensor([5.0, 2.0]).log()
    expected = F.cross_entropy(kept, labels // 2, torch.tensor([1 / 5, 1 / 2], dtype=torch.float64))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert logits.grad.isfinite().all()


def test_docstring_example():
    outcome = doctest.testmod(class_weights)
    assert outcome.attempted >= 1
    assert outcome.failed == 0
