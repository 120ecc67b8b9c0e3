"""A network for tiny images (about 8x8 to 16x16), small enough to train in seconds on one core."""

from __future__ import annotations

from torch import Tensor, nn

from longtail.models.cifar_resnet import conv3x3

_WIDTHS = (32, 64, 128)
_STRIDES = (1, 2, 2)


class SmallNet(nn.Module):
    """Three 3x3 convolutions with BatchNorm and ReLU (32, 64, 128 channels), then global average pooling.

    The second and third convolution halve the resolution, so an 8x8 image is pooled from 2x2 positions.
    Initial weights come from torch's global generator (``torch.manual_seed``).

    Args:
        in_channels: channels of the images.

    Shape:
        float ``[B, in_channels, H, W]``, normalised -> features ``[B, 128]``, not negative.
    """

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.feature_dim: int = _WIDTHS[-1]
        layers: list[nn.Module] = []
        previous = in_channels
        for width, stride in zip(_WIDTHS, _STRIDES, strict=True):
            layers += [conv3x3(previous, width, stride), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            previous = width
        self.layers = nn.Sequential(*layers)

    def group_matcher(self, coarse: bool = False) -> dict[str, list[tuple[str, tuple[int]]]]:
        """Return the patterns that tell its layers apart, as timm's models do: each convolution and its BatchNorm."""
        triples = [(rf"^layers\.(?:{3 * i}|{3 * i + 1})\.", i) for i in range(len(_WIDTHS))]
        return {"layers": [(pattern, (number,)) for pattern, number in triples]}

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features ``[B, 128]`` of normalised images ``[B, in_channels, H, W]``."""
        features: Tensor = self.layers(images)
        return features.mean(dim=(2, 3))
