"""ProCo against scipy, samples of its distributions, closed forms and its two limits."""

import doctest
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contrast_cases import normalised, unit
from scipy import special

from longtail.losses import GMLLoss, LogitAdjustedCrossEntropy, ProCoLoss, proco
from longtail.losses.proco import log_density

COUNTS = [50, 8, 3]
LABELS = torch.tensor([0, 2, 0, 1])


def slow_density(z, direction, k, temperature):
    """log C(|k m + z / t|) / C(k), C(k) = I_v(k) / k^v up to a constant, by scipy."""
    order = len(z) / 2 - 1
    shifted = float(np.linalg.norm(k * direction + z / temperature))

    def log_c(x):
        return math.log(special.ive(order, x)) + x - order * math.log(x)

    return log_c(shifted) - log_c(k)


@pytest.mark.parametrize("dim", [2, 3, 16, 33, 64])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_loss_agrees_with_loops(dim, temperature):
    queries, directions = unit(4, dim), unit(3, dim, seed=1)
    concentrations = torch.tensor([3.0, 40.0, 900.0], dtype=torch.float64)
    total = 0.0
    for query, label in zip(queries.numpy(), LABELS.tolist(), strict=True):
        scores = [
            n / sum(COUNTS) * math.exp(slow_density(query, m, k, temperature))
            for n, m, k in zip(COUNTS, directions.numpy(), concentrations.tolist(), strict=True)
        ]
        total -= math.log(scores[label] / sum(scores))
    loss = ProCoLoss(COUNTS, temperature)(queries, LABELS, directions, concentrations)
    assert loss.item() == pytest.approx(total / 4, rel=1e-9)


@pytest.mark.parametrize("dim", [3, 16, 40])
def test_gradcheck(dim):
    def loss(queries, directions, concentrations):
        return ProCoLoss(COUNTS, 0.2)(queries, LABELS, F.normalize(directions, dim=1), concentrations)

    k = torch.tensor([3.0, 40.0, 300.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(normalised(loss), (unit(4, dim).requires_grad_(), unit(3, dim, 1), k))


def test_in_three_dimensions_it_is_a_ratio_of_hyperbolic_sines():
    z, m, k, t = unit(1, 3), unit(1, 3, seed=1), 5.0, 0.5
    shifted = torch.linalg.vector_norm(k * m + z / t).item()
    expected = math.log(math.sinh(shifted) / shifted * k / math.sinh(k))
    assert log_density(z, m, torch.tensor([k], dtype=torch.float64), t).item() == pytest.approx(expected, rel=1e-9)


def vmf_samples(direction, k, number, generator):
    """Exact draws of a vMF in three dimensions: the cosine by its inverse distribution, the angle uniform."""
    u, angle = torch.rand(2, number, generator=generator, dtype=torch.float64)
    w = 1 + torch.log(u + (1 - u) * math.exp(-2 * k)) / k
    first = F.normalize(torch.linalg.cross(direction, torch.eye(3, dtype=torch.float64)[0]), dim=0)
    second = torch.linalg.cross(direction, first)
    around = first * torch.cos(2 * math.pi * angle)[:, None] + second * torch.sin(2 * math.pi * angle)[:, None]
    return w[:, None] * direction + (1 - w * w).sqrt()[:, None] * around


def test_it_is_gml_with_infinitely_many_keys_of_each_class():
    """GML's class density over 200,000 samples of each distribution comes to the same loss."""
    generator, number = torch.Generator().manual_seed(0), 200_000
    queries, directions, k = unit(4, 3), unit(3, 3, seed=1), [2.0, 10.0, 60.0]
    keys = torch.cat([vmf_samples(m, c, number, generator) for m, c in zip(directions, k, strict=True)])
    sampled = GMLLoss(COUNTS, temperature=0.5)(queries, LABELS, keys, number * torch.arange(4))
    closed = ProCoLoss(COUNTS, 0.5)(queries, LABELS, directions, torch.tensor(k, dtype=torch.float64))
    assert closed.item() == pytest.approx(sampled.item(), abs=5e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_high_concentration_is_logit_adjustment_on_the_cosines(dtype):
    queries, directions = unit(4, 16, dtype=dtype), unit(3, 16, seed=1, dtype=dtype)
    expected = LogitAdjustedCrossEntropy(COUNTS)(queries @ directions.t() / 0.1, LABELS)
    k = 1e5 if dtype == torch.float32 else 1e9
    loss = ProCoLoss(COUNTS, 0.1)(queries, LABELS, directions, torch.full((3,), k, dtype=dtype))
    torch.testing.assert_close(loss, expected, rtol=0, atol=0.01 if dtype == torch.float32 else 1e-6)


def test_no_concentration_tells_no_class_from_another():
    directions = unit(3, 16, seed=1)
    loss = ProCoLoss(COUNTS, 0.1)(unit(4, 16), LABELS, directions, torch.zeros(3, dtype=torch.float64))
    prior = torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)
    torch.testing.assert_close(loss, -prior.log()[LABELS].mean())


@pytest.mark.parametrize("dim", [2, 32, 128, 1024])
@pytest.mark.parametrize("temperature", [0.005, 0.1])
def test_single_precision_stays_near_double(dim, temperature):
    """From no concentration to the highest, and with a query opposite a mean direction."""
    k = torch.tensor([0.0, 1.0, 1 / temperature, 1e3, 1e5])
    directions = unit(5, dim, seed=1, dtype=torch.float32)
    queries = torch.cat([unit(4, dim, dtype=torch.float32), -directions]).requires_grad_()
    single = log_density(queries, directions, k, temperature)
    single.sum().backward()
    double = log_density(queries.detach().double(), directions.double(), k.double(), temperature)
    torch.testing.assert_close(single.detach().double(), double, rtol=1e-4, atol=2e-3)
    assert queries.grad.isfinite().all()


def test_half_precision_and_autocast_are_computed_in_float32():
    queries = unit(4, 16, dtype=torch.bfloat16).requires_grad_()
    rest = LABELS, unit(3, 16, seed=1, dtype=torch.float32), torch.tensor([1.0, 50.0, 1e5])
    criterion = ProCoLoss(COUNTS, 0.005)
    loss = criterion(queries, *rest)
    loss.backward()
    assert loss.dtype == torch.float32
    assert queries.grad.isfinite().all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(criterion(queries.float(), *rest), loss)


def test_an_unknown_class_drops_out_and_its_samples_do_not_count():
    queries, k = unit(4, 8).requires_grad_(), torch.tensor([5.0, 0.0, 20.0, 0.0], dtype=torch.float64)
    directions = unit(4, 8, seed=1) * torch.tensor([1.0, 0.0, 1.0, 0.0])[:, None]
    criterion = ProCoLoss([*COUNTS, 0], 0.1)
    loss = criterion(queries, LABELS, directions, k, torch.tensor([True, False, True, False]))
    assert criterion.counted.item() == 3
    without = ProCoLoss([50, 3], 0.1)(queries[:3], torch.tensor([0, 1, 0]), directions[[0, 2]], k[[0, 2]])
    torch.testing.assert_close(loss, without)
    loss.backward()
    assert queries.grad.isfinite().all()
    assert not queries.grad[3].any()
    nobody = criterion(queries, LABELS, directions, k, torch.zeros(4, dtype=torch.bool))
    assert (nobody.item(), criterion.counted.item()) == (0.0, 0)


def test_as_many_classes_as_inaturalist():
    classes, size = 8142, 64
    queries = unit(size, 64, dtype=torch.float32).requires_grad_()
    rest = torch.arange(size) * 127, unit(classes, 64, seed=1, dtype=torch.float32), torch.full((classes,), 80.0)
    loss = ProCoLoss(torch.ones(classes), 0.07)(queries, *rest)
    loss.backward()
    assert 0 < loss.item() < 40
    assert queries.grad.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"directions": torch.zeros(2, 4)}, r"directions must be \[B, D\] and \[3, D\]"),
        ({"queries": torch.zeros(4, 1), "directions": torch.zeros(3, 1)}, "D >= 2"),
        ({"concentrations": torch.zeros(2)}, r"concentrations must be \[3\]"),
        ({"known": torch.ones(3)}, r"known must be bool \[3\]"),
        ({"labels": torch.tensor([0, 1, 2, 3])}, r"labels must lie in 0\.\.2"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    given = {"queries": unit(4, 4), "labels": LABELS, "directions": unit(3, 4), "concentrations": torch.ones(3)}
    with pytest.raises(ValueError, match=message):
        ProCoLoss(COUNTS)(**(given | changes))


def test_docstring_example():
    outcome = doctest.testmod(proco)
    assert (outcome.attempted, outcome.failed) == (3, 0)
