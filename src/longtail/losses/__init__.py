"""Losses of long-tailed recognition: plain modules that run on any device."""

from longtail.losses.class_density import class_logmeanexp
from longtail.losses.distillation import DistillationLoss
from longtail.losses.gml import GMLLoss
from longtail.losses.logit_adjusted import LogitAdjustedCrossEntropy

__all__ = ["DistillationLoss", "GMLLoss", "LogitAdjustedCrossEntropy", "class_logmeanexp"]
