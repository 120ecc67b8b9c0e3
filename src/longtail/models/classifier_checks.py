"""What a classifier is given, checked: images, features, priors, and the tensors of a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longtail.data.image_set import Framing
from longtail.errors import UserError, unknown_name
from longtail.metrics.inputs import zeros_as_rarest

_RANGE_SLACK = 1e-3


def as_framing(record: Any) -> Framing:
    """Return the framing that ``model.json`` holds."""
    if record is None:
        raise UserError("it does not say how images are framed, so an earlier version wrote it; train the model again.")
    height, width = (int(side) for side in record["size"])
    if record["interpolation"] not in ("bilinear", "bicubic"):
        raise ValueError(f"interpolation {record['interpolation']!r}")
    return Framing((height, width), int(record["resize"]), record["interpolation"])


def as_prior(values: Tensor | Sequence[float], num_classes: int, what: str) -> Tensor:
    """Return ``values`` as float64 ``[C]`` on the CPU with sum 1; ``what`` names them in the UserError."""
    prior = torch.as_tensor(values).detach().to("cpu", torch.float64)
    if prior.shape != (num_classes,):
        raise UserError(f"{what} has shape {list(prior.shape)}; give one weight for each of {num_classes} classes.")
    if not bool(torch.isfinite(prior).all()) or bool((prior < 0).any()):
        raise UserError(f"{what} has weights that are negative or not finite; give weights of 0 or more.")
    if not bool(prior.sum() > 0):
        raise UserError(f"{what} is 0 in every class; give at least one class a positive weight.")
    return prior / prior.sum()


def prior_shift(prior: str | Tensor | Sequence[float], class_counts: Tensor, logit_prior: Tensor) -> Tensor:
    """Return log(prior) - log(logit_prior), float64 ``[C]`` on the CPU: what a prior adds to the logits of a model.

    Args:
        prior: ``"uniform"``, ``"train"`` or C weights.
        class_counts, logit_prior: of the model, ``[C]``.

    Raises:
        UserError: ``prior`` is none.
    """
    classes = len(class_counts)
    if not isinstance(prior, str):
        new = as_prior(prior, classes, "prior")
    elif prior == "uniform":
        new = torch.full((classes,), 1 / classes, dtype=torch.float64)
    elif prior == "train":
        new = as_prior(class_counts, classes, "the training prior")
    else:
        raise unknown_name("prior", prior, ("uniform", "train"))
    return new.log() - zeros_as_rarest(logit_prior.cpu().double()).log()


def check_range(images: Tensor) -> None:
    """Raise :class:`UserError` unless floating point ``images`` lie in 0..1."""
    # Values cannot be looked at while a graph is being traced for export.
    if torch.compiler.is_compiling() or images.numel() == 0:
        return
    low, high = (float(value) for value in torch.aminmax(images))
    if not (low >= -_RANGE_SLACK and high <= 1 + _RANGE_SLACK):
        raise UserError(f"floating point images must lie in 0..1, not {low:g}..{high:g}; divide by 255 or give uint8.")


def finite(features: Tensor) -> Tensor:
    """Return ``features [B, D]``, or raise the :class:`UserError` that names the first row that is not finite."""
    if not torch.compiler.is_compiling():
        bad = (~torch.isfinite(features)).any(1).nonzero()
        if len(bad):
            raise UserError(
                f"features hold a value that is not finite, first in row {int(bad[0])}; leave that row out."
            )
    return features


def check_same_tensors(found: dict[str, Tensor], expected: dict[str, Tensor], path: str) -> None:
    """Raise :class:`UserError` unless the tensors of the file ``path`` have the names, kinds and shapes expected."""

    def describe(tensors: dict[str, Tensor], name: str) -> str:
        if name not in tensors:
            return "missing"
        tensor = tensors[name]
        kind = "float" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")
        return f"{kind} {list(tensor.shape)}"

    names = [*expected, *sorted(found.keys() - expected.keys())]
    pairs = [(name, describe(found, name), describe(expected, name)) for name in names]
    wrong = [f"{name} (file: {has}; expected: {wants})" for name, has, wants in pairs if has != wants]
    if wrong:
        shown = ", ".join(wrong[:3])
        raise UserError(f"{path} does not fit its description in {len(wrong)} tensors, first {shown}; save it again.")
