"""A view is a function of (seed, stream, epoch, id): the same to the bit in any batch."""

import pytest
import torch
from torch import Tensor

from longtail.data.views import build_view, view_recipes
from longtail.errors import UserError

RECIPES = list(view_recipes())


def images(count: int = 40, channels: int = 3, side: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return (smooth * 255).to(torch.uint8)


def stats(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return (0.5, 0.4, 0.3)[:channels], (0.25, 0.2, 0.3)[:channels]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 32), (1, 8)])
def test_sample_alone_equals_itself_in_any_batch(recipe: str, channels: int, side: int) -> None:
    view = build_view(recipe, *stats(channels))
    batch, ids = images(40, channels, side), torch.arange(100, 140)
    together = view(batch, ids, seed=3, epoch=7, stream="query")
    assert together.shape == batch.shape
    assert together.dtype == torch.float32
    for index in range(len(batch)):
        alone = view(batch[index : index + 1], ids[index : index + 1], seed=3, epoch=7, stream="query")
        assert torch.equal(alone[0], together[index])
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(view(batch[order], ids[order], seed=3, epoch=7, stream="query"), together[order])


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "none"])
def test_seed_epoch_stream_and_id_each_change_the_draws(recipe: str) -> None:
    view = build_view(recipe, *stats(3))
    one, ids = images(1).expand(64, -1, -1, -1), torch.arange(64)
    base = view(one, ids, seed=0, epoch=0, stream="query")
    others = {
        "seed": view(one, ids, seed=1, epoch=0, stream="query"),
        "epoch": view(one, ids, seed=0, epoch=1, stream="query"),
        "stream": view(one, ids, seed=0, epoch=0, stream="key"),
        "id": view(one, ids + 64, seed=0, epoch=0, stream="query"),
    }
    for changed, other in others.items():
        same = (base == other).flatten(1).all(dim=1).float().mean()
        assert same < 0.15, f"{changed}: {same:.0%} of the samples stayed the same"
    assert torch.equal(base, view(one, ids, seed=0, epoch=0, stream="query"))


def test_global_random_state_is_neither_read_nor_moved() -> None:
    view = build_view("cifar", *stats(3))
    batch, ids = images(), torch.arange(40)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = view(batch, ids, seed=0, epoch=0, stream="key")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(view(batch, ids, seed=0, epoch=0, stream="key"), first)


def test_none_only_normalises_and_inputs_stay() -> None:
    mean, std = stats(3)
    batch = images()
    before = batch.clone()
    result = build_view("none", mean, std)(batch, torch.arange(40), seed=0, epoch=0, stream="test")
    expected = (batch.float() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(result, expected)
    for recipe in RECIPES:
        build_view(recipe, mean, std)(batch, torch.arange(40), seed=0, epoch=0, stream="test")
        assert torch.equal(batch, before)


def is_shift_of(sample: Tensor, image: Tensor, pad: int) -> bool:
    padded = torch.nn.functional.pad(image, (pad, pad, pad, pad))
    windows = padded.unfold(1, sample.shape[1], 1).unfold(2, sample.shape[2], 1)
    return bool((windows == sample[:, None, None]).all(dim=-1).all(dim=-1).all(dim=0).any())


@pytest.mark.parametrize(("recipe", "mirrors"), [("shift", False), ("light", True)])
def test_light_mirrors_and_shift_never_does(recipe: str, mirrors: bool) -> None:
    batch = images(40)
    view = build_view(recipe, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    result = (view(batch, torch.arange(40), seed=0, epoch=0, stream="query") * 255).round().to(torch.uint8)
    straight = [is_shift_of(sample, image, 4) for sample, image in zip(result, batch, strict=True)]
    mirrored = [is_shift_of(sample.flip(2), image, 4) for sample, image in zip(result, batch, strict=True)]
    assert all(a or b for a, b in zip(straight, mirrored, strict=True))
    assert any(mirrored) == mirrors
    assert any(straight)


def test_cutout_comes_before_normalisation_and_last_in_cifar() -> None:
    mean, std = stats(3)
    white = torch.full((200, 3, 32, 32), 255, dtype=torch.uint8)
    result = build_view("cifar", mean, std)(white, torch.arange(200), seed=0, epoch=0, stream="query")
    black = (-torch.tensor(mean) / torch.tensor(std))[:, None, None]
    holes = torch.isclose(result, black).all(dim=1).sum(dim=(1, 2))
    # Every view has a hole of at least 8 x 8 (a corner) that AutoAugment's fills and inversions left black.
    assert holes.min() >= 64


def test_unknown_recipe_names_the_near_one() -> None:
    with pytest.raises(UserError, match=r"unknown view recipe 'cifr'.*'cifar'"):
        build_view("cifr", *stats(3))


def test_recipes_are_described_in_one_line() -> None:
    assert {"none", "light", "shift", "cifar", "tiny"} <= set(RECIPES)
    assert all(text and "\n" not in text for text in view_recipes().values())


def test_wrong_inputs_are_refused() -> None:
    view = build_view("light", *stats(3))
    with pytest.raises(ValueError, match="uint8"):
        view(images().float(), torch.arange(40), seed=0, epoch=0, stream="query")
    with pytest.raises(ValueError, match="3 channels, the images have 1"):
        view(images(channels=1), torch.arange(40), seed=0, epoch=0, stream="query")
    with pytest.raises(ValueError, match="one id an image"):
        view(images(), torch.arange(39), seed=0, epoch=0, stream="query")
    with pytest.raises(ValueError, match="std positive"):
        build_view("light", (0.5,), (0.0,))


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_empty_batch_stays_empty(recipe: str) -> None:
    empty = torch.zeros(0, 3, 32, 32, dtype=torch.uint8)
    result = build_view(recipe, *stats(3))(empty, torch.zeros(0, dtype=torch.int64), seed=0, epoch=0, stream="query")
    assert result.shape == (0, 3, 32, 32)
