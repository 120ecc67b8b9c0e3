"""Speed of the CIFAR view (crop, flip, AutoAugment, Cutout, normalise): our batches against Pillow image by image.

    python benchmarks/augment.py [--quick]

One thread, one process, both sides measured in turn in the same run. Writes benchmarks/results/augment.json (not
with --quick) and prints images per second: median of the repeats, with the lowest and highest.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from longtail.data.auto_augment import CIFAR_POLICY, OPERATIONS
from longtail.data.views import build_view

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
GRAY = (128, 128, 128)
AFFINE, BICUBIC, NEAREST = Image.Transform.AFFINE, Image.Resampling.BICUBIC, Image.Resampling.NEAREST
RESULTS = Path(__file__).parent / "results" / "augment.json"


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


def pillow_view(array: np.ndarray[Any, Any], mean: Tensor, std: Tensor) -> Tensor:
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


def pictures(count: int) -> Tensor:
    """Return smooth random images with some noise, uint8 [count, 3, 32, 32]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic")
    noisy = smooth + 0.03 * torch.randn(smooth.shape, generator=generator)
    return (noisy.clamp(0, 1) * 255).to(torch.uint8)


def summary(rates: list[float]) -> dict[str, float]:
    return {"median": statistics.median(rates), "lowest": min(rates), "highest": max(rates)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats, small batches, no file written")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    random.seed(0)
    repeats, pillow_images, batches = (3, 128, (128,)) if quick else (9, 512, (128, 512))
    images = pictures(512)
    arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    view = build_view("cifar", MEAN, STD)

    def pillow_pass() -> float:
        start = time.perf_counter()
        torch.stack([pillow_view(array, mean, std) for array in arrays[:pillow_images]])
        return pillow_images / (time.perf_counter() - start)

    def batched_pass(batch: int, epoch: int) -> float:
        steps = 1024 // batch
        ids = torch.arange(batch)
        start = time.perf_counter()
        for step in range(steps):
            view(images[:batch], ids + step * batch, seed=0, epoch=epoch, stream="query")
        return steps * batch / (time.perf_counter() - start)

    pillow_rates: list[float] = []
    rates: dict[int, list[float]] = {batch: [] for batch in batches}
    for repeat in range(repeats + 1):  # the first pass warms up
        # In turn, so that a busy moment of the machine falls on both sides.
        measured = pillow_pass(), {batch: batched_pass(batch, repeat) for batch in batches}
        if repeat:
            pillow_rates.append(measured[0])
            for batch in batches:
                rates[batch].append(measured[1][batch])

    rows: dict[str, Any] = {"pillow": summary(pillow_rates)}
    for batch in batches:
        ratios = [ours / theirs for ours, theirs in zip(rates[batch], pillow_rates, strict=True)]
        rows[f"batch_{batch}"] = summary(rates[batch]) | {"ratio": summary(ratios)}
    report = {
        "what": "images per second, 32x32x3: crop, flip, AutoAugment, Cutout, normalise; one thread",
        "repeats": repeats,
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "pillow": PIL.__version__,
        "results": rows,
    }
    for name, row in rows.items():
        line = f"{name:12s} {row['median']:9.0f} images/s  ({row['lowest']:.0f} to {row['highest']:.0f})"
        if "ratio" in row:
            ratio = row["ratio"]
            line += f"  x {ratio['median']:.1f} ({ratio['lowest']:.1f} to {ratio['highest']:.1f})"
        print(line)
    if not quick:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
