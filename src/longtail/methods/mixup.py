"""Mixup of a view: each image a blend of two, its label both. Zhang et al., "mixup", ICLR 2018."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from longtail.exchange import previous_row


class Mixed(NamedTuple):
    """A batch of images and the two labels of each.

    Attributes:
        images: ``[B, C, H, W]``.
        labels, others: int64 ``[B]``.
        share: of ``labels`` in every image, 0-d; None where nothing was mixed and ``others`` does not count.
    """

    images: Tensor
    labels: Tensor
    others: Tensor
    share: Tensor | None

    def loss(self, of: Callable[[Tensor, Tensor], Tensor], logits: Tensor) -> Tensor:
        """Return the mean of the loss ``of(logits, labels)`` for both labels, weighted by their share."""
        if self.share is None:
            return of(logits, self.labels)
        return self.share * of(logits, self.labels) + (1 - self.share) * of(logits, self.others)


def mixup(images: Tensor, labels: Tensor, alpha: float) -> Mixed:
    """Blend each image with its neighbour in the batch, all by one share that is drawn from Beta(alpha, alpha).

    A batch comes in random order, so its neighbour is as good as any other partner. The draw is torch's, which the
    training loop seeds at every step. Where several processes train together, ``images`` are this one's slice of the
    batch and ``labels`` those of all of it; the neighbour of the first image is another process's.

    With ``alpha`` 0 the batch is returned as it is.
    """
    if alpha == 0:
        return Mixed(images, labels, labels, None)
    both = torch.full((2,), alpha, dtype=torch.float32, device=images.device)
    share = torch.distributions.Dirichlet(both, validate_args=False).sample()[0]
    return Mixed(share * images + (1 - share) * previous_row(images), labels, labels.roll(1), share)
