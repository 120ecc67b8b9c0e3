"""Images a second and core from files to three augmented views, against a plain torchvision DataLoader in the same run.

    python benchmarks/stream.py [--images 256] [--folder FOLDER] [--workers N] [--out benchmarks/results/stream.json]

Both read the same JPEG files of about 500x375, make the same three views at 224 (crop, flip, jitter, RandAugment; two
of them with grayscale and blur) and normalise; the reference decodes once too, and applies torchvision's transforms
image by image. Without --workers all of it happens in one process of one thread, and what counts is that process's
time on a core; with --workers N, that many processes decode, and the clock runs from the first batch to the last (the
training's own process normalises meanwhile, in ours only). The two take turns; a ratio above 1 means that ours is
faster. Then our time an image is taken apart: decoding, cropping and resizing, augmentation, normalisation. Without
--folder the files are made: 1/f noise, about as costly to decode as a photograph.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from longtail.data import Framing, ImageFiles, build_view
from longtail.data.decode import crop, fit, read_image
from longtail.data.path_table import PathTable
from longtail.data.streaming import needed_side, plain_frames
from longtail.data.streaming_loader import StreamingLoader
from longtail.data.views import View
from measuring import RESULTS, ratios, show, spread, write

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIEWS = {"classifier": "imagenet", "query": "imagenet_contrast", "key": "imagenet_contrast"}
BATCH = 64


def make_photographs(folder: Path, count: int) -> list[str]:
    """Write JPEG files of 500x375 whose spectrum falls off as a photograph's does."""
    random = np.random.default_rng(0)
    rows, columns = np.fft.fftfreq(375)[:, None], np.fft.rfftfreq(500)[None, :]
    amplitude = 1 / np.maximum(np.hypot(rows, columns), 1 / 500)
    names = []
    for index in range(count):
        phases = np.exp(2j * np.pi * random.random((3, *amplitude.shape)))
        pixels = np.fft.irfft2(amplitude * phases, s=(375, 500)).transpose(1, 2, 0)
        pixels = 128 + 50 * (pixels - pixels.mean()) / pixels.std()
        name = f"{index:05d}.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name, quality=90)
        names.append(name)
    return names


def torchvision_views() -> list[transforms.Compose]:
    """Return the three views as torchvision makes them, image by image."""

    def view(contrast: bool) -> transforms.Compose:
        blur = transforms.RandomApply([transforms.GaussianBlur(23, (0.1, 2.0))], p=0.5)
        steps = [
            transforms.RandomResizedCrop(224, (0.08, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.4, 0.4, 0.4),
            *([transforms.RandomGrayscale(0.2), blur] if contrast else []),
            transforms.RandAugment(2, 10),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
        return transforms.Compose(steps)

    return [view(False), view(True), view(True)]


class PlainFiles(Dataset):
    """The usual data set: open, convert, transform three times."""

    def __init__(self, folder: Path, names: list[str], views: list[transforms.Compose]) -> None:
        self.folder, self.names, self.views = folder, names, views

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        image = Image.open(self.folder / self.names[index]).convert("RGB")
        return [view(image) for view in self.views]


def consume(batches: Iterable[object], count: int, workers: int) -> float:
    """Return images a second of this process, or of the clock from the first batch to the last where workers decode."""
    iterator, clock = iter(batches), time.perf_counter if workers else time.process_time
    if workers:
        next(iterator)
        count -= BATCH
    began = clock()
    for _ in iterator:
        pass
    return count / (clock() - began)


def compare(make: Mapping[str, Callable[[], Iterable[object]]], count: int, repeats: int, workers: int) -> dict:
    """Return the rates of ours and torchvision's an image, a second and a core, taken in turn, and their ratio."""
    rates: dict[str, list[float]] = {name: [] for name in make}
    for turn in range(-1, repeats):  # the first is not counted: files come into memory, libraries are loaded
        for name, batches in make.items():
            rate = consume(batches(), count, workers) / max(workers, 1)
            if turn >= 0:
                rates[name].append(rate)
    return {name: spread(rate) for name, rate in rates.items()} | {"ratio": ratios(*rates.values())}


def shares(files: ImageFiles, views: Mapping[str, View], repeats: int) -> dict:
    """Return milliseconds an image that each part of ours takes, in one thread."""
    side, framing = needed_side(files.framing, views), files.framing
    ids = torch.arange(min(len(files), BATCH))
    images = [read_image(files.path(index), side) for index in ids.tolist()]
    widths, heights = torch.tensor([image.size for image in images]).unbind(1)
    frames = torch.empty(len(ids), 3, *framing.size, dtype=torch.uint8)
    places = frames.permute(0, 2, 3, 1).numpy()

    def decode() -> None:
        for index in ids.tolist():
            read_image(files.path(index), side)

    def resize() -> None:
        for name, view in views.items():
            boxes = view.boxes(heights, widths, ids, 0, 0, name).tolist()
            for image, box, place in zip(images, boxes, places, strict=True):
                crop(image, box, framing, place)
        if not views:
            for image, place in zip(images, places, strict=True):
                fit(image, framing, place)

    def augment() -> None:
        for name, view in views.items():
            for some, theirs in zip(frames.split(16), ids.split(16), strict=True):
                view.augment(some, theirs, 0, 0, name)

    def normalise() -> None:
        for view in views.values():
            view.normalise(frames)

    parts = {"decode": decode, "crop and resize": resize}
    parts |= {"augment": augment, "normalise": normalise} if views else {}
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(-1, repeats):
        for name, run in parts.items():
            began = time.process_time()
            run()
            if turn >= 0:
                taken[name].append(1000 * (time.process_time() - began) / len(ids))
    return {name: spread(milliseconds) for name, milliseconds in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--folder", type=Path, help="flat folder of photographs to use instead of made ones")
    parser.add_argument("--repeats", type=int, default=5, help="timed turns, at least 5 (default 5)")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode (default 0: one core does all)")
    parser.add_argument("--out", type=Path, default=RESULTS / "stream.json")
    options = parser.parse_args()
    if options.repeats < 5 or options.images < 2 * BATCH:
        parser.error(f"--repeats must be at least 5 and --images at least {2 * BATCH}")
    torch.set_num_threads(1)
    cpu, workers = torch.device("cpu"), options.workers
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        if options.folder:
            names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg"))[: options.images]
        else:
            names = make_photographs(folder, options.images)
        names = names[: len(names) // BATCH * BATCH]
        zeros = torch.zeros(len(names), dtype=torch.int64)
        sizes = torch.zeros(len(names), 2, dtype=torch.int32)
        files = ImageFiles(folder, PathTable(names), zeros, ("photograph",), sizes, zeros, Framing((224, 224), 256))
        views = {name: build_view(recipe, MEAN, STD) for name, recipe in VIEWS.items()}
        one = {"classifier": views["classifier"]}
        test = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])

        def ours(wanted: Mapping[str, View]) -> Iterable[object]:
            loader = StreamingLoader(files, dict(wanted), BATCH, 0, cpu, 1, workers)
            return (loader.load(0, step) for step in range(loader.steps_per_epoch))

        def plain(wanted: list[transforms.Compose]) -> Iterable[object]:
            return DataLoader(PlainFiles(folder, names, wanted), BATCH, num_workers=workers)

        cases = {
            "three views": (views, lambda: ours(views), lambda: plain(torchvision_views())),
            "classifier view only": (one, lambda: ours(one), lambda: plain(torchvision_views()[:1])),
            "test image": ({}, lambda: plain_frames(files, BATCH, workers), lambda: plain([test])),
        }
        rows = []
        for name, (wanted, make_ours, make_plain) in cases.items():
            make = {"ours": make_ours, "torchvision": make_plain}
            row = {"what": name, **compare(make, len(names), options.repeats, workers)}
            row["milliseconds_an_image"] = shares(files, wanted, options.repeats)
            rows.append(row)
            print(
                f"{name:<22} ours {show(row['ours'])}   torchvision {show(row['torchvision'])}   "
                f"ratio {show(row['ratio'], 2)}"
            )
            parts = {part: taken["median"] for part, taken in row["milliseconds_an_image"].items()}
            whole = sum(parts.values())
            print(
                "    " + ", ".join(f"{p} {ms:.2f} ms ({100 * ms / whole:.0f} %)" for p, ms in parts.items()), flush=True
            )
        size = np.mean([(folder / name).stat().st_size for name in names]) / 1000
    what = "images a second and core, files to views" if not workers else "images a second and worker, files to views"
    write(
        options.out,
        what,
        cpu,
        rows,
        files=f"{len(names)} JPEG files, {size:.0f} kB on average",
        made=options.folder is None,
        repeats=options.repeats,
        workers=workers,
        threads=1,
        seed=0,
        libraries={"torchvision": torchvision.__version__, "pillow": Image.__version__},
    )


if __name__ == "__main__":
    main()
