"""Balanced contrast against loops, and against cross entropy on the cosines with the prototypes."""

import doctest
import math

import pytest
import torch
import torch.nn.functional as F
from contrast_cases import exponential, normalised, unit

from longtail.losses import BalancedContrastiveLoss, balanced_contrastive

LABELS = torch.tensor([0, 2, 0, 1, 2, 0])
COUNTS = [50, 8, 3, 1]


def slow_loss(queries, labels, prototypes, keys, key_labels, temperature, counts, own):
    """The mean over each class's keys and prototype, one query and one class at a time; own: drop key i of query i."""
    total = 0.0
    for i, (query, label) in enumerate(zip(queries, labels.tolist(), strict=True)):
        denominator, members = 0.0, {}
        for c, count in enumerate(counts):
            inside = [keys[k] for k in range(len(keys)) if key_labels[k] == c and not (own and k == i)]
            members[c] = [exponential(query, key, temperature) for key in [*inside, prototypes[c]]]
            denominator += sum(members[c]) / len(members[c]) if count else 0.0
        total -= sum(math.log(weight / denominator) for weight in members[label]) / len(members[label])
    return total / len(queries)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("counts", [COUNTS, [50, 8, 3, 0]])
def test_agrees_with_loops(temperature, counts):
    queries, prototypes = unit(6), unit(4, seed=2)
    criterion = BalancedContrastiveLoss(counts, temperature)
    loss = criterion(queries, LABELS, prototypes)
    expected = slow_loss(queries, LABELS, prototypes, queries, LABELS, temperature, counts, own=True)
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    keys, of_key = unit(5, seed=1), torch.tensor([0, 0, 0, 1, 0])
    loss = criterion(queries, LABELS, prototypes, keys, of_key)
    expected = slow_loss(queries, LABELS, prototypes, keys, of_key, temperature, counts, own=False)
    assert loss.item() == pytest.approx(expected, rel=1e-10)


def test_gradcheck_through_queries_and_prototypes():
    def loss(queries, prototypes):
        prototypes = F.normalize(prototypes, dim=1)
        return BalancedContrastiveLoss(COUNTS, 0.3)(queries, LABELS, prototypes)

    inputs = unit(6).requires_grad_(), unit(4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(normalised(loss), inputs)


def test_with_prototypes_only_it_is_cross_entropy_on_their_cosines():
    queries, prototypes = unit(6), unit(4, seed=2)
    expected = F.cross_entropy(queries @ prototypes.t() / 0.1, LABELS)
    criterion = BalancedContrastiveLoss(COUNTS, 0.1)
    nothing = torch.zeros(0, 5, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    torch.testing.assert_close(criterion(queries, LABELS, prototypes, *nothing), expected)
    alone = torch.stack([criterion(queries[[i]], LABELS[[i]], prototypes) for i in range(6)]).mean()
    torch.testing.assert_close(alone, expected)


def test_repeating_all_keys_of_a_class_changes_nothing_for_the_others():
    """Class-averaging: how many keys a class has does not matter to a query of another class."""
    query, prototypes = unit(1), unit(2, seed=2)
    key = prototypes[1:]  # as the prototype, so that the class's mean stays
    criterion = BalancedContrastiveLoss([5, 5], 0.2)
    losses = [
        criterion(query, torch.tensor([0]), prototypes, key.expand(n, 5), torch.ones(n, dtype=torch.int64))
        for n in (1, 2, 7)
    ]
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[2])


def test_small_temperatures_half_precision_and_autocast():
    queries, prototypes = unit(6, dtype=torch.bfloat16).requires_grad_(), unit(4, seed=2, dtype=torch.bfloat16)
    criterion = BalancedContrastiveLoss([50, 8, 3, 0], 0.005)
    loss = criterion(queries, LABELS, prototypes)
    loss.backward()
    assert queries.grad.isfinite().all()
    assert loss.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(criterion(queries.float(), LABELS, prototypes.float()), loss)


def test_as_many_classes_as_inaturalist():
    """No tensor of queries x keys x classes: B K C would be 16 GiB here."""
    classes, size = 8142, 256
    labels = torch.arange(size) * 31
    features, prototypes = unit(2 * size, 16, dtype=torch.float32), unit(classes, 16, seed=1, dtype=torch.float32)
    loss = BalancedContrastiveLoss(torch.ones(classes), 0.07)(features, labels.repeat(2), prototypes.requires_grad_())
    loss.backward()
    assert 0 < loss.item() < 30
    assert prototypes.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(1, 3), torch.tensor([4]), torch.zeros(4, 3)), r"labels must lie in 0\.\.3"),
        ((torch.zeros(1, 3), torch.tensor([3]), torch.zeros(4, 3)), "class whose count is 0"),
        ((torch.zeros(1, 3), torch.tensor([0]), torch.zeros(3, 3)), r"prototypes must be \[4, 3\]"),
        ((torch.zeros(1, 3), torch.tensor([0]), torch.zeros(4, 3), torch.zeros(1, 3)), "given together"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BalancedContrastiveLoss([5, 2, 1, 0])(*arguments)


def test_docstring_example():
    outcome = doctest.testmod(balanced_contrastive)
    assert (outcome.attempted, outcome.failed) == (2, 0)
