"""What a run on masks delivers: encoder, head, classes and palette as one module that saves and predicts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longtail.errors import UserError
from longtail.files import load_tensors, save_tensors
from longtail.models.classifier import Prior, evaluating
from longtail.models.classifier_checks import as_prior, check_same_tensors, prior_shift
from longtail.segmentation.models.head import PixelHead, to_image
from longtail.segmentation.models.inference import TestView
from longtail.segmentation.models.pixel_encoder import build_pixel_encoder

_STEM = "model"
_TASK = "segmentation"
NEVER = -1e4
"""Logit of a class that cannot be predicted: finite, as half precision and exported files need it."""


class Segmenter(nn.Module):
    """An encoder of pixels and a head with all that is needed to use them on raw images.

    Args:
        encoder: normalised images ``[B, in_channels, H, W]`` -> features ``[B, D, h, w]``; it states ``stride``.
        head: features -> logits ``[B, C, h, w]``.
        class_names: C names in label order.
        class_counts: training pixels of each class, ``[C]``.
        image_counts: training images that hold each class, ``[C]``.
        logit_prior: ``[C]``, the class prior that the raw softmax implies. Scaled to sum 1.
        mean, std: per-channel pixel statistics on the 0..1 scale.
        palette: colour of each class, ``[C, 3]``, 0..255.
        size: height and width that images are brought to before this model sees them; None = as they are.
        spec: what ``load`` rebuilds from, JSON-able: ``{"task": "segmentation", "encoder", "decoder", "width",
            "in_channels", "head", "scale"}``, with ``"regions"`` where an ``ocr`` decoder has not its usual number.

    Raises:
        ValueError: lengths do not agree.
        UserError: ``logit_prior`` is no prior.
    """

    class_counts: Tensor
    image_counts: Tensor
    logit_prior: Tensor
    mean: Tensor
    std: Tensor
    palette: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        class_names: Sequence[str],
        class_counts: Tensor,
        image_counts: Tensor,
        logit_prior: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        palette: Tensor,
        size: tuple[int, int] | None,
        spec: dict[str, Any],
    ) -> None:
        super().__init__()
        names = tuple(class_names)
        if not class_counts.shape == image_counts.shape == (len(names),):
            raise ValueError(f"class_counts and image_counts must hold {len(names)} counts.")
        if palette.shape != (len(names), 3):
            raise ValueError(f"palette must be [{len(names)}, 3], its shape is {list(palette.shape)}.")
        if not len(mean) == len(std) == spec["in_channels"]:
            raise ValueError(f"mean and std must hold one value for each of {spec['in_channels']} channels.")
        if min(std) <= 0:
            raise ValueError("std must be positive in every channel.")
        self.encoder, self.head = encoder, head
        self.class_names = names
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.spec: dict[str, Any] = json.loads(json.dumps({**spec, "task": _TASK}))
        self.register_buffer("class_counts", class_counts.detach().to(torch.int64).clone())
        self.register_buffer("image_counts", image_counts.detach().to(torch.int64).clone())
        self.register_buffer("logit_prior", as_prior(logit_prior, len(names), "logit_prior").float())
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        self.register_buffer("palette", palette.detach().to(torch.uint8).clone())

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, C, H, W]`` of normalised images ``[B, in_channels, H, W]`` of any size.

        A class that had no training pixel has ``NEVER``: nothing has taught the head where it is not.
        """
        logits = self.head(self.encoder(images))
        logits = logits.masked_fill((self.class_counts == 0).view(1, -1, 1, 1), NEVER)
        return to_image(logits, images.shape[2:], int(self.encoder.stride))  # type: ignore[arg-type]

    def preprocess(self, images: Tensor) -> Tensor:
        """Return normalised float32 of uint8 images ``[B, in_channels, H, W]``.

        Raises:
            UserError: wrong type, channel count or size.
        """
        if not isinstance(images, Tensor) or images.dtype != torch.uint8:
            kind = str(images.dtype).removeprefix("torch.") if isinstance(images, Tensor) else type(images).__name__
            raise UserError(f"images are {kind}, expected is one tensor of uint8 in 0..255.")
        if images.ndim != 4 or images.shape[1] != len(self.mean) or min(images.shape[2:]) < 1:
            raise UserError(
                f"images have shape {list(images.shape)}, expected are [batch, {len(self.mean)}, height, width]."
            )
        return normalised(images, self.mean, self.std)

    def logits(self, images: Tensor, view: TestView | None = None) -> Tensor:
        """Return logits ``[B, C, H, W]`` of uint8 images in eval mode, without gradient.

        Images may lie on another device; the result, in float32 at least, lies where they do. Every submodule's mode is
        put back afterwards.

        Args:
            images: uint8 ``[B, in_channels, H, W]`` of any one size; memory grows with B.
            view: how they are looked at; None = whole and once. For others logits are logarithms of mean probabilities.

        Raises:
            UserError: the images do not fit.
        """
        pixels = self.preprocess(images.to(self.mean.device)).to(self.mean.dtype)
        if not len(images):
            return torch.empty(0, self.num_classes, *images.shape[2:], device=images.device)
        with evaluating(self), torch.inference_mode():
            logits = (view or TestView()).logits(self, pixels).to(images.device)
        # A copy made outside inference mode is an ordinary tensor, which callers may change or train on.
        return logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)

    def predict(self, images: Tensor, prior: Prior | None = None, view: TestView | None = None) -> Tensor:
        """Return class probabilities ``[B, C, H, W]`` of uint8 images.

        Args:
            images: as for ``logits``.
            prior: class prior over pixels expected where the model is used: ``"uniform"``, ``"train"`` or C weights.
                None takes the softmax as it is; otherwise log(prior) - log(logit_prior) is added to the logits.
            view: as for ``logits``.

        Raises:
            UserError: images or prior do not fit.
        """
        shift = None if prior is None else self.prior_shift(prior)
        logits = self.logits(images, view)
        if shift is not None:
            logits = logits + shift.to(logits).view(-1, 1, 1)
        return logits.softmax(dim=1)

    def prior_shift(self, prior: Prior) -> Tensor:
        """Return what ``prior`` adds to the logits, log(prior) - log(logit_prior): float64 ``[C]`` on the CPU.

        It is -inf where the prior is 0. Raises UserError if ``prior`` is none.
        """
        return prior_shift(prior, self.class_counts, self.logit_prior)

    def save(self, folder: Path | str) -> None:
        """Write ``model.safetensors`` and ``model.json`` into ``folder``, which is made if need be."""
        size = None if self.size is None else list(self.size)
        meta = {"spec": self.spec, "class_names": list(self.class_names), "size": size}
        save_tensors(Path(folder), _STEM, self.state_dict(), meta)

    @classmethod
    def load(cls, folder: Path | str) -> Segmenter:
        """Read what ``save`` wrote, bit for bit, onto the CPU and in eval mode. Nothing is unpickled.

        Raises:
            UserError: a file is missing, cut off or changed, its tensors do not fit its description, or it is of
                another task.
        """
        tensors, meta = load_tensors(Path(folder), _STEM)
        where = str(Path(folder) / f"{_STEM}.json")
        try:
            if meta["spec"].get("task") != _TASK:
                raise UserError("it describes a classifier of images, not a segmenter; load it with longtail.load.")
            # Initial weights are drawn only to be replaced: the caller's random numbers must not move on.
            with torch.random.fork_rng(devices=[]):
                segmenter = _build(meta)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, ZeroDivisionError) as error:
            raise UserError(f"{where} does not describe a segmenter ({error!r}); save it again.") from None
        check_same_tensors(tensors, segmenter.state_dict(), str(Path(folder) / f"{_STEM}.safetensors"))
        segmenter.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
        return segmenter.eval()


def _build(meta: dict[str, Any]) -> Segmenter:
    """Return a segmenter of what ``model.json`` holds, with new weights and empty statistics."""
    spec, names = dict(meta["spec"]), [str(name) for name in meta["class_names"]]
    channels, width, regions = int(spec["in_channels"]), spec["width"], spec.get("regions")
    encoder = build_pixel_encoder(spec["encoder"], spec["decoder"], channels, width, regions)
    head = PixelHead(spec["head"], encoder.feature_dim, len(names), float(spec["scale"]))
    ones, size = torch.ones(len(names)), meta["size"]
    return Segmenter(
        encoder,
        head,
        class_names=names,
        class_counts=ones,
        image_counts=ones,
        logit_prior=ones,
        mean=[0.0] * channels,
        std=[1.0] * channels,
        palette=torch.zeros(len(names), 3),
        size=None if size is None else (int(size[0]), int(size[1])),
        spec=spec,
    )


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return float32 (pixel / 255 - mean) / std of uint8 ``images [B, channels, H, W]``."""
    return (images.float() / 255 - mean.float().view(-1, 1, 1)) / std.float().view(-1, 1, 1)
