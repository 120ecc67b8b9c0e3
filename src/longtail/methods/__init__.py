"""Methods by name: one file each, one line here."""

from __future__ import annotations

from longtail.errors import unknown_name
from longtail.methods.balanced_softmax import BalancedSoftmax
from longtail.methods.base import OWN_OPTIONS, Fetch, Method, MethodContext, Stage, Trainable
from longtail.methods.bcl import BCL
from longtail.methods.class_balanced import ClassBalanced
from longtail.methods.decoupled import ClassifierRetraining, LearnableWeightScaling, NearestClassMean, TauNormalised
from longtail.methods.focal import Focal
from longtail.methods.gml import GML
from longtail.methods.infonce import InfoNCE
from longtail.methods.ldam import LDAM, LDAMDRW
from longtail.methods.logit_adjustment import CrossEntropy, LogitAdjustment
from longtail.methods.paco import PaCo
from longtail.methods.proco import ProCo
from longtail.methods.supcon import SupCon, SupConLogitAdjustment

METHODS: dict[str, type[Method]] = {
    "cross_entropy": CrossEntropy,
    "infonce": InfoNCE,
    "focal": Focal,
    "class_balanced": ClassBalanced,
    "ldam": LDAM,
    "ldam_drw": LDAMDRW,
    "logit_adjustment": LogitAdjustment,
    "balanced_softmax": BalancedSoftmax,
    "crt": ClassifierRetraining,
    "lws": LearnableWeightScaling,
    "tau_norm": TauNormalised,
    "ncm": NearestClassMean,
    "supcon": SupCon,
    "supcon_la": SupConLogitAdjustment,
    "paco": PaCo,
    "bcl": BCL,
    "proco": ProCo,
    "gml": GML,
}


def get_method(name: str) -> type[Method]:
    """Return the class registered as ``name``; an unknown one is a ``UserError`` with near matches."""
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]


def is_read(method: str, option: str) -> bool:
    """Return whether a run of the method registered as ``method`` reads the option with the dotted name ``option``.

    Of a method that is not registered here (the run is someone else's) nothing is known: all is taken to be read.
    """
    if option.startswith("segmentation."):
        return False
    return not option.startswith(OWN_OPTIONS) or method not in METHODS or METHODS[method].reads(option)


__all__ = [
    "BCL",
    "GML",
    "METHODS",
    "CrossEntropy",
    "Fetch",
    "InfoNCE",
    "LogitAdjustment",
    "Method",
    "MethodContext",
    "PaCo",
    "ProCo",
    "Stage",
    "SupCon",
    "SupConLogitAdjustment",
    "Trainable",
    "get_method",
    "is_read",
]
