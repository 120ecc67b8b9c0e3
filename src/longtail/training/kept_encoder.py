"""The encoder that made a run's features: kept in the run's folder, so that the run can be used on images."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from longtail.data.feature_files import read_origin
from longtail.data.feature_set import FeatureOrigin
from longtail.errors import UserError
from longtail.files import load_tensors
from longtail.models import Classifier, on_images

ENCODER = "encoder"
"""Stem of the files."""


def keep_encoder(folder: Path, origin: FeatureOrigin | None) -> bool:
    """Put the encoder's files into the run's ``folder``; return whether there are any.

    On one file system they are second names of the same files, which takes no room.
    """
    if origin is None or origin.file is None:
        return False
    for ending in (".safetensors", ".json"):
        source, target = origin.file.with_suffix(ending), folder / f"{ENCODER}{ending}"
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system, or one that knows no links
            shutil.copyfile(source, target)
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
        return on_images(classifier, read_origin(meta["origin"], folder), tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        said = " ".join(str(error).split())[:160]
        raise UserError(
            f"{folder / ENCODER}.safetensors is not the encoder that made the features of this run ({said}); embed the "
            "images again and train on that."
        ) from None
