"""Figures of a long-tailed classifier: tensors in, plain numbers out, no C x C matrix anywhere."""

from longtail.metrics.accuracy import (
    HARMONIC_FLOOR,
    balanced_accuracy,
    class_hits,
    class_recall,
    harmonic_mean,
    macro_f1,
    topk_accuracy,
    worst_class,
)
from longtail.metrics.calibration import (
    class_calibration_error,
    expected_calibration_error,
    predict_with_confidence,
    reliability,
)
from longtail.metrics.conformal import (
    CONFORMAL_KINDS,
    class_set_figures,
    conformal_scores,
    conformal_thresholds,
    needed_images,
    rare_together,
    set_figures,
    shortlists,
)
from longtail.metrics.confusion import called_one_class, confused_pairs, group_confusion
from longtail.metrics.groups import GROUP_EDGES, GROUPS, group_accuracy, group_index
from longtail.metrics.information import label_entropy_bits, mutual_information_bits
from longtail.metrics.intervals import MeanInterval, bootstrap_intervals, mean_interval, wilson_interval
from longtail.metrics.post_hoc import adjusted_logits, choose_strength
from longtail.metrics.prior_estimation import PriorEstimate, chance_error, estimate_error, estimate_prior
from longtail.metrics.summary import evaluate_predictions, per_class_table
from longtail.metrics.temperature import fit_temperature, negative_log_likelihood, prior_weights

__all__ = [
    "CONFORMAL_KINDS",
    "GROUPS",
    "GROUP_EDGES",
    "HARMONIC_FLOOR",
    "MeanInterval",
    "PriorEstimate",
    "adjusted_logits",
    "balanced_accuracy",
    "bootstrap_intervals",
    "called_one_class",
    "chance_error",
    "choose_strength",
    "class_calibration_error",
    "class_hits",
    "class_recall",
    "class_set_figures",
    "conformal_scores",
    "conformal_thresholds",
    "confused_pairs",
    "estimate_error",
    "estimate_prior",
    "evaluate_predictions",
    "expected_calibration_error",
    "fit_temperature",
    "group_accuracy",
    "group_confusion",
    "group_index",
    "harmonic_mean",
    "label_entropy_bits",
    "macro_f1",
    "mean_interval",
    "mutual_information_bits",
    "needed_images",
    "negative_log_likelihood",
    "per_class_table",
    "predict_with_confidence",
    "prior_weights",
    "rare_together",
    "reliability",
    "set_figures",
    "shortlists",
    "topk_accuracy",
    "wilson_interval",
    "worst_class",
]
