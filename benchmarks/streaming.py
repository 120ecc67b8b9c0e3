"""Images a second and core from files to three augmented views, against a plain torchvision DataLoader in the same run.

    python benchmarks/streaming.py [--images 256] [--folder FOLDER] [--out benchmarks/results/streaming.json]

Both read the same JPEG files of about 500x375, make the same three views at 224 (crop, flip, jitter, RandAugment; two
of them with grayscale and blur) and normalise, in one worker process of one thread; the reference decodes once too,
and applies torchvision's transforms image by image. Without --folder the files are made: 1/f noise, about as costly to
decode as a photograph. Each figure is the best of the repeats; a ratio above 1 means that ours is faster.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from longtail.data import Framing, ImageFiles, build_view
from longtail.data.image_set import PathTable
from longtail.data.streaming import StreamingLoader, plain_frames
from longtail.training.run_folder import processor_name

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


def rate(batches, count: int) -> float:
    """Return images a second, the start of the worker left out: the clock runs from the first batch to the last."""
    iterator = iter(batches)
    next(iterator)
    began = time.perf_counter()
    for _ in iterator:
        pass
    return (count - BATCH) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--folder", type=Path, help="flat folder of photographs to use instead of made ones")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/streaming.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        if options.folder:
            names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg"))[: options.images]
        else:
            names = make_photographs(folder, options.images)
        zeros = torch.zeros(len(names), dtype=torch.int64)
        files = ImageFiles(
            folder,
            PathTable(names),
            zeros,
            ("photograph",),
            torch.zeros(len(names), 2, dtype=torch.int32),
            zeros,
            Framing((224, 224), 256),
        )
        views = {name: build_view(recipe, MEAN, STD) for name, recipe in VIEWS.items()}
        steps = len(names) // BATCH

        def ours(wanted):
            loader = StreamingLoader(files, wanted, BATCH, 0, torch.device("cpu"), 1, options.workers)
            return (loader.load(0, step) for step in range(steps))

        def plain(wanted):
            return DataLoader(PlainFiles(folder, names, wanted), BATCH, num_workers=options.workers, drop_last=True)

        test = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])
        cases = {
            "three views": (lambda: ours(views), lambda: plain(torchvision_views())),
            "classifier view only": (
                lambda: ours({"classifier": views["classifier"]}),
                lambda: plain(torchvision_views()[:1]),
            ),
            "test image": (lambda: plain_frames(files, BATCH, options.workers), lambda: plain([test])),
        }
        rows = []
        for name, (make_ours, make_plain) in cases.items():
            best = [
                max(rate(make(), steps * BATCH) / options.workers for _ in range(options.repeats))
                for make in (make_ours, make_plain)
            ]
            rows.append({"what": name, "ours": best[0], "torchvision": best[1], "ratio": best[0] / best[1]})
            print(
                f"{name:<22} ours {best[0]:7.1f}   torchvision {best[1]:7.1f}   ratio {best[0] / best[1]:.2f}",
                flush=True,
            )
        size = np.mean([(folder / name).stat().st_size for name in names]) / 1000
    record = {
        "what": "images a second and worker process (one thread)",
        "files": f"{len(names)} JPEG files, {size:.0f} kB on average",
        "made": options.folder is None,
        "repeats": options.repeats,
        "workers": options.workers,
        "rows": rows,
        "processor": processor_name(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "pillow": Image.__version__,
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
