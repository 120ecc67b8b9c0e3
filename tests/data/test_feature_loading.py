"""Batches of features: each a function of seed, epoch and step, standardised, its view drawn from those stored."""

import pytest
import torch

from longtail.data import FeatureSet
from longtail.data.feature_loading import FeatureLoader

MEAN, STD = (1.0, -2.0), (2.0, 4.0)


def loader(views=1, names=("classifier", "query"), seed=3, dtype=torch.float32, plain=None):
    features = torch.arange(40 * views * 2, dtype=dtype).view(40, views, 2)
    labels = torch.arange(40) % 4
    data = FeatureSet(features, labels, ("a", "b", "c", "d"))
    return data, FeatureLoader(data, names, 16, seed, torch.device("cpu"), MEAN, STD, plain)


def test_one_stored_view_is_one_tensor_and_standardised():
    data, one = loader()
    batch = one.load(2, 1)
    assert batch.views["classifier"] is batch.views["query"]
    expected = (data.features[batch.ids, 0] - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(batch.views["query"], expected)
    assert batch.labels.tolist() == data.labels[batch.ids].tolist()
    assert one.steps_per_epoch == 2


def test_an_epoch_draws_every_sample_once_and_any_step_can_be_had_alone():
    _, one = loader()
    ids = torch.cat([one.load(0, step).ids for step in range(2)])
    assert len(set(ids.tolist())) == 32
    _, again = loader()
    assert torch.equal(again.load(5, 1).views["query"], one.load(5, 1).views["query"])
    _, other = loader(seed=4)
    assert not torch.equal(other.load(5, 1).ids, one.load(5, 1).ids)


def test_views_are_drawn_from_all_that_are_stored_each_by_its_own_name():
    data, three = loader(views=3)

    def drawn(batch, name):
        raw = batch.views[name] * torch.tensor(STD) + torch.tensor(MEAN)
        gaps = (data.features[batch.ids] - raw[:, None]).abs().amax(2)
        assert float(gaps.min(1).values.max()) < 1e-3
        return gaps.argmin(1)

    seen = {name: torch.cat([drawn(three.load(e, s), name) for e in range(30) for s in (0, 1)]) for name in three.views}
    for choices in seen.values():
        shares = torch.bincount(choices, minlength=3) / len(choices)
        assert float((shares - 1 / 3).abs().max()) < 0.06
    assert not torch.equal(seen["classifier"], seen["query"])


def test_a_plain_view_is_the_first_and_rounds_go_through_the_stored_ones():
    data, three = loader(views=3, names=("classifier",), plain={"classifier": True, "plain": True})
    batch = three.load(0, 0)
    raw = batch.views["classifier"] * torch.tensor(STD) + torch.tensor(MEAN)
    torch.testing.assert_close(raw, data.features[batch.ids, 0])
    ids = torch.tensor([5, 5, 5, 7])
    fetched = three.fetch("key", ids, torch.tensor([0, 1, 3, 2])) * torch.tensor(STD) + torch.tensor(MEAN)
    torch.testing.assert_close(fetched, data.features[ids, torch.tensor([0, 1, 0, 2])])


def test_half_precision_is_stored_and_float32_is_given():
    data, one = loader(dtype=torch.float16)
    assert data.features.dtype == torch.float16
    assert one.load(0, 0).views["query"].dtype == torch.float32


def test_a_batch_larger_than_the_data_is_refused():
    data, _ = loader()
    with pytest.raises(ValueError, match="batch_size 41"):
        FeatureLoader(data, ("query",), 41, 0, torch.device("cpu"), MEAN, STD)
