"""Which labels are likely wrong: confident learning on predictions for images that the model had not seen.

Northcutt, Jiang & Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels" (JAIR 70).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longtail.metrics.inputs import checked_logits, row_blocks


@dataclass(frozen=True)
class LabelErrors:
    """What confident learning says of N images of C classes.

    Attributes:
        suspect: bool ``[N]``: confidently another class than the given one.
        likelier: int64 ``[N]``, the class that a suspect is confidently of; of other images, the most probable one
            beside the given.
        margin: float64 ``[N]``, probability of the given class minus that of ``likelier``; lowest = look first.
        given, other: float64 ``[N]``, these two probabilities.
        expected: float64 ``[C]``, estimated number of images whose given label is this class and wrong.
    """

    suspect: Tensor
    likelier: Tensor
    margin: Tensor
    given: Tensor
    other: Tensor
    expected: Tensor

    def first(self, labels: Tensor) -> tuple[Tensor, ...]:
        """Return the suspects of each class of ``labels [N]``, int64 positions, lowest margin first."""
        places = self.suspect.nonzero().squeeze(1)
        places = places[torch.argsort(self.margin[places], stable=True)]
        places = places[torch.argsort(labels[places], stable=True)]
        return torch.split(places, torch.bincount(labels[places], minlength=len(self.expected)).tolist())


def label_errors(logits: Tensor, labels: Tensor) -> LabelErrors:
    """Find images whose label is likely wrong.

    An image counts as confidently of class j if its probability of j is at least the mean probability of j over the
    images labelled j (of several such classes, the most probable): a threshold for each class, so that a model that is
    less sure of rare classes does not make suspects of all their images (Eq. 1 and 2). Here the threshold is 1 / C at
    least: of a class that a model never names, a mean near 0 would make every image confident. Rows of that count are
    scaled to the number of images with the label (Eq. 3), which gives ``expected``. The C x C matrix itself is never
    made.

    Args:
        logits: ``[N, C]``, from models that had not seen the images.
        labels: int64 ``[N]``, as given; a class may be missing.

    Raises:
        ValueError: shapes or labels do not fit, or a logit is not finite.
    """
    labels = checked_logits(logits, labels)
    count, classes = logits.shape
    own, likelier, other = torch.empty(count).double(), torch.empty(count).long(), torch.empty(count).double()
    for rows, block in row_blocks(logits):
        probabilities = block.softmax(1)
        given = labels[rows].unsqueeze(1)
        own[rows] = probabilities.gather(1, given).squeeze(1)
        other[rows], likelier[rows] = probabilities.scatter(1, given, -1.0).max(1)
    images = torch.bincount(labels, minlength=classes).double()
    # A class without an image has no threshold: nothing is confidently of it.
    thresholds = torch.zeros(classes).double().index_add(0, labels, own) / images
    thresholds = torch.where(images > 0, thresholds.clamp(min=1 / classes), torch.inf)
    confident, meant = torch.empty(count, dtype=torch.bool), torch.empty(count).long()
    for rows, block in row_blocks(logits):
        probabilities = block.softmax(1)
        # The mean of equal numbers may be above them by rounding.
        above = probabilities >= thresholds - 1e-12
        confident[rows] = above.any(1)
        meant[rows] = torch.where(above, probabilities, -1.0).argmax(1)
    suspect = confident & (meant != labels)
    # What makes a suspect of an image is the class it is confidently of, which need not be the most probable one.
    likelier = torch.where(suspect, meant, likelier)
    for rows, block in row_blocks(logits):
        other[rows] = block.softmax(1).gather(1, likelier[rows, None]).squeeze(1)
    counted = torch.bincount(labels[confident], minlength=classes).double()
    wrong = torch.bincount(labels[suspect], minlength=classes).double()
    expected = torch.where(counted > 0, images * wrong / counted.clamp(min=1), 0.0)
    return LabelErrors(suspect, likelier, own - other, own, other, expected)
