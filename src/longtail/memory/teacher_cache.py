"""A frozen teacher's features computed once: some augmentations of every image, drawn from at every step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from longtail.data.keyed import keyed_uniform


class TeacherCache(nn.Module):
    """Features of ``views`` augmentations of each training image; the teacher then costs nothing a step.

    Exact training draws a fresh augmentation at every step; this draws one of a fixed set. What it costs in accuracy
    ``benchmarks/digits.py`` measures. Not part of ``state_dict()``: the teacher is frozen and every
    augmentation keyed, so that the same features can be computed again.

    Args:
        images: training images (N).
        views: augmentations of each (V), 1 or more.
        dim: width of a feature (D).
        seed: of the draws.

    Attributes:
        features: float32 ``[N, V, D]``, zero until :meth:`fill`.
        epoch: int64, 0-d: the present epoch, a part of every draw's key.
    """

    features: Tensor
    epoch: Tensor

    def __init__(self, images: int, views: int, dim: int, seed: int) -> None:
        super().__init__()
        if views < 1:
            raise ValueError(f"views must be 1 or more, got {views}.")
        self.seed = seed
        self.register_buffer("features", torch.zeros(images, views, dim), persistent=False)
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def fill(self, encode: Callable[[Tensor, Tensor], Tensor], batch_size: int = 256) -> None:
        """Compute all features: ``encode(ids [M], rounds [M])`` returns those of view ``rounds`` of image ``ids``."""
        for view in range(self.features.shape[1]):
            for ids in torch.split(torch.arange(len(self.features), device=self.features.device), batch_size):
                self.features[ids, view] = encode(ids, torch.full_like(ids, view)).to(self.features)

    def view(self, ids: Tensor, rounds: Tensor) -> Tensor:
        """Return features ``[M, D]`` of the images ``ids [M]``; ``rounds [M]`` beyond the last view start over."""
        return self.features[ids, rounds % self.features.shape[1]]

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch (in place: a captured step goes on reading it)."""
        self.epoch.fill_(epoch)

    def draw(self, ids: Tensor) -> Tensor:
        """Return features ``[B, D]`` of ``ids [B]``, one random view each: a function of (seed, epoch, id)."""
        views = self.features.shape[1]
        uniform = keyed_uniform(self.seed, "teacher cache", ids=ids + self.epoch * len(self.features)).squeeze(1)
        return self.view(ids, (uniform * views).to(torch.int64))
