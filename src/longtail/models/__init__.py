"""Networks: encoders by name, heads, and the classifier that is deployed."""

from longtail.models.cifar_resnet import CifarResNet
from longtail.models.classifier import Classifier, Prior, build_classifier
from longtail.models.encoders import build_encoder, encoder_defaults, encoder_names, feature_dim
from longtail.models.feature_encoders import FEATURE_ENCODERS
from longtail.models.heads import CosineHead, LinearHead, ProjectionHead, UnitVectors, build_head, unit_vectors
from longtail.models.on_features import on_images
from longtail.models.on_top import OnTop
from longtail.models.pretrained import choose_weights, load_weights
from longtail.models.small import SmallNet
from longtail.models.timm_encoder import EncoderDefaults

__all__ = [
    "FEATURE_ENCODERS",
    "CifarResNet",
    "Classifier",
    "CosineHead",
    "EncoderDefaults",
    "LinearHead",
    "OnTop",
    "Prior",
    "ProjectionHead",
    "SmallNet",
    "UnitVectors",
    "build_classifier",
    "build_encoder",
    "build_head",
    "choose_weights",
    "encoder_defaults",
    "encoder_names",
    "feature_dim",
    "load_weights",
    "on_images",
    "unit_vectors",
]
