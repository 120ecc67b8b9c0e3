"""Methods by name: one file each, one line here."""

from __future__ import annotations

from longtail.errors import unknown_name
from longtail.methods.base import Fetch, Method, MethodContext, Stage
from longtail.methods.gml import GML
from longtail.methods.logit_adjustment import CrossEntropy, LogitAdjustment

METHODS: dict[str, type[Method]] = {
    "cross_entropy": CrossEntropy,
    "logit_adjustment": LogitAdjustment,
    "gml": GML,
}


def get_method(name: str) -> type[Method]:
    """Return the class registered as ``name``; an unknown one is a ``UserError`` with near matches."""
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]


__all__ = [
    "GML",
    "METHODS",
    "CrossEntropy",
    "Fetch",
    "LogitAdjustment",
    "Method",
    "MethodContext",
    "Stage",
    "get_method",
]
