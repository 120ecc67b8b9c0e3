"""An encoder with what was trained on its frozen features on top of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class OnTop(nn.Module):
    """Images to features, features standardised, and those through a second encoder: ``[B, C, H, W] -> [B, D]``.

    Args:
        tower: the image encoder.
        encoder: of standardised features, which states ``feature_dim``.
        mean, std: of each component of the tower's features, ``[D]``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, tower: nn.Module, encoder: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.tower, self.encoder = tower, encoder
        self.feature_dim = encoder.feature_dim
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``[B, D]`` of normalised ``images [B, C, H, W]``."""
        features: Tensor = self.encoder((self.tower(images).float() - self.mean) / self.std)
        return features
