"""Encoders by name: our own, one line in the registry each, and every model of timm.

An encoder maps normalised images ``[B, C, H, W]`` to pooled features ``[B, feature_dim]``; those of
``FEATURE_ENCODERS`` take the features ``[B, D]`` of another encoder, their ``in_channels`` being D.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial

from torch import nn

from longtail.errors import UserError
from longtail.models.cifar_resnet import CifarResNet
from longtail.models.feature_encoders import FEATURE_ENCODERS
from longtail.models.small import SmallNet
from longtail.models.timm_encoder import (
    EncoderDefaults,
    architecture_of,
    build_timm_encoder,
    timm_config,
    timm_defaults,
    timm_names,
)

_ENCODERS: dict[str, Callable[[int], nn.Module]] = {
    "cifar_resnet20": partial(CifarResNet, 20),
    "cifar_resnet32": partial(CifarResNet, 32),
    "cifar_resnet44": partial(CifarResNet, 44),
    "cifar_resnet56": partial(CifarResNet, 56),
    "cifar_resnet110": partial(CifarResNet, 110),
    "small_net": SmallNet,
    **FEATURE_ENCODERS,
}


def encoder_names() -> list[str]:
    """Return the names of our own encoders, in the registry's order; ``build_encoder`` knows timm's besides."""
    return list(_ENCODERS)


def build_encoder(name: str, in_channels: int, image_size: tuple[int, int] | None = None) -> nn.Module:
    """Return a new encoder with random weights, drawn from torch's global generator. Nothing is downloaded.

    Args:
        name: one of ``encoder_names()``, or a timm model with or without the tag of published weights
            (``resnet50``, ``vit_base_patch16_224``, ``convnext_tiny.fb_in1k``).
        in_channels: channels of the images, 1 or more.
        image_size: height and width of the images in pixels, for timm models; our own take any. Not given, it is
            the size that the timm model was made for.

    Returns:
        A module ``[B, in_channels, H, W] -> [B, D]`` that states D as ``feature_dim``.

    Raises:
        UserError: the name is unknown, ``in_channels`` is not a positive whole number, or the model cannot take
            images of that size.
    """
    _check_name(name)
    if not isinstance(in_channels, int) or in_channels < 1:
        raise UserError(f"in_channels must be a whole number of 1 or more, not {in_channels!r}.")
    if name in _ENCODERS:
        return _ENCODERS[name](in_channels)
    return build_timm_encoder(name, in_channels, image_size)


def encoder_defaults(name: str) -> EncoderDefaults | None:
    """Return the image size and pixel statistics that a timm model was made for; None for our own encoders.

    Raises:
        UserError: the name is unknown.
    """
    _check_name(name)
    return None if name in _ENCODERS else timm_defaults(name)


def feature_dim(encoder: nn.Module) -> int:
    """Return the width D of the features ``[B, D]`` that an encoder gives.

    Raises:
        ValueError: the module does not say, so it is not an encoder.
    """
    dim = getattr(encoder, "feature_dim", None)
    if not isinstance(dim, int):
        raise ValueError(f"{type(encoder).__name__} has no integer feature_dim, which every encoder must state.")
    return dim


def _check_name(name: str) -> None:
    """Raise the error for an unknown name, with near ones of ours and of timm's."""
    if name in _ENCODERS or timm_config(name) is not None:
        return
    known = [*_ENCODERS, *timm_names(), *(timm_names(architecture_of(name)) if "." in name else [])]
    longer = [candidate for candidate in known if name and candidate.startswith(name)]
    ours = [candidate for candidate in _ENCODERS if name and candidate.endswith(name)]
    near = (
        ours
        or difflib.get_close_matches(name, longer, cutoff=0.0)
        or difflib.get_close_matches(name, known, cutoff=0.5)
    )
    # timm's list is too long to be shown.
    hint = f"known: {', '.join(_ENCODERS)}, and every model name of timm."
    if near:
        hint = f"did you mean {' or '.join(repr(candidate) for candidate in near)}?"
    raise UserError(f"unknown encoder {name!r}; {hint}")
