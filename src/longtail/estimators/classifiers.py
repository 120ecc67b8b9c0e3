"""The three estimators: GML, logit adjustment, and the plain cosine classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from longtail.estimators.base import FeatureClassifier
from longtail.estimators.in_parts import InParts


class GMLClassifier(FeatureClassifier):
    """GML on features: a cosine classifier with logit adjustment, and a contrast with a class-wise queue.

    The features are taken to come from a good encoder, which is frozen: as they are they fill the queue, as the teacher
    of the method does, and what is trained is a small residual network on them, a projection and the classifier. It is
    the training of ``longtail train FEATURES.npz --method gml``: with the same options and ``random_state`` as the
    ``--seed`` the weights are the same, bit for bit. Suh & Seo, ICML 2023.

    There is no ``partial_fit``: the queue's layout and the prior are those of the whole training set.

    Args:
        epochs: passes over the data; None = some thousand steps, within 10 to 100 epochs.
        batch_size: samples a step; None = by the number of samples, 32 to 1024.
        learning_rate: of AdamW at the start; it falls to 0 along a cosine.
        weight_decay: of AdamW.
        temperature: of the contrast's kernel; the first value if it is learned.
        learn_temperature: learn it.
        prior_strength: scales log p(c) in both losses: 1 = the paper, 0 = no prior.
        queue_size: samples in the queue; None = about a third of the data, 256 to 4096, or more where there are more
            than 2048 classes.
        min_per_class: least samples of a class in the queue; None = 2 where there is room, 3 in a queue of 16384.
        projection_dim: width of the space of the contrast; None = half that of the features, 16 to 128.
        scale: of the cosine classifier, the inverse temperature of its softmax.
        adapter: train a residual network on the features; if not, the classifier sees them as they are, and the
            contrast shapes nothing that is deployed.
        prior: class frequencies that predictions assume: ``"uniform"``, which balanced accuracy asks for, ``"train"``
            (``class_prior_``) or an array of C weights in the order of ``classes_``. It may be set anew after ``fit``.
        random_state: seed, ``RandomState`` or None. What a seed gives hangs on nothing else, and torch's own generators
            are left as they were.
        device: where ``fit`` trains, such as ``"cpu"`` or ``"auto"``; predictions are computed on the CPU.

    Attributes:
        classes_: the C labels, sorted.
        class_prior_: share of each class in the training data, or in its weight, float64 ``[C]``.
        classifier_: the trained :class:`longtail.Classifier`, on the CPU; its ``save`` writes what ``load`` reads.
        n_iter_: epochs that were trained.
        loss_curve_: mean training loss of each epoch.
        n_features_in_: width D.
        feature_names_in_: names of the D columns ``[D]``, where ``fit`` was given a frame whose names are strings.

    Example:
        >>> from sklearn.datasets import make_classification
        >>> X, y = make_classification(300, 8, n_informative=6, n_classes=3, weights=[0.8, 0.15], random_state=0)
        >>> model = GMLClassifier(epochs=5, random_state=0).fit(X, y)
        >>> model.predict_proba(X).shape
        (300, 3)
    """

    _method: ClassVar[str] = "gml"
    _options: ClassVar[Mapping[str, str]] = {
        **FeatureClassifier._options,
        "temperature": "loss.temperature",
        "learn_temperature": "loss.learn_temperature",
        "prior_strength": "loss.prior_strength",
        "queue_size": "queue.capacity",
        "min_per_class": "queue.min_per_class",
        "projection_dim": "queue.projection_dim",
    }

    def __init__(
        self,
        *,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float = 1e-2,
        weight_decay: float = 0.05,
        temperature: float = 0.1,
        learn_temperature: bool = True,
        prior_strength: float = 1.0,
        queue_size: int | None = None,
        min_per_class: int | None = None,
        projection_dim: int | None = None,
        scale: float = 30.0,
        adapter: bool = True,
        prior: Any = "uniform",
        random_state: Any = None,
        device: str = "cpu",
    ) -> None:
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.temperature = temperature
        self.learn_temperature = learn_temperature
        self.prior_strength = prior_strength
        self.queue_size = queue_size
        self.min_per_class = min_per_class
        self.projection_dim = projection_dim
        self.scale = scale
        self.adapter = adapter
        self.prior = prior
        self.random_state = random_state
        self.device = device


class LogitAdjustedClassifier(InParts):
    """A cosine classifier trained with log p(c) added to its logits: good on rare classes without resampling.

    The training of ``longtail train FEATURES.npz --method logit_adjustment``. Menon et al., "Long-tail learning via
    logit adjustment", ICLR 2021, Eq. 10.

    Args:
        epochs: passes over the data of ``fit``; None = some thousand steps, within 10 to 100 epochs.
        batch_size: samples a step; None = by the number of samples, 32 to 1024.
        learning_rate: of AdamW at the start; in ``fit`` it falls to 0 along a cosine, in ``partial_fit`` it stays.
        weight_decay: of AdamW.
        prior_strength: scales log p(c) in the loss: 1 = the paper, 0 = :class:`CosineClassifier`.
        scale: of the cosine classifier, the inverse temperature of its softmax.
        adapter: train a residual network on the features beside the classifier.
        prior: class frequencies that predictions assume: ``"uniform"``, which balanced accuracy asks for, ``"train"``
            (``class_prior_``) or an array of C weights in the order of ``classes_``. It may be set anew after ``fit``.
        random_state: seed, ``RandomState`` or None. What a seed gives hangs on nothing else, and torch's own generators
            are left as they were.
        device: where training runs, such as ``"cpu"`` or ``"auto"``; predictions are computed on the CPU.

    Attributes:
        classes_: the C labels, sorted.
        class_prior_: share of each class in the training data, or in its weight, float64 ``[C]``.
        classifier_: the trained :class:`longtail.Classifier`, on the CPU; its ``save`` writes what ``load`` reads.
        n_iter_: epochs that were trained; each call of ``partial_fit`` counts as one.
        loss_curve_: mean training loss of each epoch.
        n_features_in_: width D.
        feature_names_in_: names of the D columns ``[D]``, where ``fit`` was given a frame whose names are strings.

    Example:
        >>> from sklearn.datasets import make_classification
        >>> X, y = make_classification(300, 8, n_informative=6, n_classes=3, weights=[0.8, 0.15], random_state=0)
        >>> LogitAdjustedClassifier(epochs=5, random_state=0).fit(X, y).predict(X[:4]).shape
        (4,)
    """

    _method: ClassVar[str] = "logit_adjustment"
    _options: ClassVar[Mapping[str, str]] = {**FeatureClassifier._options, "prior_strength": "loss.prior_strength"}

    def __init__(
        self,
        *,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float = 1e-2,
        weight_decay: float = 0.05,
        prior_strength: float = 1.0,
        scale: float = 30.0,
        adapter: bool = True,
        prior: Any = "uniform",
        random_state: Any = None,
        device: str = "cpu",
    ) -> None:
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.prior_strength = prior_strength
        self.scale = scale
        self.adapter = adapter
        self.prior = prior
        self.random_state = random_state
        self.device = device


class CosineClassifier(InParts):
    """A cosine classifier with plain cross entropy: what to compare the others with.

    Logits are ``scale`` times the cosine between a feature and its class's direction. Nothing is told of the class
    frequencies, so the softmax implies those of the training data: with the default ``prior="train"`` predictions are
    that softmax, with ``prior="uniform"`` they are adjusted after training (Menon et al., ICLR 2021, Eq. 9).

    Args:
        epochs: passes over the data of ``fit``; None = some thousand steps, within 10 to 100 epochs.
        batch_size: samples a step; None = by the number of samples, 32 to 1024.
        learning_rate: of AdamW at the start; in ``fit`` it falls to 0 along a cosine, in ``partial_fit`` it stays.
        weight_decay: of AdamW.
        scale: of the cosine classifier, the inverse temperature of its softmax.
        adapter: train a residual network on the features beside the classifier.
        prior: class frequencies that predictions assume: ``"train"`` (``class_prior_``), ``"uniform"`` or an array of C
            weights in the order of ``classes_``. It may be set anew after ``fit``.
        random_state: seed, ``RandomState`` or None. What a seed gives hangs on nothing else, and torch's own generators
            are left as they were.
        device: where training runs, such as ``"cpu"`` or ``"auto"``; predictions are computed on the CPU.

    Attributes:
        classes_: the C labels, sorted.
        class_prior_: share of each class in the training data, or in its weight, float64 ``[C]``.
        classifier_: the trained :class:`longtail.Classifier`, on the CPU; its ``save`` writes what ``load`` reads.
        n_iter_: epochs that were trained; each call of ``partial_fit`` counts as one.
        loss_curve_: mean training loss of each epoch.
        n_features_in_: width D.
        feature_names_in_: names of the D columns ``[D]``, where ``fit`` was given a frame whose names are strings.

    Example:
        >>> from sklearn.datasets import make_classification
        >>> X, y = make_classification(300, 8, n_informative=6, n_classes=3, weights=[0.8, 0.15], random_state=0)
        >>> CosineClassifier(epochs=5, random_state=0).fit(X, y).predict(X[:4]).shape
        (4,)
    """

    _method: ClassVar[str] = "logit_adjustment"
    _fixed: ClassVar[Mapping[str, Any]] = {"loss.prior_strength": 0.0}

    def __init__(
        self,
        *,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float = 1e-2,
        weight_decay: float = 0.05,
        scale: float = 30.0,
        adapter: bool = True,
        prior: Any = "train",
        random_state: Any = None,
        device: str = "cpu",
    ) -> None:
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.scale = scale
        self.adapter = adapter
        self.prior = prior
        self.random_state = random_state
        self.device = device
