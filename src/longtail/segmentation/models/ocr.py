"""Object-contextual representations (Yuan, Chen and Wang, ECCV 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OCRDecoder(nn.Module):
    """Each pixel sees the object regions of its image, soft ones that a coarse classifier draws.

    Pixel map X: the four maps at stride 4, summed after a 1x1 convolution each. Coarse logits of K regions, their
    softmax over the image's places weighs X to K region vectors (Eq. 8). Each pixel attends to the regions (Eq. 9, 10)
    and what it finds goes beside X (Eq. 11). In the paper K is the number of classes and the coarse logits have a
    cross entropy of their own (weight 0.4): see ``forward_with_auxiliary``. Without that loss the regions are learned
    through the main loss alone, and K is free.

    Args:
        channels: of the four maps.
        width: channels D of the result.
        regions: K.

    Shape:
        four maps, the first ``[B, channels[0], h, w]`` -> ``[B, D, h, w]``.
    """

    def __init__(self, channels: Sequence[int], width: int, regions: int) -> None:
        super().__init__()
        keys = max(width // 2, 1)
        self.lateral = nn.ModuleList([nn.Conv2d(dim, width, 1) for dim in channels])
        self.pixels = _block(width, width, 3)
        self.coarse = nn.Sequential(_block(width, width, 1), nn.Conv2d(width, regions, 1))
        self.query = nn.Sequential(_block(width, keys, 1), _block(keys, keys, 1))
        self.key = nn.Sequential(_block(width, keys, 1), _block(keys, keys, 1))
        self.value = _block(width, keys, 1)
        self.up = _block(keys, width, 1)
        self.fuse = _block(2 * width, width, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the map ``[B, D, h, w]``."""
        return self.forward_with_auxiliary(maps)[0]

    def forward_with_auxiliary(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the map ``[B, D, h, w]`` and the coarse logits ``[B, K, h, w]``."""
        size = maps[0].shape[2:]
        merged = self.lateral[0](maps[0])
        for lateral, part in zip(self.lateral[1:], maps[1:], strict=True):
            merged = merged + F.interpolate(lateral(part), size=size, mode="bilinear", align_corners=False)
        pixels, coarse = self.pixels(merged), self.coarse(F.relu(merged))
        shares = coarse.flatten(2).softmax(dim=2)  # [B, K, hw]: how the places share in each region
        regions = (shares @ pixels.flatten(2).transpose(1, 2)).transpose(1, 2).unsqueeze(3)  # [B, D, K, 1]
        query = self.query(pixels).flatten(2).transpose(1, 2)  # [B, hw, D / 2]
        key, value = self.key(regions).flatten(2), self.value(regions).flatten(2)  # [B, D / 2, K]
        attention = (query @ key * key.shape[1] ** -0.5).softmax(dim=2)  # [B, hw, K]
        context = (attention @ value.transpose(1, 2)).transpose(1, 2)
        context = self.up(context.reshape(context.shape[0], context.shape[1], *size))
        return self.fuse(torch.cat([context, pixels], dim=1)), coarse


def _block(dim: int, out: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(dim, out, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)
    )
