"""What a run delivers: encoder, head, classes and preprocessing as one module that saves and predicts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from longtail.data.image_set import Framing
from longtail.errors import UserError
from longtail.files import load_tensors, save_tensors, write_bytes, write_json
from longtail.hub import HUB, HUB_NAME, fetch_model, push_folder
from longtail.models.brief_card import brief_card
from longtail.models.classifier_checks import (
    as_framing,
    as_prior,
    check_range,
    check_same_tensors,
    finite,
    prior_shift,
)
from longtail.models.encoders import build_encoder, feature_dim
from longtail.models.feature_encoders import FEATURE_ENCODERS
from longtail.models.heads import build_head
from longtail.models.on_top import OnTop
from longtail.models.temperature import CALIBRATION, read_temperature
from longtail.models.tuning import apply_tuning, tuning_of_spec

_STEM = "model"

Prior = str | Tensor | Sequence[float]
"""A class prior: ``"uniform"``, ``"train"``, or C weights (not negative, any positive sum)."""


class Classifier(nn.Module):
    """An encoder and a head with all that is needed to use them on raw images.

    Args:
        encoder: normalised images ``[B, in_channels, H, W]`` -> features ``[B, D]``.
        head: features -> logits ``[B, C]``.
        class_names: C names in label order.
        class_counts: training images in each class, ``[C]``.
        logit_prior: ``[C]``, the class prior that the raw softmax implies: the training prior for plain cross
            entropy, uniform for logit adjustment and GML. Scaled to sum 1.
        mean, std: per-channel pixel statistics on the 0..1 scale.
        framing: how an image of any size is brought to the ``image_size`` that ``preprocess`` takes.
        spec: what ``load`` rebuilds from, JSON-able: ``{"encoder": name, "in_channels": n, "head": name,
            "scale": 30.0}``, the head's name being ``"cosine"`` or ``"linear"``; with ``"tuning": {"kind": "adapter",
            "rank": 4}`` (or ``"prompt"``, ``"prompts"``) where that is part of the encoder; with ``"on_features":
            name`` that encoder lies on the standardised features of the first.

    Attributes:
        temperature: what ``predict`` divides the logits by, fitted on validation images (Guo et al. 2017); None = they
            are not calibrated. It is no part of what ``save`` writes: ``longtail.load`` takes it from the run.

    Raises:
        ValueError: lengths do not agree, or ``logit_prior`` is no prior.
    """

    class_counts: Tensor
    logit_prior: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        class_names: Sequence[str],
        class_counts: Tensor,
        logit_prior: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        framing: Framing,
        spec: dict[str, Any],
    ) -> None:
        super().__init__()
        names = tuple(class_names)
        if class_counts.shape != (len(names),):
            raise ValueError(f"class_counts must hold {len(names)} counts, its shape is {list(class_counts.shape)}.")
        if not len(mean) == len(std) == spec["in_channels"]:
            raise ValueError(f"mean and std must hold one value for each of {spec['in_channels']} channels.")
        if min(std) <= 0:
            raise ValueError("std must be positive in every channel.")
        self.encoder = encoder
        self.head = head
        self.class_names = names
        self.framing = framing
        self.temperature: float | None = None
        self.spec: dict[str, Any] = json.loads(json.dumps(spec))
        self.register_buffer("class_counts", class_counts.detach().to(torch.int64).clone())
        self.register_buffer("logit_prior", as_prior(logit_prior, len(names), "logit_prior").float())
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    @property
    def takes_features(self) -> bool:
        """Whether its inputs are features ``[B, D]`` of another encoder, D = ``in_channels``, and not images."""
        return self.spec["encoder"] in FEATURE_ENCODERS

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels that ``preprocess`` takes."""
        return self.framing.size

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, C]`` of images ``[B, in_channels, H, W]`` that are already normalised."""
        logits: Tensor = self.head(self.encoder(images))
        return logits

    def preprocess(self, images: Tensor) -> Tensor:
        """Return normalised float32 of uint8 (0..255) or float (0..1) images ``[B, in_channels, H, W]``.

        A classifier that ``takes_features`` takes floating point ``[B, in_channels]`` instead, of any range.

        Raises:
            UserError: wrong type, channel count, size or value range.
        """
        self._check_shape(images)
        if self.takes_features:
            return (finite(images).float() - self.mean.float()) / self.std.float()
        if images.dtype == torch.uint8:
            pixels = images.float() / 255
        elif images.is_floating_point():
            check_range(images)
            pixels = images.float()
        else:
            raise UserError(f"images are {images.dtype}; give uint8 in 0..255 or floating point in 0..1.")
        return (pixels - self.mean.float().view(-1, 1, 1)) / self.std.float().view(-1, 1, 1)

    def logits(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """Return logits ``[B, C]`` of raw images (see ``preprocess``) in eval mode, without gradient.

        Images may lie on another device than the classifier: batches are brought over, and the result, in
        float32 at least, lies where the images do. Every submodule's mode is put back afterwards.

        Raises:
            UserError: the images do not fit (see ``preprocess``) or ``batch_size`` is not positive.
        """
        if batch_size < 1:
            raise UserError(f"batch_size must be 1 or more, not {batch_size}.")
        self._check_shape(images)
        if not len(images):  # transformers cannot reshape nothing
            return torch.empty(0, self.num_classes, device=images.device)
        with evaluating(self), torch.inference_mode():
            batches = [
                self(self.preprocess(images[start : start + batch_size].to(self.mean.device)).to(self.mean.dtype))
                for start in range(0, len(images), batch_size)
            ]
            logits = torch.cat(batches).to(images.device)
        # A copy made outside inference mode is an ordinary tensor, which callers may change or train on.
        return logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)

    def predict(self, images: Tensor, prior: Prior | None = None, batch_size: int = 256) -> Tensor:
        """Return class probabilities ``[B, C]`` of raw images (as ``preprocess`` takes them).

        They are the softmax of the logits, divided by ``temperature`` where there is one: what ``longtail predict``
        and an exported model say of the same images.

        Args:
            images: uint8 in 0..255 or float in 0..1, ``[B, in_channels, H, W]``. Image files are for
                :func:`longtail.predict`.
            prior: class prior expected where the model is used. None takes the softmax as it is; otherwise
                log(prior) - log(logit_prior) is added to these logits (Bayes' rule; Saerens et al. 2002).
                A class of prior 0 is never predicted.
            batch_size: images in one forward pass; speed and memory only.

        Raises:
            UserError: images or prior do not fit.
        """
        shift = None if prior is None else self.prior_shift(prior)
        logits = self.logits(images, batch_size)
        if self.temperature is not None:
            logits = logits / self.temperature
        if shift is not None:
            logits = logits + shift.to(logits)
        return logits.softmax(dim=1)

    def _check_shape(self, images: Tensor) -> None:
        if not isinstance(images, Tensor):
            raise UserError(
                f"images are a {type(images).__name__}, expected is one tensor [batch, channels, height, width]; for "
                "image files there is longtail.predict(RUN, FILES)."
            )
        if self.takes_features:
            if images.ndim != 2 or images.shape[1] != len(self.mean) or not images.is_floating_point():
                kind = str(images.dtype).removeprefix("torch.")
                raise UserError(
                    f"features are {kind} {list(images.shape)}, expected is floating point [batch, {len(self.mean)}]; "
                    "they must come from the encoder that made those of the training."
                )
            return
        expected = [len(self.mean), *self.image_size]
        if images.ndim != 4 or list(images.shape[1:]) != expected:
            raise UserError(
                f"images have shape {list(images.shape)}, expected are [batch, channels, height, width] "
                f"= [any, {str(expected)[1:]}; convert or resize them first."
            )

    def prior_shift(self, prior: Prior) -> Tensor:
        """Return what ``prior`` adds to the logits, log(prior) - log(logit_prior): float64 ``[C]`` on the CPU.

        It is -inf where the prior is 0. Raises UserError if ``prior`` is none.
        """
        return prior_shift(prior, self.class_counts, self.logit_prior)

    def save(self, folder: Path | str) -> None:
        """Write ``model.safetensors`` and ``model.json`` into ``folder``, which is made if need be."""
        framing = asdict(self.framing) | {"size": list(self.image_size)}
        meta = {"spec": self.spec, "class_names": list(self.class_names), "framing": framing}
        save_tensors(Path(folder), _STEM, self.state_dict(), meta)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Classifier:
        """Return a classifier by the name of its run folder, or of its repository on the hub.

        As :func:`longtail.load` does: onto the CPU, in eval mode, with the temperature that was fitted.

        Args:
            name: a folder, ``hf-hub:owner/name[@revision]``, or ``owner/name[@revision]`` where there is no such
                folder.

        Raises:
            UserError: no such folder or repository, no network, or a file is cut off or changed.
        """
        text = str(name)
        is_local = Path(text).is_dir() or not HUB_NAME.fullmatch(text)
        folder = Path(text) if is_local and not text.startswith(HUB) else fetch_model(text)
        classifier = cls.load(folder)
        classifier.temperature = read_temperature(folder)
        return classifier

    def push_to_hub(self, repository: str, *, private: bool = False, token: str | None = None) -> str:
        """Put this classifier into the hub repository ``owner/name``, made if need be, and return its address.

        A card of the classes is written where there is none; :func:`longtail.push_to_hub` gives a run's card with
        figures.

        Args:
            repository: ``owner/name``.
            private: whether a new repository is seen by its owners only.
            token: default: that of who is logged in.

        Raises:
            UserError: no network, not logged in, or not allowed.
        """
        with TemporaryDirectory() as place:
            folder = Path(place)
            self.save(folder)
            if self.temperature is not None:
                write_json(folder / CALIBRATION, {"temperature": self.temperature})
            card = brief_card(repository.removeprefix(HUB), self.class_names, self.class_counts.tolist())
            write_bytes(folder / "README.md", card.encode("utf-8", "replace"))
            return push_folder(folder, repository, private, token, keep_card=True)

    @classmethod
    def load(cls, folder: Path | str) -> Classifier:
        """Read what ``save`` wrote, bit for bit, onto the CPU and in eval mode. Nothing is unpickled.

        Raises:
            UserError: a file is missing, cut off or changed, or its tensors do not fit its description.
        """
        tensors, meta = load_tensors(Path(folder), _STEM)
        where = str(Path(folder) / f"{_STEM}.json")
        try:
            spec, names = dict(meta["spec"]), [str(name) for name in meta["class_names"]]
            if spec.get("task") == "segmentation":
                raise UserError(
                    "the model is a segmenter, not a classifier; longtail.load reads it, and longtail.segmentation has "
                    "predict_masks, evaluate_masks and export_segmenter."
                )
            framing = as_framing(meta.get("framing"))
            channels = int(spec["in_channels"])
            uniform = torch.full((len(names),), 1 / len(names))
            # Initial weights are drawn only to be replaced: the caller's random numbers must not move on.
            with torch.random.fork_rng(devices=[]):
                model = build_classifier(
                    spec,
                    names,
                    torch.ones(len(names)),
                    uniform,
                    [0.0] * channels,
                    [1.0] * channels,
                    framing,
                )
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise UserError(f"{where} does not describe a classifier ({error!r}); save it again.") from None
        check_same_tensors(tensors, model.state_dict(), str(Path(folder) / f"{_STEM}.safetensors"))
        model.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
        return model.eval()


def build_classifier(
    spec: dict[str, Any],
    class_names: Sequence[str],
    class_counts: Tensor,
    logit_prior: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    framing: Framing,
) -> Classifier:
    """Return a ``Classifier`` of ``spec`` (see there) with new weights from torch's global generator.

    Raises:
        UserError: ``spec`` names an unknown encoder, head or tuning, or the encoder cannot take images of that size.
    """
    encoder = build_encoder(spec["encoder"], spec["in_channels"], framing.size)
    if "tuning" in spec:
        encoder = apply_tuning(encoder, tuning_of_spec(spec["tuning"]), spec["encoder"])
    if "on_features" in spec:
        dim = feature_dim(encoder)
        encoder = OnTop(encoder, build_encoder(spec["on_features"], dim), [0.0] * dim, [1.0] * dim)
    head = build_head(spec["head"], feature_dim(encoder), len(class_names), float(spec.get("scale", 30.0)))
    return Classifier(encoder, head, class_names, class_counts, logit_prior, mean, std, framing, spec)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode, then give every submodule back the mode that it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
