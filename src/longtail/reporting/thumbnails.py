"""Small pictures for a page, as ``data:`` addresses."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image, features

from longtail.data import ImageFiles, ImageSet, LabelledImages
from longtail.data.decode import BadImage, read_image
from longtail.data.streaming import default_workers
from longtail.data.survey import array_image

SIDE = 72
"""Longest side, in pixels; smaller images keep their size."""


def thumbnails(images: LabelledImages, wanted: Sequence[int]) -> dict[int, str]:
    """Return the ``data:`` address of a small picture of each image that can be read, by position."""

    def make(index: int) -> str | None:
        try:
            return data_address(_pixels(images, index))
        except BadImage:
            return None

    with ThreadPoolExecutor(default_workers(None)) as pool:
        made = zip(wanted, pool.map(make, wanted), strict=True)
        return {index: address for index, address in made if address is not None}


def data_address(image: Image.Image) -> str:
    """Return an RGB image, made small, as an address that holds it."""
    small = image.copy()
    small.thumbnail((SIDE, SIDE), reducing_gap=2.0)
    kind = "webp" if features.check("webp") else "jpeg"
    buffer = io.BytesIO()
    small.save(buffer, kind, quality=60)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _pixels(images: LabelledImages, index: int) -> Image.Image:
    if isinstance(images, ImageFiles):
        return read_image(images.path(index), SIDE)
    assert isinstance(images, ImageSet)
    return array_image(images.images[index])
