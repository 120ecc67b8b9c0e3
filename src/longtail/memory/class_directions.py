"""Mean direction and concentration of each class's features on the unit sphere, estimated while training goes on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from longtail.losses.autocast import without_autocast

HIGHEST = 1e5
"""Largest concentration: a class of one image has no spread, and its likelihood no maximum."""


FIRST_IMAGES = 64
"""Images of a class, at most, that the means of the first epoch are taken over."""


class ClassDirections(nn.Module):
    """Von Mises-Fisher parameters of each class from the mean of its features over the last epoch.

    Du et al., "Probabilistic Contrastive Learning for Long-Tailed Visual Recognition", TPAMI 2024: the mean of a
    class's unit vectors, with length r, has its direction as mean direction, and ``k = r (D - r^2) / (1 - r^2)`` is the
    concentration (Sra 2012). What is used is the mean over the epoch before, while a new one is gathered from nothing:
    the features of that epoch are old, but none is older. A class that an epoch did not show keeps its last mean.
    Everything is a buffer, hence in ``state_dict()``.

    Args:
        num_classes: C.
        dim: width D of a feature, 2 or more.

    Attributes:
        means: float32 ``[C, D]``, in use.
        known: bool ``[C]``, whether a class has been seen.
        sums: float32 ``[C, D]`` of the present epoch.
        counts: float32 ``[C]``, features in each sum.
        epoch: int64 0-d, the present epoch.

    Example:
        >>> estimate = ClassDirections(num_classes=2, dim=2)
        >>> estimate.absorb(torch.eye(2), torch.tensor([0, 0]))
        >>> estimate.start_epoch(1)
        >>> estimate.known.tolist(), estimate.means[0].tolist()
        ([True, False], [0.5, 0.5])
    """

    means: Tensor
    known: Tensor
    sums: Tensor
    counts: Tensor
    epoch: Tensor

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(num_classes, dim))
        self.register_buffer("known", torch.zeros(num_classes, dtype=torch.bool))
        self.register_buffer("sums", torch.zeros(num_classes, dim))
        self.register_buffer("counts", torch.zeros(num_classes))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def prime(
        self,
        labels: Tensor,
        encode: Callable[[Tensor, Tensor], Tensor],
        images_per_class: int = FIRST_IMAGES,
        batch_size: int = 256,
    ) -> None:
        """Set the means in use from the first images of each class, in data order.

        Args:
            labels: classes of all training images, int64 ``[N]``.
            encode: called as ``encode(indices [M], rounds [M])``, both int64, M at most ``batch_size``; returns their
                unit vectors ``[M, D]``. All rounds are 0.
            images_per_class: images of a class that are looked at, at most.
            batch_size: images that are encoded at a time.
        """
        by_class, order = torch.sort(labels, stable=True)
        first = torch.searchsorted(by_class, by_class)
        chosen = order[torch.arange(len(labels), device=labels.device) - first < images_per_class]
        for ids in torch.split(chosen, batch_size):
            self.absorb(encode(ids, torch.zeros_like(ids)), labels[ids])
        self._take_over(torch.ones_like(self.epoch, dtype=torch.bool))
        self.epoch.zero_()

    @torch.no_grad()
    def absorb(self, features: Tensor, labels: Tensor) -> None:
        """Add unit vectors ``[B, D]`` with labels int64 ``[B]`` to the present epoch; nothing waits for the device.

        A row with a value that is not finite is left out.
        """
        features = features.detach().to(self.sums)
        finite = torch.isfinite(features).all(1)
        # A product with who-is-of-which-class: unlike a scattered sum, the same bits every time on any device.
        of_class = (labels == torch.arange(len(self.counts), device=labels.device)[:, None]) & finite
        shares = of_class.to(self.sums.dtype)
        with without_autocast(features):
            self.sums += shares @ torch.where(finite[:, None], features, 0.0)
        self.counts += shares.sum(1)

    @torch.no_grad()
    def start_epoch(self, epoch: int) -> None:
        """Use what the epoch before gathered, and start anew; nothing happens if ``epoch`` is the present one."""
        self._take_over(self.epoch != epoch)
        self.epoch.fill_(epoch)

    def _take_over(self, now: Tensor) -> None:
        seen = now & (self.counts > 0)
        self.means.copy_(torch.where(seen[:, None], self.sums / self.counts.clamp(min=1)[:, None], self.means))
        self.known |= seen
        self.sums.masked_fill_(now, 0.0)
        self.counts.masked_fill_(now, 0.0)

    def parameters_of_classes(self) -> tuple[Tensor, Tensor]:
        """Return the mean directions ``[C, D]`` (unit vectors, 0 for an unknown class) and concentrations ``[C]``."""
        length = torch.linalg.vector_norm(self.means, dim=1)
        directions = self.means / length.clamp(min=1e-12)[:, None]
        r, width = length.clamp(max=1.0), self.means.shape[1]
        # No smaller spread: it would bring k above HIGHEST, or divide by 0 where r is 1.
        spread = (1 - r * r).clamp(min=width / HIGHEST)
        return directions, (r * (width - r * r) / spread).clamp(max=HIGHEST)

    def extra_repr(self) -> str:
        """Return the sizes, for ``print(estimate)``."""
        return f"classes={len(self.counts)}, dim={self.means.shape[1]}"
