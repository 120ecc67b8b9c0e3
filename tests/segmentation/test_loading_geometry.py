"""Crops: image and mask stay pixel on pixel under resize, crop, padding and mirror; rare classes are reached."""

import numpy as np
import pytest
import torch
from PIL import Image

from longtail.segmentation.data.geometry import Crop, Geometry, class_rarity, cut, draw_crops
from longtail.segmentation.data.mask_set import IGNORE

FILL = (10, 20, 30)


def ramp(height=40, width=60):
    """An image whose red is 4 * column and green 4 * row, and a mask that numbers the pixels row by row."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([4 * columns, 4 * rows, torch.full_like(rows, 7)]).to(torch.uint8)
    return image, (rows * width + columns).to(torch.int16)


def draws(geometry, count=2000, pixels=None, epoch=0, seed=3):
    pixels = torch.tensor([[1000, 10]]) if pixels is None else pixels
    rarity = class_rarity(pixels.sum(0))
    ids = torch.arange(count)
    return draw_crops(geometry, ids, pixels.expand(count, -1), rarity, seed, epoch)


def places(truth, width=60):
    """Row and column in the source of every pixel shown, NaN outside."""
    inside = truth != IGNORE
    row, column = (truth // width).double(), (truth % width).double()
    return row.where(inside, torch.nan), column.where(inside, torch.nan)


def test_a_crop_without_resize_is_the_slice_of_image_and_mask():
    image, labels = ramp()
    pixels, truth = cut(image, labels, Crop((40, 60), 5, 11, False), (16, 20), FILL)
    assert np.array_equal(pixels, image[:, 5:21, 11:31].permute(1, 2, 0))
    assert torch.equal(truth, labels[5:21, 11:31])


@pytest.mark.parametrize(
    "crop",
    [
        Crop((80, 120), 13, 31, False),
        Crop((57, 85), 20, 3, True),
        Crop((23, 34), 2, 5, False),
        Crop((15, 23), -1, 2, True),
    ],
)
def test_image_and_mask_stay_on_each_other(crop):
    image, labels = ramp()
    pixels, truth = cut(image, labels, crop, (16, 20), FILL)
    row, column = places(truth)
    ratio = 40 / crop.resized[0]
    for found, where in ((pixels[..., 1], row), (pixels[..., 0], column)):
        off = torch.from_numpy(found.astype(float) / 4) - where
        # Away from the border of the source, where the filter has one side alone.
        inside = (row > 2) & (row < 37) & (column > 2) & (column < 57)
        off = off[inside]
        assert len(off) > 40
        assert off.abs().max() <= max(0.5, ratio / 2) + 0.25  # nearest pixel, and one level of rounding
        # Nearest pixels lie on both sides alike: half a pixel of misalignment, of source or crop, would show.
        assert abs(off.mean()) < 0.15 * max(1, ratio)


def test_a_crop_is_that_part_of_the_whole_image_resized():
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = ramp()[1]
    for resized in ((61, 92), (23, 34), (20, 31)):
        whole = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(resized[::-1], Image.Resampling.BILINEAR)
        nearest = Image.fromarray(labels.numpy().astype(np.int32)).resize(resized[::-1], Image.Resampling.NEAREST)
        pixels, truth = cut(image, labels, Crop(resized, 4, 9, False), (16, 20), FILL)
        assert np.array_equal(np.asarray(nearest)[4:20, 9:29], truth)
        assert np.abs(np.asarray(whole)[4:20, 9:29].astype(int) - pixels).max() <= 1


def test_what_lies_outside_is_filled_and_ignored():
    image, labels = ramp(6, 9)
    pixels, truth = cut(image, labels, Crop((6, 9), -3, -2, False), (12, 16), FILL)
    outside = torch.ones(12, 16, dtype=torch.bool)
    outside[3:9, 2:11] = False
    assert torch.equal(truth == IGNORE, outside)
    assert (pixels[outside.numpy()] == FILL).all()
    assert torch.equal(truth[3:9, 2:11], labels)
    assert np.array_equal(pixels[3:9, 2:11], image.permute(1, 2, 0))


def test_a_mirrored_crop_is_the_mirror_of_the_crop():
    image, labels = ramp()
    straight = cut(image, labels, Crop((50, 75), 3, 60, False), (16, 24), FILL)
    mirrored = cut(image, labels, Crop((50, 75), 3, 60, True), (16, 24), FILL)
    assert np.array_equal(mirrored[0], straight[0][:, ::-1])
    assert torch.equal(mirrored[1], straight[1].flip(1))
    assert (straight[1] == IGNORE).any()


def test_half_are_mirrored_and_scales_and_places_fill_their_range():
    geometry = Geometry((16, 16), (0.5, 2.0), flip=True)
    made = draws(geometry)
    assert 0.45 < np.mean([draw.mirrored for draw in made]) < 0.55
    scales = np.array([draw.scale for draw in made])
    assert scales.min() < 0.52
    assert scales.max() > 1.98
    assert abs(scales.mean() - 1.25) < 0.05
    assert not any(draw.mirrored for draw in draws(Geometry((16, 16))))
    labels = torch.zeros(20, 24, dtype=torch.int16)
    crops = [draw.lay(Geometry((16, 16)), labels) for draw in draws(Geometry((16, 16)))]
    assert {crop.top for crop in crops} == set(range(5))
    assert {crop.left for crop in crops} == set(range(9))
    small = [draw.lay(Geometry((16, 16)), labels[:14]) for draw in draws(Geometry((16, 16)))]
    assert {crop.top for crop in small} == {-2, -1, 0}


def test_draws_belong_to_seed_epoch_and_id():
    geometry = Geometry((16, 16), (0.5, 2.0), True, 0.5)
    pixels = torch.tensor([[1000, 10]]).expand(8, 2)
    rarity = torch.tensor([0.1, 1.0])
    whole = draw_crops(geometry, torch.arange(8), pixels, rarity, 3, 1)
    assert draw_crops(geometry, torch.tensor([5, 2]), pixels[:2], rarity, 3, 1) == [whole[5], whole[2]]
    for seed, epoch in ((3, 2), (4, 1)):
        other = draw_crops(geometry, torch.arange(8), pixels, rarity, seed, epoch)
        assert all(one.scale != two.scale and one.place != two.place for one, two in zip(whole, other, strict=True))
        assert all(one.pixel != two.pixel for one, two in zip(whole, other, strict=True))


def test_classes_are_drawn_by_the_root_of_their_pixels_among_those_of_the_image():
    rarity = class_rarity(torch.tensor([9000, 1000, 10, 0]))
    assert torch.allclose(rarity, torch.tensor([9000**-0.5, 1000**-0.5, 10**-0.5, 0.0], dtype=torch.float64))
    pixels = torch.tensor([[500, 30, 0, 0]]).expand(4000, 4)
    made = draw_crops(Geometry((16, 16), rare_crops=0.5), torch.arange(4000), pixels, rarity, 0, 0)
    near = [draw.classes for draw in made if draw.classes]
    assert 0.46 < len(near) / len(made) < 0.54
    assert all(set(classes) == {0, 1} for classes in near)  # neither what the image nor what nobody has
    assert abs(np.mean([classes[0] == 1 for classes in near]) - 3 / 4) < 0.03  # root of 9000 : 1000


def test_rare_crops_show_the_rare_pixels_each_as_often():
    labels = torch.zeros(64, 64, dtype=torch.int16)
    labels[0, 0] = labels[40, 50] = 1
    counts = torch.tensor([[64 * 64 - 2, 2]])

    def shown(rare_crops):
        geometry = Geometry((16, 16), rare_crops=rare_crops)
        crops = [draw.lay(geometry, labels) for draw in draws(geometry, 800, counts)]
        assert all(0 <= crop.top <= 48 and 0 <= crop.left <= 48 for crop in crops)
        return [labels[crop.top :, crop.left :][:16, :16].flatten().bincount(minlength=2)[1].item() for crop in crops]

    # Class 1 is drawn in 1 - 1 / (1 + root of 4094 / 2) = 97.8 % of the rare crops.
    assert np.mean(shown(1.0)) > 0.95
    assert np.mean(shown(0.0)) < 0.2
    geometry = Geometry((16, 16), rare_crops=1.0)
    corner = [draw.lay(geometry, labels)[1:3] == (0, 0) for draw in draws(geometry, 800, counts)]
    assert 0.4 < np.mean(corner) < 0.6
    around = {draw.lay(geometry, labels)[1] for draw in draws(geometry, 800, counts)}
    assert set(range(25, 41)) <= around  # the pixel anywhere in the crop, not always at its centre


def test_rare_crops_are_found_after_a_resize_and_when_the_class_is_lost():
    labels = torch.zeros(40, 40, dtype=torch.int16)
    labels[30:34, 6:10] = 1
    geometry = Geometry((16, 16), (0.5, 2.0), True, 1.0)
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    rare_first = [draw for draw in draws(geometry, 200, torch.tensor([[1584, 16]])) if draw.classes[0] == 1]
    assert len(rare_first) > 150
    for draw in rare_first:
        _, truth = cut(image, labels, draw.lay(geometry, labels), (16, 16), FILL)
        assert (truth == 1).any()
    lost = torch.zeros(40, 40, dtype=torch.int16)
    for draw in rare_first[:5]:  # the counts promise a class that the mask does not hold: the next one serves
        cut(image, lost, draw.lay(geometry, lost), (16, 16), FILL)
    nothing = torch.full((40, 40), IGNORE, dtype=torch.int16)
    _, truth = cut(image, nothing, rare_first[0].lay(geometry, nothing), (16, 16), FILL)
    assert (truth == IGNORE).all()


def test_an_image_without_a_class_is_cropped_anywhere():
    made = draws(Geometry((16, 16), rare_crops=1.0), 4, torch.zeros(1, 2, dtype=torch.int64))
    assert [draw.classes for draw in made] == [()] * 4


@pytest.mark.parametrize("bad", [{"crop": (0, 4)}, {"scale": (0.0, 1.0)}, {"scale": (2.0, 1.0)}, {"rare_crops": 1.5}])
def test_impossible_geometry_is_refused(bad):
    with pytest.raises(ValueError):
        Geometry(**{"crop": (8, 8), **bad})
