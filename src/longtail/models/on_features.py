"""From a classifier of frozen features to one of images: the encoder that made the features goes below it."""

from __future__ import annotations

import torch
from torch import Tensor

from longtail.data.feature_set import FeatureOrigin
from longtail.models.classifier import Classifier
from longtail.models.encoders import build_encoder
from longtail.models.on_top import OnTop


def on_images(classifier: Classifier, origin: FeatureOrigin, tensors: dict[str, Tensor]) -> Classifier:
    """Return the classifier of images that embeds them first: the same logits as ``classifier`` gives their features.

    Args:
        classifier: of features; its tensors are shared.
        origin: the encoder that made the features.
        tensors: of that encoder.

    Raises:
        UserError: the encoder is unknown.
        RuntimeError: the tensors are of another one.
    """
    with torch.random.fork_rng(devices=[]):
        tower = build_encoder(origin.encoder, origin.in_channels, origin.framing.size)
    tower.load_state_dict(tensors)
    encoder = OnTop(tower, classifier.encoder, classifier.mean.tolist(), classifier.std.tolist())
    own = classifier.spec
    spec = {**own, "encoder": origin.encoder, "in_channels": origin.in_channels, "on_features": own["encoder"]}
    whole = Classifier(
        encoder,
        classifier.head,
        classifier.class_names,
        classifier.class_counts,
        classifier.logit_prior,
        origin.mean,
        origin.std,
        origin.framing,
        spec,
    )
    whole.temperature = classifier.temperature
    return whole.eval()
