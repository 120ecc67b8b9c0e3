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

from longtail.data.augment_levels import apply_table


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
    whole: Literal["no", "nearest", "down", "to zero"] = "no"

    def amount(self, magnitude: float, sign: int = 1) -> float:
        """Return the amount at a magnitude; ``sign`` (1 or -1) counts only where signed."""
        value = self.start + (sign if self.signed else 1) * self.slope * magnitude
        match self.whole:
            case "no":
                return value
            case "nearest":
                return float(round(value))
            case "down":
                return float(math.floor(value))
            case "to zero":
                return float(math.trunc(value))


class Plan(NamedTuple):
    """What happens to each sample, one operation after the other (tensors ``[B, steps]``)."""

    operation: Tensor  # int64: position in the mapping of operations, or its length for "nothing"
    amount: Tensor  # float64 where the device has it


def apply_plan(images: Tensor, plan: Plan, operations: Mapping[str, Operation]) -> Tensor:
    """Apply every step of ``plan``, in order.

    Args:
        images: uint8 ``[B, C, H, W]``.
        plan: of these images.
        operations: operations by name, those that return lookup tables last.

    Returns:
        New images; the ones given stay as they are.
    """
    # Sorted by operation, each one's samples are a slice; reading the lengths is the only time the host waits.
    order = torch.argsort(plan.operation, dim=0, stable=True)
    amounts = plan.amount.gather(0, order)
    kinds, steps = len(operations) + 1, plan.operation.shape[1]
    each = torch.arange(kinds, device=images.device)
    lengths: list[list[int]] = (plan.operation[:, :, None] == each).sum(dim=0).tolist()
    back = torch.argsort(order, dim=0)  # where each image lies during a step
    places = order[:, 0]
    for step in range(steps):
        images = images.index_select(0, places)
        _apply_sorted(images, lengths[step], amounts[:, step], operations)
        places = back[:, step] if step + 1 == steps else back[:, step].index_select(0, order[:, step + 1])
    return images.index_select(0, places)


def apply_step(images: Tensor, operation: Tensor, amount: Tensor, operations: Mapping[str, Operation]) -> Tensor:
    """Apply one operation to each image: `apply_plan` with ``operation [B]`` and ``amount [B]`` alone."""
    return apply_plan(images, Plan(operation[:, None], amount[:, None]), operations)


def _apply_sorted(images: Tensor, lengths: list[int], amounts: Tensor, operations: Mapping[str, Operation]) -> None:
    """Change images that lie operation by operation, ``lengths`` of each, in place."""
    tables = []
    slices, given = torch.split(images, lengths), torch.split(amounts, lengths)
    for kind, members, amount in zip(operations.values(), slices, given, strict=False):
        if not len(members):
            continue
        result = kind.apply(members, amount)
        if kind.is_table:
            tables.append(result.expand(len(members), images.shape[1], 256))
        else:
            members.copy_(result)
    if tables:
        first_table = sum(not kind.is_table for kind in operations.values())
        to_look_up = images[sum(lengths[:first_table]) : sum(lengths[:-1])]
        to_look_up.copy_(apply_table(to_look_up, torch.cat(tables)))
