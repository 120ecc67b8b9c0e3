"""Batches: every draw a function of seed, epoch and sample id."""

import pytest
import torch

from longtail.data.loading import ResidentLoader
from longtail.data.views import build_view


def loader(splits, seed=0, batch_size=8):
    views = {name: build_view("tiny", splits.mean, splits.std) for name in ("classifier", "key")}
    return ResidentLoader(splits.train, views, batch_size, seed, torch.device("cpu"))


def test_an_epoch_visits_each_image_at_most_once_and_drops_the_rest(tiny_splits):
    made = loader(tiny_splits)
    assert made.steps_per_epoch == 35 // 8
    ids = torch.cat([made.load(2, step).ids for step in range(made.steps_per_epoch)])
    assert len(set(ids.tolist())) == len(ids) == 32
    assert torch.equal(made.load(2, 1).labels, tiny_splits.train.labels[made.load(2, 1).ids])


def test_batches_do_not_depend_on_what_was_drawn_before(tiny_splits):
    made, other = loader(tiny_splits), loader(tiny_splits)
    first = [made.load(epoch, step) for epoch in range(2) for step in range(4)]
    again = other.load(1, 2)
    assert torch.equal(first[6].ids, again.ids)
    for name, view in again.views.items():
        assert torch.equal(first[6].views[name], view)


def test_seed_epoch_and_view_change_the_draws(tiny_splits):
    made = loader(tiny_splits)
    batch = made.load(0, 0)
    assert not torch.equal(batch.ids, made.load(1, 0).ids)
    assert not torch.equal(batch.ids, loader(tiny_splits, seed=1).load(0, 0).ids)
    assert not torch.equal(batch.views["classifier"], batch.views["key"])


def test_fetch_gives_fresh_views_by_round_for_each_image_alone(tiny_splits):
    made = loader(tiny_splits)
    ids, rounds = torch.tensor([3, 30, 3]), torch.tensor([0, 0, 1])
    images = made.fetch("key", ids, rounds)
    assert not torch.equal(images[0], images[2])
    for index in range(3):
        assert torch.equal(images[index], made.fetch("key", ids[index : index + 1], rounds[index : index + 1])[0])


def test_a_batch_that_does_not_fit_is_refused(tiny_splits):
    with pytest.raises(ValueError, match="batch_size 36"):
        loader(tiny_splits, batch_size=36)
