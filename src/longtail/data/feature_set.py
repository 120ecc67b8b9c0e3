"""Frozen embeddings with labels: what an encoder gave for each image, in place of the image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from longtail.data.image_set import Framing, LabelledImages
from longtail.data.path_table import PathTable

STORED = "stored"
"""The view recipe of features: one of the views that are stored of the image, drawn at random."""
_ROUNDINGS = 2
"""A component that deviates by at most this many roundings of its mean is constant: noise alone parts its values."""
_ROUNDINGS_OF_A_CONSTANT = 1024
"""By how many roundings of its mean a constant is divided: what is left of it then lies far below 1."""
_BLOCK_VALUES = 2**22


@dataclass(frozen=True)
class FeatureOrigin:
    """The encoder that made features, and the images it takes.

    Attributes:
        encoder: its name.
        in_channels: of the images.
        mean, std: per-channel pixel statistics on the 0..1 scale.
        framing: how an image of any size becomes what it takes.
        weights: where its weights came from, in words.
        file: the file of its weights, ``.safetensors``; None if it is not kept.
        digest: SHA-256 of its tensors, by which features and encoders know each other; None if not known.
    """

    encoder: str
    in_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    framing: Framing
    weights: str
    file: Path | None = None
    digest: str | None = None

    def words(self, features: FeatureSet) -> str:
        """Return a sentence on what ``features`` are."""
        views = f", {features.views} views of each training image" if features.views > 1 else ""
        return f"features of {features.channels} values by {self.encoder} ({self.weights}){views}."


@dataclass(frozen=True)
class FeatureSet(LabelledImages):
    """Labelled feature vectors held in memory.

    Attributes:
        features: ``[N, V, D]`` in float32 or float16: V views of each image, the first without augmentation.
        labels: int64 ``[N]``, 0..len(class_names)-1.
        class_names: one name a class, in label order.
        paths: files of the images; None if not known.
        origin: what made them; None if not known.
        weights: how much each sample counts, float64 ``[N]``, none of them negative; None = all alike.
    """

    features: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    paths: PathTable | None = None
    origin: FeatureOrigin | None = None
    weights: Tensor | None = None

    @property
    def class_counts(self) -> Tensor:
        """Samples in each class, int64 ``[num_classes]``; with weights, :func:`class_masses` in whole numbers."""
        if self.weights is None:
            return super().class_counts
        return class_masses(self.labels, self.weights, self.num_classes)

    @property
    def channels(self) -> int:
        """Width D of a feature: to a network on features it is what channels are to one on images."""
        return int(self.features.shape[2])

    @property
    def views(self) -> int:
        """Views V of each image."""
        return int(self.features.shape[1])

    @property
    def framing(self) -> Framing:
        """Nothing is framed: a feature is one pixel of D channels."""
        return Framing((1, 1), 1)

    def subset(self, indices: Tensor) -> Self:
        """Return the features at ``indices [M]`` (int64), in that order, with new ids 0..M-1."""
        paths = None if self.paths is None else self.paths.select(indices.tolist())
        weights = None if self.weights is None else self.weights[indices]
        return replace(self, features=self.features[indices], labels=self.labels[indices], paths=paths, weights=weights)

    def fingerprint(self) -> str:
        """Return a SHA-256 over labels, features and weights."""
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        digest.update(self.features.contiguous().numpy().data)
        if self.weights is not None:
            digest.update(self.weights.numpy().tobytes())
        return digest.hexdigest()


def class_masses(labels: Tensor, weights: Tensor, num_classes: int) -> Tensor:
    """Return the summed weights of each class in whole numbers, int64 ``[num_classes]``.

    They stand where class counts do, of which only the shares matter: sums that are whole numbers are taken as they
    are, others in units of 2^-20 of the mean weight, and a class that weighs something counts at least one unit.

    Args:
        labels: int64 ``[N]``.
        weights: float64 ``[N]``, not negative.
        num_classes: C.
    """
    masses = torch.bincount(labels, weights.double(), minlength=num_classes)
    whole = masses.round()
    if not torch.equal(whole, masses) or float(whole.sum()) > 2**53:
        whole = (masses * (2**20 * len(labels) / masses.sum())).round().clamp(min=1)
    return torch.where(masses > 0, whole, 0.0).to(torch.int64)


def feature_statistics(features: Tensor, weights: Tensor | None = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each of the D components of ``features [N, V, D]``, over the first view.

    A component is constant where its deviation is within the rounding of the stored type, relative to its mean, so that
    no unit of measure makes a feature constant. A constant is centred, not blown up: its deviation counts as 1, or more
    where its rounding alone would be seen. ``weights [N]`` say how much each sample counts.

    Sums are taken in float64 of distances from the first row, in blocks whose size hangs on D alone: the result is a
    function of the features, needs no second copy of them, and is exact for a constant.
    """
    rows = features[:, 0]
    first = rows[0].double()
    size = max(1, _BLOCK_VALUES // rows.shape[1])
    counts = None if weights is None else weights.double()
    total = len(rows) if counts is None else counts.sum()

    def mean_of(values: Callable[[Tensor], Tensor]) -> Tensor:
        found = torch.zeros_like(first)
        for start in range(0, len(rows), size):
            part = values(rows[start : start + size].double() - first)
            found += part.sum(0) if counts is None else counts[start : start + size] @ part
        return found / total

    offset = mean_of(lambda part: part)
    mean = first + offset
    std = mean_of(lambda part: part.sub_(offset).square_()).sqrt()
    # Whatever the features came in, a network takes them in float32, whose own smallest numbers are no scale either.
    rounding = mean.abs() * max(torch.finfo(rows.dtype).eps, torch.finfo(torch.float32).eps)
    varies = (std > _ROUNDINGS * rounding) & (std > torch.finfo(torch.float32).tiny)
    std = torch.where(varies, std, (_ROUNDINGS_OF_A_CONSTANT * rounding).clamp(min=1.0))
    return tuple(mean.tolist()), tuple(std.tolist())


def feature_keys(features: Tensor) -> Tensor:
    """Return int64 ``[N]``, a 64-bit BLAKE2b hash of the first view of each of ``features [N, V, D]``."""
    rows: Sequence[np.ndarray] = list(features[:, 0].contiguous().numpy())
    words = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return torch.from_numpy(np.frombuffer(words, dtype="<i8").astype(np.int64))
