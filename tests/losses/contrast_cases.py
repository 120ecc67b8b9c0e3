"""Unit vectors and labels that the tests of the contrastive losses compare on."""

import torch
import torch.nn.functional as F


def unit(rows, dim=5, seed=0, dtype=torch.float64):
    """Random unit vectors ``[rows, dim]``."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=dtype), dim=1)


def exponential(a, b, temperature):
    """exp(a . b / temperature) of two lists, in Python floats."""
    return 2.718281828459045 ** (sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True)) / temperature)


def normalised(function):
    """Let gradcheck move its first argument freely: what the loss sees stays on the sphere."""
    return lambda raw, *rest: function(F.normalize(raw, dim=1), *rest)
