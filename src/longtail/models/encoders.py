"""Encoders by name: adding one is one line in the registry.

An encoder maps normalised images ``[B, C, H, W]`` to pooled features ``[B, feature_dim]``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from longtail.errors import UserError, unknown_name
from longtail.models.cifar_resnet import CifarResNet
from longtail.models.small import SmallNet

_ENCODERS: dict[str, Callable[[int], nn.Module]] = {
    "cifar_resnet20": partial(CifarResNet, 20),
    "cifar_resnet32": partial(CifarResNet, 32),
    "cifar_resnet44": partial(CifarResNet, 44),
    "cifar_resnet56": partial(CifarResNet, 56),
    "cifar_resnet110": partial(CifarResNet, 110),
    "small_net": SmallNet,
}


def encoder_names() -> list[str]:
    """Return the names that ``build_encoder`` knows, in the registry's order."""
    return list(_ENCODERS)


def build_encoder(name: str, in_channels: int) -> nn.Module:
    """Return a new encoder with random weights, drawn from torch's global generator.

    Args:
        name: one of ``encoder_names()``.
        in_channels: channels of the images, 1 or more.

    Raises:
        UserError: the name is unknown or ``in_channels`` is not a positive whole number.
    """
    if name not in _ENCODERS:
        raise unknown_name("encoder", name, encoder_names())
    if not isinstance(in_channels, int) or in_channels < 1:
        raise UserError(f"in_channels must be a whole number of 1 or more, not {in_channels!r}.")
    return _ENCODERS[name](in_channels)


def feature_dim(encoder: nn.Module) -> int:
    """Return the width D of the features ``[B, D]`` that an encoder gives.

    Raises:
        ValueError: the module does not say, so it is not an encoder.
    """
    dim = getattr(encoder, "feature_dim", None)
    if not isinstance(dim, int):
        raise ValueError(f"{type(encoder).__name__} has no integer feature_dim, which every encoder must state.")
    return dim
