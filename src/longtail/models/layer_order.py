"""How far below the head each parameter of an encoder lies, for learning rates that fall from layer to layer."""

from __future__ import annotations

from typing import Any

from torch import nn

from longtail.errors import UserError
from longtail.models.tuning import TunedEncoder

_ABOVE = "\0above"  # no parameter has this name, so no pattern matches it
_SAME_AS_LAST = (99999,)  # how timm's patterns say "part of the block before"
_CLIP_TRANSFORMER: dict[str, Any] = {
    "stem": r"^(?:conv1|class_embedding|positional_embedding|ln_pre)",
    "blocks": [(r"^transformer\.resblocks\.(\d+)", None), (r"^ln_post", _SAME_AS_LAST)],
}
_CLIP_RESNET: dict[str, Any] = {"stem": r"^(?:conv|bn)\d", "blocks": r"^layer(\d+)\.(\d+)"}


def layer_depths(encoder: nn.Module) -> dict[str, int]:
    """Return the depth of every parameter of an encoder, by its name there: the layer nearest to the head has depth 1.

    Layers are the blocks, and the stem below them, as timm groups them (``group_matcher``); our own encoders say so
    likewise. What lies above the last block, such as the projection of a CLIP tower, goes with the head: depth 0.

    Args:
        encoder: plain or tuned.

    Raises:
        UserError: the encoder says nothing of its layers.
    """
    from timm.models import group_parameters
    from timm.models._manipulate import group_with_matcher

    prefix = "encoder." if isinstance(encoder, TunedEncoder) else ""
    inner = encoder.encoder if isinstance(encoder, TunedEncoder) else encoder
    trunk = getattr(inner, "trunk", None)
    if isinstance(trunk, nn.Module) and callable(getattr(trunk, "group_matcher", None)):
        # A tower of open_clip around a model of timm: what stands beside the trunk is the projection above it.
        above = {key: 0 for key, _ in inner.named_parameters()}
        within = {f"trunk.{key}": depth for key, depth in layer_depths(trunk).items()}
        return {prefix + key: depth for key, depth in (above | within).items()}
    matcher = _matcher(inner)
    if matcher is None:
        kind = type(inner).__name__
        raise UserError(
            f"--tune.lr_decay needs the order of the layers, which this encoder ({kind}) does not tell; leave it out."
        )
    if callable(matcher):
        layers = group_parameters(inner, matcher, reverse=True)
        top = max(layers.values()) + 1
    else:
        named = [*inner.named_parameters(), (_ABOVE, None)]
        layers = group_with_matcher(iter(named), matcher, reverse=True)
        top = layers.pop(_ABOVE)
    return {prefix + key: top - layer for key, layer in layers.items()}


def _matcher(encoder: nn.Module) -> Any | None:
    """Return the patterns (or the function) that tell an encoder's layers apart."""
    if callable(getattr(encoder, "group_matcher", None)):
        return encoder.group_matcher(coarse=False)  # type: ignore[operator]
    parts = {name for name, _ in encoder.named_children()}
    if {"conv1", "transformer", "ln_post"} <= parts:
        return _CLIP_TRANSFORMER
    return _CLIP_RESNET if {"conv1", "layer1", "attnpool"} <= parts else None
