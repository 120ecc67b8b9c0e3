"""Images, class counts and views: everything between the user's files and a training step."""

from longtail.data.counts import exponential_profile, long_tailed_indices, step_profile
from longtail.data.feature_set import FeatureSet
from longtail.data.image_set import DataSplits, Framing, ImageFiles, ImageSet, LabelledImages
from longtail.data.sources import load_data, source_names
from longtail.data.views import build_view, view_recipes

__all__ = [
    "DataSplits",
    "FeatureSet",
    "Framing",
    "ImageFiles",
    "ImageSet",
    "LabelledImages",
    "build_view",
    "exponential_profile",
    "load_data",
    "long_tailed_indices",
    "source_names",
    "step_profile",
    "view_recipes",
]
