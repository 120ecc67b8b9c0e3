"""Recipes of masks' views: colours change, places do not."""

import colorsys

import pytest
import torch

from longtail.errors import UserError
from longtail.segmentation.data.augment import check_dense_recipe, dense_recipes, recolour, turn_hue


def random_images(count=6, side=12):
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_a_third_of_a_turn_moves_the_channels_and_none_changes_nothing():
    images = random_images(3)
    turned = turn_hue(images, torch.tensor([0.0, 1 / 3, -1 / 3]))
    assert torch.equal(turned[0], images[0])
    assert torch.equal(turned[1], images[1].roll(1, dims=0))
    assert torch.equal(turned[2], images[2].roll(-1, dims=0))


def test_gray_stays_and_the_hue_turns_as_far_as_told():
    gray = torch.arange(0, 250, 2, dtype=torch.uint8).view(1, 1, 5, 25).expand(1, 3, 5, 25)
    assert torch.equal(turn_hue(gray, torch.tensor([0.09])), gray)
    image = torch.tensor([150, 110, 100], dtype=torch.uint8).view(1, 3, 1, 1)  # no channel leaves 0..255
    before, after = (
        colorsys.rgb_to_hsv(*(made.flatten() / 255).tolist())[0]
        for made in (image, turn_hue(image, torch.tensor(0.1)[None]))
    )
    assert abs(after - before - 0.1) < 0.02  # the hexagon of HSV and the circle differ by a degree or so


def test_colour_moves_no_pixel():
    # Two flat halves: whatever the colours become, the edge stays where it was.
    images = torch.full((32, 3, 8, 10), 90, dtype=torch.uint8)
    images[:, :, :, 4:] = torch.tensor([60, 150, 120], dtype=torch.uint8)[:, None, None]
    made = recolour(images, "colour", torch.arange(32), 5, 0, "query")
    assert (made[..., :4] == made[..., :1]).all()
    assert (made[..., 4:] == made[..., 4:5]).all()
    assert (made != images).flatten(1).any(dim=1).sum() > 28


def test_colour_belongs_to_seed_epoch_id_and_view():
    images, ids = random_images(), torch.arange(6)
    made = recolour(images, "colour", ids, 5, 0, "query")
    assert torch.equal(recolour(images[2:4], "colour", ids[2:4], 5, 0, "query"), made[2:4])
    for other in ((5, 0, "key"), (5, 1, "query"), (6, 0, "query")):
        assert (recolour(images, "colour", ids, *other) != made).flatten(1).any(dim=1).all()
    assert torch.equal(recolour(images, "none", ids, 5, 0, "query"), images)


def test_an_unknown_recipe_is_answered_with_near_names():
    assert set(dense_recipes()) == {"none", "colour"}
    check_dense_recipe("colour", "views.query")
    with pytest.raises(
        UserError, match=r"unknown views\.query view recipe for segmentation 'color'; did you mean 'colour'"
    ):
        check_dense_recipe("color", "views.query")
