"""The maps of a timm model at strides 4, 8, 16 and 32, from images of any size that divides by 32.

The timm model itself stays whole, names of its tensors included, so that weights load into it as for images.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.errors import UserError
from longtail.hub import quiet
from longtail.models.encoders import build_encoder, encoder_defaults
from longtail.models.pretrained import load_weights
from longtail.models.timm_encoder import timm_config

STRIDES = (4, 8, 16, 32)
_VIT_STRIDE = 16
_OPTIONS: tuple[dict[str, Any], ...] = ({}, {"strict_img_size": False}, {"dynamic_img_size": True})
"""What makes timm's models take images of any size: nothing (most), Swin's word for it, that of ViTs."""
_TRIED = ((128, 192), (192, 64))
_WAYS_OUT = (
    "choose an encoder of timm with maps at strides 4, 8, 16 and 32, as ResNet, RegNet, MobileNetV3, EfficientNet, "
    "ConvNeXt, PVTv2 and Swin have, or a ViT with patches of 16 pixels"
)


@dataclass(frozen=True)
class _Plan:
    """How maps are had: options of the model, which of its maps, their channels and strides, parameters not needed."""

    options: dict[str, Any]
    indices: list[int]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    unused: tuple[str, ...]


class Backbone(nn.Module):
    """A timm model that gives four maps.

    Args:
        name: a timm model, with or without the tag of published weights, which are not loaded here.
        in_channels: of the images.
        dilated: give the last map at stride 16 too, where the model can (its last stage is dilated).

    Attributes:
        model: timm's, without classifier and without what the maps do not need. Parameters that it still has but the
            maps do not need are frozen, so that no optimiser waits for their gradient.
        channels, strides: of the four maps.

    Shape:
        ``[B, in_channels, H, W]``, H and W multiples of 32 -> list of ``[B, channels[i], H / strides[i],
        W / strides[i]]``.

    Raises:
        UserError: the name is unknown, or the model has no such maps.
    """

    def __init__(self, name: str, in_channels: int = 3, dilated: bool = False) -> None:
        super().__init__()
        encoder_defaults(name)
        if timm_config(name) is None:
            raise UserError(f"encoder {name!r} gives no maps for segmentation; {_WAYS_OUT}.")
        plan = _plan(name, in_channels, dilated)
        self.model, self.indices = _create(name, in_channels, plan.options, plan.indices), plan.indices
        for parameter in plan.unused:
            self.model.get_parameter(parameter).requires_grad_(False)
        self.channels, self.strides = plan.channels, plan.strides
        self.pyramid = SimplePyramid(plan.channels[0]) if len(plan.indices) == 1 else None
        if self.pyramid is not None:
            self.channels, self.strides = (plan.channels[0],) * 4, STRIDES

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the four maps of normalised images, from the finest to the coarsest."""
        maps = _maps(self.model, images, self.indices)
        return maps if self.pyramid is None else self.pyramid(maps[0])


class SimplePyramid(nn.Module):
    """Four maps out of the last one of a plain ViT, at stride 16 (Li et al., ViTDet, ECCV 2022, section 3).

    Args:
        dim: channels D of the map.

    Shape:
        ``[B, D, h, w]`` -> ``[B, D, 4h, 4w]``, ``[B, D, 2h, 2w]``, ``[B, D, h, w]``, ``[B, D, h/2, w/2]``.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()

        def twice() -> nn.Module:
            return nn.ConvTranspose2d(dim, dim, 2, stride=2)

        # GroupNorm over all channels: LayerNorm of the paper without its change of layout.
        self.finer = nn.ModuleList([nn.Sequential(twice(), nn.GroupNorm(1, dim), nn.GELU(), twice()), twice()])

    def forward(self, last: Tensor) -> list[Tensor]:
        """Return the maps, from the finest to the coarsest."""
        return [*(finer(last) for finer in self.finer), last, F.max_pool2d(last, 2)]


def load_backbone(encoder: nn.Module, backbone: str, weights: str, in_channels: int) -> None:
    """Load pretrained weights into the timm model inside a pixel encoder, all of them or none.

    Args:
        encoder: of ``build_pixel_encoder``; decoder and pyramid stay as they are.
        backbone: name of the timm model.
        weights: what ``longtail.models.choose_weights`` returned: a published name, a file, the folder of a run on
            images, or ``"none"``, which changes nothing.
        in_channels: of the images.

    Raises:
        UserError: the weights cannot be had, cannot be read or do not fit.
    """
    if weights == "none":
        return
    # Loaded into the model as it is for images: files' names and sizes are translated for that one.
    with torch.random.fork_rng(devices=[]):
        whole = build_encoder(backbone, in_channels)
    load_weights(whole, backbone, weights, in_channels)
    tensors = whole.state_dict()
    own = encoder.get_submodule("backbone.model").state_dict()
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(tensors[key])


def _create(name: str, in_channels: int, options: dict[str, Any], indices: list[int] | None) -> nn.Module:
    import timm

    with quiet():
        model = timm.create_model(name, pretrained=False, in_chans=in_channels, num_classes=0, **options)
    if indices is not None:
        model.prune_intermediate_layers(indices, prune_norm=True, prune_head=True)
    return model


def _maps(model: nn.Module, images: Tensor, indices: list[int] | None) -> list[Tensor]:
    maps = model.forward_intermediates(images, indices=indices, intermediates_only=True)  # type: ignore[operator]
    return list(maps)


@lru_cache(maxsize=64)
def _plan(name: str, in_channels: int, dilated: bool) -> _Plan:
    """Find out how the model gives its maps, by passes on the meta device, which hold no values and draw nothing."""
    if dilated:
        plain = _plan(name, in_channels, False)
        options = plain.options | {"output_stride": 16}
        try:
            shaped = _shaped(name, in_channels, options, plain.indices, _TRIED[0])
        except Exception:  # of whatever kind: not every model can be dilated
            return plain
        strides = tuple(stride for _, stride in shaped)
        return _Plan(options, plain.indices, plain.channels, strides, plain.unused) if strides[-1] == 16 else plain
    reasons = []
    for options in _OPTIONS:
        try:
            found = _shaped(name, in_channels, options, None, _TRIED[0])
            last = {stride: index for index, (_, stride) in enumerate(found)}
            if last.keys() == {_VIT_STRIDE}:
                indices = [len(found) - 1]
            elif last.keys() >= set(STRIDES):
                indices = [last[stride] for stride in STRIDES]
            else:
                reasons.insert(0, f"its maps have strides {', '.join(str(stride) for stride in sorted(last))}")
                continue
            chosen = _shaped(name, in_channels, options, indices, _TRIED[1])
            if chosen != [found[index] for index in indices]:
                reasons.append("its maps depend on the image's size")
                continue
            unused = _unused(name, in_channels, options, indices)
        except Exception as error:  # of whatever kind: it does not take such images, or has no such maps
            reasons.append(" ".join(str(error).split())[:120].rstrip("."))
            continue
        return _Plan(options, indices, tuple(c for c, _ in chosen), tuple(s for _, s in chosen), unused)
    raise UserError(f"encoder {name!r} gives no maps for segmentation ({reasons[0]}); {_WAYS_OUT}.")


def _shaped(
    name: str, in_channels: int, options: dict[str, Any], indices: list[int] | None, size: tuple[int, int]
) -> list[tuple[int, int]]:
    """Return channels and stride of each map."""
    with torch.device("meta"), torch.no_grad():
        model = _create(name, in_channels, options, indices).eval()
        maps = _maps(model, torch.empty(2, in_channels, *size), indices)
    found = [(part.shape[1], size[0] // part.shape[2], size[1] // part.shape[3]) for part in maps]
    return [(channels, high if high == wide else 0) for channels, high, wide in found]


def _unused(name: str, in_channels: int, options: dict[str, Any], indices: list[int]) -> tuple[str, ...]:
    """Return the names of parameters that no gradient of the maps reaches."""
    with torch.device("meta"):
        model = _create(name, in_channels, options, indices).eval()
        total = sum(part.sum() for part in _maps(model, torch.empty(2, in_channels, *_TRIED[0]), indices))
    assert isinstance(total, Tensor)
    total.backward()  # type: ignore[no-untyped-call]
    return tuple(key for key, parameter in model.named_parameters() if parameter.grad is None)
