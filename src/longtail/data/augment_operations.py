"""One drawn operation a sample, for a whole batch at once: as many steps as there are kinds of operations.

AutoAugment, RandAugment and colour jitter are each a mapping from names to `Operation`, and a `Plan` that
says which of them happens to each sample. Images are uint8 ``[B, C, H, W]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from longtail.data.augment_tone import apply_table


class Operation(NamedTuple):
    """One operation and its amount at each magnitude.

    ``apply(images [B, C, H, W], amounts [B])`` returns images, or lookup tables if ``is_table``. The amount
    is ``start + slope * magnitude``, the slope's sign being random if ``signed``, then made whole if ``whole``.
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    is_table: bool
    start: float = 0.0
    slope: float = 0.0
    signed: bool = False
    whole: Literal["no", "nearest", "down"] = "no"

    def amount(self, magnitude: float, sign: int = 1) -> float:
        """Return the amount at a magnitude; ``sign`` (1 or -1) counts only where signed."""
        value = self.start + (sign if self.signed else 1) * self.slope * magnitude
        if self.whole == "no":
            return value
        return float(round(value) if self.whole == "nearest" else math.floor(value))


class Plan(NamedTuple):
    """What happens to each sample, one operation after the other (tensors ``[B, steps]``)."""

    operation: Tensor  # int64: position in the mapping of operations, or its length for "nothing"
    amount: Tensor  # float64 where the device has it


def apply_plan(images: Tensor, plan: Plan, operations: Mapping[str, Operation]) -> Tensor:
    """Apply every step of ``plan``, in order; ``operations`` as in `apply_step`."""
    for operation, amount in zip(plan.operation.unbind(1), plan.amount.unbind(1), strict=True):
        images = apply_step(images, operation, amount, operations)
    return images


def apply_step(images: Tensor, operation: Tensor, amount: Tensor, operations: Mapping[str, Operation]) -> Tensor:
    """Apply one operation to each image.

    Args:
        images: uint8 ``[B, C, H, W]``.
        operation: int64 ``[B]``, a position in ``operations`` (its length: nothing happens).
        amount: ``[B]``, the operation's amount.
        operations: operations by name, those that return lookup tables last.

    Returns:
        New images; the ones given stay as they are.
    """
    # Sorted by operation, each one's samples are a slice; reading the lengths is the only host wait.
    order = torch.argsort(operation, stable=True)
    lengths = torch.bincount(operation, minlength=len(operations) + 1).tolist()
    images = images.index_select(0, order)
    slices = torch.split(images, lengths)
    slice_amounts = torch.split(amount.index_select(0, order), lengths)
    tables = []
    for kind, members, amounts in zip(operations.values(), slices, slice_amounts, strict=False):
        if not len(members):
            continue
        result = kind.apply(members, amounts)
        if kind.is_table:
            tables.append(result.expand(len(members), images.shape[1], 256))
        else:
            members.copy_(result)
    if tables:
        first_table = sum(not kind.is_table for kind in operations.values())
        to_look_up = images[sum(lengths[:first_table]) : sum(lengths[:-1])]
        to_look_up.copy_(apply_table(to_look_up, torch.cat(tables)))
    return images.index_select(0, torch.argsort(order))
