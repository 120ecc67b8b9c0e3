"""Batches: every draw a function of seed, epoch and sample id."""

import pytest
import torch

from longtail.data.loading import ResidentLoader, free_memory, image_home
from longtail.data.views import build_view

CPU = torch.device("cpu")
# To the loader another place than "cpu", to torch the same: the host's side without an accelerator.
HOST = torch.device("cpu", 0)


def loader(splits, seed=0, batch_size=8, **options):
    recipes = {"classifier": "tiny", "query": "shift", "key": "tiny"}
    views = {name: build_view(recipe, splits.mean, splits.std) for name, recipe in recipes.items()}
    return ResidentLoader(splits.train, views, batch_size, seed, CPU, **options)


def same(one, other):
    assert torch.equal(one.ids, other.ids)
    assert torch.equal(one.labels, other.labels)
    assert list(one.views) == list(other.views)
    for name, view in one.views.items():
        assert torch.equal(view, other.views[name])


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


@pytest.mark.parametrize("home", [CPU, HOST])
@pytest.mark.parametrize("steps", [None, 1, 3])
def test_steps_made_together_are_those_made_one_by_one(tiny_splits, steps, home):
    """In order, from the middle of an epoch as a resumed run does, again, and back. An epoch has 4 steps."""
    made = loader(tiny_splits, steps_at_once=steps, home=home)
    for place in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (3, 2), (3, 3), (4, 0), (4, 0), (1, 1), (1, 3)]:
        alone = loader(tiny_splits, steps_at_once=1)
        same(made.load(*place), alone.load(*place))
        direct = alone.views["key"](alone.images[made.load(*place).ids], made.load(*place).ids, 0, place[0], "key")
        assert torch.equal(made.load(*place).views["key"], direct)


def test_views_of_one_recipe_and_several_steps_are_one_call(tiny_splits, monkeypatch):
    made, calls = loader(tiny_splits), []
    original = type(made.views["key"]).__call__

    def counted(self, images, ids, seed, epoch, stream):
        calls.append((self.recipe, len(images), stream))
        return original(self, images, ids, seed, epoch, stream)

    monkeypatch.setattr(type(made.views["key"]), "__call__", counted)
    for step in range(4):
        made.load(0, step)
    assert calls == [("tiny", 32, ("classifier", "key")), ("shift", 32, ("query",))]


def test_images_on_the_host_are_gathered_there_one_group_ahead(tiny_splits, monkeypatch):
    made, sent = loader(tiny_splits, steps_at_once=2, home=HOST), []
    gather = made._pixels
    monkeypatch.setattr(made, "_pixels", lambda ids: sent.append(ids.clone()) or gather(ids))
    made.load(0, 0)
    assert len(sent) == 2  # this group's and the next one's
    made.load(0, 1)
    made.load(0, 2)
    made.load(0, 3)
    assert torch.equal(torch.cat(sent), made.order(0)[:32])
    made.load(1, 0)
    assert len(sent) == 4
    ids, rounds = torch.tensor([3, 30, 3]), torch.tensor([0, 0, 1])
    assert torch.equal(made.fetch("key", ids, rounds), loader(tiny_splits).fetch("key", ids, rounds))


def test_images_live_on_the_device_if_it_holds_them_twice():
    device = torch.device("cuda", 0)
    assert image_home(50, 100, device) == (device, None)
    assert image_home(10**12, None, device) == (device, None)
    home, notice = image_home(6 * 2**30, 11 * 2**30, device)
    assert home == CPU
    assert notice == (
        "the training images take 6.0 GiB and cuda:0 has 11.0 GiB free, so they stay in the host's memory and every "
        "batch is sent over."
    )
    assert free_memory(CPU) is None


def test_a_loader_says_where_its_images_live(tiny_splits, monkeypatch):
    assert (loader(tiny_splits).home, loader(tiny_splits).notice) == (CPU, None)
    monkeypatch.setattr("longtail.data.loading.free_memory", lambda device: 100)
    made = loader(tiny_splits)
    assert made.home == CPU
    assert "stay in the host's memory" in made.notice
