"""Speed of the CIFAR view (crop, flip, AutoAugment, Cutout, normalise) on one thread: ours against three others.

    python benchmarks/augment.py [--quick] [--out FILE]

- lean: a Pillow loop written for speed, with as little as possible around Pillow's own operations.
- published: as published training code has it: torchvision's v1 RandomCrop and RandomHorizontalFlip, a policy class
  that draws with ``random``, ToTensor, Cutout with a numpy mask, Normalize.
- torchvision: its v2 transforms on a uint8 tensor an image, and the same pipeline on a whole batch, which draws
  once a batch and is therefore another augmentation: all images of a batch get the same.

Ours: one view of a batch, three views of a step made together, and the loader's steps with all three views. Our views
come ``channels_last``, as training takes them. All take turns in the same run, each on one thread. Writes
benchmarks/results/augment.json (not with --quick).
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import v2

from longtail.data.auto_augment import CIFAR_POLICY, OPERATIONS
from longtail.data.image_set import ImageSet
from longtail.data.loading import ResidentLoader
from longtail.data.views import build_view
from measuring import RESULTS, in_turn, limits, ratios, show, spread, write

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
GRAY = (128, 128, 128)
AFFINE, BICUBIC, NEAREST = Image.Transform.AFFINE, Image.Resampling.BICUBIC, Image.Resampling.NEAREST
VIEWS = ("classifier", "query", "key")
CPU = torch.device("cpu")


def _affine(image: Image.Image, data: tuple[float, ...], resample: Image.Resampling) -> Image.Image:
    return image.transform(image.size, AFFINE, data, resample, fillcolor=GRAY)


PILLOW: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "shear_y": lambda image, m: _affine(image, (1, 0, 0, m, 1, 0), BICUBIC),
    "translate_x": lambda image, m: _affine(image, (1, 0, m * image.size[0], 0, 1, 0), NEAREST),
    "translate_y": lambda image, m: _affine(image, (1, 0, 0, 0, 1, m * image.size[1]), NEAREST),
    "rotate": lambda image, m: image.rotate(m, fillcolor=GRAY),
    "color": lambda image, m: ImageEnhance.Color(image).enhance(m),
    "contrast": lambda image, m: ImageEnhance.Contrast(image).enhance(m),
    "brightness": lambda image, m: ImageEnhance.Brightness(image).enhance(m),
    "sharpness": lambda image, m: ImageEnhance.Sharpness(image).enhance(m),
    "posterize": lambda image, m: ImageOps.posterize(image, int(m)),
    "solarize": lambda image, m: ImageOps.solarize(image, int(m)),
    "autocontrast": lambda image, m: ImageOps.autocontrast(image),
    "equalize": lambda image, m: ImageOps.equalize(image),
    "invert": lambda image, m: ImageOps.invert(image),
}


def lean_view(array: np.ndarray[Any, Any], mean: Tensor, std: Tensor) -> Tensor:
    """Return one augmented image, float32 [3, 32, 32], from uint8 [32, 32, 3]."""
    image = ImageOps.expand(Image.fromarray(array), border=4)
    left, top = random.randint(0, 8), random.randint(0, 8)
    image = image.crop((left, top, left + 32, top + 32))
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for name, probability, index in random.choice(CIFAR_POLICY):
        if random.random() < probability:
            image = PILLOW[name](image, OPERATIONS[name].amount(index, random.choice((1, -1))))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)
    y, x = random.randrange(32), random.randrange(32)
    pixels[:, max(0, y - 8) : y + 8, max(0, x - 8) : x + 8] = 0
    return pixels.sub_(mean).div_(std)


class PolicyTransform:
    """AutoAugment as a transform of one Pillow image: a sub-policy is drawn, each half happens with its chance."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the augmented image."""
        for name, probability, index in CIFAR_POLICY[random.randint(0, len(CIFAR_POLICY) - 1)]:
            if random.random() < probability:
                image = self.apply(name, image, OPERATIONS[name].amount(index, random.choice([-1, 1])))
        return image

    def apply(self, name: str, image: Image.Image, amount: float) -> Image.Image:
        """Return the image after one operation; a turned one is pasted over gray."""
        if name != "rotate":
            return PILLOW[name](image, amount)
        turned = image.convert("RGBA").rotate(amount)
        return Image.composite(turned, Image.new("RGBA", turned.size, (128,) * 4), turned).convert(image.mode)


class NumpyCutout:
    """A hole in one image [C, H, W], by a mask that is built in numpy."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, image: Tensor) -> Tensor:
        """Return the image with its hole."""
        height, width = image.size(1), image.size(2)
        mask = np.ones((height, width), np.float32)
        y, x = random.randrange(height), random.randrange(width)
        top, bottom = np.clip(y - self.length // 2, 0, height), np.clip(y + self.length // 2, 0, height)
        left, right = np.clip(x - self.length // 2, 0, width), np.clip(x + self.length // 2, 0, width)
        mask[top:bottom, left:right] = 0.0
        return image * torch.from_numpy(mask).expand_as(image)


class TensorCutout(torch.nn.Module):
    """A hole in the same place of all images [..., H, W]."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the images with a hole."""
        y, x = (int(torch.randint(32, ())) for _ in range(2))
        return v2.functional.erase(images, max(0, y - 8), max(0, x - 8), 16, 16, torch.zeros(1))


def published_pipeline() -> Callable[[Image.Image], Tensor]:
    return transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            PolicyTransform(),
            transforms.ToTensor(),
            NumpyCutout(16),
            transforms.Normalize(MEAN, STD),
        ]
    )


def torchvision_pipeline() -> Callable[[Tensor], Tensor]:
    return v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=128),
            v2.ToDtype(torch.float32, scale=True),
            TensorCutout(),
            v2.Normalize(MEAN, STD),
        ]
    )


def pictures(count: int) -> Tensor:
    """Return smooth random images with some noise, uint8 [count, 3, 32, 32]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic")
    noisy = smooth + 0.03 * torch.randn(smooth.shape, generator=generator)
    return (noisy.clamp(0, 1) * 255).to(torch.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats, no file written")
    parser.add_argument("--out", type=Path, default=RESULTS / "augment.json", help="where the record goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    repeats, slow, many = (3, 64, 1024) if options.quick else (9, 384, 6144)

    images = pictures(6144)
    arrays = images[:slow].permute(0, 2, 3, 1).contiguous().numpy()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    view, published, theirs = build_view("cifar", MEAN, STD), published_pipeline(), torchvision_pipeline()
    loader = ResidentLoader(
        ImageSet(images, torch.zeros(len(images), dtype=torch.int64), ("all",)), dict.fromkeys(VIEWS, view), 128, 0, CPU
    )
    epoch = 0

    def batches(size: int, streams: tuple[str, ...]) -> None:
        nonlocal epoch
        epoch += 1
        for start in range(0, many // len(streams), size):
            part = slice(start, start + size)
            view(images[part], torch.arange(start, start + len(images[part])), 0, epoch, streams)

    def steps() -> None:
        nonlocal epoch
        epoch += 1
        for step in range(many // 3 // 128):
            loader.load(epoch, step)

    # Name: (the run, the views it makes).
    runs: dict[str, tuple[Callable[[], object], int]] = {
        "lean": (lambda: torch.stack([lean_view(array, mean, std) for array in arrays]), slow),
        "published": (lambda: torch.stack([published(Image.fromarray(array)) for array in arrays]), slow),
        "torchvision": (lambda: torch.stack([theirs(image) for image in images[:slow]]), slow),
        "torchvision, a draw a batch": (lambda: [theirs(part) for part in images[:many].split(128)], many),
        "ours, batch 128": (lambda: batches(128, ("query",)), many),
        "ours, batch 512": (lambda: batches(512, ("query",)), many),
        "ours, batch 4096": (lambda: batches(4096, ("query",)), many),
        "ours, batch 128, 3 views together": (lambda: batches(128, VIEWS), many // 3 // 128 * 128 * 3),
        "ours, loader, batch 128, 3 views": (steps, many // 3 // 128 * 128 * 3),
    }
    taken = in_turn({name: run for name, (run, _) in runs.items()}, repeats, CPU)
    rows: dict[str, Any] = {}
    for name, (_, count) in runs.items():
        row = rows[name] = {"images_a_second": spread([count / spent for spent in taken[name]])}
        line = f"{name:36s} {show(row['images_a_second'], 0):>28s} images/s"
        if name.startswith("ours"):
            for other in ("lean", "published", "torchvision"):
                each = runs[other][1] / count
                row[f"times_{other}"] = ratios(taken[other], [spent * each for spent in taken[name]])
                line += f"  {other} x {show(row[f'times_{other}'])}"
        print(line)
    if not options.quick:
        what = "images per second on one thread, 32x32x3: crop, flip, AutoAugment, Cutout, normalise"
        versions = {"pillow": PIL.__version__, "torchvision": torchvision.__version__}
        write(options.out, what, CPU, rows, repeats=repeats, seed=0, limits=limits(CPU), **versions)


if __name__ == "__main__":
    main()
