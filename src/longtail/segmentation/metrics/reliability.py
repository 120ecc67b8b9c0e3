"""Calibration of pixels, gathered image by image: is one in ten pixels wrong where the confidence is 0.9?"""

from __future__ import annotations

import torch
from torch import Tensor

from longtail.metrics.calibration import BINS, ReliabilityBin
from longtail.segmentation.data.mask_set import IGNORE


class PixelReliability:
    """Counts pixels, hits and confidence in equal-width bins of the confidence (Guo et al., ICML 2017, Eq. 3).

    Args:
        bins: number of bins, each (low, high]; a confidence of 0 is in the first.
    """

    def __init__(self, bins: int = BINS) -> None:
        self.bins = bins
        self.sums = torch.zeros(3, bins, dtype=torch.float64)  # pixels, hits, confidence

    def see(self, confidence: Tensor, predictions: Tensor, labels: Tensor) -> None:
        """Take in an image's pixels; tensors of one shape, ignored pixels count nowhere."""
        counted = labels != IGNORE
        values = confidence[counted].double().cpu()
        right = (predictions[counted] == labels[counted]).double().cpu()
        edges = torch.arange(1, self.bins, dtype=torch.float64) / self.bins
        place = torch.bucketize(values, edges)
        self.sums += torch.stack(
            [torch.bincount(place, weights, self.bins) for weights in (torch.ones_like(values), right, values)]
        )

    def error(self) -> float | None:
        """Return the expected calibration error; None where no pixel counted."""
        pixels, right, confidence = self.sums
        return float((right - confidence).abs().sum() / pixels.sum()) if float(pixels.sum()) else None

    def table(self) -> list[ReliabilityBin]:
        """Return the bins, means None where a bin is empty."""
        rows: list[ReliabilityBin] = []
        for index, (pixels, right, confidence) in enumerate(self.sums.t().tolist()):
            rows.append(
                {
                    "low": index / self.bins,
                    "high": (index + 1) / self.bins,
                    "count": round(pixels),
                    "confidence": confidence / pixels if pixels else None,
                    "accuracy": right / pixels if pixels else None,
                }
            )
        return rows
