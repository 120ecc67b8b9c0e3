"""The pixel classifier: the heads of images, applied at every place of a map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.models.heads import build_head


class PixelHead(nn.Module):
    """A ``"cosine"`` or ``"linear"`` classifier of every place of a map.

    Args:
        kind: ``"cosine"`` (logits = scale * cos, in float32 at least also under autocast) or ``"linear"``.
        dim: channels D of the map.
        classes: C.
        scale: factor on the cosine.

    Shape:
        ``[B, D, h, w] -> [B, C, h, w]``.

    Raises:
        UserError: the kind is neither.
    """

    def __init__(self, kind: str, dim: int, classes: int, scale: float = 30.0) -> None:
        super().__init__()
        self.head = build_head(kind, dim, classes, scale)

    @property
    def weight(self) -> Tensor:
        """Class weights ``[C, D]``."""
        weight = self.head.weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, maps: Tensor) -> Tensor:
        """Return logits ``[B, C, h, w]`` of maps ``[B, D, h, w]``."""
        logits: Tensor = self.head(maps.movedim(1, -1))
        return logits.movedim(-1, 1)


def to_image(logits: Tensor, size: tuple[int, int] | torch.Size, stride: int) -> Tensor:
    """Bring ``logits [B, C, h, w]`` of a map of that stride to an image of ``size``: ``[B, C, H, W]``, float32 at least.

    Each place of the map is made ``stride`` pixels wide, and what goes beyond the image is cut off; so places stay over
    their pixels whatever the size is, where stretching the map to the size would move them.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    whole = F.interpolate(logits, scale_factor=float(stride), mode="bilinear", align_corners=False)
    return whole[..., : size[0], : size[1]]
