"""scikit-learn's own checks of an estimator, all of them."""

import pytest
from sklearn.utils.estimator_checks import (
    check_dataframe_column_names_consistency,
    check_n_features_in,
    parametrize_with_checks,
)

from longtail import CosineClassifier, GMLClassifier, LogitAdjustedClassifier

# Few epochs at a higher rate, as scikit-learn gives its own estimators few iterations: the checks fit them often.
KINDS = (GMLClassifier, LogitAdjustedClassifier, CosineClassifier)
SHORT = [kind(epochs=6, learning_rate=0.03) for kind in KINDS]
CANNOT_HOLD = {
    "check_sample_weight_equivalence_on_dense_data": (
        "an epoch draws mini-batches: a sample of weight 2 is drawn as often as two samples, but in other batches, so "
        "weights and repetition agree on average and not bit for bit"
    )
}


@parametrize_with_checks(SHORT, expected_failed_checks=lambda estimator: CANNOT_HOLD)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("estimator", SHORT, ids=lambda estimator: type(estimator).__name__)
def test_names_of_columns(estimator):
    check_dataframe_column_names_consistency(type(estimator).__name__, estimator)
    check_n_features_in(type(estimator).__name__, estimator)
