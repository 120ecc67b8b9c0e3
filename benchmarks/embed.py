"""`longtail embed` against the bare forward pass of its encoder on images that are ready.

    .venv/bin/python benchmarks/embed.py                                # ResNet-50 at 224 on made JPEG files of 500x375
    .venv/bin/python benchmarks/embed.py --backbone resnet18 --images 512

The bare pass sees the same images, decoded, resized and normalised beforehand, in the same batches, in inference mode
and channels last; it is all that no program can do without. `embed` is timed as a whole but for what happens once
(reading weights and the check of every file, which is kept): decoding beside the encoder, shards, digests, the file at
the end. Both in turn, the median of the ratios.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch

from longtail.data.image_set import Framing
from longtail.data.readable import readable_frames
from longtail.deployment import embed as module
from longtail.models import build_encoder, encoder_defaults
from longtail.training.run_folder import processor_name
from stream import make_photographs

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, help="default: as the command chooses")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "embed.json")
    options = parser.parse_args()
    usual = encoder_defaults(options.backbone)
    assert usual is not None
    framing = Framing(usual.image_size, usual.resize, usual.interpolation)
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "photos"
        for part, name, count in (("train", "a", options.images - 4), ("train", "b", 2), ("test", "a", 2)):
            (folder / part / name).mkdir(parents=True)
            make_photographs(folder / part / name, count)
        files = sorted(folder.rglob("*.jpg"))
        frames = torch.cat([pixels for pixels, _ in readable_frames([str(f) for f in files], framing, BATCH, 2)])
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (usual.mean, usual.std))
        torch.manual_seed(0)
        encoder = build_encoder(options.backbone, 3, framing.size).eval().to(device)
        encoder = encoder.to(memory_format=torch.channels_last)
        ready = [
            ((part.float() / 255 - mean) / std).to(device, memory_format=torch.channels_last)
            for part in torch.split(frames, BATCH)
        ]

        def bare() -> float:
            start = time.perf_counter()
            with torch.inference_mode():
                for images in ready:
                    encoder(images).cpu()
            return time.perf_counter() - start

        def embed(turn: int) -> float:
            began = []
            real = module.FeatureStore

            class Timed(real):  # type: ignore[misc, valid-type]
                """The store, which is made when all that happens once is done."""

                def __init__(self, *args: object) -> None:
                    super().__init__(*args)
                    began.append(time.perf_counter())

            module.FeatureStore = Timed  # type: ignore[misc]
            try:
                module.embed(
                    folder,
                    out=Path(place) / f"{turn}.safetensors",
                    backbone=options.backbone,
                    pretrained="none",
                    batch_size=BATCH,
                    device=options.device,
                    quiet=True,
                    **({} if options.workers is None else {"loading": {"workers": options.workers}}),
                )
            finally:
                module.FeatureStore = real  # type: ignore[misc]
            return time.perf_counter() - began[0]

        bare()
        turns = [(bare(), embed(turn)) for turn in range(options.repeats)]
    ratio = statistics.median(whole / alone for alone, whole in turns)
    record = {
        "backbone": options.backbone,
        "images": len(files),
        "repeats": options.repeats,
        "bare_images_a_second": round(len(files) / statistics.median(alone for alone, _ in turns), 2),
        "embed_images_a_second": round(len(files) / statistics.median(whole for _, whole in turns), 2),
        "times_the_bare_pass": round(ratio, 3),
        "hardware": {"processor": processor_name(), "threads": torch.get_num_threads(), "device": options.device},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    print(json.dumps(record, indent=2))
    options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
