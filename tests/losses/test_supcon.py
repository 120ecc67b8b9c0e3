"""Supervised contrast against loops, and against GML without a prior."""

import doctest
import math

import pytest
import torch
from contrast_cases import exponential, normalised, unit

from longtail.losses import GMLLoss, SupConLoss, supcon

LABELS = torch.tensor([0, 2, 0, 1, 2, 0, 3])  # 1 and 3 are alone


def slow_loss(queries, labels, keys, key_labels, temperature, log, own=True):
    """Eq. 2 and Eq. 3 of Khosla et al., one query at a time; the mean over those with a positive."""
    losses = []
    for i, (query, label) in enumerate(zip(queries, labels.tolist(), strict=True)):
        every = [k for k in range(len(keys)) if not own or k != i]
        weights = {k: exponential(query, keys[k], temperature) for k in every}
        q = [weights[k] / sum(weights.values()) for k in every if key_labels[k] == label]
        if q:
            inside = sum(-math.log(p) for p in q) / len(q)
            losses.append(inside if log == "inside" else -math.log(sum(q) / len(q)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("log", ["inside", "outside"])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_agrees_with_loops(log, temperature):
    features = unit(7)
    criterion = SupConLoss(temperature, log)
    loss = criterion(features, LABELS)
    assert loss.item() == pytest.approx(slow_loss(features, LABELS, features, LABELS, temperature, log), rel=1e-10)
    assert criterion.counted.item() == 5
    keys, key_labels = unit(9, seed=1), torch.tensor([0, 1, 1, 4, 2, 0, 0, 1, 4])
    apart = criterion(features, LABELS, keys, key_labels)
    expected = slow_loss(features, LABELS, keys, key_labels, temperature, log, own=False)
    assert apart.item() == pytest.approx(expected, rel=1e-10)
    assert criterion.counted.item() == 6  # no key is of class 3


@pytest.mark.parametrize("log", ["inside", "outside"])
def test_gradcheck(log):
    assert torch.autograd.gradcheck(normalised(SupConLoss(0.3, log)), (unit(7).requires_grad_(), LABELS))


def test_by_the_inequality_of_jensen_the_log_inside_is_never_less():
    features = unit(12, seed=3)
    labels = torch.arange(12) % 3
    inside, outside = (SupConLoss(0.2, log)(features, labels).item() for log in ("inside", "outside"))
    assert inside > outside


def test_with_the_log_outside_and_equal_classes_it_is_gml_without_prior_up_to_a_constant():
    """Keys apart from the queries, n = 4 a class: L_SupCon = L_GML + log n, with the same gradient."""
    queries, labels = unit(6).requires_grad_(), torch.tensor([0, 1, 2, 2, 0, 1])
    keys, of_key = unit(12, seed=1).requires_grad_(), torch.arange(3).repeat_interleave(4)
    supervised = SupConLoss(0.2, "outside")(queries, labels, keys, of_key)
    gml = GMLLoss([7, 2, 1], temperature=0.2, prior_strength=0.0)(queries, labels, keys, torch.tensor([0, 4, 8, 12]))
    torch.testing.assert_close(supervised, gml + math.log(4), rtol=1e-10, atol=1e-10)
    gradients = [torch.autograd.grad(loss, (queries, keys)) for loss in (supervised, gml)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)
    unequal = torch.tensor([0] * 6 + [1] * 4 + [2] * 2)
    other = SupConLoss(0.2, "outside")(queries, labels, keys, unequal)
    other_gml = GMLLoss([7, 2, 1], temperature=0.2, prior_strength=0.0)(
        queries, labels, keys, torch.tensor([0, 6, 10, 12])
    )
    difference = torch.autograd.grad(other, queries)[0] - torch.autograd.grad(other_gml, queries)[0]
    assert difference.abs().max() > 1e-3  # the sum over all keys weighs classes by their size; the class means do not


@pytest.mark.parametrize("log", ["inside", "outside"])
def test_single_keys(log):
    """One key, of the label: all the probability is on it. One query alone: it has nothing, and does not count."""
    queries = unit(3).requires_grad_()
    loss = SupConLoss(0.1, log)(queries, torch.tensor([0, 0, 1]), unit(1, seed=1), torch.tensor([0]))
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    criterion = SupConLoss(0.1, log)
    alone = criterion(queries[:1], torch.tensor([0]))
    alone.backward()
    assert (alone.item(), criterion.counted.item()) == (0.0, 0)
    assert not queries.grad.any()


@pytest.mark.parametrize("log", ["inside", "outside"])
def test_a_class_alone_in_the_batch_adds_nothing_but_contrast(log):
    features = unit(7).requires_grad_()
    criterion = SupConLoss(0.005, log)
    criterion(features, LABELS).backward()
    assert features.grad.isfinite().all()
    assert criterion.counted.item() == 5
    nobody = criterion(features, torch.arange(7))
    assert nobody.item() == 0.0
    assert not torch.autograd.grad(nobody, features)[0].any()


@pytest.mark.parametrize("log", ["inside", "outside"])
def test_half_precision_and_autocast_are_computed_in_float32(log):
    features = unit(7, dtype=torch.bfloat16).requires_grad_()
    criterion = SupConLoss(0.005, log)
    loss = criterion(features, LABELS)
    loss.backward()
    assert features.grad.isfinite().all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(criterion(features.float(), LABELS), loss)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2), torch.tensor([0, 1])), r"queries must be floating point \[B, D\]"),
        ((torch.zeros(2, 3), torch.tensor([0])), r"labels must be int64 \[2\]"),
        ((torch.zeros(2, 3), torch.tensor([0, 1]), torch.zeros(4, 3)), "given together"),
        ((torch.zeros(2, 3), torch.tensor([0, 1]), torch.zeros(4, 2), torch.zeros(4).long()), r"keys must be \[K, 3\]"),
        ((torch.zeros(2, 3), torch.tensor([0, 1]), torch.zeros(4, 3), torch.zeros(4)), r"key_labels must be int64"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SupConLoss()(*arguments)


def test_a_log_that_stands_nowhere_is_refused():
    with pytest.raises(ValueError, match="inside"):
        SupConLoss(log="beside")


def test_docstring_example():
    outcome = doctest.testmod(supcon)
    assert (outcome.attempted, outcome.failed) == (3, 0)
