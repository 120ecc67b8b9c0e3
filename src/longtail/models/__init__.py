"""Networks: encoders by name, heads, and the classifier that is deployed."""

from longtail.models.cifar_resnet import CifarResNet
from longtail.models.classifier import Classifier, Prior, build_classifier
from longtail.models.encoders import build_encoder, encoder_defaults, encoder_names, feature_dim
from longtail.models.heads import CosineHead, LinearHead, ProjectionHead, UnitVectors, build_head, unit_vectors
from longtail.models.layer_order import layer_depths
from longtail.models.pretrained import choose_weights, load_weights
from longtail.models.small import SmallNet
from longtail.models.timm_encoder import EncoderDefaults
from longtail.models.tuning import TunedEncoder, apply_tuning, check_tuning, default_rank, merge_tuning, tuning_spec

__all__ = [
    "CifarResNet",
    "Classifier",
    "CosineHead",
    "EncoderDefaults",
    "LinearHead",
    "Prior",
    "ProjectionHead",
    "SmallNet",
    "TunedEncoder",
    "UnitVectors",
    "apply_tuning",
    "build_classifier",
    "build_encoder",
    "build_head",
    "check_tuning",
    "choose_weights",
    "default_rank",
    "encoder_defaults",
    "encoder_names",
    "feature_dim",
    "layer_depths",
    "load_weights",
    "merge_tuning",
    "tuning_spec",
    "unit_vectors",
]
