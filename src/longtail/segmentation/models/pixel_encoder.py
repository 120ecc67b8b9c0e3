"""An encoder of pixels: a timm model and a decoder, from images of any size to one map of features."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from longtail.errors import UserError
from longtail.segmentation.models.backbone import Backbone
from longtail.segmentation.models.decoders import STRIDE, Decoder
from longtail.segmentation.models.head import cropped
from longtail.segmentation.models.ocr import OCRDecoder

_MULTIPLE = 32


class PixelEncoder(nn.Module):
    """Normalised images ``[B, in_channels, H, W]`` -> features ``[B, feature_dim, ceil(H / 4), ceil(W / 4)]``.

    Images are padded with zeros (the mean colour) at the bottom and the right to a multiple of 32, and the map is cut
    back; place (i, j) lies over pixels 4i .. 4i+3 and 4j .. 4j+3 (see ``to_image``). Under training, batch
    normalisation needs two images.

    Attributes:
        backbone: gives the four maps; ``backbone.model`` is timm's model.
        decoder: makes one of them.
        feature_dim: channels D of the map.
        stride: 4.
    """

    def __init__(self, backbone: Backbone, decoder: Decoder) -> None:
        super().__init__()
        self.backbone, self.decoder = backbone, decoder
        self.feature_dim = decoder.width
        self.stride = STRIDE

    def forward(self, images: Tensor, auxiliary: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Return the features; with ``auxiliary`` also the coarse logits ``[B, regions, h, w]`` of the decoder ``ocr``.

        Raises:
            ValueError: ``auxiliary`` is asked of another decoder, which has none.
        """
        if auxiliary:
            return self._with_auxiliary(images)
        padded = _padded(images)
        return _cut(self.decoder(padded, self.backbone(padded)), images)

    def _with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor]:
        layers = self.decoder.layers
        if not isinstance(layers, OCRDecoder):
            raise ValueError(f"the decoder {self.decoder.name} has no coarse logits, only ocr has.")
        features, coarse = layers.forward_with_auxiliary(self.backbone(_padded(images)))
        return _cut(features, images), _cut(coarse, images)


def build_pixel_encoder(
    backbone: str, decoder: str, in_channels: int = 3, width: int | None = None, regions: int | None = None
) -> PixelEncoder:
    """Return a new encoder of pixels with random weights from torch's global generator. Nothing is downloaded.

    Args:
        backbone: a timm model, with or without the tag of published weights (see ``load_backbone``).
        decoder: ``fpn``, ``upernet``, ``deeplabv3plus``, ``segformer``, ``unet`` or ``ocr``.
        in_channels: of the images.
        width: channels of the map; default: 128 for fpn, 64 for unet, 256 otherwise.
        regions: of ``ocr``: number of soft object regions (that of the classes where the coarse logits have a loss of
            their own); default: 64.

    Raises:
        UserError: an unknown name, a model without maps at strides 4, 8, 16 and 32, a width that does not fit, or
            segmentation_models_pytorch is not installed.
    """
    if not isinstance(in_channels, int) or in_channels < 1:
        raise UserError(f"in_channels must be a whole number of 1 or more, not {in_channels!r}.")
    maps = Backbone(backbone, in_channels, dilated=decoder == "deeplabv3plus")
    return PixelEncoder(maps, Decoder(decoder, maps.channels, maps.strides, in_channels, width, regions))


def _padded(images: Tensor) -> Tensor:
    height, width = images.shape[2:]
    return F.pad(images, (0, -width % _MULTIPLE, 0, -height % _MULTIPLE))


def _cut(maps: Tensor, images: Tensor) -> Tensor:
    height, width = images.shape[2:]
    return cropped(maps, (height + STRIDE - 1) // STRIDE, (width + STRIDE - 1) // STRIDE)
