"""Encoders with a decoder, the pixel classifier, and what is deployed."""

from longtail.segmentation.models.backbone import load_backbone
from longtail.segmentation.models.decoders import DECODERS
from longtail.segmentation.models.head import PixelHead, to_image
from longtail.segmentation.models.inference import TestView, largest_at_size
from longtail.segmentation.models.pixel_encoder import PixelEncoder, build_pixel_encoder
from longtail.segmentation.models.segmenter import Segmenter

__all__ = [
    "DECODERS",
    "PixelEncoder",
    "PixelHead",
    "Segmenter",
    "TestView",
    "build_pixel_encoder",
    "largest_at_size",
    "load_backbone",
    "to_image",
]
