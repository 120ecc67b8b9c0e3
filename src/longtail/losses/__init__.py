"""Losses of long-tailed recognition: plain modules that run on any device."""

from longtail.losses.balanced_contrastive import BalancedContrastiveLoss
from longtail.losses.class_density import class_logmeanexp
from longtail.losses.class_weights import balancing_weights
from longtail.losses.distillation import DistillationLoss
from longtail.losses.focal import FocalLoss
from longtail.losses.gml import GMLLoss
from longtail.losses.gml_sharded import ShardedGMLLoss
from longtail.losses.infonce import InfoNCELoss
from longtail.losses.ldam import LDAMLoss
from longtail.losses.logit_adjusted import LogitAdjustedCrossEntropy
from longtail.losses.paco import PaCoLoss
from longtail.losses.proco import ProCoLoss
from longtail.losses.supcon import SupConLoss

__all__ = [
    "BalancedContrastiveLoss",
    "DistillationLoss",
    "FocalLoss",
    "GMLLoss",
    "InfoNCELoss",
    "LDAMLoss",
    "LogitAdjustedCrossEntropy",
    "PaCoLoss",
    "ProCoLoss",
    "ShardedGMLLoss",
    "SupConLoss",
    "balancing_weights",
    "class_logmeanexp",
]
