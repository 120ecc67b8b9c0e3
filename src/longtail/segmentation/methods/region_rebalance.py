"""Region Rebalance: Cui et al., "Region Rebalance for Long-Tailed Semantic Segmentation", 2022 (arXiv 2204.01969).

A step:

    classifier view > encoder > pixel classifier                                    --> cross entropy
                              > mean of each class in each image > region classifier
                                                                 > + log of image frequency --> cross entropy
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from longtail.losses import LogitAdjustedCrossEntropy
from longtail.models import LinearHead
from longtail.segmentation.data.batch import DenseBatch
from longtail.segmentation.losses import wide
from longtail.segmentation.methods.base import DenseContext, pixel_dim
from longtail.segmentation.methods.pixel_loss import OF_ONE_VIEW, PixelMethod
from longtail.segmentation.sampling import labels_at


class RegionRebalance(PixelMethod):
    """Pixel cross entropy and, beside it, a classifier of regions that is rebalanced by image frequency.

    Pixels of an image are much alike, so that the imbalance that matters is that of the images which hold a class.
    The region classifier stays behind: what is deployed is the pixel classifier.
    """

    own_options: ClassVar[tuple[str, ...]] = (
        *OF_ONE_VIEW,
        *("loss.prior_strength", "segmentation.region_weight", "segmentation.prior"),
    )

    def __init__(self, context: DenseContext) -> None:
        super().__init__(context)
        self.region_head = LinearHead(pixel_dim(self.encoder), context.train.num_classes)
        self.region_loss = LogitAdjustedCrossEntropy(context.train.image_counts, context.config.loss.prior_strength)

    def of_maps(self, maps: Tensor, batch: DenseBatch) -> dict[str, Tensor]:
        """Add the regions' cross entropy."""
        losses = super().of_maps(maps, batch)
        features, labels = region_means(maps, batch.labels, self.context.train.num_classes)
        logits = self.region_head(features)
        # Of no region the mean is not a number; the sum of none is 0.
        loss = self.region_loss(logits, labels) if len(labels) else logits.sum()
        return {**losses, "region": self.context.config.segmentation.region_weight * loss}


def region_means(maps: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the mean feature of each class in each image and its class, ``[R, D]`` (float32 at least), int64 ``[R]``.

    Args:
        maps: ``[B, D, h, w]``.
        labels: int64 ``[B, H, W]``; a cell of the map has the label at its centre.
        classes: C.
    """
    small = labels_at(labels, maps.shape[2:]).flatten(1)
    with torch.autocast(maps.device.type, enabled=False):
        features = wide(maps).flatten(2)  # [B, D, P]
        # A product, not a scattered sum, whose order of adding would be another in every run on a GPU.
        member = (small[..., None] == torch.arange(classes, device=small.device)).to(features.dtype)  # [B, P, C]
        sizes = member.sum(1)  # [B, C]
        sums = torch.einsum("bdp,bpc->bcd", features, member)
    image, label = torch.nonzero(sizes, as_tuple=True)
    return sums[image, label] / sizes[image, label, None], label
