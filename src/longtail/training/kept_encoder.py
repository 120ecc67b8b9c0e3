"""The encoder that made a run's features: kept in the run's folder, so that the run can be used on images."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from longtail.data.feature_origin import read_origin
from longtail.data.feature_set import FeatureOrigin
from longtail.errors import UserError
from longtail.files import load_meta, load_tensors
from longtail.models import Classifier, on_images

ENCODER = "encoder"
"""Stem of the files."""


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of an encoder's tensors, whatever order they come in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_encoder(origin: FeatureOrigin | None) -> None:
    """Make sure that the encoder beside features is the one that made them, where there is one.

    Raises:
        UserError: it is another one, or its files are cut off or changed.
    """
    if origin is None or origin.file is None:
        return
    tensors, _ = load_tensors(origin.file.parent, origin.file.stem)
    if origin.digest is not None and digest_of(tensors) != origin.digest:
        raise UserError(
            f"{origin.file} is not the encoder that made these features; put that one beside them, move this one away "
            "(predictions then need features), or embed the images again."
        )


def check_same_encoder(folder: Path, features: str | Path, origin: FeatureOrigin | None) -> None:
    """Make sure that ``features`` are of the encoder that the run in ``folder`` keeps, as far as both are known.

    Raises:
        UserError: they are of another one.
    """
    if origin is None or origin.digest is None or not (folder / f"{ENCODER}.json").exists():
        return
    kept = read_origin(load_meta(folder, ENCODER)["origin"], folder)
    if kept.digest is not None and kept.digest != origin.digest:
        raise UserError(
            f"{features} holds features by {origin.encoder} ({origin.weights}), but the run in {folder} was trained on "
            f"those by {kept.encoder} ({kept.weights}), an encoder of other values; embed the images with that one."
        )


def keep_encoder(folder: Path, origin: FeatureOrigin | None) -> bool:
    """Put the encoder's files into the run's ``folder``; return whether there are any.

    On one file system the tensors are a second name of the same file, which takes no room. The record is the run's own,
    so that it tells if that file is ever written over.

    Raises:
        UserError: they are of another encoder than that of the features, cut off or changed.
    """
    check_encoder(origin)
    if origin is None or origin.file is None:
        return False
    record, tensors = (folder / f"{ENCODER}{ending}" for ending in (".json", ".safetensors"))
    for target in (record, tensors):
        target.unlink(missing_ok=True)
    try:
        os.link(origin.file, tensors)
    except OSError:  # another file system, or one that knows no links
        shutil.copyfile(origin.file, tensors)
    shutil.copyfile(origin.file.with_suffix(".json"), record)
    return True


def with_encoder(classifier: Classifier, folder: Path) -> Classifier:
    """Return the classifier of features in ``folder`` as one of images, if the encoder is kept there.

    Raises:
        UserError: the encoder's files are cut off, changed or of another encoder.
    """
    if not (folder / f"{ENCODER}.json").exists():
        return classifier
    tensors, meta = load_tensors(folder, ENCODER)
    try:
        origin = read_origin(meta["origin"], folder)
        if origin.digest is not None and digest_of(tensors) != origin.digest:
            raise RuntimeError("its values are other ones")
        return on_images(classifier, origin, tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        said = " ".join(str(error).split())[:160]
        raise UserError(
            f"{folder / ENCODER}.safetensors is not the encoder that made the features of this run ({said}); embed the "
            "images again and train on that."
        ) from None
