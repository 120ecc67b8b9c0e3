"""The options of segmentation, a group of ``config.TrainConfig`` as those of ``option_groups.py`` are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class SegmentationOptions:
    """Training and testing on masks (``task segmentation``).

    Attributes:
        decoder: what makes one map of the encoder's: ``fpn``, ``upernet``, ``deeplabv3plus``, ``segformer``, ``unet``
            or ``ocr``; default ``fpn``.
        width: channels of that map, which classifier and contrast take; default: the decoder's own.
        crop: height and width of a training crop in pixels; default: from the images.
        resize: height and width that images (and masks) are brought to before anything else; none = as they are.
        scale: range of the random resize before the crop.
        flip: mirror half of the training images.
        rare_crops: share of crops that are laid around a pixel of a class drawn in favour of rare ones.
        palette: file with the classes' names and colours; needed for colour masks.
        ignore: mask values that count nowhere (255 is always one of them).
        zero_is_other: masks hold 1..C, and 0 = other counts nowhere; default: as the layout has it.
        prior: whose frequencies are the class prior of the loss: ``pixels`` or ``images`` that hold the class.
        queries: pixels a step that the contrast compares, over all images and classes.
        queries_per_class: of them from one class in one image at most.
        keys_per_class: pixels a step that are enqueued from one class in one image at most.
        queue_share: largest share of the pixel counts that a class is taken to have when slots are dealt.
        region_weight: weight of the region term of ``region_rebalance``.
        overlap_weight: weight of the Dice or Lovasz term beside cross entropy.
        window: height and width of the sliding window at test time; none = whole images.
        stride: share of the window that the next one is moved by.
        test_scales: sizes that are averaged at test time, relative to the image.
        test_mirror: average with the mirror image at test time.
        pixel_edges: classes with more of the training pixels than the first times an equal share are "many", with fewer
            than the second times that "few".
        image_edges: classes in more than the first share of the training images are "many", in fewer than the second
            "few".
    """

    decoder: Literal["fpn", "upernet", "deeplabv3plus", "segformer", "unet", "ocr"] | None = None
    width: int | None = None
    crop: list[int] | None = None
    resize: list[int] | None = None
    scale: list[float] = field(default_factory=lambda: [0.5, 2.0])
    flip: bool = True
    rare_crops: float = 0.5
    palette: str | None = None
    ignore: list[int] = field(default_factory=lambda: [255])
    zero_is_other: bool | None = None
    prior: Literal["pixels", "images"] = "pixels"
    queries: int = 4096
    queries_per_class: int = 64
    keys_per_class: int = 10
    queue_share: float = 0.1
    region_weight: float = 0.3
    overlap_weight: float = 1.0
    window: list[int] | None = None
    stride: float = 0.667
    test_scales: list[float] = field(default_factory=lambda: [1.0])
    test_mirror: bool = False
    pixel_edges: list[float] = field(default_factory=lambda: [1.0, 0.1])
    image_edges: list[float] = field(default_factory=lambda: [0.5, 0.1])
