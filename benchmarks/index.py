"""Time and memory to index a folder of a million image files, first and second time.

    python benchmarks/index.py [--files 1000000] [--classes 1000] [--check sample] [--out benchmarks/results/index.json]

The tree is made of hard links to 64 small JPEG files (a file system takes about 65,000 links to one), so it costs no
space. Indexing is what `longtail train FOLDER --source.check sample` does before it trains: list, number the labels,
read the size of 2000 files, hold out a test set. (Without the option every file is decoded once too, which is cached;
--check full measures that, but these links are not like a million different files.) Each pass runs in a process of its
own, which reports its peak memory.
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


def make_tree(root: Path, files: int, classes: int) -> None:
    """Write ``files`` hard links, spread over ``classes`` folders with a long tail."""
    originals = root / ".originals"
    originals.mkdir()
    random = np.random.default_rng(0)
    for index in range(64):
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((500, 375)).save(originals / f"{index}.jpg", quality=30)
    shares = 0.01 ** np.linspace(0, 1, classes)
    counts = np.maximum(1, (shares / shares.sum() * files).astype(int))
    counts[0] += files - counts.sum()
    made = 0
    for number, count in enumerate(counts):
        folder = root / f"class_{number:05d}"
        folder.mkdir()
        for _ in range(count):
            os.link(originals / f"{made % 64}.jpg", folder / f"image_{made:07d}.jpg")
            made += 1


def index_once(root: Path, check: str, cache: Path) -> dict[str, float]:
    """Index ``root`` in this process."""
    from longtail.data.file_splits import FileChecks
    from longtail.data.sources import load_data
    from longtail.option_groups import DataOptions

    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    began = time.perf_counter()
    checks = FileChecks(workers=os.cpu_count() or 1, cache=cache)
    splits = load_data(str(root), source=DataOptions(check=check), checks=checks)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "images": len(splits.train) + len(splits.test),
        "seconds": round(seconds, 1),
        "peak_gib": round(peak, 2),
        "imports_gib": round(base, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--check", choices=["sample", "full"], default="sample")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/index.json"))
    parser.add_argument("--folder", type=Path, help="where the tree is made (default: the system's folder for such)")
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(index_once(options.once, options.check, options.cache)))
        return
    from longtail.training.run_folder import processor_name

    place = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        tree, cache = place / "tree", place / "cache"
        tree.mkdir()
        cache.mkdir()
        began = time.perf_counter()
        make_tree(tree, options.files, options.classes)
        print(f"tree of {options.files} files made in {time.perf_counter() - began:.0f} s", flush=True)
        rows = {}
        for name in ("first", "second"):
            words = [sys.executable, __file__, "--check", options.check, "--once", str(tree), "--cache", str(cache)]
            rows[name] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
            print(f"{name} time: {rows[name]}", flush=True)
    finally:
        shutil.rmtree(place)
    record = {"classes": options.classes, "check": options.check, **rows}
    record |= {"processor": processor_name(), "cores": os.cpu_count()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
