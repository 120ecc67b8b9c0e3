"""Losses of long-tailed recognition: plain modules that run on any device."""

from longtail.losses.class_density import class_logmeanexp
from longtail.losses.class_weights import balancing_weights
from longtail.losses.distillation import DistillationLoss
from longtail.losses.focal import FocalLoss
from longtail.losses.gml import GMLLoss
from longtail.losses.ldam import LDAMLoss
from longtail.losses.logit_adjusted import LogitAdjustedCrossEntropy

__all__ = [
    "DistillationLoss",
    "FocalLoss",
    "GMLLoss",
    "LDAMLoss",
    "LogitAdjustedCrossEntropy",
    "balancing_weights",
    "class_logmeanexp",
]
