"""Training on data that comes in parts: ``partial_fit``."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import validate_data
from torch import Tensor

from longtail.config import TrainConfig, replace_options, resolved
from longtail.data import FeatureSet
from longtail.data.feature_loading import FeatureLoader
from longtail.data.feature_set import feature_statistics
from longtail.data.keyed import derive_seed
from longtail.data.samplers import Sampler
from longtail.estimators.base import DIVERGED, FeatureClassifier, feature_set, uneven, weighing_rows
from longtail.estimators.parameters import in_words_of, seed_of
from longtail.methods import MethodContext, get_method
from longtail.methods.logit_adjustment import LogitAdjustment
from longtail.metrics.inputs import zeros_as_rarest
from longtail.models import Classifier
from longtail.training.guard import Diverged
from longtail.training.optimisers import build_optimiser, parameter_groups, set_rate
from longtail.training.random_numbers import own_random_numbers, seed_torch
from longtail.training.step import TrainingStep

_SHOWN = 32
"""Samples for which the default batch is as many."""


class InParts(FeatureClassifier):
    """Adds ``partial_fit`` to a method that needs no more of the training set than its class frequencies."""

    _parts: _Parts | None = None

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train anew; see the class that this one is built on for arguments and errors."""
        super().fit(X, y, sample_weight)
        self._parts = None
        return self

    def partial_fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Go once through a part of the data, from where the training stands: after other parts, or after ``fit``.

        The class prior in the loss is that of all samples so far (a class that has none yet counts as the rarest one),
        so it changes as they come; ``class_prior_`` is the prior at the end. Mean and deviation of the features stay
        those of the first call, or of ``fit``: let the first part be one like the others. The learning rate is constant
        at ``learning_rate``, which is read anew at every call, as ``prior`` is, of which training knows nothing; the
        other parameters stay those of the first call, or of ``fit``, whatever they are set to since. A batch is no
        larger than the part; ``batch_size=None`` is by the number of samples of that first call, or of ``fit``.

        Args:
            X: features ``[N, D]``, finite, one row or more.
            y: labels ``[N]``, each one of ``classes``.
            classes: all labels that may come, ``[C]``; needed at the first call, and the same ones later if given.
            sample_weight: how much each sample counts in the class prior, ``[N]``, not negative; of the N draws of a
                call a sample gets a share in proportion to it.

        Raises:
            ValueError: the data, ``classes`` or a parameter does not fit.
            Diverged: no step of the call was finite; what was learned before is kept.
        """
        options = self._read_options()
        first = not hasattr(self, "classifier_")
        known = self._known_classes(classes, first)
        X, y = validate_data(self, X, y, dtype=np.float32, reset=first)
        check_classification_targets(y)
        unknown = np.setdiff1d(y, known)
        if len(unknown):
            raise ValueError(f"y holds labels that are not among the classes {known.tolist()}: {unknown.tolist()}.")
        weights = None
        if sample_weight is not None:
            X, y, weights = weighing_rows(X, y, sample_weight)
        labels = np.searchsorted(known, y)
        masses = np.bincount(labels, weights, minlength=len(known)) + (0 if first else self._masses)
        part = feature_set(X, labels, known, weights if uneven(weights) else None)
        self._read_prior(len(known))
        seed = seed_of(self.random_state) if first else None
        config = self._going_on(options, part, seed)
        with in_words_of(self._options):
            parts = self._parts or _Parts(config, part, None if first else self.classifier_)
        parts.rate = resolved(config.optimiser.lr)
        loss = parts.train(part, torch.from_numpy(masses))
        self._parts, self._config, self._masses, self.classes_ = parts, config, masses, known
        self.classifier_, self.class_prior_ = parts.classifier(), masses / masses.sum()
        self.n_iter_ = 1 if first else self.n_iter_ + 1
        self.loss_curve_ = [*([] if first else self.loss_curve_), loss]
        return self

    def _known_classes(self, classes: ArrayLike | None, first: bool) -> Any:
        if classes is None:
            if first:
                raise ValueError("classes must be passed on the first call to partial_fit.")
            return self.classes_
        known = unique_labels(classes)
        if not first and not np.array_equal(known, self.classes_):
            raise ValueError(f"classes={known.tolist()} are not those of the earlier calls, {self.classes_.tolist()}.")
        if len(known) < 2:
            raise ValueError(f"{type(self).__name__} needs two classes or more, but classes holds {known.tolist()}.")
        return known

    def _going_on(self, options: TrainConfig, part: FeatureSet, seed: int | None) -> TrainConfig:
        """Return the resolved options of a part: those that training began with, at the learning rate of now.

        Args:
            options: what the parameters say now.
            part: the data.
            seed: of training that begins here; None = it goes on.
        """
        if seed is None:
            options = replace_options(self._config, {"optimiser.lr": options.optimiser.lr})
        else:
            options = replace_options(options, {"seed": seed})
        # Sizes alone are looked at. A part may be smaller than any batch, and the batches of all parts must not be cut
        # down to it, so it is shown as large as the smallest batch, and a batch that was asked for is kept.
        size = max(len(part), _SHOWN)
        rows = torch.zeros(1, 1, part.channels).expand(size, -1, -1)
        alike = replace(part, features=rows, labels=torch.zeros(size, dtype=torch.int64), weights=None)
        config, _ = self._resolved(options, alike)
        return replace_options(config, {"batch_size": options.batch_size or config.batch_size})


class _Parts:
    """A method and its optimiser between two parts of the data.

    Args:
        config: resolved options.
        part: the first part.
        trained: what to go on from; None = new weights.

    Attributes:
        rate: learning rate.
        calls: parts so far.
    """

    def __init__(self, config: TrainConfig, part: FeatureSet, trained: Classifier | None) -> None:
        self.config, self.calls = config, 0
        self.rate = resolved(config.optimiser.lr)
        self.device = torch.device(config.device)
        [stage] = get_method(config.method).stages(config, config.method)
        self.seed = derive_seed(config.seed, stage.name)
        if trained is None:
            mean, std = feature_statistics(part.features, part.weights)
        else:
            mean, std = tuple(trained.mean.tolist()), tuple(trained.std.tolist())
        # One stand-in a class: a method asks for class counts, and must not keep the features of a part.
        classes = part.num_classes
        self.classes = FeatureSet(torch.zeros(classes, 1, part.channels), torch.arange(classes), part.class_names)
        with own_random_numbers(self.device):
            seed_torch(derive_seed(self.seed, "init"), self.device)
            method = get_method(stage.method).build(MethodContext(config, stage, self.classes, mean, std))
        assert isinstance(method, LogitAdjustment)
        self.method = method.to(self.device).train()
        if trained is not None:
            self.method.encoder.load_state_dict(trained.encoder.state_dict())
            self.method.head.load_state_dict(trained.head.state_dict())
        groups = parameter_groups(self.method, config.tune)
        self.optimiser = build_optimiser(groups, config.optimiser, self.device)

    def train(self, part: FeatureSet, masses: Tensor) -> float:
        """Go once through a part and return the mean loss; ``masses [C]`` are the weights of the classes so far."""
        method, context = self.method, self.method.context
        method.context = replace(context, train=replace(self.classes, weights=masses))
        method.loss.class_counts = zeros_as_rarest(masses).to(self.device)
        size = min(resolved(self.config.batch_size), len(part))
        loader = FeatureLoader(
            part,
            tuple(method.views),
            size,
            derive_seed(self.seed, "part", self.calls),
            self.device,
            context.mean,
            context.std,
            sampler=Sampler("instance", part.labels, weights=part.weights),
        )
        self.calls += 1
        set_rate(self.optimiser, self.rate)
        step = TrainingStep(method, self.optimiser, None, self.device, clip_norm=self.config.optimiser.clip_norm)
        # The last, smaller batch too: who comes once must not be left out.
        for number in range(-(-len(part) // size)):
            step(loader.load(0, number), 0.0)
        taken, figures = step.sums.so_far()
        if not taken:
            raise Diverged(DIVERGED)
        return figures[method.label_bits.loss_name]

    def classifier(self) -> Classifier:
        """Return a copy of the classifier, on the CPU."""
        return copy.deepcopy(self.method.classifier()).cpu().eval()
