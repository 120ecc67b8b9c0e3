"""The cache of teacher features against features computed anew, and its draws."""

import pytest
import torch

from longtail.memory import TeacherCache


def encode(ids, rounds):
    """Stands for the teacher: a feature that names its image and view."""
    return torch.stack([ids.float(), rounds.float()], dim=1)


@pytest.fixture
def cache():
    cache = TeacherCache(images=7, views=4, dim=2, seed=3)
    cache.fill(encode, batch_size=3)
    return cache


def test_fill_asks_for_every_view_of_every_image(cache):
    for image in range(7):
        for view in range(4):
            assert cache.features[image, view].tolist() == [image, view]
    assert cache.view(torch.tensor([2, 2]), torch.tensor([1, 6])).tolist() == [[2, 1], [2, 2]]  # 6 starts over
    assert not cache.state_dict()


def test_draws_depend_on_epoch_and_id_alone_and_reach_every_view(cache):
    ids = torch.arange(7)
    seen = []
    for epoch in range(60):
        cache.set_epoch(epoch)
        drawn = cache.draw(ids)
        assert torch.equal(drawn[:, 0], ids.float())
        assert torch.equal(cache.draw(ids.flip(0)), drawn.flip(0))
        seen.append(drawn[:, 1])
    counts = torch.stack(seen).flatten().long().bincount(minlength=4)
    assert counts.sum() == 420
    assert counts.min() > 70  # 105 expected each, standard deviation 9
    cache.set_epoch(5)
    assert torch.equal(cache.draw(ids)[:, 1], seen[5])
    # Views of one image in two epochs, and of two images in one, are as good as independent.
    same = torch.stack(seen)
    assert 0.1 < (same[1:] == same[:-1]).float().mean() < 0.4
    assert 0.1 < (same[:, 1:] == same[:, :-1]).float().mean() < 0.4


def test_a_cache_without_views_is_refused():
    with pytest.raises(ValueError, match="views"):
        TeacherCache(images=1, views=0, dim=1, seed=0)
