"""The training images that a test image is most like, in the eyes of the teacher whose keys the queue holds."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from longtail.models import Classifier, ProjectionHead, build_encoder, feature_dim, unit_vectors
from longtail.training.checkpoint import CheckpointFolder, load_module, part
from longtail.training.run_folder import read_config

_QUEUE = "method.queue"


@dataclass(frozen=True)
class Keys:
    """What a finished run's queue holds, and the network that made it.

    Attributes:
        features: unit vectors ``[K, D]``.
        ids: positions in the training set, int64 ``[K]``.
        encoder: the teacher's, normalised images to features ``[B, D]``, as the keys are.
    """

    features: Tensor
    ids: Tensor
    encoder: nn.Module


def read_keys(folder: Path, classifier: Classifier) -> Keys | str:
    """Return the keys of the run in ``folder``, or a sentence that says why there are none.

    Raises:
        UserError: the run's state was cut off or changed.
    """
    restored = CheckpointFolder(folder / "resume").load()
    if restored is None:
        return "The state of the training, which holds the queue, is not in the run's folder any more."
    queue = part(restored[0], _QUEUE)
    if not queue:
        return "This method keeps no queue of training images, so there is nothing to look them up in."
    known = queue["filled"] & (queue["ids"] >= 0)
    if (folder / "teacher" / "model.json").exists():
        encoder = Classifier.load(folder / "teacher").encoder
    else:  # a teacher of which there is no model: its weights lie in the state only
        encoder = _sketch_of_teacher(folder, classifier)
        where = f"the state in {folder / 'resume'}"
        load_module(encoder, part(restored[0], "method.teacher.encoder"), where)
        head = part(restored[0], "method.teacher.head")
        if any(name.startswith("layers.") for name in head):  # a projection: the keys are what it makes of features
            projection = ProjectionHead(feature_dim(encoder), queue["features"].shape[1])
            load_module(projection, head, where)
            encoder = nn.Sequential(encoder, projection)
    return Keys(unit_vectors(queue["features"][known]), queue["ids"][known], encoder.eval())


def _sketch_of_teacher(folder: Path, classifier: Classifier) -> nn.Module:
    """Return an encoder of the form of the run's momentum or pretrained teacher."""
    own = read_config(folder).get("teacher") or {}
    if own.get("kind") != "pretrained":
        return copy.deepcopy(classifier.encoder)  # a momentum teacher is an average of the student
    with torch.random.fork_rng(devices=[]):
        return build_encoder(str(own["backbone"]), len(classifier.mean), classifier.image_size)


@torch.no_grad()
def nearest(keys: Keys, classifier: Classifier, images: Tensor, most: int) -> list[list[tuple[int, float]]]:
    """Return for each of ``images`` (uint8 ``[B, C, H, W]``) its nearest training images, at most ``most``.

    Each is (position in the training set, cosine similarity of the teacher's features), nearest first. An image with
    several keys counts with its nearest.
    """
    device = classifier.mean.device
    features = keys.encoder.to(device)(classifier.preprocess(images.to(device))).cpu()
    similarity = unit_vectors(features) @ keys.features.T
    found = []
    for row in similarity:
        chosen: dict[int, float] = {}
        for key in torch.argsort(row, descending=True, stable=True).tolist():
            chosen.setdefault(int(keys.ids[key]), float(row[key]))
            if len(chosen) == most:
                break
        found.append(list(chosen.items()))
    return found
