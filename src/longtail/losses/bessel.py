"""Logarithms of modified Bessel functions of the first kind, of any order and argument, with their derivative.

I_v underflows, overflows and has no gradient in torch. Here it is expanded at an order of at least 16, where a few
terms of Olver's uniform expansion (DLMF 10.41) are exact to about 1e-10 at every argument, and carried down to the
order that is asked for by the recurrence that is stable in that direction (DLMF 10.29.1, as Miller's algorithm).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_FROM_ORDER = 16
"""Least order of the expansion. Each order below it costs one step of the recurrence."""
_TERMS = 7


def log_bessel(order: float, x: Tensor) -> Tensor:
    """Return ``log( Gamma(v + 1) (2 / x)^v I_v(x) ) - x`` for v = ``order``: 0 at x = 0, and finite everywhere.

    The factor is 1 over the first term of the power series, so that nothing large is left that cancels where two
    arguments are compared; x is taken off because I_v grows like exp(x). The derivative is ``I_{v+1}(x) / I_v(x) - 1``,
    computed as such and not through the expansion; there is no second one.

    Args:
        order: v, 0 or above.
        x: 0 or above, floating point, any shape.

    Returns:
        as ``x``, float32 for inputs of half precision.

    Raises:
        ValueError: the order is negative.

    Example:
        >>> log_bessel(0.5, torch.tensor(1.0))  # log(sinh(1) / 1) - 1
        tensor(-0.8386)
    """
    if order < 0:
        raise ValueError(f"order must be 0 or above, got {order}.")
    value: Tensor = _LogBessel.apply(order, x.to(torch.promote_types(x.dtype, torch.float32)))
    return value


def bessel_ratio(order: float, x: Tensor) -> Tensor:
    """Return ``I_{v+1}(x) / I_v(x)`` for v = ``order``, the length of the mean of vMF(x) in 2v + 2 dimensions."""
    return _value_and_ratio(order, x)[1]


def _value_and_ratio(order: float, x: Tensor) -> tuple[Tensor, Tensor]:
    # One step of the recurrence at least: it is what makes the ratio exact at small x.
    steps = max(1, round(_FROM_ORDER - order))
    top = order + steps
    z = x / top
    root = torch.sqrt(1 + z * z)
    t = 1 / root
    u, v = _polynomials(t, top)
    # log of the leading term over its value at x = 0, less x; root - 1 is written so that it keeps its digits.
    above = z * z / (1 + root)
    value = -top * ((above + z) / (root + z) + torch.log1p(above / 2)) - root.log() / 2
    value = value + torch.log(u / sum(sum(row) / top**k for k, row in enumerate(_U)))
    # w = x I_{k+1} / I_k at the order k; I'_k / I_k = I_{k+1} / I_k + k / x.
    w = top * (root * v / u - 1)
    squared = x * x
    for k in range(steps - 1):
        twice = 2 * (top - k)
        value, w = value + torch.log1p(w / twice), squared / (twice + w)
    twice = 2 * (order + 1)
    return value + torch.log1p(w / twice), x / (twice + w)


class _LogBessel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, order: float, x: Tensor) -> Tensor:
        value, ratio = _value_and_ratio(order, x)
        ctx.save_for_backward(ratio)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (ratio,) = ctx.saved_tensors
        return None, gradient * (ratio - 1)


def _polynomials(t: Tensor, order: float) -> tuple[Tensor, Tensor]:
    """Return the sums over k of U_k(t) / order^k and V_k(t) / order^k (DLMF 10.41.3 and 10.41.5)."""
    sums = []
    for table in (_U, _V):
        total = torch.zeros_like(t)
        for k in reversed(range(_TERMS)):
            inner = torch.zeros_like(t)
            for coefficient in reversed(table[k]):
                inner = inner * (t * t) + coefficient
            # U_k and V_k hold powers t^k, t^(k+2), ..., t^(3k) only.
            total = total * (t / order) + inner
        sums.append(total)
    return sums[0], sums[1]


def _tables() -> tuple[list[list[float]], list[list[float]]]:
    """Return the coefficients of U_k and V_k at t^k, t^(k+2), ..., from their recurrence (DLMF 10.41.9 to 10.41.11)."""
    rows: list[dict[int, Fraction]] = [{0: Fraction(1)}]
    derived: list[dict[int, Fraction]] = [{0: Fraction(1)}]
    for _ in range(1, _TERMS):
        last = rows[-1]
        row: dict[int, Fraction] = {}
        other: dict[int, Fraction] = {}

        def add(to: dict[int, Fraction], power: int, value: Fraction) -> None:
            to[power] = to.get(power, Fraction(0)) + value

        for power, a in last.items():
            # U' t^2 (1 - t^2) / 2 + (integral of (1 - 5 s^2) U) / 8
            add(row, power + 1, a * power / 2 + a / (8 * (power + 1)))
            add(row, power + 3, -a * power / 2 - 5 * a / (8 * (power + 3)))
            # V_{k+1} = U_{k+1} - t (1 - t^2) U_k / 2 - t^2 (1 - t^2) U'_k
            add(other, power + 1, -a / 2 - a * power)
            add(other, power + 3, a / 2 + a * power)
        for power, a in row.items():
            add(other, power, a)
        rows.append(row)
        derived.append(other)
    return tuple(  # type: ignore[return-value]
        [[float(row.get(k + 2 * j, Fraction(0))) for j in range(k + 1)] for k, row in enumerate(table)]
        for table in (rows, derived)
    )


_U, _V = _tables()
