"""Networks: encoders by name, heads, and the classifier that is deployed."""

from longtail.models.cifar_resnet import CifarResNet
from longtail.models.classifier import Classifier, Prior, build_classifier
from longtail.models.encoders import build_encoder, encoder_defaults, encoder_names, feature_dim
from longtail.models.feature_encoders import FEATURE_ENCODERS
from longtail.models.heads import CosineHead, LinearHead, ProjectionHead, UnitVectors, build_head, unit_vectors
from longtail.models.on_features import on_images
from longtail.models.on_top import OnTop
from longtail.models.open_clip_encoder import is_open_clip
from longtail.models.pretrained import choose_weights, load_weights
from longtail.models.prompts import class_prompts
from longtail.models.small import SmallNet
from longtail.models.text_tower import check_text_tower, class_embeddings
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
    "check_text_tower",
    "choose_weights",
    "class_embeddings",
    "class_prompts",
    "encoder_defaults",
    "encoder_names",
    "feature_dim",
    "is_open_clip",
    "load_weights",
    "on_images",
    "unit_vectors",
]
