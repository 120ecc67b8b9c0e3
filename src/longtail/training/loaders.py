"""The loader that fits a stage's training set: arrays in memory, files on disk, or features."""

from __future__ import annotations

import torch

from longtail.config import resolved
from longtail.data import FeatureSet, ImageFiles, ImageSet
from longtail.data.feature_loading import FeatureLoader
from longtail.data.feature_set import STORED
from longtail.data.loading import ResidentLoader
from longtail.data.samplers import Sampler
from longtail.data.shares import WHOLE, Share
from longtail.data.streaming import default_workers
from longtail.data.streaming_loader import StreamingLoader
from longtail.data.views import build_view
from longtail.methods import Method, MethodContext

Loader = ResidentLoader | StreamingLoader | FeatureLoader


def build_loader(
    method: Method, seed: int, context: MethodContext, device: torch.device, share: Share = WHOLE
) -> Loader:
    """Return what gives the batches of a stage.

    Args:
        method: whose views and sampler they have.
        seed: of the stage.
        context: what the method was built from.
        device: where batches go.
        share: of every batch, what this process makes.
    """
    train, batch_size, epochs = context.train, resolved(context.config.batch_size), context.stage.epochs
    if isinstance(train, FeatureSet):
        return FeatureLoader(
            train,
            tuple(method.views),
            batch_size,
            seed,
            device,
            context.mean,
            context.std,
            plain={name: recipe != STORED for name, recipe in (method.views | method.fetched_views).items()},
            sampler=Sampler(method.sampler, train.labels, epochs, train.weights),
            share=share,
        )
    views, fetched = (
        {name: build_view(recipe, context.mean, context.std) for name, recipe in recipes.items()}
        for recipes in (method.views, method.fetched_views)
    )
    sampler = Sampler(method.sampler, train.labels, epochs)
    if isinstance(train, ImageSet):
        return ResidentLoader(train, views, batch_size, seed, device, fetched=fetched, sampler=sampler, share=share)
    if not isinstance(train, ImageFiles):
        raise ValueError(f"there is no loader for {type(train).__name__}")
    loading = context.config.loading
    workers = default_workers(device) if loading.workers is None else loading.workers
    return StreamingLoader(
        train,
        views,
        batch_size,
        seed,
        device,
        epochs,
        workers,
        loading.prefetch,
        fetched=fetched,
        sampler=sampler,
        share=share,
    )
