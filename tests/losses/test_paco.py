"""PaCo against loops, and against the logit-adjusted cross entropy on its centres."""

import doctest
import math

import pytest
import torch
from contrast_cases import exponential, normalised, unit

from longtail.losses import LogitAdjustedCrossEntropy, PaCoLoss, paco

LABELS = torch.tensor([0, 2, 0, 1])
KEYS = torch.tensor([2, 2, 0, 0, 1, 0])
COUNTS = [50, 8, 3]
NOTHING = torch.zeros(0, 5, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)


def centre_logits(size=4, classes=3, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(size, classes, generator=generator, dtype=torch.float64)


def slow_loss(logits, queries, labels, keys, key_labels, alpha, temperature, counts, strength):
    """One softmax over centres and samples a query, its terms weighted 1 and alpha."""
    total = 0.0
    for i, (query, label) in enumerate(zip(queries, labels.tolist(), strict=True)):
        centres = [math.exp(x) * (n / sum(counts)) ** strength for x, n in zip(logits[i].tolist(), counts, strict=True)]
        samples = [(exponential(query, queries[k], temperature), labels[k]) for k in range(len(queries)) if k != i]
        samples += [(exponential(query, keys[k], temperature), key_labels[k]) for k in range(len(keys))]
        every = sum(centres) + sum(weight for weight, _ in samples)
        positive = [weight for weight, of in samples if of == label]
        value = math.log(centres[label] / every) + alpha * sum(math.log(weight / every) for weight in positive)
        total -= value / (1 + alpha * len(positive))
    return total / len(queries)


@pytest.mark.parametrize("alpha", [0.0, 0.05, 2.0])
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_agrees_with_loops(alpha, strength):
    queries, keys, logits = unit(4), unit(6, seed=1), centre_logits()
    loss = PaCoLoss(COUNTS, alpha, 0.2, strength)(logits, queries, LABELS, keys, KEYS)
    expected = slow_loss(logits, queries, LABELS, keys, KEYS, alpha, 0.2, COUNTS, strength)
    assert loss.item() == pytest.approx(expected, rel=1e-10)


def test_a_masked_key_is_no_key():
    queries, keys, logits = unit(4), unit(6, seed=1), centre_logits()
    mask = torch.tensor([True, False, True, True, False, True])
    criterion = PaCoLoss(COUNTS, 0.5, 0.2)
    masked = criterion(logits, queries, LABELS, keys, KEYS, key_mask=mask)
    torch.testing.assert_close(masked, criterion(logits, queries, LABELS, keys[mask], KEYS[mask]))


def test_gradcheck_through_queries_and_centres():
    def loss(queries, logits):
        return PaCoLoss(COUNTS, 0.5, 0.3)(logits, queries, LABELS, unit(6, seed=1), KEYS)

    assert torch.autograd.gradcheck(normalised(loss), (unit(4).requires_grad_(), centre_logits().requires_grad_()))


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_without_samples_it_is_logit_adjustment_on_the_centres(alpha):
    logits, queries = centre_logits(), unit(4)
    expected = LogitAdjustedCrossEntropy(COUNTS)(logits, LABELS)
    criterion = PaCoLoss(COUNTS, alpha, 0.1)
    alone = [criterion(logits[[i]], queries[[i]], LABELS[[i]], *NOTHING) for i in range(4)]
    torch.testing.assert_close(torch.stack(alone).mean(), expected)


def test_with_alpha_zero_far_samples_leave_logit_adjustment_on_the_centres():
    """Samples then stand in the denominator only, and at a low temperature those at a distance weigh nothing."""
    queries = torch.eye(5, dtype=torch.float64)[:4]
    keys = -queries[[0, 1]]
    logits = 40 + centre_logits()
    loss = PaCoLoss(COUNTS, 0.0, 0.05)(logits, queries, LABELS, keys, LABELS[:2])
    torch.testing.assert_close(loss, LogitAdjustedCrossEntropy(COUNTS)(logits, LABELS))


def test_small_temperatures_half_precision_a_class_of_count_zero():
    queries, keys = unit(4, dtype=torch.bfloat16).requires_grad_(), unit(6, seed=1, dtype=torch.bfloat16)
    logits = centre_logits(classes=4).bfloat16().requires_grad_()
    criterion = PaCoLoss([*COUNTS, 0], 0.05, 0.005)
    loss = criterion(logits, queries, LABELS, keys, KEYS)
    loss.backward()
    assert loss.dtype == torch.float32
    assert queries.grad.isfinite().all()
    assert logits.grad.isfinite().all()
    assert not logits.grad[:, 3].any()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(criterion(logits.float(), queries.float(), LABELS, keys.float(), KEYS), loss)


def test_as_many_classes_as_inaturalist():
    classes, size = 8142, 128
    labels = torch.arange(size) * 63
    queries, keys = unit(size, 16, dtype=torch.float32), unit(4096, 16, seed=1, dtype=torch.float32)
    logits = torch.zeros(size, classes, requires_grad=True)
    loss = PaCoLoss(torch.ones(classes), 0.05, 0.07)(logits, queries, labels, keys, torch.arange(4096) % classes)
    loss.backward()
    assert 0 < loss.item() < 40
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"centre_logits": torch.zeros(4, 2)}, r"centre_logits must be \[4, 3\]"),
        ({"labels": torch.tensor([0, 1, 2, 3])}, r"labels must lie in 0\.\.2"),
        ({"labels": torch.tensor([0, 1, 0, 0]), "counts": [1, 0, 1]}, "class whose count is 0"),
        ({"key_mask": torch.ones(6)}, r"key_mask must be bool \[6\]"),
        ({"key_labels": KEYS[:2]}, r"key_labels must be int64 \[6\]"),
        ({"alpha": -0.1}, "alpha must be 0 or above"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    given = {
        "centre_logits": centre_logits(),
        "queries": unit(4),
        "labels": LABELS,
        "keys": unit(6),
        "key_labels": KEYS,
    }
    given |= changes
    with pytest.raises(ValueError, match=message):
        PaCoLoss(given.pop("counts", COUNTS), given.pop("alpha", 0.05))(**given)


def test_docstring_example():
    outcome = doctest.testmod(paco)
    assert (outcome.attempted, outcome.failed) == (3, 0)
