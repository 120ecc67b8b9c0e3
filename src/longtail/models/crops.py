"""Several crops of an image instead of its centre alone, their predictions averaged: slower, often a little better."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longtail.data.image_set import Framing
from longtail.errors import UserError
from longtail.models.classifier import Classifier

CROPS = (1, 5, 10)
_MARGIN = 24 / 224
"""Of the model's size, what an image is larger than it at least, so that its corners show something else."""


class CropEnsemble(Classifier):
    """A classifier that looks at centre and four corners of an image, and, of ten crops, at their mirror images.

    The probabilities of the crops are averaged (Krizhevsky et al., NIPS 2012, Sec. 4.1), and the logits are the
    logarithm of that: a prior is added to them as to any classifier's, since an average of posteriors under one prior
    is one under the same.

    Args:
        classifier: of images; its tensors are shared.
        crops: 5 or 10.

    Raises:
        UserError: another number of crops, or a classifier of features.
    """

    def __init__(self, classifier: Classifier, crops: int) -> None:
        if crops not in CROPS[1:]:
            raise UserError(f"--crops must be 1, 5 or 10, got {crops}.")
        if classifier.takes_features:
            raise UserError("--crops is for images, but this model takes features; leave it out.")
        height, width = classifier.image_size
        margin = max(classifier.framing.resize - max(height, width), math.ceil(_MARGIN * max(height, width)))
        framing = Framing(
            (height + margin, width + margin), max(height, width) + margin, classifier.framing.interpolation
        )
        super().__init__(
            classifier.encoder,
            classifier.head,
            classifier.class_names,
            classifier.class_counts,
            classifier.logit_prior,
            classifier.mean.tolist(),
            classifier.std.tolist(),
            framing,
            classifier.spec,
        )
        self.temperature = classifier.temperature
        self.crops, self._size = crops, (height, width)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logarithm ``[B, C]`` of the crops' mean probabilities, of normalised images of ``image_size``."""
        height, width = self._size
        tall, wide = images.shape[-2] - height, images.shape[-1] - width
        places = [(tall // 2, wide // 2), (0, 0), (0, wide), (tall, 0), (tall, wide)]
        views = [images[..., top : top + height, left : left + width] for top, left in places]
        if self.crops == CROPS[2]:
            views += [view.flip(-1) for view in views]
        said = torch.stack([self.head(self.encoder(view)).float().log_softmax(1) for view in views])
        return said.logsumexp(0) - math.log(len(views))


def with_crops(classifier: Classifier, crops: int) -> Classifier:
    """Return the classifier itself for one crop, else a :class:`CropEnsemble` of it."""
    return classifier if crops == CROPS[0] else CropEnsemble(classifier, crops).to(classifier.mean.device).eval()
