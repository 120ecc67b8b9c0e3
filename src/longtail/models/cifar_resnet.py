"""Residual networks for 32x32 images (He et al. 2016, "Deep Residual Learning", Section 4.2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_WIDTHS = (16, 32, 64)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Return a padded 3x3 convolution without bias: the BatchNorm behind it would cancel one.

    Its weights are Kaiming-normal over the fan-in (He et al. 2015), drawn from torch's global generator.
    """
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")
    return conv


def option_a_shortcut(x: Tensor, out_channels: int, stride: int) -> Tensor:
    """Match a block's output without parameters ("option A"): keep every ``stride``-th pixel, pad channels.

    Args:
        x: ``[B, C, H, W]``.
        out_channels: C or more; of the new channels, all zero, half go before the old ones and half after.
        stride: step between the pixels kept, starting at the first.

    Returns:
        ``[B, out_channels, ceil(H / stride), ceil(W / stride)]``; ``x`` itself where nothing changes.
    """
    missing = out_channels - x.shape[1]
    if stride == 1 and missing == 0:
        return x
    before = missing // 2
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, before, missing - before))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and an option-A shortcut: ``[B, in, H, W] -> [B, out, H/stride, W/stride]``."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.out_channels = out_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(shortcut(x) + residual(x))."""
        residual = F.relu(self.bn1(self.conv1(x)), inplace=True)
        residual = self.bn2(self.conv2(residual))
        return F.relu(residual + option_a_shortcut(x, self.out_channels, self.stride), inplace=True)


class CifarResNet(nn.Module):
    """The CIFAR ResNet of depth 6n + 2: a 3x3 stem, three stages of n blocks, global average pooling.

    Stages are 16, 32 and 64 channels wide at full, half and quarter resolution. The depth counts the stem,
    the 6n block convolutions and the linear classifier, which is not part of this module.
    Initial weights come from torch's global generator (``torch.manual_seed``).

    Args:
        depth: 20, 32, 44, 56 or 110 in the paper; any 6n + 2 with n >= 1.
        in_channels: channels of the images.

    Raises:
        ValueError: ``depth`` is not of that form.

    Shape:
        float ``[B, in_channels, H, W]``, normalised -> features ``[B, 64]``, not negative.
    """

    def __init__(self, depth: int, in_channels: int = 3) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 (20, 32, 44, 56, 110, ...), not {depth}.")
        blocks_per_stage = (depth - 2) // 6
        self.depth = depth
        self.feature_dim: int = _WIDTHS[-1]
        self.stem = conv3x3(in_channels, _WIDTHS[0])
        self.stem_bn = nn.BatchNorm2d(_WIDTHS[0])
        stages = []
        previous = _WIDTHS[0]
        for stage, width in enumerate(_WIDTHS):
            blocks = []
            for block in range(blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(previous, width, stride))
                previous = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return the patterns that tell its layers apart, as timm's models do: stem, then every block (or stage)."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features ``[B, 64]`` of normalised images ``[B, in_channels, H, W]``."""
        x = F.relu(self.stem_bn(self.stem(images)), inplace=True)
        features: Tensor = self.stages(x)
        return features.mean(dim=(2, 3))
