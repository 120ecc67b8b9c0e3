"""How often an epoch draws the images of each class: Kang et al., "Decoupling representation and classifier for
long-tailed recognition", ICLR 2020, Sec. 3.

An epoch keeps N draws under every sampler. A class c gets N q_c of them, up to rounding:

    instance        q_c = n_c / N                            every image once
    class_balanced  q_c = 1 / C                              every class (that has images) equally often
    square_root     q_c = sqrt(n_c) / sum_j sqrt(n_j)        Eq. 1 with q = 1/2
    progressive     q_c = (1 - t/T) instance + t/T balanced  Eq. 2, t = epoch (from 0), T = epochs

Nothing here has state: what an epoch draws is a function of (seed, epoch) alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from longtail.data.keyed import keyed_bits, keyed_permutation, keyed_uniform
from longtail.errors import unknown_name

SAMPLERS = ("instance", "class_balanced", "square_root", "progressive")


@dataclass(frozen=True)
class EpochDraws:
    """What an epoch draws, in order.

    Attributes:
        ids: int64 ``[N]``, sample ids.
        keys: int64 ``[N]``, what augmentation is keyed by: the id plus N for each time that the epoch drew the image
            before, so that an image drawn twice is not augmented alike.
    """

    ids: Tensor
    keys: Tensor

    def to(self, device: torch.device) -> EpochDraws:
        """Return the draws on ``device``."""
        return EpochDraws(self.ids.to(device), self.keys.to(device))

    def __getitem__(self, part: slice | Tensor) -> EpochDraws:
        return EpochDraws(self.ids[part], self.keys[part])


@dataclass(frozen=True)
class Sampler:
    """The draws of every epoch of a stage.

    Args:
        name: one of :data:`SAMPLERS`.
        labels: int64 ``[N]``, of the training set.
        epochs: of the stage; only ``progressive`` asks.
        weights: float ``[N]``, how often a sample is drawn beside the others, for ``instance`` alone; None = all alike.

    Raises:
        UserError: no sampler has this name.
        ValueError: weights for another sampler than ``instance``.
    """

    name: str
    labels: Tensor
    epochs: int = 1
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        if self.name not in SAMPLERS:
            raise unknown_name("sampler", self.name, SAMPLERS)
        if self.weights is not None and self.name != "instance":
            raise ValueError(f"weights of samples go with the sampler 'instance', not with {self.name!r}")

    def draws(self, seed: int, epoch: int, device: torch.device | str = "cpu") -> EpochDraws:
        """Return what ``epoch`` (from 0) draws.

        A class is walked through in random order, again and again in another one: no image of it is drawn for the
        (n + 1)-th time before all others were n times.
        """
        size = self.labels.numel()
        if self.name == "instance":
            ids = epoch_order(size, seed, epoch, device)
            return EpochDraws(ids, ids) if self.weights is None else self._weighted(ids, seed, epoch)
        labels = self.labels.cpu()
        counts = torch.bincount(labels)
        wanted = self._wanted(counts, seed, epoch)
        ids, rounds = _walk(labels, counts, wanted, seed, epoch)
        # Places are dealt to classes, and each class fills its own in the order of its walk.
        class_at = torch.arange(len(counts)).repeat_interleave(wanted)[epoch_order(size, seed, epoch)]
        places = torch.argsort(class_at, stable=True)
        order, keys = torch.empty_like(ids), torch.empty_like(ids)
        order[places], keys[places] = ids, ids + size * rounds
        return EpochDraws(order, keys).to(torch.device(device))

    def _weighted(self, order: Tensor, seed: int, epoch: int) -> EpochDraws:
        """Return N draws, sample i N w_i / sum(w) of them, rounded down or up: systematic sampling.

        The samples lie class by class under the ruler, in random order within a class. So each class gets its share
        up to rounding too, and equal weights draw each sample once, in the ``order [N]`` that they have without any.
        """
        assert self.weights is not None
        labels, weights = self.labels.cpu(), self.weights.detach().cpu().double()
        size = len(labels)
        laid = keyed_permutation(seed, "weighted", epoch, size=size)
        laid = laid[torch.argsort(labels[laid], stable=True)]
        # Half a step off the grid of the uniform numbers: never on an edge of equal weights, where rounding decides.
        start = float(keyed_uniform(seed, "shares", epoch, ids=torch.zeros(1, dtype=torch.int64))) + 2.0**-25
        edges = weights[laid].cumsum(0) * (size / weights.sum())
        edges[int(weights[laid].nonzero().max()) :] = size  # what the sum of the shares is but for rounding
        drawn = laid.repeat_interleave((start + edges).floor().long().diff(prepend=torch.zeros(1, dtype=torch.int64)))
        ids = drawn.sort().values
        number = torch.arange(size) - torch.searchsorted(ids, ids)
        return EpochDraws(ids, ids + size * number).to(order.device)[order]

    def _wanted(self, counts: Tensor, seed: int, epoch: int) -> Tensor:
        """Return how often each class is drawn, int64 ``[C]`` with sum N.

        One random number rounds them all (systematic sampling): each is N q_c rounded down or up, and N q_c on average.
        """
        size = int(counts.sum())
        shares = class_shares(self.name, counts.tolist(), epoch / max(self.epochs, 1))
        start = float(keyed_uniform(seed, "shares", epoch, ids=torch.zeros(1, dtype=torch.int64)))
        edges = [start, *(start + size * edge for edge in accumulate(shares))]
        edges[-1] = start + size  # what the sum of the shares is but for rounding
        last = max(label for label, share in enumerate(shares) if share)
        edges[last + 1 :] = [edges[-1]] * (len(edges) - last - 1)
        return torch.tensor([math.floor(edge) for edge in edges]).diff()


def class_shares(name: str, class_counts: Sequence[int], progress: float) -> list[float]:
    """Return the share q_c of an epoch's draws that each class gets, 0 for a class without images.

    Args:
        name: of the sampler.
        class_counts: training images of each of the C classes.
        progress: t/T, the share of the epochs that is over.
    """
    if name == "progressive":
        first, last = (class_shares(kind, class_counts, progress) for kind in ("instance", "class_balanced"))
        return [(1 - progress) * a + progress * b for a, b in zip(first, last, strict=True)]
    # Plain sums in a fixed order: the same on every machine.
    power = {"instance": 1.0, "square_root": 0.5, "class_balanced": 0.0}[name]
    weights = [count**power if count else 0.0 for count in class_counts]
    whole = math.fsum(weights)
    return [weight / whole for weight in weights]


def epoch_order(size: int, seed: int, epoch: int, device: torch.device | str = "cpu") -> Tensor:
    """Return a random order of an epoch's places, int64 ``[size]``; of sample ids, if each is drawn once."""
    return keyed_permutation(seed, "order", epoch, size=size, device=device)


def _walk(labels: Tensor, counts: Tensor, wanted: Tensor, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Return the ids that the classes draw, class by class, and how often each was drawn before: int64 ``[N]`` each.

    A class of n images of which m are wanted goes through ceil(m / n) rounds, each in an order of its own; of the last
    one only the first images are taken.
    """
    rounds = torch.where(counts > 0, (wanted + counts - 1) // counts.clamp(min=1), 0)  # [C]
    often = rounds[labels]
    ids = torch.arange(len(labels)).repeat_interleave(often)  # each image once a round of its class
    number = torch.arange(len(ids)) - (often.cumsum(0) - often).repeat_interleave(often)
    bits = keyed_bits(seed, "walk", epoch, ids=ids + len(labels) * number).squeeze(1)
    order = torch.argsort(bits, stable=True)
    group = (rounds.cumsum(0) - rounds)[labels[ids]] + number  # one number for each round of each class
    order = order[torch.argsort(group[order], stable=True)]
    ids, number = ids[order], number[order]
    made = counts * rounds
    place = torch.arange(len(ids)) - (made.cumsum(0) - made)[labels[ids]]
    taken = place < wanted[labels[ids]]
    return ids[taken], number[taken]
