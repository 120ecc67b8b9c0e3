"""Encoders by name: our own, one line in the registry each, every model of timm, and open_clip's image towers.

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
from longtail.models.open_clip_encoder import (
    OPEN_CLIP,
    build_open_clip_encoder,
    is_known,
    is_open_clip,
    open_clip_defaults,
    open_clip_names,
    open_clip_tags,
    split_name,
)
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
            (``resnet50``, ``vit_base_patch16_224``, ``convnext_tiny.fb_in1k``), or ``open_clip:`` and an architecture
            of open_clip (``open_clip:ViT-B-16``): its image tower with the projection into the joint space.
        in_channels: channels of the images, 1 or more.
        image_size: height and width of the images in pixels, for models of timm and open_clip; our own take any. Not
            given, it is the size that the model was made for.

    Returns:
        A module ``[B, in_channels, H, W] -> [B, D]`` that states D as ``feature_dim``.

    Raises:
        UserError: the name is unknown, ``in_channels`` is not a positive whole number, the model cannot take
            images of that size, or open_clip is not installed.
    """
    _check_name(name)
    if not isinstance(in_channels, int) or in_channels < 1:
        raise UserError(f"in_channels must be a whole number of 1 or more, not {in_channels!r}.")
    if name in _ENCODERS:
        return _ENCODERS[name](in_channels)
    if is_open_clip(name):
        return build_open_clip_encoder(name, in_channels, image_size)
    return build_timm_encoder(name, in_channels, image_size)


def encoder_defaults(name: str) -> EncoderDefaults | None:
    """Return the image size and pixel statistics that a published model was made for; None for our own encoders.

    Raises:
        UserError: the name is unknown.
    """
    _check_name(name)
    if name in _ENCODERS:
        return None
    return open_clip_defaults(name) if is_open_clip(name) else timm_defaults(name)


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
    """Raise the error for an unknown name, with near ones of ours, of timm's and of open_clip's."""
    if is_open_clip(name):
        _check_open_clip_name(name)
        return
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
    hint = f"known: {', '.join(_ENCODERS)}, every model name of timm, and {OPEN_CLIP}ARCHITECTURE."
    if near:
        hint = f"did you mean {' or '.join(repr(candidate) for candidate in near)}?"
    raise UserError(f"unknown encoder {name!r}; {hint}")


def _check_open_clip_name(name: str) -> None:
    """Raise the error for a name that open_clip does not know, with its near ones."""
    if is_known(name):
        return
    architecture, tag = split_name(name)
    known = [f"{OPEN_CLIP}{architecture}.{tag}" for tag in open_clip_tags(name)] if tag else []
    known = known or open_clip_names()
    lower = {candidate.removeprefix(OPEN_CLIP).lower(): candidate for candidate in known}
    wanted = name.removeprefix(OPEN_CLIP).replace("/", "-").lower()
    near = difflib.get_close_matches(wanted, lower, cutoff=0.5)
    hint = "open_clip.list_models() lists its architectures."
    if near:
        hint = f"did you mean {' or '.join(repr(lower[candidate]) for candidate in near)}?"
    raise UserError(f"unknown encoder {name!r}; {hint}")
