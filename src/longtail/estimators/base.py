"""What the estimators share: checked input, training in memory, and predictions under a stated class prior."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_array
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from longtail.config import TrainConfig, replace_options, resolved
from longtail.data import DataSplits, FeatureSet
from longtail.data.feature_set import STORED, feature_statistics
from longtail.errors import unknown_name
from longtail.estimators.parameters import in_words_of, options_of, seed_of
from longtail.models.classifier_checks import as_prior
from longtail.training.defaults import resolve
from longtail.training.guard import Diverged
from longtail.training.in_memory import train_in_memory

_PRIORS = ("uniform", "train")
_ROWS = 8192
"""Rows that are predicted at a time."""
DIVERGED = "training diverged: losses or gradients were not finite; lower learning_rate, or scale the features."


class FeatureClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A method of the package as a scikit-learn classifier of feature vectors; the public ones are its subclasses.

    Attributes:
        classes_: the C labels, sorted.
        class_prior_: share of each class in the training data, or in its weight, float64 ``[C]``.
        classifier_: the trained :class:`longtail.Classifier`, on the CPU; its ``save`` writes what ``load`` reads.
        n_iter_: epochs that were trained.
        loss_curve_: mean training loss of each epoch.
        n_features_in_: width D.
        feature_names_in_: names of the D columns ``[D]``, where ``fit`` was given a frame whose names are strings.
    """

    _method: ClassVar[str]
    _options: ClassVar[Mapping[str, str]] = {
        "epochs": "epochs",
        "batch_size": "batch_size",
        "learning_rate": "optimiser.lr",
        "weight_decay": "optimiser.weight_decay",
        "scale": "loss.scale",
        "device": "device",
    }
    _fixed: ClassVar[Mapping[str, Any]] = {}
    prior: Any
    random_state: Any

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train anew.

        Args:
            X: features ``[N, D]``, finite; used in float32 and standardised by their own mean and deviation.
            y: labels ``[N]``, numbers or strings, of two classes or more.
            sample_weight: how much each sample counts, ``[N]`` or one number, not negative; None = all alike. An epoch
                draws a sample in proportion to its weight, and the class prior is that of the weights. Equal weights
                are none, and a sample of weight 0 is as good as left out: both bit for bit. Beyond that only the ratios
                of weights matter, up to rounding: all of them times 7.3 may change the last digits of a prediction. A
                sample of weight 2 is drawn as often as two of weight 1, so it trains alike on average, but not bit for
                bit.

        Raises:
            ValueError: the data or a parameter does not fit.
            Diverged: training came to numbers that are not finite.
        """
        options = self._read_options()
        X, y = validate_data(self, X, y, dtype=np.float32, ensure_min_samples=2)
        check_classification_targets(y)
        weights = None
        if sample_weight is not None:
            X, y, weights = weighing_rows(X, y, sample_weight)
        classes, labels = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"{type(self).__name__} needs samples of two classes or more; the data holds one class, "
                f"{classes.tolist()[0]!r}."
            )
        self._read_prior(len(classes))
        options = replace_options(options, {"seed": seed_of(self.random_state)})
        alike = not uneven(weights)
        config, data = self._resolved(options, feature_set(X, labels, classes, None if alike else weights))
        with in_words_of(self._options):
            try:
                self.classifier_, self.loss_curve_ = train_in_memory(config, data)
            except Diverged:
                raise Diverged(DIVERGED) from None
        # Equal weights are left out of the shares, which are then the same bit for bit.
        shares = np.bincount(labels, None if alike else weights)
        self.classes_, self.class_prior_ = classes, shares / shares.sum()
        self._masses = shares * (1.0 if weights is None or not alike else weights[0])
        self.n_iter_ = resolved(config.epochs)
        # What ``partial_fit`` goes on with; a batch that was asked for may fit its parts, if not this data.
        self._config = replace_options(config, {"batch_size": options.batch_size or config.batch_size})
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the logits ``[N, C]`` of features ``[N, D]`` under ``prior``; of two classes the difference ``[N]``.

        They are log p(y | x) but for a constant a row. Rows are computed in float64, each by itself.
        """
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return p(y | x), float64 ``[N, C]`` in the order of ``classes_``, where classes are as frequent as ``prior``.

        Args:
            X: features ``[N, D]``.
        """
        logits = self._logits(X)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(odds / odds.sum(axis=1, keepdims=True))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most probable class under ``prior`` of each of the features ``[N, D]``: labels ``[N]``."""
        best = self._logits(X).argmax(axis=1)
        return np.asarray(self.classes_[best])

    def _logits(self, X: ArrayLike) -> NDArray[np.float64]:
        check_is_fitted(self)
        features = as_tensor(validate_data(self, X, dtype=np.float32, reset=False))
        # In float64 a row's logits do not hang on the rows beside it, as they do in the last bits of float32.
        exact = copy.deepcopy(self.classifier_).double()
        return np.asarray((exact.logits(features, _ROWS) + self._shift()).numpy())

    def _shift(self) -> torch.Tensor:
        """Return what ``prior`` adds to the classifier's logits, float64 ``[C]``."""
        prior = self._read_prior(len(self.classes_))
        named_train = isinstance(prior, str) and prior == "train"
        return self.classifier_.prior_shift(torch.from_numpy(self.class_prior_) if named_train else prior)

    def _read_prior(self, num_classes: int) -> str | torch.Tensor:
        """Return the prior's name, or its weights as float64 ``[num_classes]`` with sum 1."""
        if isinstance(self.prior, str):
            if self.prior not in _PRIORS:
                raise unknown_name("prior", self.prior, _PRIORS)
            return self.prior
        try:
            weights = torch.from_numpy(np.array(self.prior, dtype=np.float64))
        except (TypeError, ValueError):
            weights = torch.empty(0, 0)
        if weights.ndim != 1:
            raise ValueError(
                f"prior must be 'uniform', 'train' or one weight for each of {num_classes} classes, got {self.prior!r}."
            )
        return as_prior(weights, num_classes, "prior")

    def _read_options(self) -> TrainConfig:
        return options_of(self, self._options, {"method": self._method, **self._fixed})

    def _resolved(self, options: TrainConfig, train: FeatureSet) -> tuple[TrainConfig, DataSplits]:
        """Fill in what is open from the data, as the command line does."""
        mean, std = feature_statistics(train.features, train.weights)
        data = DataSplits("features", train, train, mean, std, STORED)
        with in_words_of(self._options):
            config, _ = resolve(options, data)
        return config, data


def weighing_rows(X: Any, y: Any, sample_weight: ArrayLike) -> tuple[Any, Any, Any]:
    """Return the rows that weigh something, and their weights, float64.

    Raises:
        ValueError: weights are not finite, negative, all zero or not one a row.
    """
    weights = check_array(
        np.full(len(X), sample_weight) if isinstance(sample_weight, Real) else sample_weight,
        ensure_2d=False,
        dtype=np.float64,
        input_name="sample_weight",
    )
    if weights.shape != (len(X),):
        raise ValueError(f"sample_weight has shape {list(weights.shape)}; give one for each of {len(X)} samples.")
    if weights.min() < 0:
        raise ValueError("Negative values in data passed to `sample_weight`.")
    kept = weights > 0
    if not kept.any():
        raise ValueError("sample_weight is zero for every sample; at least one must weigh something.")
    if not kept.all():
        X, y, weights = X[kept], y[kept], weights[kept]
    return X, y, weights


def as_tensor(X: Any) -> torch.Tensor:
    """Return an array as a tensor; it is copied only if it is read-only or lies otherwise than tensors do."""
    return torch.from_numpy(np.require(X, requirements=["C", "W"]))


def uneven(weights: Any) -> bool:
    """Return whether there are weights ``[N]`` that differ."""
    return weights is not None and bool((weights != weights[0]).any())


def feature_set(X: Any, labels: Any, classes: Any, sample_weight: Any) -> FeatureSet:
    """Return checked features ``[N, D]``, label indices ``[N]`` and weights ``[N]`` or None as a training set."""
    features = as_tensor(X)[:, None]
    weights = None if sample_weight is None else torch.from_numpy(sample_weight)
    return FeatureSet(
        features, torch.from_numpy(labels.astype(np.int64)), tuple(map(str, classes.tolist())), weights=weights
    )
