"""TrivialAugment against torchvision's: operations, strengths, every pixel, and what is drawn."""

import pytest
import torch
from pillow_tensors import from_pillow, to_pillow
from torch import Tensor
from torchvision.transforms import InterpolationMode, TrivialAugmentWide
from torchvision.transforms.autoaugment import _apply_op

from longtail.data import trivial_augment as ours
from longtail.data.augment_operations import apply_step
from longtail.data.augment_tone import widest_float
from longtail.data.batch_augment import Draws

CPU = torch.device("cpu")
SPACE = TrivialAugmentWide()._augmentation_space(ours.BINS)
THEIR_NAMES = {name: "".join(part.title() for part in name.split("_")) for name in ours.OPERATIONS} | {
    "autocontrast": "AutoContrast"
}
# They name the point of the input that a pixel reads, torchvision the way the picture moves.
MIRRORED = ("translate_x", "translate_y")


def pictures(channels: int, height: int, width: int) -> Tensor:
    """Noise, dim noise, a ramp with a black and a white pixel, and a picture of one level."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (channels, height, width), generator=generator)
    ramp = (torch.arange(height)[:, None] * 2 + torch.arange(width) * 3) % 200 + 20
    ramp = ramp.expand(channels, -1, -1).clone()
    ramp[:, 0, 0], ramp[:, -1, -1] = 0, 255
    return torch.stack([noise, noise % 50 + 90, ramp, torch.full_like(noise, 77)]).to(torch.uint8)


def theirs(name: str, image: Tensor, amount: float) -> Tensor:
    """Return torchvision's operation on a Pillow image, by our amount."""
    if name in MIRRORED:
        amount = -amount
    elif name in ("color", "sharpness", "contrast", "brightness"):
        amount -= 1
    return from_pillow(_apply_op(to_pillow(image), THEIR_NAMES[name], amount, InterpolationMode.NEAREST, None))


def test_the_operations_and_strengths_are_torchvisions() -> None:
    assert {*THEIR_NAMES.values(), "Identity"} == set(SPACE)
    kinds = [operation.is_table for operation in ours.OPERATIONS.values()]
    assert kinds == sorted(kinds)  # `apply_step` needs the tables last
    for name, operation in ours.OPERATIONS.items():
        magnitudes, signed = SPACE[THEIR_NAMES[name]]
        assert operation.signed == signed
        if not magnitudes.ndim:
            assert operation.slope == 0
            continue
        for bin, magnitude in enumerate(magnitudes.tolist()):
            for sign in (1, -1) if signed else (1,):
                expected = sign * magnitude
                if name in MIRRORED:
                    expected = int(round(expected, 4))  # torchvision's half way, 15.999999, loses a pixel to float32
                assert operation.amount(bin, sign) - (operation.start if signed else 0) == pytest.approx(
                    expected, abs=1e-4
                )


@pytest.mark.parametrize("name", THEIR_NAMES)
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 19, 40), (3, 2, 3), (1, 1, 1)])
def test_operation_agrees_with_torchvision(name: str, channels: int, height: int, width: int) -> None:
    images = pictures(channels, height, width)
    bins = range(0, ours.BINS, 2) if name in ("rotate", "translate_x", "shear_y") else (0, 7, 13, 20, 30)
    amounts = sorted({ours.OPERATIONS[name].amount(bin, sign) for bin in bins for sign in (1, -1)})
    batch = images.repeat_interleave(len(amounts), dim=0)
    position = torch.full((len(batch),), ours.OPERATION_NAMES.index(name))
    result = apply_step(
        batch, position, torch.tensor(amounts, dtype=widest_float(CPU)).repeat(len(images)), ours.OPERATIONS
    )
    expected = torch.stack([theirs(name, image, amount) for image in images for amount in amounts])
    difference = (result.int() - expected.int()).abs().flatten(1).amax(dim=1)
    worst = int(difference.argmax())
    assert difference[worst] <= 1, f"{name} by {amounts[worst % len(amounts)]}: off by {int(difference[worst])}"


def draws(count: int) -> Draws:
    return Draws(seed=0, epoch=0, stream="query", ids=torch.arange(count))


def test_operations_strengths_and_signs_are_equally_likely() -> None:
    count = 30_000
    plan = ours.draw_plan(draws(count))
    kinds = len(ours.OPERATIONS) + 1
    counts = torch.bincount(plan.operation[:, 0], minlength=kinds).double()
    assert len(counts) == kinds == 14
    assert float(((counts - count / kinds) ** 2 / (count / kinds)).sum()) < 40  # 13 degrees of freedom: 99.99 % at 39
    turns = plan.amount[plan.operation == ours.OPERATION_NAMES.index("rotate")]
    bins = torch.bincount((turns.abs() / 4.5).round().long(), minlength=ours.BINS).double()
    expected = len(turns) / ours.BINS
    assert len(bins) == ours.BINS
    assert float(((bins - expected) ** 2 / expected).sum()) < 68  # 30 degrees of freedom: 99.99 % at 67.6
    assert abs(float((turns[turns != 0] > 0).double().mean()) - 0.5) < 0.05


def test_a_sample_gets_its_operation_and_the_rest_stays() -> None:
    images = pictures(3, 32, 32).repeat(60, 1, 1, 1)
    before = images.clone()
    result, plan = ours.trivial_augment(images, draws(len(images))), ours.draw_plan(draws(len(images)))
    assert torch.equal(images, before)
    for index, image in enumerate(images):
        position, amount = int(plan.operation[index]), float(plan.amount[index])
        if position == len(ours.OPERATIONS):
            assert torch.equal(result[index], image)
        else:
            name = ours.OPERATION_NAMES[position]
            assert (result[index].int() - theirs(name, image, amount).int()).abs().max() <= 1, (name, amount)
