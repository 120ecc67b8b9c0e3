"""The Gaussian mixture likelihood where each of several processes holds the keys of some classes only."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from longtail.losses.gml import GMLLoss
from longtail.losses.label_odds import LabelClass
from longtail.losses.label_odds_sharded import sharded_label_log_odds


class ShardedGMLLoss(GMLLoss):
    """:class:`GMLLoss` over keys that lie class by class in several processes: its value and gradients, exactly.

    ``L = -log sigmoid(log p_y s(z|y) - log sum over c != y of p_c s(z|c))``: every process sums over its own keys, and
    maxima and sums ``[B]`` are put together by all-reduce (forward 4 numbers a query, backward 2). Similarities and
    their products cost each process its share of the keys, and nothing else grows with their number.

    Called like :class:`GMLLoss`, in every process at the same time with the same queries, labels and query ids; keys,
    offsets, key ids and key mask are the process's own, as :meth:`longtail.memory.ShardedClassQueue.content` gives
    them: a class that another process holds is empty here.

    Every process returns the same whole loss. Where each of them calls ``backward``, what is differentiated is the sum
    of all, W times the loss: each process then has W times the gradient through its own keys, so that the MEAN over
    processes (what DistributedDataParallel takes) is the gradient of the loss: of the parameters behind queries and
    keys, and of the temperature.

    Args:
        class_counts, options: as of :class:`GMLLoss`; ``max_similarities`` and ``kernel`` are not for it.
        group: the processes; None = all of them.

    Attributes:
        counted, information: as of :class:`GMLLoss`, of the whole loss.

    Raises:
        ValueError: see :class:`GMLLoss`.
    """

    def __init__(self, class_counts: Any, *, group: dist.ProcessGroup | None = None, **options: Any) -> None:
        unfit = sorted(options.keys() & {"max_similarities", "kernel"})
        if unfit:
            raise ValueError(f"ShardedGMLLoss does not take {' or '.join(unfit)}; leave it out, or use GMLLoss.")
        super().__init__(class_counts, kernel="plain", **options)
        self.group = group

    def _label_log_odds(
        self, queries: Tensor, keys: Tensor, log_temperature: Tensor, bias: Tensor, label_class: LabelClass
    ) -> tuple[Tensor, Tensor]:
        return sharded_label_log_odds(queries, keys, log_temperature, bias, label_class, self.group)
