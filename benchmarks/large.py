"""A large network on photographs' size: images a second of GML's step, and what share of the processor's peak that is.

    python benchmarks/large.py [--device cuda] [--batch 128] [--precision bfloat16] [--peak 989] [--quick]

ResNeXt-50 32x4d at 224, frozen ResNeXt-101 32x8d teacher, three views of generated images, 1000 classes, queue 16384:
ImageNet-LT's recipe without its files. The networks' arithmetic is counted by torch's own counter on one step, the
rate of a large matrix product is measured in the same precision, and --peak is what the maker states for it (TFLOP/s).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from longtail.data import DataSplits, ImageSet
from longtail.data.counts import exponential_profile
from longtail.data.loading import Batch
from longtail.methods import MethodContext, Stage, get_method
from longtail.options import make_config
from longtail.training.capture import WARM_UP, CapturedStep, CudaRecorder, can_capture
from longtail.training.defaults import resolve
from longtail.training.optimisers import build_optimiser, set_rate
from longtail.training.step import TrainingStep
from measuring import RESULTS, in_turn, show, spread, write


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Return TFLOP/s of a large square product, best of the repeats."""
    square = torch.randn(size, size, device=device).to(dtype)
    taken = in_turn({"product": lambda: square @ square}, 7, device, warm_up=3)["product"]
    return 2 * size**3 / min(taken) / 1e12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--peak", type=float, help="TFLOP/s that the maker states for this precision, dense")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs; nothing is written")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    quick, device = options.quick, torch.device(options.device)
    side, batch = (32, 4) if quick else (224, options.batch)
    student, teacher = ("resnet18", "resnet18") if quick else ("resnext50_32x4d", "resnext101_32x8d")
    counts = torch.tensor(exponential_profile(20, 5, 10.0) if quick else exponential_profile(1280, 1000, 256.0))
    labels = torch.arange(len(counts)).repeat_interleave(counts)
    pixel = torch.randint(256, (1, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    train = ImageSet(pixel.expand(len(labels), -1, -1, -1), labels, tuple(map(str, range(len(counts)))))
    splits = DataSplits("noise", train, train, (0.5,) * 3, (0.25,) * 3, "imagenet")
    chosen = {"backbone": student, "teacher.backbone": teacher, "pretrained": "none", "batch_size": batch}
    chosen |= {"loss.distillation_weight": 0.0, "queue.capacity": 64 if quick else 16384, "data": "noise"}
    chosen |= {"queue.projection_dim": 16 if quick else 1024, "device": str(device), "precision": options.precision}
    config = resolve(make_config(chosen), splits)[0]
    torch.manual_seed(0)

    def build(name: str, backbone: str, previous=None):
        context = MethodContext(config, Stage("student", name, backbone, 1), train, splits.mean, splits.std, previous)
        return get_method(name).build(context)

    method = build("gml", student, build("logit_adjustment", teacher).classifier())
    method.queue.features.copy_(torch.randn(method.queue.features.shape))
    method.queue.filled.fill_(True)
    method = method.to(device).to(memory_format=torch.channels_last).train()
    optimiser = build_optimiser(method.param_groups(), config.optimiser, device)
    set_rate(optimiser, 1e-3)
    step = TrainingStep(method, optimiser, None, device, bfloat16=options.precision == "bfloat16")
    views = {
        name: torch.randn(batch, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
        for name in method.views
    }
    ids = torch.arange(batch, device=device)
    data = Batch(views, labels.to(device)[ids], ids)
    with FlopCounterMode(display=False) as counter:
        step(data, 0.0)
    operations = counter.get_total_flops()
    runs = {"eager": lambda: step(data, 0.0)}
    if can_capture(device):
        recorded = CapturedStep(
            TrainingStep(method, optimiser, None, device, bfloat16=options.precision == "bfloat16"),
            CudaRecorder(device),
            print,
        )
        runs["recorded"] = lambda: recorded(data, 0.0)
    taken = in_turn(runs, 3 if quick else options.repeats, device, warm_up=WARM_UP + 2)
    rate = matrix_rate(device, getattr(torch, options.precision), 512 if quick or device.type == "cpu" else 8192)
    rows = {}
    for name, values in taken.items():
        milliseconds = spread([1000 * value for value in values])
        reached = operations / milliseconds["median"] / 1e9
        rows[name] = {
            "milliseconds": milliseconds,
            "images_a_second": 1000 * batch / milliseconds["median"],
            "teraflops": reached,
            "share_of_matrix_rate": reached / rate,
            "share_of_stated_peak": reached / options.peak if options.peak else None,
        }
        print(
            f"{name:9} {show(milliseconds)} ms   {rows[name]['images_a_second']:.0f} images/s   {reached:.2f} TFLOP/s, "
            f"{100 * reached / rate:.0f} % of a matrix product's {rate:.2f}"
        )
    if not quick:
        what = f"GML's step, {student} at {side}, batch {batch}, {options.precision}; queue 16384, 1000 classes"
        out = options.out or RESULTS / f"large-{device.type}.json"
        facts = {"repeats": options.repeats, "seed": 0, "operations_a_step": operations, "matrix_teraflops": rate}
        write(out, what, device, rows, stated_peak=options.peak, **facts)


if __name__ == "__main__":
    main()
