"""From a :class:`FeatureSet` to batches: the counterpart of ``loading.py``, without anything to decode or augment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from longtail.data.feature_set import FeatureSet
from longtail.data.keyed import keyed_uniform
from longtail.data.loading import Batch
from longtail.data.samplers import EpochDraws, Sampler
from longtail.data.shares import WHOLE, Share


class FeatureLoader:
    """Batches of standardised features, each a function of (seed, epoch, step) alone.

    Of each image a view is drawn from those that are stored. Where only one is, every view of a batch is the same
    tensor, so that a method can see that it need not go through the encoder twice.

    Args:
        features: the training set.
        views: names of the views that every batch holds.
        batch_size: samples a step.
        seed: of the order and of the draws.
        device: where they live.
        mean, std: of each component, ``[D]``.
        plain: names of views that are the first one stored, without augmentation, whatever is asked for.
        sampler: what an epoch draws; None = each sample once.
        share: of every batch, what views this process makes; labels and ids are those of the whole batch.
    """

    def __init__(
        self,
        features: FeatureSet,
        views: Sequence[str],
        batch_size: int,
        seed: int,
        device: torch.device,
        mean: Sequence[float],
        std: Sequence[float],
        plain: Mapping[str, bool] | None = None,
        sampler: Sampler | None = None,
        share: Share = WHOLE,
    ) -> None:
        if not 1 <= batch_size <= len(features):
            raise ValueError(f"batch_size {batch_size} does not fit a training set of {len(features)} samples")
        self.features = features.features.to(device)
        self.labels = features.labels.to(device)
        self.views, self._plain = tuple(views), plain or {}
        self.batch_size, self.seed, self.share = batch_size, seed, share
        self.steps_per_epoch = len(features) // batch_size
        self._stored = features.views
        self._mean = torch.tensor(mean, dtype=torch.float32, device=device)
        self._factor = 1 / torch.tensor(std, dtype=torch.float32, device=device)
        self._sampler = sampler or Sampler("instance", features.labels)
        self._drawn: tuple[int, EpochDraws] | None = None

    def order(self, epoch: int) -> Tensor:
        """Return the epoch's order of sample ids, int64 ``[N]``."""
        return self._draws(epoch).ids

    def _draws(self, epoch: int) -> EpochDraws:
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, self._sampler.draws(self.seed, epoch, self.labels.device)
        return self._drawn[1]

    def load(self, epoch: int, step: int) -> Batch:
        """Return batch ``step`` (0-based) of ``epoch``: every view float32 ``[B, D]``."""
        drawn = self._draws(epoch)[step * self.batch_size : (step + 1) * self.batch_size]
        ids, keys = (self.share.of(values, self.batch_size) for values in (drawn.ids, drawn.keys))
        if self._stored == 1:
            views = dict.fromkeys(self.views, self._take(ids, 0))
        else:
            views = {name: self._take(ids, self._choice(name, keys, epoch)) for name in self.views}
        return Batch(views, self.labels[drawn.ids], drawn.ids)

    def _choice(self, name: str, keys: Tensor, epoch: int) -> Tensor | int:
        if self._plain.get(name):
            return 0
        uniform = keyed_uniform(self.seed, "stored view", name, epoch, ids=keys).squeeze(1)
        return (uniform * self._stored).to(torch.int64)

    def _take(self, ids: Tensor, view: Tensor | int) -> Tensor:
        return (self.features[ids, view].float() - self._mean) * self._factor

    def fetch(self, view: str, ids: Tensor, rounds: Tensor) -> Tensor:
        """Return a view of the samples at ``ids [M]`` outside any epoch, float32 ``[M, D]``.

        ``rounds [M]`` numbers the views of one sample; beyond the last that is stored they start over.
        """
        return self._take(ids, 0 if self._plain.get(view) else rounds % self._stored)

    def close(self) -> None:
        """Nothing runs beside the training."""
