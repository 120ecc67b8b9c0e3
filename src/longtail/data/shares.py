"""Which rows of a batch a process makes, where several train together."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from longtail.errors import UserError


@dataclass(frozen=True)
class Share:
    """The share of one process in every batch.

    A batch is a function of (seed, epoch, step) alone; it is cut into ``parts`` (micro-batches, one after the other)
    and each part into ``ranks`` slices in order. So what all processes make together is the batch of one process.

    Args:
        rank: of this process, from 0.
        ranks: processes.
        parts: micro-batches of a step.
    """

    rank: int = 0
    ranks: int = 1
    parts: int = 1

    def of(self, values: Tensor, batch_size: int) -> Tensor:
        """Return this process's rows of ``values [S * batch_size, ...]``, those of S batches one after the other."""
        if self.ranks == 1:
            return values
        each = batch_size // (self.parts * self.ranks)
        cut = values.reshape(-1, self.parts, self.ranks, each, *values.shape[1:])
        return cut[:, :, self.rank].flatten(0, 2)


WHOLE = Share()
"""Of a process that trains alone."""


def even_sizes(total: int, ranks: int) -> tuple[int, ...]:
    """Return sizes of slices of ``total`` rows, as even as can be, the larger ones first."""
    return tuple(total // ranks + (rank < total % ranks) for rank in range(ranks))


def largest_batch(size: int, ranks: int, parts: int) -> int:
    """Return how many of ``size`` samples make one batch at most that can be dealt; ``size`` if that is not one."""
    unit = ranks * parts
    return size // unit * unit or size


def check_divides(batch_size: int, ranks: int, parts: int) -> None:
    """Raise :class:`UserError` unless a batch can be dealt to ``ranks`` processes in ``parts`` micro-batches."""
    unit = ranks * parts
    if batch_size % unit == 0:
        return
    near = max(round(batch_size / unit), 1) * unit
    what = [f"{ranks} processes"] * (ranks > 1) + [f"{parts} micro-batches (--optimiser.accumulate)"] * (parts > 1)
    raise UserError(
        f"--batch_size {batch_size} (of all processes together) cannot be dealt evenly to {' and '.join(what)}; "
        f"give --batch_size {near}."
    )
