"""The computation that is exported: images in, logits and probabilities out, and what says how to use it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import longtail
from longtail.data.decode import fit
from longtail.data.image_set import Framing
from longtail.errors import UserError
from longtail.models import Classifier

_FAR = 0.05
_CLEAR = 0.05
"""Levels that a resized pixel must be away from a half for two runtimes to round it alike."""
_TRIES = 100
TOLERANCE = 1e-4
"""Largest difference to torch that is let pass, as a share of the largest logit (of 1, if that is smaller)."""

Runner = Callable[[tuple[Tensor, ...]], tuple[Tensor, Tensor]]
"""An exported model at work: inputs -> (logits, probabilities)."""


@dataclass(frozen=True)
class Form:
    """What an exported model takes in.

    Attributes:
        preprocessing: pixels, uint8 ``[B, channels, H, W]`` of the framing's size, instead of normalised float32.
        resizing: pixels of any height and width; they are brought to the framing's size inside.
        prior_input: a second input ``log_prior [C]``.
        temperature: the logits are divided by it (see ``calibration.json``); None = they are not.
    """

    preprocessing: bool = False
    resizing: bool = False
    prior_input: bool = False
    temperature: float | None = None

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs, in order."""
        return ["images", *(["log_prior"] if self.prior_input else [])]

    def describe_images(self, classifier: Classifier) -> str:
        """Return type, shape and range of the input ``images`` in words."""
        channels, (height, width) = len(classifier.mean), classifier.image_size
        if classifier.takes_features:
            how = "as the encoder gives them" if self.preprocessing else "(feature - mean) / std"
            return f"float32 [batch, {channels}], {how}"
        if self.resizing:
            return f"uint8 [batch, {channels}, height, width], 0..255, any height and width"
        if self.preprocessing:
            return f"uint8 [batch, {channels}, {height}, {width}], 0..255"
        return f"float32 [batch, {channels}, {height}, {width}], (pixel / 255 - mean) / std"


class DeployedClassifier(nn.Module):
    """A classifier as others run it: ``images`` [, ``log_prior``] -> (``logits [B, C]``, ``probabilities [B, C]``).

    Probabilities are the softmax of the logits. These are the classifier's, divided by the temperature if there is one;
    with ``log_prior`` (logarithms of C weights of any sum) log_prior - log(logit_prior) is added, as
    :meth:`longtail.Classifier.predict` does.
    """

    log_logit_prior: Tensor

    def __init__(self, classifier: Classifier, form: Form) -> None:
        super().__init__()
        self.classifier = classifier
        self.form = form
        # prior_shift gives log(1 / C) - log(logit_prior), and knows what to do about classes without a prior.
        shift = classifier.prior_shift("uniform") + torch.tensor(float(classifier.num_classes)).log()
        self.register_buffer("log_logit_prior", -shift.float())

    def forward(self, images: Tensor, log_prior: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return logits and probabilities ``[B, C]``; see the class."""
        if self.form.resizing:
            images = resize_to_framing(images, self.classifier.framing)
        if self.form.preprocessing or self.form.resizing:
            mean, std = self.classifier.mean, self.classifier.std
            if self.classifier.takes_features:
                images = (images - mean) / std
            else:
                images = (images.float() / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
        logits = self.classifier(images)
        if self.form.temperature is not None:
            logits = logits / self.form.temperature
        if log_prior is not None:
            logits = logits + (log_prior - self.log_logit_prior)
        return logits, logits.softmax(1)


def resize_to_framing(images: Tensor, framing: Framing) -> Tensor:
    """Bring uint8 ``images [B, channels, any, any]`` to the framing: float32 ``[B, channels, H, W]``, whole 0..255.

    The same steps as :func:`longtail.data.decode.fit`: shorter side to ``framing.resize`` with antialiasing, then the
    centre. Whole numbers only, no branch on a size, so that it can be traced for all sizes at once.
    """
    height, width = images.shape[-2:]
    whole = _whole_size(height, width, framing)
    pixels = _resized(images, whole, framing).round().clamp(0, 255)
    # Halves are rounded to even, as Python's round does in `fit`: (d + 1) // 2 where d % 4 is 3, else d // 2.
    spare = [side - size for side, size in zip(whole, framing.size, strict=True)]
    first = ((d + d % 4 // 3) // 2 for d in spare)
    # Chosen by index, not cut out: for a cut that takes all of one side torch.export writes down what that means for
    # strides, and refuses images of other shapes.
    rows, columns = (torch.arange(n, device=pixels.device) + d for n, d in zip(framing.size, first, strict=True))
    return pixels.index_select(2, rows).index_select(3, columns)


def _whole_size(height: Any, width: Any, framing: Framing) -> list[Any]:
    short = torch.sym_min(height, width)
    return [framing.resize * height // short, framing.resize * width // short]


def _resized(images: Tensor, whole: list[Any], framing: Framing) -> Tensor:
    return F.interpolate(images.float(), whole, mode=framing.interpolation, antialias=True)


def description(classifier: Classifier, form: Form) -> dict[str, str]:
    """Return what a program must know to use the exported model; values that are not plain text are JSON."""
    values: dict[str, Any] = {
        "class_names": list(classifier.class_names),
        "class_counts": classifier.class_counts.tolist(),
        "logit_prior": classifier.logit_prior.tolist(),
        "mean": classifier.mean.tolist(),
        "std": classifier.std.tolist(),
        "framing": asdict(classifier.framing),
    }
    if form.temperature is not None:
        values["temperature"] = form.temperature
    return {
        **{name: json.dumps(value, ensure_ascii=False) for name, value in values.items()},
        "images": form.describe_images(classifier),
        "longtail_version": longtail.__version__,
    }


def sample_images(classifier: Classifier, count: int, size: tuple[int, int] | None = None) -> Tensor:
    """Return random pixels uint8 ``[count, channels, height, width]``, of the classifier's size if not given.

    For a classifier of features these are random ones, float32 ``[count, D]``.
    """
    if classifier.takes_features:
        drawn = torch.randn(count, len(classifier.mean), generator=torch.Generator().manual_seed(count))
        return drawn * classifier.std.cpu() + classifier.mean.cpu()
    shape = (count, len(classifier.mean), *(size or classifier.image_size))
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(count), dtype=torch.uint8)


def framed_by_pillow(pixels: Tensor, framing: Framing) -> Tensor:
    """Return ``pixels [B, channels, any, any]`` as images from files come: uint8 ``[B, channels, H, W]``."""
    frames = [np.atleast_3d(fit(Image.fromarray(_as_picture(image)), framing)) for image in pixels]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def _as_picture(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).squeeze(2).numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()


def model_inputs(classifier: Classifier, form: Form, pixels: Tensor, prior: Tensor) -> tuple[Tensor, ...]:
    """Return the inputs of the exported model for ``pixels`` (uint8) and ``prior [C]``."""
    images = pixels if form.preprocessing or form.resizing else classifier.preprocess(pixels)
    return (images, prior.log().float()) if form.prior_input else (images,)


def check_against_torch(run: Runner, classifier: Classifier, form: Form, what: str) -> float:
    """Compare an exported model with ``Classifier.logits`` on the same images, in batches of 1 and 3.

    Where it resizes, these are of a size that needs no resizing. Others are added, which torch resizes by the same
    steps; for how far both are from Pillow see :func:`measure_resizing`.

    Returns:
        The largest absolute difference of a logit.

    Raises:
        UserError: a logit differs by more than ``TOLERANCE`` (see there), or a probability by more than that.
    """
    worst = 0.0
    prior = torch.arange(1, classifier.num_classes + 1, dtype=torch.float64)
    shift = classifier.prior_shift(prior) if form.prior_input else torch.zeros(1)
    for pixels, framed in _checked_images(classifier, form.resizing):
        expected = classifier.logits(framed).double() / (form.temperature or 1.0) + shift
        with torch.no_grad():
            logits, probabilities = run(model_inputs(classifier, form, pixels, prior / prior.sum()))
        gap = float((logits.double() - expected).abs().max())
        off = float((probabilities.double() - expected.softmax(1)).abs().max())
        allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
        if not (gap <= allowed and off <= TOLERANCE):
            raise UserError(
                f"{what} and torch do not agree on this model: logits differ by {gap:.2g} ({allowed:.2g} is let pass), "
                f"probabilities by {off:.2g}; nothing was written. Try another format or version of {what}."
            )
        worst = max(worst, gap)
    return worst


def _checked_images(classifier: Classifier, resizing: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pixels for the exported model, and the same as the classifier takes them."""
    framing = classifier.framing
    for count in (1, 3):
        pixels = sample_images(classifier, count, (framing.resize, framing.resize) if resizing else None)
        yield pixels, framed_by_pillow(pixels, framing) if resizing else pixels
    for pixels in _edges(classifier) if resizing else ():
        yield pixels, resize_to_framing(pixels, framing).to(torch.uint8)


def _other_sizes(side: int) -> tuple[tuple[int, int], ...]:
    """Heights and widths that have to be resized to ``side``: wide, large, high, small."""
    return (side, 2 * side), (3 * side + 1, 4 * side), (5 * side, 3 * side + 2), (side // 2 + 1, side)


def _edges(classifier: Classifier) -> list[Tensor]:
    """Return pictures of several sizes with one edge between two grays, whose resized pixels are clear of halves.

    Another runtime may round a pixel near a half to the other side, through no fault of its own.
    """
    found, generator, framing = [], torch.Generator().manual_seed(0), classifier.framing
    for height, width in _other_sizes(framing.resize):
        for rows, columns in ((2 * height // 5, width), (height, 2 * width // 5)):
            for _ in range(_TRIES):
                dark, light = torch.randint(0, 128, (2,), generator=generator).tolist()
                pixels = torch.full((1, len(classifier.mean), height, width), light + 128, dtype=torch.uint8)
                pixels[..., :rows, :columns] = dark
                exact = _resized(pixels, _whole_size(height, width, framing), framing)
                if float((exact - exact.floor() - 0.5).abs().min()) > _CLEAR:
                    found.append(pixels)
                    break
    return found


def measure_resizing(run: Runner, classifier: Classifier, form: Form) -> str:
    """Return a sentence on how far resizing inside is from Pillow, on random soft pictures of several sizes.

    Raises:
        UserError: so far that it cannot be meant.
    """
    gaps, levels = [], []
    for height, width in _other_sizes(classifier.framing.resize):
        coarse = sample_images(classifier, 4, (6, 6)).float()
        pixels = F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255).to(torch.uint8)
        framed = framed_by_pillow(pixels, classifier.framing)
        expected = (classifier.logits(framed).double() / (form.temperature or 1.0)).softmax(1)
        with torch.no_grad():
            _, probabilities = run(model_inputs(classifier, form, pixels, classifier.logit_prior.double()))
        gaps.append((probabilities.double() - expected).abs().amax(1))
        levels.append((resize_to_framing(pixels, classifier.framing) - framed).abs().mean())
    gap = torch.cat(gaps)
    if not float(gap.mean()) <= _FAR:
        raise UserError(
            f"resizing inside changes probabilities by {float(gap.mean()):.2g} on average, which is too far from "
            "Pillow; nothing was written. Resize outside and use --preprocessing."
        )
    return (
        f"resizing inside is not Pillow's to the last bit: on {len(gap)} random pictures of {len(gaps)} sizes its "
        f"probabilities differ by {float(gap.mean()):.1g} on average ({float(gap.max()):.1g} at most), and pixels that "
        f"torch resizes in the same way by {float(torch.stack(levels).mean()):.2g} of 255 levels."
    )
