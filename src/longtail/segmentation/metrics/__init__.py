"""Figures of segmentation: pure tensors in, figures out."""

from longtail.segmentation.metrics.bootstrap import PairedDifference, bootstrap_miou, paired_miou_difference
from longtail.segmentation.metrics.boundaries import boundary_f_scores, boundary_tolerance
from longtail.segmentation.metrics.dense_groups import group_iou, groups_by_images, groups_by_pixels, rarest_classes
from longtail.segmentation.metrics.overlap import (
    confusion_of,
    frequency_weighted_iou,
    iou_of,
    mean_iou,
    pixel_accuracy,
    precision_of,
    recall_of,
    regions_of,
)
from longtail.segmentation.metrics.reliability import PixelReliability

__all__ = [
    "PairedDifference",
    "PixelReliability",
    "bootstrap_miou",
    "boundary_f_scores",
    "boundary_tolerance",
    "confusion_of",
    "frequency_weighted_iou",
    "group_iou",
    "groups_by_images",
    "groups_by_pixels",
    "iou_of",
    "mean_iou",
    "paired_miou_difference",
    "pixel_accuracy",
    "precision_of",
    "rarest_classes",
    "recall_of",
    "regions_of",
]
