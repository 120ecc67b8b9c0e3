"""How an image is looked at when it is tested: whole or by a sliding window, at several scales, mirrored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

_WINDOWS_A_BATCH = 8


_MOST_VALUES = 2**24
"""Probabilities that are enlarged at a time: 64 MiB, however many classes there are."""


@dataclass(frozen=True)
class TestView:
    """Whole images once, unless it says otherwise. Probabilities of all that is looked at are averaged.

    Attributes:
        window: height and width of a sliding window in pixels; None, or larger than an image, = the whole image.
        stride: share of the window that the next one is moved by, above 0 and at most 1; the last one of a row or
            column ends with the image. A pixel under several windows is the plain mean of them.
        scales: sizes that are averaged, relative to the image.
        mirror: average with the mirror image.
    """

    __test__ = False  # pytest would take the name for a test's

    window: tuple[int, int] | None = None
    stride: float = 2 / 3
    scales: tuple[float, ...] = (1.0,)
    mirror: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for values that cannot be meant."""
        if self.window is not None and min(self.window) < 1:
            raise ValueError(f"the window must be 1 pixel or more, got {self.window}.")
        if not 0 < self.stride <= 1:
            raise ValueError(f"stride must be above 0 and at most 1, got {self.stride}.")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales must be factors above 0, got {self.scales}.")

    def describe(self) -> str:
        """Return in words what it does."""
        how = "whole images" if self.window is None else f"windows of {self.window[0]} x {self.window[1]} pixels"
        if self.window is not None:
            how += f" moved by {self.stride:.3g} of that"
        if self.scales != (1.0,):
            how += f", scales {', '.join(f'{scale:g}' for scale in self.scales)}"
        return how + (", mirrored too" if self.mirror else "")

    def logits(self, model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Return logits ``[B, C, H, W]`` of normalised ``images [B, channels, H, W]``.

        They are the model's own where it looks once at whole images; otherwise the logarithm of the mean probability.
        Memory is that of one map of probabilities and of 8 windows.

        Args:
            model: images -> logits of the same height and width.
            images: normalised.
        """
        size = (images.shape[2], images.shape[3])
        if self.scales == (1.0,) and not self.mirror and len(self._windows(size)) == 1:
            return model(images)
        total: Tensor | float = 0.0
        for scale in self.scales:
            scaled = images if scale == 1 else _resized(images, (_side(size[0], scale), _side(size[1], scale)))
            for flipped in (False, True) if self.mirror else (False,):
                seen = self._probabilities(model, scaled.flip(3) if flipped else scaled)
                seen = seen.flip(3) if flipped else seen
                total = total + (seen if scale == 1 else _resized(seen, size))
        assert isinstance(total, Tensor)
        mean = total / (len(self.scales) * (1 + self.mirror))
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()

    def _windows(self, size: tuple[int, int]) -> list[tuple[slice, slice]]:
        """Return where the windows lie in an image of ``size``."""
        if self.window is None:
            return [(slice(0, size[0]), slice(0, size[1]))]
        sides = [_starts(whole, part, self.stride) for whole, part in zip(size, self.window, strict=True)]
        high, wide = min(self.window[0], size[0]), min(self.window[1], size[1])
        return [(slice(top, top + high), slice(left, left + wide)) for top, left in product(*sides)]

    def _probabilities(self, model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Return the mean probabilities ``[B, C, H, W]`` over the windows that hold a pixel."""
        windows = self._windows((images.shape[2], images.shape[3]))
        if len(windows) == 1:
            return model(images).softmax(dim=1)
        total, seen = torch.empty(0), images.new_zeros(1, 1, *images.shape[2:])
        for batch in _batches([(image, window) for image in range(len(images)) for window in windows]):
            crops = torch.stack([images[image, :, rows, columns] for image, (rows, columns) in batch])
            probabilities = model(crops).softmax(dim=1)
            if not total.numel():
                total = probabilities.new_zeros(len(images), probabilities.shape[1], *images.shape[2:])
            for (image, (rows, columns)), part in zip(batch, probabilities, strict=True):
                total[image, :, rows, columns] += part
        for rows, columns in windows:
            seen[..., rows, columns] += 1
        return total / seen


def _batches(
    crops: list[tuple[int, tuple[slice, slice]]],
) -> Iterator[list[tuple[int, tuple[slice, slice]]]]:
    for start in range(0, len(crops), _WINDOWS_A_BATCH):
        yield crops[start : start + _WINDOWS_A_BATCH]


def _starts(whole: int, part: int, stride: float) -> list[int]:
    """Return where windows of ``part`` pixels start along a side of ``whole`` pixels."""
    if part >= whole:
        return [0]
    step = max(int(part * stride), 1)
    return [*range(0, whole - part, step), whole - part]


def _side(side: int, scale: float) -> int:
    return max(round(side * scale), 1)


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def largest_at_size(probabilities: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the largest of ``probabilities [C, h, w]`` in each pixel at another size, and its class: ``[H, W]`` each.

    As ``interpolate(probabilities, size, mode="bilinear").max(0)``, a few classes at a time: all of them at the size of
    a photograph would not fit into memory. Of equals the first class wins.
    """
    if tuple(probabilities.shape[1:]) == size:
        best, labels = probabilities.max(0)
        return best, labels
    together = max(1, _MOST_VALUES // (size[0] * size[1]))
    best = torch.full(size, -1.0, dtype=probabilities.dtype, device=probabilities.device)
    labels = torch.zeros(size, dtype=torch.int64, device=probabilities.device)
    for start in range(0, len(probabilities), together):
        part = probabilities[None, start : start + together]
        value, label = F.interpolate(part, size, mode="bilinear", align_corners=False)[0].max(0)
        higher = value > best
        best, labels = torch.where(higher, value, best), torch.where(higher, label + start, labels)
    return best, labels
