"""From an :class:`ImageSet` to batches: resident arrays, each batch a function of (seed, epoch, step) alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longtail.data.image_set import ImageSet
from longtail.data.keyed import keyed_permutation
from longtail.data.views import View


@dataclass
class Batch:
    """One step's samples.

    Attributes:
        views: view name to float32 ``[B, C, H, W]``, normalised.
        labels: int64 ``[B]``.
        ids: int64 ``[B]``, positions in the training set.
    """

    views: dict[str, Tensor]
    labels: Tensor
    ids: Tensor


def epoch_order(size: int, seed: int, epoch: int, device: torch.device | str = "cpu") -> Tensor:
    """Return an epoch's order of sample ids, int64 ``[size]``."""
    return keyed_permutation(seed, "order", epoch, size=size, device=device)


class ResidentLoader:
    """Batches of images that lie on the device as uint8.

    The last incomplete batch of an epoch is dropped (its BatchNorm statistics would be those of a few images).

    Args:
        images: the training set.
        views: view name to augmentation.
        batch_size: images a step; one larger than the data must be made smaller by the caller.
        seed: of the order and of every augmentation.
        device: where images live and views are made.
    """

    def __init__(
        self, images: ImageSet, views: dict[str, View], batch_size: int, seed: int, device: torch.device
    ) -> None:
        if not 1 <= batch_size <= len(images):
            raise ValueError(f"batch_size {batch_size} does not fit a training set of {len(images)} images")
        self.images = images.images.to(device)
        self.labels = images.labels.to(device)
        self.views = views
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = len(images) // batch_size
        self._order: tuple[int, Tensor] | None = None

    def order(self, epoch: int) -> Tensor:
        """Return the epoch's order of sample ids, int64 ``[N]``."""
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, epoch_order(self.labels.numel(), self.seed, epoch, self.labels.device)
        return self._order[1]

    def load(self, epoch: int, step: int) -> Batch:
        """Return batch ``step`` (0-based) of ``epoch``, with every view."""
        ids = self.order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]
        pixels = self.images[ids]
        views = {
            name: view(pixels, ids, self.seed, epoch, name).contiguous(memory_format=torch.channels_last)
            for name, view in self.views.items()
        }
        return Batch(views, self.labels[ids], ids)

    def fetch(self, view: str, ids: Tensor, rounds: Tensor) -> Tensor:
        """Return a view of the images at ``ids [M]`` outside any epoch, float32 ``[M, C, H, W]``.

        ``rounds [M]`` numbers the fresh views of one image; they are keyed as epochs before the first (-1, -2, ...).
        """
        ids, rounds = ids.to(self.labels.device), rounds.to(self.labels.device)
        out: Tensor | None = None
        for number in sorted(set(rounds.tolist())):
            at = (rounds == number).nonzero().squeeze(1)
            made = self.views[view](self.images[ids[at]], ids[at], self.seed, -1 - int(number), view)
            out = made.new_empty(len(ids), *made.shape[1:]) if out is None else out
            out[at] = made
        if out is None:
            raise ValueError("fetch needs at least one id")
        return out

    def close(self) -> None:
        """Nothing runs beside the training that would have to end."""
