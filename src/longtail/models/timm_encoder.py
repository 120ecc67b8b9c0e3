"""Encoders out of timm's model list: how they are built, what they expect, how published tensors are fitted to them.

timm is imported late: it takes seconds, and a run with one of our own encoders needs none of it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache, partial
from inspect import signature
from math import floor
from typing import Any, Literal

import torch
from torch import Tensor, nn

from longtail.errors import UserError
from longtail.hub import quiet

_FILTER_NAMES = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")
"""What timm's model files call the function that maps a published file to the module's names and sizes."""


@dataclass(frozen=True)
class EncoderDefaults:
    """The images that an encoder was made for.

    Attributes:
        image_size: height and width in pixels.
        resize: length of an image's shorter side before the centre crop of ``image_size``.
        interpolation: of that resize.
        mean, std: per-channel pixel statistics on the 0..1 scale.
    """

    image_size: tuple[int, int]
    resize: int
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def architecture_of(name: str) -> str:
    """Return ``resnet50`` of ``resnet50`` and of ``resnet50.a1_in1k``."""
    return name.partition(".")[0]


def timm_config(name: str) -> Any | None:
    """Return timm's ``PretrainedCfg`` of a model name with or without tag; None where timm has no such name."""
    import timm
    from timm.models import PretrainedCfg, get_pretrained_cfg

    if not timm.is_model(name):
        return None
    try:
        return get_pretrained_cfg(name) or PretrainedCfg()
    except RuntimeError:  # the architecture is known, the tag is not
        return None


def timm_names(tags_of: str | None = None) -> list[str]:
    """Return timm's architectures, or with ``tags_of`` the names ``architecture.tag`` of that one's weights."""
    import timm

    if tags_of is None:
        return list(timm.list_models())
    return [name for name in timm.list_models(f"{tags_of}.*", include_tags=True) if "." in name]


def timm_defaults(name: str) -> EncoderDefaults:
    """Return what timm says of the images that its model ``name`` (known to it) was made for."""
    config = timm_config(name)
    if config is None:
        raise ValueError(f"timm has no model {name!r}.")
    # Some authors test at a larger size yet. One size serves both here, and training at theirs costs twice the time.
    _, height, width = config.input_size
    return EncoderDefaults(
        image_size=(int(height), int(width)),
        # A crop share above 1 would ask for a crop larger than the image.
        resize=max(floor(max(height, width) / config.crop_pct), height, width),
        interpolation="bilinear" if config.interpolation == "bilinear" else "bicubic",
        mean=tuple(float(value) for value in config.mean),
        std=tuple(float(value) for value in config.std),
    )


def build_timm_encoder(name: str, in_channels: int, image_size: tuple[int, int] | None = None) -> nn.Module:
    """Return timm's model ``name`` (known to it) without classifier, weights drawn from torch's global generator.

    Args:
        name: with or without the tag of published weights, which are not loaded here.
        in_channels: channels of the images.
        image_size: height and width in pixels; those the model was made for if not given.

    Returns:
        A module ``[B, in_channels, H, W] -> [B, feature_dim]``.

    Raises:
        UserError: the model cannot take images of that size.
    """
    options, width = _plan(name, in_channels, None if image_size is None else (image_size[0], image_size[1]))
    model = _create(name, in_channels, options)
    model.feature_dim = width  # type: ignore[assignment]  # nn.Module's stub knows tensors and modules only
    return model


@lru_cache(maxsize=64)
def _plan(name: str, in_channels: int, image_size: tuple[int, int] | None) -> tuple[dict[str, Any], int]:
    """Return the extra options that make the model take such images, and the width of its features.

    Found out by a forward pass on the meta device, which holds no values: it costs a fraction of a second, draws no
    random number, and is right for every family, whatever its attributes are called.
    """
    config = timm_config(name)
    fixed = config is not None and config.fixed_input_size
    size = image_size or (tuple(config.input_size[1:]) if config is not None else (224, 224))
    # A transformer with position embeddings must be told the size. Other models mostly know no such option.
    choices: list[dict[str, Any]] = [{"img_size": size}, {}] if fixed else [{}, {"img_size": size}]
    reasons = []
    for options in choices:
        try:
            with torch.device("meta"), torch.no_grad():
                features = _create(name, in_channels, options).eval()(torch.empty(2, in_channels, *size))
        except Exception as error:  # whatever kind a model raises, it does not take the images
            reasons.append(" ".join(str(error).split())[:120].rstrip("."))
            continue
        if isinstance(features, Tensor) and features.ndim == 2 and features.shape[0] == 2 and features.shape[1] > 0:
            return options, features.shape[1]
        reasons.append("it gives no single vector for each image")
    raise UserError(
        f"encoder {name!r} cannot take images of {size[0]}x{size[1]} pixels with {in_channels} channels "
        f"({reasons[0]}); choose another --image_size or another encoder."
    )


def _create(name: str, in_channels: int, options: dict[str, Any], num_classes: int = 0) -> nn.Module:
    import timm

    with quiet():
        return timm.create_model(name, pretrained=False, in_chans=in_channels, num_classes=num_classes, **options)


def classifier_tensors(name: str, encoder: nn.Module) -> set[str]:
    """Return the names of the tensors that timm's model ``name`` has with its classifier and ``encoder`` has not."""
    with torch.device("meta"):
        whole = _create(name, 3, {}, num_classes=1000)
    return whole.state_dict().keys() - encoder.state_dict().keys()


def fit_to_timm(encoder: nn.Module, name: str, tensors: dict[str, Tensor], in_channels: int) -> dict[str, Tensor]:
    """Return ``tensors`` under the encoder's names and, where timm knows how, in its sizes.

    timm's own functions rename what other programs called otherwise, resample position embeddings to the encoder's
    image size, and sum or repeat the first convolution's channels. What they cannot fit stays as it is.
    """
    from timm.models import adapt_input_conv

    fitted = tensors
    adapt = _published_filter(name, encoder)
    if adapt is not None:
        try:
            with quiet(), torch.no_grad():
                fitted = adapt(dict(tensors), encoder)
        except Exception:  # tensors of another architecture trip it up; the comparison that follows names them
            fitted = tensors
    fitted = dict(fitted)
    config = timm_config(name)
    first = (config.first_conv if config is not None else None) or ()
    expected = encoder.state_dict()
    for key in (f"{layer}.weight" for layer in ((first,) if isinstance(first, str) else first)):
        found = fitted.get(key)
        if found is None or key not in expected or found.ndim != 4 or found.shape[1] == expected[key].shape[1]:
            continue
        try:
            fitted[key] = adapt_input_conv(in_channels, found)
        except (NotImplementedError, AssertionError, RuntimeError):
            continue
    return fitted


def _published_filter(name: str, encoder: nn.Module) -> Any | None:
    """Return timm's function ``(tensors, model) -> tensors`` for files of this model; None where it has none."""
    from timm.models import model_entrypoint

    for module in (model_entrypoint(name).__module__, type(encoder).__module__):
        for filter_name in _FILTER_NAMES:
            found = getattr(sys.modules[module], filter_name, None)
            if found is None:
                continue
            parameters = signature(found).parameters
            if "adapt_layer_scale" in parameters:  # renames DeiT III's tensors, and no other model's
                found = partial(found, adapt_layer_scale=True)
            return found if len(parameters) > 1 else _ignoring_the_model(found)
    return None


def _ignoring_the_model(function: Any) -> Any:
    return lambda tensors, model: function(tensors)
