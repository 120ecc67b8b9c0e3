"""Images a second of `longtail predict` against a plain loop of Pillow and the model, from the same files.

    .venv/bin/python benchmarks/predict.py --run runs/photos/gml --folder .data/photos-lt/test
    .venv/bin/python benchmarks/predict.py                    # a model with random weights, made JPEG files of 500x375

The plain loop is what one writes by hand: open, convert, resize, crop, one batch after the other through the same
classifier in the same process. Both are timed as a whole, decoding, model and table, the best of --repeats in turn;
labels must agree. The start of Python and reading the model are left out of both.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image

from longtail.data.image_set import Framing
from longtail.deployment.predict import predict
from longtail.models import Classifier, build_classifier
from longtail.training.run_folder import processor_name
from stream import make_photographs

BATCH = 64


def random_classifier() -> Classifier:
    """Return a ResNet for 64-pixel images, 25 classes."""
    torch.manual_seed(0)
    spec = {"encoder": "cifar_resnet32", "in_channels": 3, "head": "cosine"}
    names, prior = [str(k) for k in range(25)], torch.full((25,), 1 / 25)
    return build_classifier(spec, names, torch.ones(25), prior, [0.5] * 3, [0.25] * 3, Framing((64, 64), 64))


def plain_loop(classifier: Classifier, files: list[Path], out: Path) -> None:
    """Open, resize, crop and classify one batch after the other, as one writes it by hand."""
    framing = classifier.framing
    height, width = framing.size
    resample = Image.Resampling.BICUBIC if framing.interpolation == "bicubic" else Image.Resampling.BILINEAR
    with open(out, "w", newline="") as text:
        table = csv.writer(text)
        table.writerow(["file", "label", "probability"])
        for start in range(0, len(files), BATCH):
            part, frames = files[start : start + BATCH], []
            for file in part:
                image = Image.open(file).convert("RGB")
                scale = framing.resize / min(image.size)
                image = image.resize((round(image.width * scale), round(image.height * scale)), resample)
                left, top = round((image.width - width) / 2), round((image.height - height) / 2)
                frames.append(np.asarray(image.crop((left, top, left + width, top + height))))
            probability, label = classifier.predict(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)).max(1)
            names = [classifier.class_names[k] for k in label.tolist()]
            table.writerows(zip(part, names, probability.tolist(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run; default: random weights")
    parser.add_argument("--folder", type=Path, help="photographs; default: made ones")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, help="default: as the command chooses")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "predict.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        made = Path(place) / "made"
        if options.folder:
            files = sorted(p for p in options.folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        else:
            made.mkdir()
            files = [made / name for name in make_photographs(made, options.images)]
        run = options.run or Path(place) / "run"
        if options.run is None:
            random_classifier().save(run)
        classifier = Classifier.load(run)
        ours, theirs = Path(place) / "ours.csv", Path(place) / "plain.csv"
        best = {"predict": np.inf, "plain loop": np.inf}
        for _ in range(options.repeats):
            began = time.perf_counter()
            predict(run, files, out=ours, overwrite=True, quiet=True, workers=options.workers, batch_size=BATCH)
            best["predict"] = min(best["predict"], time.perf_counter() - began)
            began = time.perf_counter()
            plain_loop(classifier, files, theirs)
            best["plain loop"] = min(best["plain loop"], time.perf_counter() - began)
        labels = [[row["label"] for row in csv.DictReader(path.read_text().splitlines())] for path in (ours, theirs)]
        agree = float(np.mean([one == other for one, other in zip(*labels, strict=True)]))
        with Image.open(files[0]) as first:
            size = first.size
    rates = {name: len(files) / seconds for name, seconds in best.items()}
    ratio = rates["predict"] / rates["plain loop"]
    for name, rate in rates.items():
        print(f"{name:<12} {rate:8.1f} images a second")
    print(f"ratio {ratio:.2f}; the same label for {100 * agree:.1f} % of {len(files)} files of {size[0]}x{size[1]}")
    record = {
        "what": "images a second, decoding, model and table; best of the repeats",
        "files": f"{len(files)} files, the first of {size[0]}x{size[1]}",
        "made": options.folder is None,
        "encoder": classifier.spec["encoder"],
        "image_size": list(classifier.image_size),
        "repeats": options.repeats,
        "workers": options.workers,
        "threads": torch.get_num_threads(),
        "images_a_second": rates,
        "ratio": ratio,
        "same_label": agree,
        "processor": processor_name(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "pillow": PIL.__version__},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
