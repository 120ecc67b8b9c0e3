"""Decoders by name: four maps of an encoder in, one map at stride 4 out.

All but ``ocr`` are those of segmentation_models_pytorch, which is imported late: it comes with an extra.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from longtail.errors import UserError, unknown_name
from longtail.segmentation.models.ocr import OCRDecoder

DECODERS = ("fpn", "upernet", "deeplabv3plus", "segformer", "unet", "ocr")
STRIDE = 4
"""Of every decoder's map."""
_WIDTHS = {"fpn": 128, "unet": 64}
_USUAL_WIDTH = 256
_GROUPS = 32
_WIDEST_PYRAMID = 256
_REGIONS = 64


class Decoder(nn.Module):
    """A decoder and the form it takes the four maps in.

    Args:
        name: one of ``DECODERS``.
        channels, strides: of the four maps.
        in_channels: of the images.
        width: channels of the result; default: 128 for fpn, 64 for unet, 256 otherwise.
        regions: soft regions of ``ocr``; default: 64.

    Shape:
        images ``[B, in_channels, H, W]`` and their four maps -> ``[B, width, H / 4, W / 4]``.

    Raises:
        UserError: the name is unknown, the width does not fit, or segmentation_models_pytorch is not installed.
    """

    def __init__(
        self,
        name: str,
        channels: Sequence[int],
        strides: Sequence[int],
        in_channels: int,
        width: int | None = None,
        regions: int | None = None,
    ) -> None:
        super().__init__()
        if name not in DECODERS:
            raise unknown_name("decoder", name, DECODERS)
        width = _WIDTHS.get(name, _USUAL_WIDTH) if width is None else width
        step = _GROUPS if name == "fpn" else 1
        if width < 1 or width % step:
            raise UserError(
                f"--segmentation.width {width} does not fit the decoder {name}; give a positive multiple of {step}."
            )
        self.name, self.width = name, width
        if name == "ocr":
            self.layers: nn.Module = OCRDecoder(channels, width, _REGIONS if regions is None else regions)
        else:
            self.layers = _library_decoder(name, list(channels), strides[-1], in_channels, width)

    def forward(self, images: Tensor, maps: list[Tensor]) -> Tensor:
        """Return the map; of the images only the size is looked at."""
        if self.name in ("fpn", "ocr"):
            decoded = self.layers(maps)
        elif self.name in ("segformer", "unet"):
            decoded = self.layers([images, *maps])
        else:  # these skip two maps, of strides 1 and 2
            decoded = self.layers([images, images, *maps])
        assert isinstance(decoded, Tensor)
        return decoded


def _library_decoder(name: str, channels: list[int], stride: int, in_channels: int, width: int) -> nn.Module:
    layers: nn.Module
    if name == "fpn":
        # Twice the width from 128 on, as in the library; below, speed is what a narrow map is for.
        pyramid = min(2 * width, _WIDEST_PYRAMID) if width >= 128 else width
        layers = _decoder_class("fpn", "FPNDecoder")(channels, pyramid_channels=pyramid, segmentation_channels=width)
    elif name == "upernet":
        layers = _decoder_class("upernet", "UPerNetDecoder")([in_channels, in_channels, *channels], 5, width)
        for block in layers.psp.blocks:
            if block[0].output_size != 1:
                block[0] = CellMeans(block[0].output_size)
    elif name == "segformer":
        layers = _decoder_class("segformer", "SegformerDecoder")([in_channels, *channels], 5, width)
    elif name == "unet":
        widths = (4 * width, 2 * width, width)
        layers = _decoder_class("unet", "UnetDecoder")([in_channels, *channels], widths, n_blocks=len(widths))
    else:
        # Rates of the paper (Chen et al., ECCV 2018) at stride 16; the same reach in pixels where that is 32.
        rates = tuple(rate * 16 // stride for rate in (6, 12, 18))
        layers = _decoder_class("deeplabv3", "DeepLabV3PlusDecoder")(
            [in_channels, in_channels, *channels], 5, width, rates, 16, aspp_separable=True, aspp_dropout=0.5
        )
        layers.up = nn.Upsample(scale_factor=float(stride // STRIDE), mode="bilinear", align_corners=True)
    return layers


def _decoder_class(folder: str, name: str) -> Any:
    try:
        module = import_module(f"segmentation_models_pytorch.decoders.{folder}.decoder")
    except ImportError:
        raise UserError(
            "segmentation needs the package segmentation_models_pytorch, which is not installed: "
            "pip install 'longtail[seg]'."
        ) from None
    return getattr(module, name)


class CellMeans(nn.Module):
    """``nn.AdaptiveAvgPool2d(cells)`` as two matrix products, which exported graphs can hold at any map size.

    Args:
        cells: rows and columns n of the result.

    Shape:
        ``[B, D, h, w] -> [B, D, n, n]``.
    """

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, maps: Tensor) -> Tensor:
        """Return the means of the cells."""
        rows, columns = (self._shares(maps, side) for side in maps.shape[2:])
        return rows @ maps @ columns.transpose(0, 1)

    def _shares(self, maps: Tensor, side: int) -> Tensor:
        """Return ``[n, side]``: cell i is the mean over places floor(i side / n) .. ceil((i + 1) side / n) - 1."""
        cells = torch.arange(self.cells, device=maps.device).unsqueeze(1)
        places = torch.arange(side, device=maps.device)
        start, end = cells * side // self.cells, ((cells + 1) * side + self.cells - 1) // self.cells
        inside = ((places >= start) & (places < end)).to(maps.dtype)
        return inside / (end - start).to(maps.dtype)
