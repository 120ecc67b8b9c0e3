"""Which pixels are drawn: on masks with known counts, against what was promised of every pair."""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from pixel_scenes import files_of, scenes

from longtail.segmentation.data.mask_set import IGNORE
from longtail.segmentation.sampling import capped_counts, drawn_counts, labels_at, pixels_at, sample_pixels

KEYS = torch.tensor([11, 12, 13])


def known_masks():
    """Three maps of 8 x 8: 40, 20 and 1 pixels of classes 0 to 2, then 60 of class 1, then nothing."""
    labels = torch.full((3, 64), IGNORE)
    labels[0, :40], labels[0, 40:60], labels[0, 63] = 0, 1, 2
    labels[1, 4:] = 1
    return labels.view(3, 8, 8)


def pair_counts(labels, images):
    pairs, counts = torch.unique(torch.stack([images, labels]), dim=1, return_counts=True)
    return {tuple(pair): count for pair, count in zip(pairs.T.tolist(), counts.tolist(), strict=True)}


def test_each_pair_gives_what_it_has_up_to_its_share():
    masks = known_masks()
    flat, labels, images = sample_pixels(masks, KEYS, budget=1000, per_class=25, seed=0)
    assert pair_counts(labels, images) == {(0, 0): 25, (0, 1): 20, (0, 2): 1, (1, 1): 25}
    assert len(flat.unique()) == len(flat)
    assert torch.equal(masks.flatten()[flat], labels)
    assert torch.equal(flat // 64, images)


@pytest.mark.parametrize(
    ("budget", "wanted"),
    [
        (34, {(0, 0): 11, (0, 1): 11, (0, 2): 1, (1, 1): 11}),
        (4, {(0, 0): 1, (0, 1): 1, (0, 2): 1, (1, 1): 1}),
    ],
)
def test_a_budget_is_shared_in_turns(budget, wanted):
    _, labels, images = sample_pixels(known_masks(), KEYS, budget, per_class=25, seed=0)
    assert pair_counts(labels, images) == wanted


def test_who_is_left_out_in_the_last_turn_is_random_whatever_a_pair_has():
    times = torch.zeros(4)
    for seed in range(200):
        _, labels, images = sample_pixels(known_masks(), KEYS, 1, per_class=25, seed=seed)
        times[int(labels[0]) if images[0] == 0 else 3] += 1
    assert times.sum() == 200
    assert ((times - 50).abs() < 25).all()  # four standard deviations


def test_pixels_of_a_pair_are_drawn_evenly():
    times = torch.zeros(64)
    for seed in range(300):
        flat, labels, images = sample_pixels(known_masks(), KEYS, 1000, per_class=10, seed=seed)
        times[flat[(labels == 0) & (images == 0)]] += 1
    assert not times[40:].any()
    assert ((times[:40] - 75).abs() < 34).all()  # 300 draws of 10 out of 40: 4.5 standard deviations


def test_a_draw_depends_on_key_and_seed_alone():
    masks = known_masks()

    def places(of, keys, seed=0):
        flat, labels, images = sample_pixels(of, keys, 1000, 5, seed)
        return {(int(keys[i]), int(c), int(f) % 64) for f, c, i in zip(flat, labels, images, strict=True)}

    whole = places(masks, KEYS)
    assert whole == places(masks, KEYS)
    order = torch.tensor([2, 1, 0])
    assert whole == places(masks[order], KEYS[order])
    assert places(masks[1:2], KEYS[1:2]) == {place for place in whole if place[0] == 12}
    assert whole != places(masks, KEYS, seed=1)
    # Another epoch's key of the same image: other pixels.
    first, second = (places(masks[1:2], torch.tensor([key])) for key in (12, 99))
    assert {place[2] for place in first} != {place[2] for place in second}


def test_nothing_to_draw_is_nothing_drawn():
    for labels in (torch.full((2, 3, 3), IGNORE), torch.zeros(0, 3, 3, dtype=torch.int64)):
        drawn = sample_pixels(labels, torch.arange(len(labels)), 10, 5, 0)
        assert all(part.shape == (0,) and part.dtype == torch.int64 for part in drawn)


def test_a_cell_has_the_label_at_its_centre():
    labels = torch.arange(2 * 12 * 8).view(2, 12, 8)
    for stride in (1, 2, 4):
        size = (12 // stride, 8 // stride)
        wanted = F.interpolate(labels[:, None].double(), size=size, mode="nearest-exact")[:, 0].long()
        assert torch.equal(labels_at(labels, stride), wanted)


def test_cells_at_the_edge_of_the_image():
    labels = torch.arange(10 * 5).view(1, 10, 5)
    # Rows 0-3, 4-7 and 8-9, columns 0-3 and 4.
    assert labels_at(labels, 4).tolist() == [[[12, 14], [32, 34], [47, 49]]]


def test_a_thin_pole_keeps_its_share_of_cells():
    cells = 0
    for place in range(32):
        mask = torch.zeros(1, 32, 32, dtype=torch.int64)
        mask[:, :, place] = 1
        cells += int(labels_at(mask, 4).sum())
    assert cells == 8 * 8  # a 32nd of 64 cells at each of 32 places


def test_features_are_those_at_the_places_and_gradients_go_back_there():
    maps = torch.randn(2, 3, 4, 5, requires_grad=True)
    flat = torch.tensor([0, 7, 39, 20])
    features = pixels_at(maps, flat)
    assert torch.equal(features, maps.movedim(1, -1).reshape(-1, 3)[flat])
    features.sum().backward()
    touched = maps.grad.movedim(1, -1).reshape(-1, 3).all(1)
    assert touched.nonzero().squeeze(1).tolist() == sorted(flat.tolist())


def test_drawn_counts_are_what_is_drawn():
    masks = scenes().repeat_interleave(4, 1).repeat_interleave(4, 2)  # a cell of stride 4 is of one class
    small = labels_at(masks, 4)
    _, labels, _ = sample_pixels(small, torch.arange(len(small)), small.numel(), 20, seed=0)
    wanted = torch.bincount(labels, minlength=4).float()
    files = files_of(masks)
    assert torch.equal(drawn_counts(files.read_pixels, 20, 4, 1e9), wanted)
    # Brought to half the size, a cell covers four times as much of the image.
    halved = drawn_counts(files_of(masks, size=(32, 32)).read_pixels, 1000, 4, 1e9)
    assert torch.equal(halved, files.pixels.sum(0) / 64)


def test_drawn_counts_know_the_budget():
    """Seven classes of 100 cells and one of 4: with six cells for each, the small one is drawn nearly as often."""
    labels = torch.arange(8)[:, None].repeat(1, 100)[None].clone()
    labels[0, 7, 4:] = -1
    pixels = torch.bincount(labels[labels >= 0], minlength=8)[None]
    _, drawn, _ = sample_pixels(labels, torch.tensor([5]), 46, 50, seed=0)
    found = torch.bincount(drawn, minlength=8).float()
    assert found.tolist() == [6.0] * 7 + [4.0]
    assert torch.allclose(drawn_counts(pixels, 50, 1, 46), found, atol=1e-3)
    assert drawn_counts(pixels, 50, 1, 1e9).tolist() == [50.0] * 7 + [4.0]


def slowly_capped(counts, share):
    """The highest level at which no class has more than the share, by trying all."""
    share = max(share, Fraction(1, sum(count > 0 for count in counts)))
    for level in range(max(counts), 0, -1):
        cut = [min(count, level) for count in counts]
        if max(cut) <= share * sum(cut):
            return cut
    raise AssertionError


@pytest.mark.parametrize("share", [Fraction(1, 10), Fraction(3, 10), Fraction(1, 2), Fraction(9, 10), Fraction(2)])
def test_no_class_has_more_than_its_share(share):
    generator = torch.Generator().manual_seed(5)
    for _ in range(20):
        counts = (300 * torch.rand(7, generator=generator) ** 4).long()
        counts[1], counts[3] = 0, 250
        assert capped_counts(counts, float(share)).tolist() == slowly_capped(counts.tolist(), share)


def test_caps_of_pixel_counts_as_large_as_they_come():
    counts = torch.tensor([10**14, 10**13, 5, 0])
    assert capped_counts(counts, 0.5).tolist() == [10**13 + 5, 10**13, 5, 0]
    assert capped_counts(counts, 0.1).tolist() == [5, 5, 5, 0]  # three classes cannot have less than a third each
    assert capped_counts(torch.tensor([7]), 0.1).tolist() == [7]
