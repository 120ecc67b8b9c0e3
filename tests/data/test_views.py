"""A view is a function of (seed, stream, epoch, id): the same to the bit in any batch."""

import hashlib
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from longtail.data import views
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


def test_recipes_are_in_the_guide() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "your-images.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", guide, flags=re.MULTILINE)
    assert sorted(listed) == sorted(RECIPES)


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


@pytest.mark.parametrize("recipe", RECIPES)
def test_views_made_together_equal_each_alone_however_the_batch_is_cut(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, batch, ids = build_view(recipe, *stats(3)), images(20), torch.arange(7, 27)
    alone = torch.stack([view(batch, ids, 1, 2, stream) for stream in ("query", "key", "third")])
    assert torch.equal(view(batch, ids, 1, 2, ("query", "key", "third")), alone)
    monkeypatch.setattr(views, "_CACHED_BYTES", 20 * 3 * 32 * 32)  # 6 images at a time, the last time 2
    assert views.images_at_a_time((3, 32, 32), batch.device) // 3 == 6
    assert torch.equal(view(batch, ids, 1, 2, ("query", "key", "third")), alone)
    assert view(batch, ids, 1, 2, "query").is_contiguous(memory_format=torch.channels_last)


def pinned_images() -> Tensor:
    """Noise, ramps, dim noise, flat pictures and two levels, from whole-number arithmetic alone."""
    index = torch.arange(150)[:, None, None, None]
    channel, row, column = torch.arange(3)[:, None, None], torch.arange(32)[:, None], torch.arange(32)
    place = ((index * 3 + channel) * 32 + row) * 32 + column
    noise = (place * 2654435761 % 2**32) >> 24
    ramp = (column * (3 + index % 5) + row * (2 + index % 3) + channel * 40) % 256
    kinds = [noise, ramp, 90 + noise % 50, (index * 7 % 256).expand_as(noise), noise % 2 * 200 + 3]
    return torch.stack(kinds)[index.flatten() % 5, index.flatten()].to(torch.uint8)


@pytest.mark.parametrize(
    ("recipe", "digest"),
    [
        ("light", "f3f590ac49ef47ef"),
        ("shift", "abdb7f8122124fa7"),
        ("cifar", "bc191051ec67818a"),
        ("cifar_trivial", "17294407ea541e68"),
    ],
)
def test_the_bits_of_a_view_are_those_of_every_version(recipe: str, digest: str) -> None:
    """A run that is repeated later sees the same pixels. The digests of all but TrivialAugment's are of version 0.1."""
    batch = pinned_images()
    assert hashlib.sha256(batch.numpy().tobytes()).hexdigest()[:16] == "d06af8ee3ea28dd6"
    view = build_view(recipe, *stats(3))
    pixels = view.augment(batch, torch.arange(150) * 3 + 5, seed=7, epoch=3, stream="query")
    assert hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()[:16] == digest


def test_normalised_values_are_exactly_the_three_float32_operations() -> None:
    """Every level of every channel: divided by 255, less the mean, over the deviation."""
    mean, std = stats(3)
    batch = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    result = build_view("none", mean, std)(batch, torch.zeros(1, dtype=torch.int64), 0, 0, "test")
    one = torch.arange(256, dtype=torch.float32).div(255)
    for channel in range(3):
        expected = one.sub(torch.tensor(mean[channel])).div(torch.tensor(std[channel]))
        assert torch.equal(result[0, channel].flatten(), expected)


class HostReads(TorchDispatchMode):
    """Counts what would make the host wait for an accelerator, or send it something, in a view."""

    # What reads a value, sizes its result by values, or (bincount) looks at its input's largest.
    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "equal", "is_")
    SENDING = ("lift_fresh",)  # a tensor made of Python's numbers

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name.startswith(self.WAITING) or name in self.SENDING:
            self.seen.append(name)
        elif name.startswith("index") and any(isinstance(a, Tensor) and a.dtype == torch.bool for a in _flat(args[1:])):
            self.seen.append(name + " by a mask")
        return func(*args, **(kwargs or {}))


def _flat(values) -> list[object]:
    return [v for value in values for v in (_flat(value) if isinstance(value, list | tuple) else [value])]


# How often each recipe reads the lengths of what it sorted: once a plan.
READS = {"cifar": 1, "cifar_trivial": 1, "cifar_rand": 1, "photo": 1, "photo_trivial": 1}
READS |= {"imagenet": 2, "imagenet_contrast": 4}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_host_waits_once_for_each_plan_and_for_nothing_else(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    view, batch, ids = build_view(recipe, *stats(3)), images(200), torch.arange(200)
    view(batch, ids, 0, 0, ("query", "key"))  # tables are made once, and kept
    lists, tolist = [], Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda self: lists.append(self.shape) or tolist(self))
    with HostReads() as reads:
        view(batch, ids, 0, 1, ("query", "key"))
    assert reads.seen == []
    assert len(lists) == READS.get(recipe, 0)
    assert all(math.prod(shape) < 64 for shape in lists)


def test_what_makes_the_host_wait_is_seen() -> None:
    values = torch.arange(4)
    with HostReads() as reads:
        values.sum().item()
        values[values > 1]
        torch.bincount(values)
        torch.tensor([1, 2])
    assert reads.seen == ["_local_scalar_dense", "index by a mask", "bincount", "lift_fresh"]
