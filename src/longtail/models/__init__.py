"""Networks: encoders by name, heads, and the classifier that is deployed."""

from longtail.models.cifar_resnet import CifarResNet
from longtail.models.classifier import Classifier, Prior, build_classifier
from longtail.models.crops import CropEnsemble, with_crops
from longtail.models.encoders import build_encoder, encoder_defaults, encoder_names, feature_dim
from longtail.models.feature_encoders import FEATURE_ENCODERS
from longtail.models.heads import CosineHead, LinearHead, ProjectionHead, UnitVectors, build_head, unit_vectors
from longtail.models.layer_order import layer_depths
from longtail.models.on_features import on_images
from longtail.models.on_top import OnTop
from longtail.models.open_clip_encoder import has_several_statistics, is_open_clip
from longtail.models.pretrained import choose_weights, is_published, load_weights, published_name
from longtail.models.prompts import class_prompts
from longtail.models.small import SmallNet
from longtail.models.text_tower import check_text_tower, class_embeddings
from longtail.models.timm_encoder import EncoderDefaults
from longtail.models.tuning import TunedEncoder, apply_tuning, check_tuning, default_rank, merge_tuning, tuning_spec

__all__ = [
    "FEATURE_ENCODERS",
    "CifarResNet",
    "Classifier",
    "CosineHead",
    "CropEnsemble",
    "EncoderDefaults",
    "LinearHead",
    "OnTop",
    "Prior",
    "ProjectionHead",
    "SmallNet",
    "TunedEncoder",
    "UnitVectors",
    "apply_tuning",
    "build_classifier",
    "build_encoder",
    "build_head",
    "check_text_tower",
    "check_tuning",
    "choose_weights",
    "class_embeddings",
    "class_prompts",
    "default_rank",
    "encoder_defaults",
    "encoder_names",
    "feature_dim",
    "has_several_statistics",
    "is_open_clip",
    "is_published",
    "layer_depths",
    "load_weights",
    "merge_tuning",
    "on_images",
    "published_name",
    "tuning_spec",
    "unit_vectors",
    "with_crops",
]
