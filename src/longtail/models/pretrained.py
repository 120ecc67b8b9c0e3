"""Pretrained weights of an encoder: which are meant, where they are, whether they fit, and loading them.

Everything that can go wrong with them goes wrong in :func:`choose_weights`, which runs before any training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from longtail.errors import UserError, unknown_name
from longtail.hub import HUB, hub_reason
from longtail.models.encoders import build_encoder, encoder_names
from longtail.models.open_clip_encoder import (
    OPEN_CLIP,
    activation_note,
    default_tag,
    fit_to_open_clip,
    is_open_clip,
    open_clip_tags,
    split_name,
)
from longtail.models.timm_encoder import (
    architecture_of,
    classifier_tensors,
    fit_to_timm,
    timm_config,
    timm_names,
)
from longtail.models.weight_files import read_tensors
from longtail.models.weight_hub import RUN_FILE, hub_file

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
_KEPT_ENCODER = "encoder.safetensors"
_PREFIXES = ("module.", "_orig_mod.", "encoder.", "model.", "backbone.")
"""What programs put before an encoder's tensor names: wrappers, and the attribute that holds the encoder."""
_CLASSIFIERS = ("fc.", "head.", "head_dist.", "classifier.")
_WAYS_OUT = "give a local file with --pretrained FILE, or start from scratch with --pretrained none"


def choose_weights(
    encoder: str, wanted: str | None, in_channels: int, image_size: tuple[int, int] | None
) -> tuple[str, str | None]:
    """Decide what an encoder starts from, and make sure that it can be loaded (which may download it).

    Args:
        encoder: name as ``build_encoder`` takes it.
        wanted: None or ``"auto"``: the published weights of a timm model if they can be had, none for our own
            encoders; those of an open_clip model, or an error. ``"none"``: random ones. ``"hub"``: the published ones,
            or an error. Otherwise a weight file, a run folder, a tag of the same model (``a1_in1k``,
            ``resnet50.a1_in1k``, ``openai``) or ``hf-hub:owner/name``.
        in_channels, image_size: of the images, as for ``build_encoder``.

    Returns:
        What ``load_weights`` takes, ``"none"`` for random weights, and a sentence for the user or None. Choosing the
        result again gives the same.

    Raises:
        UserError: the weights cannot be had, cannot be read or do not fit the encoder.
    """
    with torch.device("meta"):
        empty = build_encoder(encoder, in_channels, image_size)
    own = encoder in encoder_names()
    if wanted == "none" or (wanted in (None, "auto") and own):
        return "none", None
    if wanted not in (None, "auto", "hub"):
        assert wanted is not None
        weights = wanted if _is_path(wanted) else _hub_name(encoder, wanted)
        _fitting_tensors(empty, encoder, weights, in_channels)
        return weights, _note_on(weights)
    if own:
        raise UserError(f"encoder {encoder!r} has no weights on the hub; {_WAYS_OUT}.")
    try:
        weights = _default_weights(encoder)
        _fitting_tensors(empty, encoder, weights, in_channels)
    except UserError as error:
        # Nobody names a CLIP model to train it from scratch on a long tail.
        if wanted == "hub" or is_open_clip(encoder):
            raise
        # The network's own words are for who asks with --pretrained hub; this note ends up in the model card.
        reason = str(error).split("; ")[0].removeprefix("--pretrained ").rstrip(".").split(" (")[0]
        return "none", (
            f"no pretrained weights for {encoder} could be had ({reason}); it starts from scratch, which takes more "
            "images and epochs to be good: give a local file with --pretrained FILE if you have one."
        )
    return weights, _note_on(weights)


def _note_on(weights: str) -> str | None:
    """Return a sentence on weights that go with another activation than the encoder's; None for all others."""
    return activation_note(weights) if is_open_clip(weights) else None


def load_weights(encoder: nn.Module, name: str, weights: str, in_channels: int) -> None:
    """Load pretrained weights into an encoder, all of them or none.

    Args:
        encoder: as ``build_encoder(name, in_channels, ...)`` made it; its tensors are overwritten in place.
        name: of the encoder.
        weights: what ``choose_weights`` returned; ``"none"`` changes nothing.
        in_channels: channels of the images. Where a timm model's file has another number, its first convolution's
            weights are summed or repeated to fit, and position embeddings are resampled to the encoder's image size.

    Raises:
        UserError: the weights cannot be had, cannot be read or do not fit the encoder.
    """
    if weights == "none":
        return
    fitting = _fitting_tensors(encoder, name, weights, in_channels)
    with torch.no_grad():
        for key, tensor in encoder.state_dict().items():
            if key in fitting:
                tensor.copy_(fitting[key])


def published_name(encoder: str, wanted: str) -> str:
    """Return the full name of published weights of ``encoder`` that ``wanted``, a tag or a full name, means.

    Raises:
        UserError: there are none of that name, or it is a file or a repository.
    """
    if _is_path(wanted) or wanted.startswith(HUB):
        raise UserError(f"--pretrained {wanted} is no name of published weights.")
    return _hub_name(encoder, wanted)


def is_published(encoder: str, weights: str) -> bool:
    """Return whether ``weights`` are published under the encoder's own name, and so come with what is known of them."""
    try:
        published_name(encoder, weights)
    except UserError:
        return False
    return True


def _is_path(wanted: str) -> bool:
    return not wanted.startswith((HUB, OPEN_CLIP)) and (wanted.endswith(_SUFFIXES) or Path(wanted).exists())


def _hub_name(encoder: str, wanted: str) -> str:
    """Return the full name of published weights that ``wanted`` means, or raise the error that says what is known."""
    if wanted.startswith(HUB):
        if encoder in encoder_names():
            raise UserError(f"encoder {encoder!r} has no weights on the hub; {_WAYS_OUT}.")
        return wanted
    if is_open_clip(encoder):
        return _open_clip_weights(encoder, wanted)
    if encoder in encoder_names() or "/" in wanted:
        raise UserError(
            f"--pretrained {wanted}: there is no such file or folder (a hub repository is written "
            f"{HUB}owner/name); {_WAYS_OUT}."
        )
    architecture = architecture_of(encoder)
    full = wanted if architecture_of(wanted) == architecture else f"{architecture}.{wanted}"
    if timm_config(full) is not None:
        return full
    if timm_config(wanted) is not None:
        raise UserError(
            f"--pretrained {wanted} are weights of {architecture_of(wanted)}, but the encoder is {encoder}; "
            "name weights of the encoder or choose the other encoder."
        )
    tags = [name.partition(".")[2] for name in timm_names(architecture)]
    raise unknown_name(f"--pretrained weights of {architecture}", wanted, [*tags, "auto", "hub", "none"])


def _open_clip_weights(encoder: str, wanted: str) -> str:
    """Return ``open_clip:architecture.tag`` of the weights of an open_clip encoder that ``wanted`` means."""
    architecture = split_name(encoder)[0]
    tag = wanted
    if is_open_clip(wanted):
        other, full_tag = split_name(wanted)
        if other != architecture:
            raise UserError(
                f"--pretrained {wanted} are weights of {OPEN_CLIP}{other}, but the encoder is {encoder}; name weights "
                "of the encoder or choose the other encoder."
            )
        tag = full_tag or ""
    tag = tag.lower().replace("-", "_")  # as open_clip reads a tag
    tags = open_clip_tags(encoder)
    if tag in tags:
        return f"{architecture_of(encoder)}.{tag}"
    if "/" in wanted:
        raise UserError(
            f"--pretrained {wanted}: there is no such file or folder (a hub repository is written {HUB}owner/name); "
            f"{_WAYS_OUT}."
        )
    raise unknown_name(f"--pretrained weights of {OPEN_CLIP}{architecture}", wanted, [*tags, "auto", "hub", "none"])


def _default_weights(encoder: str) -> str:
    """Return the full name, with tag, of the weights that timm or open_clip would load for an encoder's name."""
    if is_open_clip(encoder):
        tag = default_tag(encoder)
        if tag is None:
            raise UserError(f"open_clip publishes no weights for {encoder}; {_WAYS_OUT}.")
        return f"{architecture_of(encoder)}.{tag}"
    config = timm_config(encoder)
    if config is None or not config.has_weights:
        raise UserError(f"timm publishes no weights for {encoder}; {_WAYS_OUT}.")
    return f"{architecture_of(encoder)}.{config.tag}" if config.tag else encoder


def _fitting_tensors(encoder: nn.Module, name: str, weights: str, in_channels: int) -> dict[str, Tensor]:
    """Return a value for every tensor of the encoder, by its name there; the encoder may lie on the meta device."""
    path = local_file(name, weights)
    own, clip = name in encoder_names(), is_open_clip(name)

    def fitted(level: dict[str, Tensor]) -> dict[str, Tensor]:
        if own:
            return level
        return fit_to_open_clip(encoder, level) if clip else fit_to_timm(encoder, name, level, in_channels)

    # What timm publishes under the encoder's own name belongs to it, whatever else the file holds.
    registered = not _is_path(weights) and not weights.startswith(HUB)
    dropped = set() if own or clip else classifier_tensors(name, encoder)
    return matching(
        [fitted(level) for level in levels(read_tensors(path))],
        encoder.state_dict(),
        f"--pretrained {path} does not fit encoder {name}",
        f"give weights of {name}, choose the encoder they belong to, or start from scratch with --pretrained none",
        lambda key: registered or key in dropped or key.startswith(_CLASSIFIERS),
    )


def matching(
    found: Sequence[dict[str, Tensor]],
    expected: dict[str, Tensor],
    misfit: str,
    way_out: str,
    dispensable: Callable[[str], bool],
) -> dict[str, Tensor]:
    """Return that of ``found`` which has most of the ``expected`` tensors, once it is sure that it has them all.

    Args:
        found: the tensors of a file, read in several ways.
        expected: by name; only shapes are looked at.
        misfit: "this file does not fit that module", for the error.
        way_out: what to do then.
        dispensable: whether a tensor of that name may be in the file though it is not expected.

    Raises:
        UserError: tensors are missing, too many, or of another shape; the first three are named.
    """
    best = max(found, key=lambda level: len(level.keys() & expected.keys()))
    wrong = []
    for key in [*expected, *(key for key in best if key not in expected)]:
        if key not in best and key.endswith(".num_batches_tracked"):
            continue  # files of torch before 0.4.1 have no such counter, and nothing depends on it
        if key not in expected and dispensable(key):
            continue
        has, wants = (f"{list(level[key].shape)}" if key in level else "missing" for level in (best, expected))
        if has != wants:
            wrong.append(f"{key} (file: {has}; encoder: {wants})")
    if wrong:
        raise UserError(f"{misfit} in {len(wrong)} tensors, first {', '.join(wrong[:3])}; {way_out}.")
    return best


def levels(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors as they are named, and every part of them that a prefix sets apart, without it."""
    yield tensors
    for prefix in _PREFIXES:
        part = {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        if part:
            yield from levels(part)


def local_file(encoder: str, weights: str) -> Path:
    """Return the file that holds ``weights`` of an encoder, both as ``load_weights`` takes them.

    Raises:
        UserError: it is not there, or the hub does not give it.
    """
    if _is_path(weights):
        path = Path(weights)
        if path.is_dir():  # a run on features holds the encoder that made them apart
            path /= _KEPT_ENCODER if (path / _KEPT_ENCODER).is_file() else RUN_FILE
        if not path.is_file():
            raise UserError(f"--pretrained {weights}: there is no file {path}; {_WAYS_OUT}.")
        return path
    try:
        return hub_file(f"{OPEN_CLIP}{weights}" if is_open_clip(encoder) and weights.startswith(HUB) else weights)
    except Exception as error:  # of three libraries and the operating system; they share no base class
        raise UserError(f"--pretrained {weights}: {hub_reason(error)}; {_WAYS_OUT}.") from None
