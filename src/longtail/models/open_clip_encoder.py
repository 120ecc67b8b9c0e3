"""Image towers out of open_clip's model list: how they are built, what they expect, how published tensors fit them.

A tower ends with its projection, so that its features lie in the space that images and texts share. open_clip is an
extra and imported late: it takes seconds, and no other encoder needs it.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from longtail.errors import UserError
from longtail.hub import quiet
from longtail.models.timm_encoder import EncoderDefaults

OPEN_CLIP = "open_clip:"
"""What the names of these encoders start with."""
_PREFERRED = ("openai", "laion2b", "datacomp", "webli")
"""How the tags start that are taken if none is named, the first first."""
_VISUAL = "visual."


def is_open_clip(name: str) -> bool:
    """Return whether ``name`` is written as an encoder of open_clip, known to it or not."""
    return name.startswith(OPEN_CLIP)


def open_clip() -> Any:
    """Return the package.

    Raises:
        UserError: it is not installed.
    """
    try:
        with quiet():
            import open_clip as package
    except ImportError as error:
        missing = error.name or "open_clip"
        raise UserError(
            f"encoders named {OPEN_CLIP}ARCHITECTURE need the package {missing}: pip install 'longtail[clip]'."
        ) from None
    return package


def open_clip_names() -> list[str]:
    """Return the names of open_clip's architectures, as ``build_encoder`` takes them."""
    return [f"{OPEN_CLIP}{name}" for name in open_clip().list_models()]


def split_name(name: str) -> tuple[str, str | None]:
    """Return architecture and tag of ``open_clip:ViT-B/16.openai``: ``("ViT-B-16", "openai")``; the tag may be None."""
    written = name.removeprefix(OPEN_CLIP).replace("/", "-")
    if written in open_clip().list_models():
        return written, None
    architecture, _, tag = written.partition(".")
    return architecture, tag or None


def is_known(name: str) -> bool:
    """Return whether open_clip has the architecture and, where ``name`` has one, the tag."""
    architecture, tag = split_name(name)
    if architecture not in open_clip().list_models():
        return False
    return tag is None or bool(_published(architecture, tag))


def open_clip_tags(name: str) -> list[str]:
    """Return the tags of the weights that open_clip knows for the architecture of ``name``."""
    return list(open_clip().list_pretrained_tags_by_model(split_name(name)[0]))


def default_tag(name: str) -> str | None:
    """Return the tag of ``name`` or, where it has none, of the weights to take; None where nothing is published.

    Of the weights trained with the architecture's own activation those of OpenAI, else of LAION-2B, else of DataComp,
    else the first that open_clip lists.
    """
    architecture, tag = split_name(name)
    if tag is not None:
        return tag
    tags = open_clip_tags(name)
    fitting = [tag for tag in tags if activation_note(f"{OPEN_CLIP}{architecture}.{tag}") is None] or tags
    preferred = [tag for start in _PREFERRED for tag in fitting if tag.startswith(start)]
    return next(iter([*preferred, *fitting]), None)


def activation_note(full_name: str) -> str | None:
    """Return a sentence if the weights ``open_clip:architecture.tag`` were trained with another activation; else None.

    open_clip loads them all the same, and so do we: what is computed follows from the architecture's name alone.
    """
    architecture, tag = split_name(full_name)
    config = open_clip().get_model_config(architecture)
    quick = bool(config.get("quick_gelu", False))
    if tag is None or bool(_published(architecture, tag).get("quick_gelu", False)) == quick:
        return None
    other = architecture.removesuffix("-quickgelu") if quick else f"{architecture}-quickgelu"
    named = {True: "QuickGELU", False: "GELU"}
    advice = ""
    if other in open_clip().list_models():
        advice = f": --backbone {OPEN_CLIP}{other} is what they were made for, and is more accurate"
    return (
        f"the weights {tag} were trained with {named[not quick]}, while {OPEN_CLIP}{architecture} computes with "
        f"{named[quick]}{advice}."
    )


def hub_place(full_name: str) -> tuple[str, str | None, str]:
    """Return ``(repository, file or None, address)`` of published weights ``open_clip:architecture.tag``.

    Where the repository is "" there is only the plain address; without a file it is one of :data:`HUB_FILES`.
    """
    architecture, tag = split_name(full_name)
    published = _published(architecture, tag or "")
    repository, _, file = str(published.get("hf_hub", "")).rpartition("/")
    return repository, file or None, str(published.get("url", ""))


HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""What open_clip calls its files in a repository of the hub."""


def open_clip_defaults(name: str) -> EncoderDefaults:
    """Return what open_clip says of the images that a tower (known to it) was made for, with its tag or default tag.

    Some models were trained on images squashed into a square. Here an image keeps its proportions: its shorter side is
    brought to the tower's size, and its centre is cut out.
    """
    architecture, _ = split_name(name)
    tag = default_tag(name)
    preprocess = {} if tag is None else _published(architecture, tag)
    usual = open_clip().transform.PreprocessCfg()
    height, width = _native_size(architecture)
    return EncoderDefaults(
        image_size=(height, width),
        resize=max(height, width),
        interpolation="bilinear" if preprocess.get("interpolation") == "bilinear" else "bicubic",
        mean=tuple(float(value) for value in preprocess.get("mean") or usual.mean),
        std=tuple(float(value) for value in preprocess.get("std") or usual.std),
    )


def has_several_statistics(name: str) -> bool:
    """Return whether published weights of a tower differ in the statistics that their images were normalised by."""
    architecture, _ = split_name(name)
    tags = open_clip_tags(name)
    return len({open_clip_defaults(f"{OPEN_CLIP}{architecture}.{tag}").mean for tag in tags}) > 1


def build_open_clip_encoder(name: str, in_channels: int, image_size: tuple[int, int] | None = None) -> nn.Module:
    """Return the image tower of open_clip's model ``name`` (known to it), weights drawn from torch's global generator.

    Args:
        name: ``open_clip:architecture``, with or without the tag of published weights, which are not loaded here.
        in_channels: channels of the images: 3.
        image_size: height and width in pixels; those the tower was made for if not given.

    Returns:
        A module ``[B, 3, H, W] -> [B, feature_dim]``, the features that open_clip's ``encode_image`` gives, at their
        own length.

    Raises:
        UserError: the tower cannot take such images.
    """
    architecture, _ = split_name(name)
    if in_channels != 3:
        raise UserError(
            f"encoder {name!r} takes colour images (3 channels), these have {in_channels}; give them as image files, "
            "or choose another encoder."
        )
    size = _native_size(architecture) if image_size is None else (image_size[0], image_size[1])
    width = _feature_dim(architecture, size)
    tower = _create(architecture, size)
    tower.feature_dim = width  # type: ignore[assignment]  # nn.Module's stub knows tensors and modules only
    return tower


def fit_to_open_clip(encoder: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the image tower's part of ``tensors`` under the encoder's names, for the encoder's image size.

    Position embeddings are resampled as open_clip does; what cannot be fitted stays as it is.
    """
    visual = {key.removeprefix(_VISUAL): tensor for key, tensor in tensors.items() if key.startswith(_VISUAL)}
    fitted = visual or dict(tensors)
    expected = encoder.state_dict()
    # Both kinds of tower have one embedding for the whole image before those of the grid.
    for key in ("positional_embedding", "attnpool.positional_embedding"):
        found = fitted.get(key)
        if found is None or key not in expected or found.ndim != 2 or found.shape[1:] != expected[key].shape[1:]:
            continue
        places, old = expected[key].shape[0] - 1, len(found) - 1
        if places == old or round(old**0.5) ** 2 != old:
            continue
        grid = getattr(encoder, "grid_size", None) or (round(places**0.5), round(places**0.5))
        if grid[0] * grid[1] != places:
            continue
        state = {f"{_VISUAL}positional_embedding": found.float()}
        open_clip().model.resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=grid)))
        fitted[key] = state[f"{_VISUAL}positional_embedding"]
    return fitted


def architecture_config(name: str) -> dict[str, Any]:
    """Return open_clip's description of the architecture of ``name`` (known to it), to be changed at will."""
    return copy.deepcopy(dict(open_clip().get_model_config(split_name(name)[0])))


def _published(architecture: str, tag: str) -> dict[str, Any]:
    """Return what open_clip knows of published weights, {} where it has no such tag."""
    return dict(open_clip().get_pretrained_cfg(architecture, tag))


def _native_size(architecture: str) -> tuple[int, int]:
    size = open_clip().get_model_config(architecture)["vision_cfg"].get("image_size", 224)
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _create(architecture: str, size: tuple[int, int]) -> nn.Module:
    # open_clip's public way builds the text tower too, which is twice the work, moves the random state and, for text
    # towers of other libraries, asks the hub for their options.
    from open_clip.model import _build_vision_tower

    config = architecture_config(architecture)
    vision = config["vision_cfg"] | {"image_size": size[0] if size[0] == size[1] else size, "output_tokens": False}
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    with quiet():
        tower: nn.Module = _build_vision_tower(config["embed_dim"], vision, bool(config.get("quick_gelu", False)))
    return tower


@lru_cache(maxsize=64)
def _feature_dim(architecture: str, size: tuple[int, int]) -> int:
    """Return the width of the features; found out, with whether such images are taken at all, on the meta device."""
    name = f"{OPEN_CLIP}{architecture}"
    try:
        with torch.device("meta"), torch.no_grad():
            # Some embeddings are computed with numpy, whatever the device.
            tower = _create(architecture, size).to("meta").eval()
            features = tower(torch.empty(2, 3, *size))
    except Exception as error:  # whatever kind a tower raises, it does not take the images
        reason = " ".join(str(error).split())[:120].rstrip(".") or type(error).__name__
        raise UserError(
            f"encoder {name!r} cannot take images of {size[0]}x{size[1]} pixels ({reason}); choose --image_size "
            f"{_native_size(architecture)[0]}, which it was made for, or another encoder."
        ) from None
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise UserError(f"encoder {name!r} gives no single vector for each image; choose another encoder.")
    return int(features.shape[1])
