"""The dense counterparts: the same method where every pixel has a class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longtail.segmentation.compare import compare_dense
    from longtail.segmentation.data.sources import load_masks
    from longtail.segmentation.evaluate import evaluate_masks
    from longtail.segmentation.export_run import export_segmenter
    from longtail.segmentation.models import Segmenter, TestView, build_pixel_encoder
    from longtail.segmentation.predict import predict_masks
    from longtail.segmentation.sampling import capped_counts, sample_pixels

# Imported on first use, as those of the package: a command line must not wait for what it does not need.
_HOMES = {
    "Segmenter": "models",
    "TestView": "models",
    "build_pixel_encoder": "models",
    "capped_counts": "sampling",
    "compare_dense": "compare",
    "evaluate_masks": "evaluate",
    "export_segmenter": "export_run",
    "load_masks": "data.sources",
    "predict_masks": "predict",
    "sample_pixels": "sampling",
}

__all__ = [
    "Segmenter",
    "TestView",
    "build_pixel_encoder",
    "capped_counts",
    "compare_dense",
    "evaluate_masks",
    "export_segmenter",
    "load_masks",
    "predict_masks",
    "sample_pixels",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
