"""Every kernel against Pillow or a slow loop, and the statistics of what is drawn."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from pillow_tensors import from_pillow, to_pillow
from torch import Tensor

from longtail.data.augment_geometry import (
    affine_bilinear,
    affine_nearest,
    rotation_maps,
    shift_flip,
)
from longtail.data.augment_levels import apply_table
from longtail.data.augment_tone import widest_float
from longtail.data.auto_augment import (
    CIFAR_POLICY,
    OPERATION_NAMES,
    OPERATIONS,
    apply_operations,
    auto_augment,
    draw_plan,
)
from longtail.data.batch_augment import (
    Draws,
    normalise,
    random_crop_flip,
    random_cutout,
    random_small_affine,
    random_tone_jitter,
)

CPU = torch.device("cpu")
GRAY = 128


def pictures(channels: int, height: int = 32, width: int = 32) -> Tensor:
    """Noise, smooth waves, dim noise, a flat picture, two levels, and a ramp with a black and a white pixel."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 90 * np.sin(x / (5 + c) + c) * np.cos(y / (7 - c)) for c in range(channels)]
    ramp = np.repeat(((x * 3 + y * 2) % 200 + 20)[None], channels, axis=0)
    ramp[:, 0, 0], ramp[:, -1, -1] = 0, 255
    stack = [
        random.integers(0, 256, (channels, height, width)),
        np.stack(waves),
        random.integers(90, 140, (channels, height, width)),
        np.full((channels, height, width), 77),
        random.integers(0, 2, (channels, height, width)) * 200 + 3,
        ramp,
    ]
    return torch.from_numpy(np.stack(stack).astype(np.uint8))


def shifted(image: Image.Image, data: tuple[float, ...], resample: Image.Resampling) -> Image.Image:
    fill = GRAY if image.mode == "L" else (GRAY,) * 3
    return image.transform(image.size, Image.Transform.AFFINE, data, resample, fillcolor=fill)


def turned(image: Image.Image, degrees: float) -> Image.Image:
    """Rotate as the published code does: through RGBA, pasted over gray."""
    rotated = image.convert("RGBA").rotate(degrees)
    return Image.composite(rotated, Image.new("RGBA", rotated.size, (GRAY,) * 4), rotated).convert(image.mode)


BICUBIC, NEAREST = Image.Resampling.BICUBIC, Image.Resampling.NEAREST
PILLOW: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "shear_x": lambda image, m: shifted(image, (1, m, 0, 0, 1, 0), BICUBIC),
    "shear_y": lambda image, m: shifted(image, (1, 0, 0, m, 1, 0), BICUBIC),
    "translate_x": lambda image, m: shifted(image, (1, 0, m * image.size[0], 0, 1, 0), NEAREST),
    "translate_y": lambda image, m: shifted(image, (1, 0, 0, 0, 1, m * image.size[1]), NEAREST),
    "rotate": turned,
    "color": lambda image, m: ImageEnhance.Color(image).enhance(m),
    "contrast": lambda image, m: ImageEnhance.Contrast(image).enhance(m),
    "brightness": lambda image, m: ImageEnhance.Brightness(image).enhance(m),
    "sharpness": lambda image, m: ImageEnhance.Sharpness(image).enhance(m),
    "posterize": lambda image, m: ImageOps.posterize(image, int(m)),
    "solarize": lambda image, m: ImageOps.solarize(image, m),  # type: ignore[arg-type]
    "autocontrast": lambda image, m: ImageOps.autocontrast(image),
    "equalize": lambda image, m: ImageOps.equalize(image),
    "invert": lambda image, m: ImageOps.invert(image),
}


def run_operation(name: str, images: Tensor, amounts: list[float]) -> Tensor:
    operation = torch.full((len(images),), OPERATION_NAMES.index(name))
    return apply_operations(images, operation, torch.tensor(amounts, dtype=widest_float(CPU)))


@pytest.mark.parametrize("name", PILLOW)
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 32, 32), (3, 28, 37), (1, 8, 8)])
def test_operation_agrees_with_pillow(name: str, channels: int, height: int, width: int) -> None:
    images = pictures(channels, height, width)
    amounts = sorted({OPERATIONS[name].amount(index, sign) for index in range(10) for sign in (1, -1)})
    batch = images.repeat_interleave(len(amounts), dim=0)
    result = run_operation(name, batch, amounts * len(images))
    expected = torch.stack(
        [from_pillow(PILLOW[name](to_pillow(image), amount)) for image in images for amount in amounts]
    )
    difference = (result.int() - expected.int()).abs().flatten(1).amax(dim=1)
    worst = int(difference.argmax())
    assert difference[worst] <= 1, f"{name} amount {amounts[worst % len(amounts)]}: off by {difference[worst]}"


def test_every_operation_has_a_pillow_counterpart() -> None:
    assert set(PILLOW) == set(OPERATIONS)


def test_magnitudes_are_the_papers() -> None:
    levels = range(10)
    tables = {
        "shear_x": np.linspace(0, 0.3, 10),
        "shear_y": np.linspace(0, 0.3, 10),
        "translate_x": np.linspace(0, 150 / 331, 10),
        "translate_y": np.linspace(0, 150 / 331, 10),
        "rotate": np.linspace(0, 30, 10),
        "posterize": np.round(np.linspace(8, 4, 10)),
        "solarize": np.linspace(256, 0, 10),
    }
    tables |= {name: 1 + np.linspace(0, 0.9, 10) for name in ("color", "contrast", "brightness", "sharpness")}
    for name, table in tables.items():
        np.testing.assert_allclose([OPERATIONS[name].amount(level) for level in levels], table, atol=1e-12)
    for name in ("color", "contrast", "brightness", "sharpness"):
        assert OPERATIONS[name].amount(9, sign=-1) == pytest.approx(0.1)
    for name in ("shear_x", "shear_y", "translate_x", "translate_y"):
        assert OPERATIONS[name].amount(5, sign=-1) == -OPERATIONS[name].amount(5)
    for name in ("rotate", "posterize", "solarize"):
        assert OPERATIONS[name].amount(5, sign=-1) == OPERATIONS[name].amount(5)


def test_policy_is_torchvisions() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    theirs = transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10).policies
    assert len(CIFAR_POLICY) == len(theirs) == 25
    for ours, row in zip(CIFAR_POLICY, theirs, strict=True):
        for (name, probability, index), (their_name, their_probability, their_index) in zip(ours, row, strict=True):
            assert name.replace("_", "") == their_name.lower()
            assert probability == their_probability
            assert their_index is None or index == their_index


def test_sign_conventions() -> None:
    image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    image[0, 0, 2, 5] = 255
    moved = shift_flip(image, top=torch.tensor([2]), left=torch.tensor([1]))
    assert moved.nonzero().tolist() == [[0, 0, 0, 4]]  # reads from the right and below: moves left and up
    quarter = affine_nearest(image, rotation_maps(torch.tensor([90.0], dtype=torch.float64), 8, 8), fill=0)
    assert torch.equal(quarter, torch.rot90(image, 1, (2, 3)))  # counter-clockwise
    right_edge = run_operation("translate_x", torch.zeros(1, 1, 8, 8, dtype=torch.uint8), [0.25])
    assert (right_edge[..., 6:] == GRAY).all()
    assert (right_edge[..., :6] == 0).all()


def test_color_leaves_gray_images_alone() -> None:
    images = pictures(1)
    assert torch.equal(run_operation("color", images, [1.9] * len(images)), images)


def test_mixed_batch_equals_one_operation_at_a_time() -> None:
    images = pictures(3).repeat(5, 1, 1, 1)
    operation = torch.arange(len(images)) % (len(OPERATION_NAMES) + 1)  # the last: nothing happens
    amounts = [0.0 if o == len(OPERATION_NAMES) else OPERATIONS[OPERATION_NAMES[o]].amount(7) for o in operation]
    mixed = apply_operations(images, operation, torch.tensor(amounts, dtype=torch.float64))
    for index, image in enumerate(images):
        if operation[index] == len(OPERATION_NAMES):
            assert torch.equal(mixed[index], image)
        else:
            alone = run_operation(OPERATION_NAMES[operation[index]], image[None], [amounts[index]])
            assert torch.equal(mixed[index], alone[0])


def test_crop_flip_equals_padding_and_slicing() -> None:
    images = pictures(3, 16, 24).repeat(6, 1, 1, 1)
    random = np.random.default_rng(1)
    top, left = random.integers(-2, 3, len(images)), random.integers(-3, 4, len(images))
    flip = random.integers(0, 2, len(images)).astype(bool)
    result = shift_flip(images, torch.from_numpy(top), torch.from_numpy(left), torch.from_numpy(flip))
    for image, t, x, mirrored, got in zip(images.numpy(), top, left, flip, result.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (2, 2), (3, 3)))
        crop = padded[:, t + 2 : t + 18, x + 3 : x + 27]
        np.testing.assert_array_equal(got, crop[:, :, ::-1] if mirrored else crop)


def draws(count: int, seed: int = 0, epoch: int = 0, stream: str = "query") -> Draws:
    return Draws(seed=seed, epoch=epoch, stream=stream, ids=torch.arange(count))


def chi_square(counts: Tensor, expected: Tensor) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(("side", "pad"), [(32, 4), (28, 3), (8, 1), (6, 1)])
def test_crop_offsets_and_flips_are_uniform(side: int, pad: int) -> None:
    count = 4000
    # The pixel value says where it was; value 0 marks the padding.
    column = torch.arange(1, side + 1, dtype=torch.uint8).expand(1, 1, side, side)
    row = column.mT
    for image, axis in ((column, 3), (row, 2)):
        result = random_crop_flip(image.expand(count, 1, side, side), draws(count), flip_probability=0.0).int()
        middle = result[:, 0, side // 2, side // 2] - 1 - side // 2
        assert middle.min() == -pad
        assert middle.max() == pad
        counts = torch.bincount(middle + pad, minlength=2 * pad + 1).double()
        # 99.99 % point of chi-square with 8 degrees of freedom is 31.8, with fewer it is less.
        assert chi_square(counts, torch.full_like(counts, count / (2 * pad + 1))) < 31.8
        edge = result.movedim(axis, 1)[:, 0, 0, side // 2]
        assert ((edge == 0) == (middle < 0)).all()
    flipped = random_crop_flip(column.expand(count, 1, side, side), draws(count)).int()
    mirrored = flipped[:, 0, side // 2, side // 2] < flipped[:, 0, side // 2, side // 2 - 1]
    assert abs(float(mirrored.float().mean()) - 0.5) < 4 * 0.5 / count**0.5


def test_sub_policies_probabilities_and_signs() -> None:
    count = 50_000
    plan = draw_plan(draws(count))
    expected: dict[tuple[int, int, float], float] = {}
    nothing = len(OPERATION_NAMES)
    for slot in range(2):
        for row in CIFAR_POLICY:
            name, probability, index = row[slot]
            code = OPERATION_NAMES.index(name)
            for sign in (1, -1):
                key = (slot, code, OPERATIONS[name].amount(index, sign))
                expected[key] = expected.get(key, 0.0) + probability / 50
            expected[slot, nothing, 0.0] = expected.get((slot, nothing, 0.0), 0.0) + (1 - probability) / 25
    total, cells = 0.0, 0
    for (slot, code, amount), share in expected.items():
        hits = plan.operation[:, slot] == code
        if code != nothing:
            hits &= plan.amount[:, slot] == amount
        if share == 0:
            assert not hits.any()
            continue
        total += float((hits.sum() - count * share) ** 2 / (count * share))
        cells += 1
    freedom = cells - 2
    assert total < freedom + 4 * (2 * freedom) ** 0.5


def test_each_sub_policy_is_equally_likely() -> None:
    count = 25_000
    (policy, *_) = draws(count).uniform("auto_augment", 5)
    counts = torch.bincount((policy * 25).long(), minlength=25).double()
    assert chi_square(counts, torch.full_like(counts, count / 25)) < 60.0  # 24 degrees of freedom: 99.99 % at 59
    pairs = {tuple(pair) for pair in draw_plan(draws(count)).operation.tolist()}
    certain = {(OPERATION_NAMES.index(a[0]), OPERATION_NAMES.index(b[0])) for a, b in CIFAR_POLICY if b[1] > 0}
    assert certain <= pairs


def test_auto_augment_applies_its_plan_in_order_as_pillow() -> None:
    images = pictures(3).repeat(50, 1, 1, 1)
    before = images.clone()
    result = auto_augment(images, draws(len(images)))
    plan = draw_plan(draws(len(images)))
    assert torch.equal(images, before)
    for index in range(len(images)):
        picture = to_pillow(images[index])
        for code, amount in zip(plan.operation[index].tolist(), plan.amount[index].tolist(), strict=True):
            if code < len(OPERATION_NAMES):
                picture = PILLOW[OPERATION_NAMES[code]](picture, amount)
        difference = (result[index].int() - from_pillow(picture).int()).abs().max()
        assert difference <= 1, f"image {index}: {plan.operation[index].tolist()}"


@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 8), (9, 20)])
def test_cutout_hole_is_a_clipped_square_about_a_uniform_centre(height: int, width: int) -> None:
    count = 8000
    length = min(height, width) // 2
    white = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8).expand(count, 1, height, width)
    hole = random_cutout(white, draws(count))[:, 0] == 0
    rows, columns = hole.any(dim=2), hole.any(dim=1)
    assert torch.equal(hole, rows[:, :, None] & columns[:, None, :])  # a rectangle without gaps inside
    for lines, side in ((rows, height), (columns, width)):
        expected = torch.zeros(side + 1, side + 1)
        for centre in range(side):
            first, last = max(0, centre - length // 2), min(side, centre - length // 2 + length)
            expected[first, last] += count / side
        first = lines.int().argmax(dim=1)
        last = side - lines.int().flip(1).argmax(dim=1)
        assert torch.equal(lines.sum(dim=1), last - first)
        seen = torch.zeros_like(expected)
        seen.index_put_((first, last), torch.ones(count), accumulate=True)
        cells = expected > 0
        assert (seen[~cells] == 0).all()
        freedom = int(cells.sum()) - 1
        assert chi_square(seen[cells], expected[cells]) < freedom + 4 * (2 * freedom) ** 0.5 + 4


def test_bilinear_map_equals_a_slow_loop() -> None:
    images = pictures(1, 8, 8)
    maps = rotation_maps(
        torch.tensor([7.0, -9.0, 3.0, 0.0, 45.0, -2.0]),
        8,
        8,
        scale=torch.tensor([1.1, 0.9, 1.0, 1.0, 1.0, 0.95]),
    )
    maps[:, 2] += 0.7
    result = affine_bilinear(images, maps, fill=0)
    for image, coefficients, got in zip(images, maps.double().tolist(), result, strict=True):
        a, b, c, d, e, f = coefficients
        for y in range(8):
            for x in range(8):
                source_x = a * (x + 0.5) + b * (y + 0.5) + c - 0.5
                source_y = d * (x + 0.5) + e * (y + 0.5) + f - 0.5
                value = sum(
                    max(0.0, 1 - abs(source_x - j)) * max(0.0, 1 - abs(source_y - i)) * float(image[0, i, j])
                    for i in range(8)
                    for j in range(8)
                )
                assert abs(float(got[0, y, x]) - value) <= 0.5 + 1e-3


def test_rotation_scale_enlarges_about_the_centre() -> None:
    (a, b, c, d, e, f) = rotation_maps(torch.zeros(1), 8, 8, scale=torch.tensor([2.0]))[0].tolist()
    assert (a, b, c, d, e, f) == (0.5, 0.0, 2.0, 0.0, 0.5, 2.0)  # the centre (4, 4) stays, steps halve


def test_tiny_augmentation_is_mild_and_varied() -> None:
    count = 2000
    blob = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    blob[..., 3:6, 3:6] = 200
    moved = random_small_affine(blob.expand(count, 1, 9, 9), draws(count)).double()
    mass = moved.sum(dim=(1, 2, 3))
    axis = torch.arange(9, dtype=torch.double)
    centre_x = (moved.sum(dim=(1, 2)) * axis).sum(dim=1) / mass - 4
    centre_y = (moved.sum(dim=(1, 3)) * axis).sum(dim=1) / mass - 4
    for centre in (centre_x, centre_y):
        assert centre.abs().max() < 1.03  # one pixel; rounding moves it a little
        assert abs(float(centre.mean())) < 0.06
        assert abs(float(centre.std()) - 3**-0.5) < 0.06  # of a uniform on -1..1
    flat = torch.full((count, 1, 9, 9), 100, dtype=torch.uint8)
    level = random_tone_jitter(flat, draws(count)).double().flatten(1)
    assert level.min() >= 79
    assert level.max() <= 120
    assert abs(float(level.std()) - 40 / 12**0.5) < 1.0


def test_normalise_is_the_formula() -> None:
    images = pictures(3)
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.3, 0.4)
    expected = (images.double() / 255 - torch.tensor(mean).double()[:, None, None]) / torch.tensor(std).double()[
        :, None, None
    ]
    result = normalise(images, mean, std)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=1e-6)


def test_table_lookup_shares_one_table_between_channels() -> None:
    images = pictures(3)
    table = torch.arange(255, -1, -1, dtype=torch.uint8).expand(len(images), 1, 256)
    assert torch.equal(apply_table(images, table), 255 - images)
