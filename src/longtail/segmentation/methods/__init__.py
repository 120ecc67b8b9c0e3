"""Methods of segmentation by name: one file each, one line here."""

from __future__ import annotations

from longtail.errors import unknown_name
from longtail.segmentation.methods.base import DENSE_OPTIONS, DenseContext, DenseFetch, DenseMethod
from longtail.segmentation.methods.gml import GML
from longtail.segmentation.methods.pixel_loss import CrossEntropy, Dice, Focal, LogitAdjustment, Lovasz
from longtail.segmentation.methods.region_rebalance import RegionRebalance

DENSE_METHODS: dict[str, type[DenseMethod]] = {
    "cross_entropy": CrossEntropy,
    "focal": Focal,
    "dice": Dice,
    "lovasz": Lovasz,
    "logit_adjustment": LogitAdjustment,
    "region_rebalance": RegionRebalance,
    "gml": GML,
}


def get_dense_method(name: str) -> type[DenseMethod]:
    """Return the class registered as ``name``; an unknown one is a ``UserError`` with near matches."""
    if name not in DENSE_METHODS:
        raise unknown_name("method of segmentation", name, DENSE_METHODS)
    return DENSE_METHODS[name]


def dense_is_read(method: str, option: str) -> bool:
    """Return whether a run of segmentation reads the option with the dotted name ``option``; see ``is_read``."""
    known = method in DENSE_METHODS
    return not option.startswith(DENSE_OPTIONS) or not known or DENSE_METHODS[method].reads(option)


__all__ = [
    "DENSE_METHODS",
    "GML",
    "CrossEntropy",
    "DenseContext",
    "DenseFetch",
    "DenseMethod",
    "Dice",
    "Focal",
    "LogitAdjustment",
    "Lovasz",
    "RegionRebalance",
    "dense_is_read",
    "get_dense_method",
]
