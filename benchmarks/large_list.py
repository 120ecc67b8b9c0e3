"""Time and memory to index a split list of five million lines and a hundred thousand classes, first and second time.

    python benchmarks/large_list.py [--lines 5000000] [--classes 100000] [--out benchmarks/results/large_list.json]

The list has lines `class_00042/image_0000007.jpg 42` in a random order, with a long tail of classes. Its folders are
links to one folder of as many hard links to 64 small JPEG files as the largest class has images, so every path can be
opened and the tree costs no space. Indexing is what `longtail train LIST --source.check sample` does before it trains:
read the list, number the classes, count, look at 2000 to 4000 files, hold out a test set. Each pass runs in a process
of its own, which reports its peak memory and the time on a core (imports included), which other programs disturb less;
the second finds in the cache what the first has kept. `least_gib` is what the result itself needs: the paths' bytes and
one position, label, size and hash an image.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

IMBALANCE = 1000.0


def make_list(place: Path, lines: int, classes: int) -> Path:
    """Write the files, the folders' links and the list; return the list."""
    originals, shared = place / "originals", place / "shared"
    originals.mkdir()
    shared.mkdir()
    random = np.random.default_rng(0)
    shares = IMBALANCE ** -np.linspace(0, 1, classes)
    counts = np.maximum(1, (shares / shares.sum() * lines).astype(np.int64))
    counts[0] += lines - counts.sum()
    for index in range(64):
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((500, 375)).save(originals / f"{index}.jpg", quality=30)
    for index in range(int(counts.max())):
        os.link(originals / f"{index % 64}.jpg", shared / f"image_{index:07d}.jpg")
    for number in range(classes):
        os.symlink(shared, place / f"class_{number:05d}")
    labels = np.repeat(np.arange(classes), counts)
    within = np.arange(lines) - np.repeat(counts.cumsum() - counts, counts)
    with open(place / "all.txt", "w", encoding="utf-8") as file:
        for part in np.array_split(random.permutation(lines), max(1, lines // 100_000)):
            pairs = zip(labels[part].tolist(), within[part].tolist(), strict=True)
            file.writelines(f"class_{label:05d}/image_{image:07d}.jpg {label}\n" for label, image in pairs)
    return place / "all.txt"


def index_once(file: Path, cache: Path) -> dict[str, float]:
    """Index the list in this process."""
    from longtail.data.file_splits import FileChecks
    from longtail.data.sources import load_data
    from longtail.option_groups import DataOptions

    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    began = time.perf_counter()
    checks = FileChecks(workers=os.cpu_count() or 1, cache=cache)
    splits = load_data(str(file), source=DataOptions(check="sample"), checks=checks)
    seconds = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_SELF)
    peak = used.ru_maxrss / 2**20
    counts = splits.train.class_counts + splits.test.class_counts
    return {
        "images": len(splits.train) + len(splits.test),
        "classes": splits.train.num_classes,
        "largest_class": int(counts.max()),
        "smallest_class": int(counts.min()),
        "seconds": round(seconds, 1),
        "core_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_gib": round(peak, 2),
        "imports_gib": round(base, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=5_000_000)
    parser.add_argument("--classes", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/large_list.json"))
    parser.add_argument("--folder", type=Path, help="where the tree is made (default: the system's folder for such)")
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(index_once(options.once, options.cache)))
        return
    from longtail.training.run_folder import processor_name

    place = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        tree, cache = place / "tree", place / "cache"
        tree.mkdir()
        cache.mkdir()
        began = time.perf_counter()
        file = make_list(tree, options.lines, options.classes)
        size = file.stat().st_size
        print(f"list of {options.lines} lines made in {time.perf_counter() - began:.0f} s", flush=True)
        rows = {}
        for name in ("first", "second"):
            words = [sys.executable, __file__, "--once", str(file), "--cache", str(cache)]
            rows[name] = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
            print(f"{name} time: {rows[name]}", flush=True)
        kept = sum(entry.stat().st_size for entry in cache.iterdir()) / 2**20
    finally:
        shutil.rmtree(place)
    least = (size + options.lines * (8 + 8 + 8 + 8)) / 2**30
    record = {"lines": options.lines, "list_mib": round(size / 2**20, 1), "least_gib": round(least, 2)}
    record |= {"cache_mib": round(kept, 1), **rows, "processor": processor_name(), "cores": os.cpu_count()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
