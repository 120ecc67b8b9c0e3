"""The views of photographs: crop, jitter, grayscale and blur against Pillow, torchvision, scipy and slow loops."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter
from pillow_tensors import from_pillow, to_pillow
from scipy import ndimage
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from longtail.data.augment_filter import gaussian_blur
from longtail.data.augment_geometry import affine_bilinear, resize_boxes
from longtail.data.batch_augment import (
    Draws,
    random_blur,
    random_boxes,
    random_color_jitter,
    random_flip,
    random_grayscale,
)
from longtail.data.views import build_view, view_recipes

PHOTO_RECIPES = {
    "photo": (0.25, 1.0),
    "photo_trivial": (0.08, 1.0),
    "imagenet": (0.08, 1.0),
    "imagenet_contrast": (0.08, 1.0),
}


def pictures(count: int, channels: int = 3, height: int = 24, width: int = 36) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 4, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear") * 255
    noise = torch.randn(smooth.shape, generator=generator) * 25
    noise[::2] = 0
    return (smooth + noise).clamp(0, 255).to(torch.uint8)


def draws(count: int, stream: str = "query") -> Draws:
    return Draws(seed=0, epoch=0, stream=stream, ids=torch.arange(count))


def stats(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return (0.5, 0.4, 0.3)[:channels], (0.25, 0.2, 0.3)[:channels]


def largest_difference(result: Tensor, expected: Tensor) -> int:
    assert result.shape == expected.shape
    assert result.dtype == torch.uint8
    return int((result.int() - expected.int()).abs().max())


def slow_box(height: int, width: int, uniforms: list[float], area: tuple[float, float]) -> tuple[int, ...]:
    """One image's box, try after try."""
    *tries, x, y = uniforms
    for share, shape in zip(tries[:10], tries[10:], strict=True):
        target = height * width * (area[0] + (area[1] - area[0]) * share)
        aspect = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * shape)
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(x * (width - w + 1)), int(y * (height - h + 1)), w, h
    w, h = width, height
    if width / height < 3 / 4:
        h = round(width / (3 / 4))
    elif width / height > 4 / 3:
        w = round(height * (4 / 3))
    return (width - w) // 2, (height - h) // 2, w, h


@pytest.mark.parametrize("area", sorted(set(PHOTO_RECIPES.values())))
def test_boxes_equal_the_loop_over_tries(area: tuple[float, float]) -> None:
    sizes = [(375, 500), (500, 375), (32, 32), (8, 8), (1, 1), (1, 9), (1000, 90), (60, 700), (3, 2), (4000, 6000)]
    count = 300
    for height, width in sizes:
        keyed = draws(count)
        boxes = random_boxes(torch.full((count,), height), torch.full((count,), width), keyed, area)
        assert boxes.dtype == torch.int64
        uniforms = torch.stack(keyed.uniform("resized_crop", 22), dim=1).double().tolist()
        assert boxes.tolist() == [list(slow_box(height, width, row, area)) for row in uniforms]


@pytest.mark.parametrize(("height", "width"), [(375, 500), (40, 90), (90, 40), (30, 300)])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    count = 3000
    ours = random_boxes(torch.full((count,), height), torch.full((count,), width), draws(count), (0.08, 1.0))
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    rows = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    theirs = torch.tensor(rows)[:, [1, 0, 3, 2]]
    for part in range(4):
        a, b = ours[:, part].double().sort().values, theirs[:, part].double().sort().values
        at = torch.cat([a, b])
        gap = (torch.searchsorted(a, at, right=True) - torch.searchsorted(b, at, right=True)).abs().max() / count
        assert gap < 2.0 * (2 / count) ** 0.5  # two-sample Kolmogorov-Smirnov: 99.9 % point 1.95


def test_a_box_depends_on_its_own_key_and_size_alone() -> None:
    view = build_view("imagenet", *stats(3))
    generator = torch.Generator().manual_seed(0)
    heights, widths = torch.randint(1, 600, (2, 60), generator=generator)
    ids = torch.arange(1000, 1060)
    together = view.boxes(heights, widths, ids, 3, 2, "key")
    for index in range(60):
        one = slice(index, index + 1)
        assert torch.equal(view.boxes(heights[one], widths[one], ids[one], 3, 2, "key")[0], together[index])
    for other in (
        view.boxes(heights, widths, ids, 4, 2, "key"),
        view.boxes(heights, widths, ids, 3, 3, "key"),
        view.boxes(heights, widths, ids, 3, 2, "query"),
        view.boxes(heights, widths, ids + 60, 3, 2, "key"),
    ):
        assert float((other == together).all(dim=1).double().mean()) < 0.2
    assert (together[:, :2] >= 0).all()
    assert (together[:, 2:] >= 1).all()
    assert (together[:, 0] + together[:, 2] <= widths).all()
    assert (together[:, 1] + together[:, 3] <= heights).all()


def test_boxes_are_resized_as_pillow_resizes_what_was_cut_out() -> None:
    images = pictures(60)
    height, width = images.shape[-2:]
    boxes = random_boxes(torch.full((60,), height), torch.full((60,), width), draws(60), (0.02, 1.0))
    boxes[0] = torch.tensor([0, 0, width, height])
    boxes[1] = torch.tensor([width - 1, height - 1, 1, 1])
    result = resize_boxes(images, boxes)
    for image, (left, top, w, h), got in zip(images, boxes.tolist(), result, strict=True):
        cut = to_pillow(image).crop((left, top, left + w, top + h))
        assert largest_difference(got, from_pillow(cut.resize((width, height), Image.Resampling.BILINEAR))) <= 1
    assert torch.equal(result[0], images[0])
    assert (result[1] == images[1, :, -1:, -1:]).all()


def test_extended_edges_are_pillows_and_faded_ones_are_not() -> None:
    white = torch.full((1, 1, 6, 6), 255, dtype=torch.uint8)
    quarter = torch.tensor([[1.0, 0.0, 0.25, 0.0, 1.0, 0.0]], dtype=torch.float64)  # reads a quarter to the right
    assert (affine_bilinear(white, quarter, 0, extend=True) == 255).all()
    assert affine_bilinear(white, quarter, 0)[0, 0, 0].tolist() == [255] * 5 + [191]


def test_flips_mirror_half_of_the_images() -> None:
    images = pictures(1).expand(2000, -1, -1, -1)
    flipped = random_flip(images, draws(2000))
    mirrored = (flipped == images.flip(-1)).flatten(1).all(dim=1)
    assert (mirrored | (flipped == images).flatten(1).all(dim=1)).all()
    assert abs(float(mirrored.double().mean()) - 0.5) < 0.045


@pytest.mark.parametrize("channels", [3, 1])
def test_jitter_is_pillows_in_each_order(channels: int) -> None:
    images = pictures(120, channels)
    strength = 0.4
    result = random_color_jitter(images, draws(120), strength)
    order, *factors = draws(120).uniform("color_jitter", 4)
    enhancers = [ImageEnhance.Color, ImageEnhance.Brightness, ImageEnhance.Contrast]
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    seen = set()
    for index, image in enumerate(images):
        picture = to_pillow(image)
        steps = orders[int(order[index] * 6)]
        seen.add(steps)
        for step in steps:
            picture = enhancers[step](picture).enhance(1 - strength + 2 * strength * float(factors[step][index]))
        assert largest_difference(result[index], from_pillow(picture)) <= 1
    assert len(seen) == 6


def test_jitter_factors_are_uniform_and_independent_of_the_order() -> None:
    count = 6000
    order, *factors = draws(count).uniform("color_jitter", 4)
    assert abs(torch.bincount((order * 6).long(), minlength=6).double() / count * 6 - 1).max() < 0.12
    level = torch.full((count, 3, 2, 2), 100, dtype=torch.uint8)  # flat and gray: only brightness shows
    value = random_color_jitter(level, draws(count), 0.4)[:, 0, 0, 0].double()
    assert value.min() >= 59
    assert value.max() <= 140
    assert abs(float(value.mean()) - 99.5) < 4 * 23 / count**0.5
    assert abs(float(value.std()) - 80 / 12**0.5) < 0.7
    table = torch.corrcoef(torch.stack([order, *factors]))
    assert (table - torch.eye(4)).abs().max() < 0.06


def test_grayscale_is_pillows_luma() -> None:
    images = pictures(400)
    result = random_grayscale(images, draws(400), 0.2)
    changed = (result != images).flatten(1).any(dim=1)
    assert abs(float(changed.double().mean()) - 0.2) < 0.08
    for image, got in zip(images[changed], result[changed], strict=True):
        assert torch.equal(got, from_pillow(to_pillow(image).convert("L")).expand(3, -1, -1))
    gray = pictures(10, channels=1)
    assert torch.equal(random_grayscale(gray, draws(10), 1.0), gray)


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 24, 36), (1, 5, 9), (3, 1, 1), (1, 1, 30)])
def test_blur_is_a_gaussian(channels: int, height: int, width: int) -> None:
    images = pictures(24, channels, height, width)
    images[0] = torch.randint(0, 256, images[0].shape, generator=torch.Generator().manual_seed(1))
    sigma = torch.linspace(0.1, 2.0, 24)[torch.randperm(24, generator=torch.Generator().manual_seed(2))]
    result = gaussian_blur(images, sigma, largest=2.0)
    for image, width_of_kernel, got in zip(images, sigma.tolist(), result, strict=True):
        expected = ndimage.gaussian_filter(
            image.numpy().astype(np.float64), (0, width_of_kernel, width_of_kernel), mode="nearest", truncate=6
        )
        assert abs(got.numpy() - expected).max() < 0.75


def test_blur_leaves_flat_images_and_resembles_pillows() -> None:
    flat = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(256, 1, 9, 9)
    assert torch.equal(gaussian_blur(flat, torch.linspace(0.1, 2.0, 256), largest=2.0), flat)
    images = pictures(20)
    sigma = torch.linspace(0.5, 2.0, 20)
    result = gaussian_blur(images, sigma, largest=2.0)
    for image, radius, got in zip(images, sigma.tolist(), result, strict=True):
        boxes = from_pillow(to_pillow(image).filter(ImageFilter.GaussianBlur(radius)))
        assert float((got.int() - boxes.int()).abs().double().mean()) < 1.5  # three boxes stand in for a Gaussian


def test_blur_happens_to_its_share_with_its_widths() -> None:
    count = 1500
    point = torch.zeros(1, 1, 21, 21, dtype=torch.uint8)
    point[..., 10, 10] = 255
    result = random_blur(point.expand(count, -1, -1, -1), draws(count), 0.5)
    happens, sigma = draws(count).uniform("blur", 2)
    widths = 0.1 + 1.9 * sigma
    kernel = torch.exp(-0.5 * (torch.arange(-10, 11) / widths.double()[:, None]) ** 2)
    peak = 255 * (kernel[:, 10] / kernel.sum(dim=1)) ** 2
    expected = torch.where(happens < 0.5, peak, 255.0)
    assert (result[:, 0, 10, 10] - expected).abs().max() < 0.75
    assert abs(float((happens < 0.5).double().mean()) - 0.5) < 0.05
    assert peak.min() < 11  # the widest is 2 pixels: 255 / (2 pi 4) = 10.1


@pytest.mark.parametrize("recipe", list(view_recipes()))
def test_crop_is_told_by_the_view(recipe: str) -> None:
    view = build_view(recipe, *stats(3))
    assert view.crop == PHOTO_RECIPES.get(recipe)
    one = torch.ones(1, dtype=torch.int64)
    if view.crop is None:
        with pytest.raises(ValueError, match="no random resized crop"):
            view.boxes(one, one, one, 0, 0, "query")
    else:
        assert view.boxes(one, one, one, 0, 0, "query").tolist() == [[0, 0, 1, 1]]
        with pytest.raises(ValueError, match=r"\[2\] ids"):
            view.boxes(one, one, torch.zeros(2, dtype=torch.int64), 0, 0, "query")


@pytest.mark.parametrize("recipe", list(view_recipes()))
@pytest.mark.parametrize("channels", [1, 3])
def test_view_is_its_parts_one_after_the_other(recipe: str, channels: int) -> None:
    view = build_view(recipe, *stats(channels))
    images, ids = pictures(12, channels), torch.arange(50, 62)
    framed = images
    if view.crop:
        heights, widths = torch.full((12,), 24), torch.full((12,), 36)
        framed = resize_boxes(images, view.boxes(heights, widths, ids, 1, 2, "key"))
        assert not torch.equal(framed, images)
    before = framed.clone()
    augmented = view.augment(framed, ids, 1, 2, "key")
    assert augmented.dtype == torch.uint8
    assert augmented.shape == images.shape
    assert torch.equal(framed, before)
    assert torch.equal(view(images, ids, 1, 2, "key"), view.normalise(augmented))


@pytest.mark.parametrize("recipe", sorted(PHOTO_RECIPES))
def test_sample_of_a_photograph_alone_equals_itself_in_any_batch(recipe: str) -> None:
    view = build_view(recipe, *stats(3))
    images, ids = pictures(90, height=45, width=33), torch.arange(90) * 7
    together = view(images, ids, seed=5, epoch=1, stream="query")
    for index in range(90):
        one = slice(index, index + 1)
        assert torch.equal(view(images[one], ids[one], seed=5, epoch=1, stream="query")[0], together[index])
    odd = torch.arange(1, 90, 2)
    assert torch.equal(view(images[odd], ids[odd], seed=5, epoch=1, stream="query"), together[odd])


@pytest.mark.parametrize("recipe", list(view_recipes()))
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (8, 8), (1, 17), (17, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_go_through_every_recipe(recipe: str, height: int, width: int, channels: int) -> None:
    images = pictures(64, channels, height, width)
    result = build_view(recipe, *stats(channels))(images, torch.arange(64), seed=0, epoch=0, stream="key")
    assert result.shape == images.shape
    assert result.isfinite().all()


@pytest.mark.parametrize("recipe", ["light", "shift", "cifar", "cifar_trivial", "cifar_rand"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 17), (17, 1), (3, 200), (2, 2)])
def test_small_images_are_never_lost_as_a_whole(recipe: str, height: int, width: int) -> None:
    """A crop or a hole that can cover all of an image would train on nothing."""
    white = torch.full((300, 3, height, width), 255, dtype=torch.uint8)
    result = build_view(recipe, *stats(3)).augment(white, torch.arange(300), 0, 0, "query")
    kept = (result > 0).flatten(1).any(dim=1).double().mean()
    # An inverted white image is black, and TrivialAugment moves by up to 32 pixels.
    assert kept == 1 if recipe in ("light", "shift") else kept > 0.5


def test_recipes_have_their_parts() -> None:
    """Of a coloured picture: the contrast recipe makes some gray, the classifier's hardly any; `photo` stays mild."""
    image = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    image[:, 0], image[:, 1], image[:, 2] = 200, 100, 40
    count = 600
    ids = torch.arange(count)
    gray = {}
    for recipe in PHOTO_RECIPES:
        result = build_view(recipe, *stats(3)).augment(image.expand(count, -1, -1, -1), ids, 0, 0, "query")
        centre = result[:, :, 8, 8].int()
        gray[recipe] = float((centre.amax(dim=1) == centre.amin(dim=1)).double().mean())
        if recipe == "photo":
            assert (centre[:, 0] > centre[:, 1]).all()
            assert (centre[:, 1] > centre[:, 2]).all()
    assert gray["photo"] == 0
    assert gray["imagenet"] < 0.08
    assert 0.15 < gray["imagenet_contrast"] - gray["imagenet"] < 0.25
