"""What is trained on frozen embeddings in place of an encoder: nothing, or a small residual network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class FeatureIdentity(nn.Module):
    """Features as they are, for a classifier on them alone: ``[B, D] -> [B, D]``.

    Args:
        in_channels: width D of the features.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.feature_dim = in_channels

    def forward(self, features: Tensor) -> Tensor:
        """Return ``features [B, D]``."""
        return features


class ResidualAdapter(nn.Module):
    """Features plus a bottleneck of them, so that a contrast has something to shape: ``[B, D] -> [B, D]``.

    x + W_2 relu(W_1 x + b_1), as the adapters of Houlsby et al., ICML 2019, and of CLIP-Adapter (Gao et al., IJCV 2024)
    on top of a frozen encoder. W_2 is 0 at first: training starts from the features as they are.

    Args:
        in_channels: width D of the features.
        reduction: D over the width of the bottleneck, which is 16 at least.
    """

    def __init__(self, in_channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.feature_dim = in_channels
        width = max(in_channels // reduction, 16)
        self.down = nn.Linear(in_channels, width)
        self.up = nn.Linear(width, in_channels, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Return adapted features ``[B, D]``."""
        added: Tensor = self.up(F.relu(self.down(features)))
        return features + added


FEATURE_ENCODERS = {"features": FeatureIdentity, "residual_adapter": ResidualAdapter}
"""Encoders that take features ``[B, D]`` and not images."""
