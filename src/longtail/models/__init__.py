"""Networks: encoders by name, heads, and the classifier that is deployed."""

from longtail.models.cifar_resnet import CifarResNet
from longtail.models.classifier import Classifier, Prior, build_classifier
from longtail.models.encoders import build_encoder, encoder_names, feature_dim
from longtail.models.heads import CosineHead, LinearHead, ProjectionHead, build_head, unit_vectors
from longtail.models.small import SmallNet

__all__ = [
    "CifarResNet",
    "Classifier",
    "CosineHead",
    "LinearHead",
    "Prior",
    "ProjectionHead",
    "SmallNet",
    "build_classifier",
    "build_encoder",
    "build_head",
    "encoder_names",
    "feature_dim",
    "unit_vectors",
]
