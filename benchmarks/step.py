"""A training step of GML: ours against the textbook way, at each precision, and where our time goes.

    python benchmarks/step.py [--device cuda] [--batch 128] [--repeats 5] [--quick] [--out FILE]

CIFAR-100-LT's recipe on noise of its size: ResNet-32 student, frozen ResNet-56 teacher, queue 4096, distillation,
learned temperature; the batch of three views lies ready on the device. Contestants take turns. First our step in
float32 is compared with plain arithmetic in float64; on a device that can record steps, the recorded one with the
plain one. The exit code is 1 if one is off.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longtail.config import TrainConfig, replace_options
from longtail.data import DataSplits, ImageSet
from longtail.data.counts import exponential_profile
from longtail.data.loading import Batch
from longtail.methods import MethodContext, Stage, get_method
from longtail.models import build_encoder
from longtail.options import make_config
from longtail.training.capture import WARM_UP, CapturedStep, CudaRecorder, can_capture
from longtail.training.defaults import resolve
from longtail.training.optimisers import build_optimiser, set_rate
from longtail.training.step import TrainingStep
from measuring import RESULTS, in_turn, limits, ratios, show, spread, write
from reference import PlainGML, plain_optimiser

TOLERANCE = 1e-4  # on the loss, relative


class Problem:
    """A method on noise with CIFAR-100-LT's class counts, and one batch of its views."""

    def __init__(self, batch: int, device: torch.device, quick: bool, method: str = "gml", **changes: Any) -> None:
        self.device = device
        counts = torch.tensor(exponential_profile(20, 5, 100.0) if quick else exponential_profile(500, 100, 100.0))
        labels = torch.arange(len(counts)).repeat_interleave(counts)
        generator = torch.Generator().manual_seed(0)
        pixel = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8, generator=generator)
        names = tuple(f"class {c}" for c in range(len(counts)))
        train = ImageSet(pixel.expand(len(labels), -1, -1, -1), labels, names)
        splits = DataSplits("noise", train, train, (0.5,) * 3, (0.25,) * 3, "cifar")
        options = {"data": "noise", "method": method, "batch_size": batch, "device": str(device), **changes}
        options |= {"queue.capacity": 4096 if not quick else 256}
        self.config: TrainConfig = replace_options(resolve(make_config(options), splits)[0], {"out": "unused"})
        self.counts, self.splits = counts, splits
        chosen = torch.randperm(len(labels), generator=generator)[:batch]
        self.ids, self.labels = chosen.to(device), labels[chosen].to(device)
        self.pixels = [torch.randn(batch, 3, 32, 32, generator=generator).to(device) for _ in range(3)]

    def batch(self, layout: torch.memory_format = torch.channels_last) -> Batch:
        """Return the batch with its three views."""
        names = ("classifier", "query", "key")
        views = {n: p.contiguous(memory_format=layout) for n, p in zip(names, self.pixels, strict=True)}
        return Batch(views, self.labels, self.ids)

    def method(self) -> nn.Module:
        """Return the method with random networks and a queue full of random features."""
        torch.manual_seed(0)
        splits, config = self.splits, self.config

        def make(name: str, backbone: str, previous: Any = None) -> Any:
            context = MethodContext(
                config, Stage("student", name, backbone, 1), splits.train, splits.mean, splits.std, previous
            )
            return get_method(name).build(context)

        if config.method != "gml":
            return make(config.method, str(config.backbone)).to(self.device).to(memory_format=torch.channels_last)
        teacher = make("logit_adjustment", str(config.teacher.backbone)).classifier()
        method = make("gml", str(config.backbone), teacher)
        queue = method.queue
        queue.features.copy_(torch.randn(queue.features.shape, generator=torch.Generator().manual_seed(1)))
        queue.ids.copy_(torch.arange(len(queue.ids)) + len(splits.train))
        queue.filled.fill_(True)
        return method.to(self.device).to(memory_format=torch.channels_last).train()

    def step(self, bfloat16: bool = False, method: nn.Module | None = None) -> TrainingStep:
        """Return our step at a small rate."""
        method = self.method() if method is None else method
        optimiser = build_optimiser(method.param_groups(), self.config.optimiser, self.device)
        set_rate(optimiser, 1e-3)
        return TrainingStep(method, optimiser, None, self.device, bfloat16=bfloat16)


def plain_step(problem: Problem, quick: bool) -> Callable[[], object]:
    """Return a step of the textbook implementation, its loss read as such loops do."""
    torch.manual_seed(0)
    backbones = {"student": str(problem.config.backbone), "teacher": str(problem.config.teacher.backbone)}
    queue = problem.config.queue
    plain = PlainGML(problem.counts, int(queue.capacity or 0), width=int(queue.projection_dim or 0), **backbones)
    plain = plain.to(problem.device).train()
    plain.teacher.eval()
    optimiser = plain_optimiser(plain)
    batch = problem.batch(torch.contiguous_format)

    def step() -> float:
        optimiser.zero_grad()
        loss = plain(*batch.views.values(), batch.labels, batch.ids)
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def check(problem: Problem) -> float:
    """Return how far the losses of our step in float32 are from float64, relative, the largest of all terms."""
    method = problem.method()
    wide = copy.deepcopy(method).double()
    batch, worst = problem.batch(), 0.0
    doubled = Batch({n: v.double() for n, v in batch.views.items()}, batch.labels, batch.ids)
    with torch.no_grad():
        method.update_memory(batch)
        wide.update_memory(doubled)
        for name, value in method(batch, 0.0).items():
            wanted = float(wide(doubled, 0.0)[name])
            worst = max(worst, abs(float(value) - wanted) / max(1.0, abs(wanted)))
    return worst


def check_captured(problem: Problem) -> float:
    """Return how far weights are apart after the same steps, recorded and not, relative to how far they moved."""
    method = problem.method()
    start = [p.detach().clone() for p in method.parameters() if p.requires_grad]
    twin = copy.deepcopy(method)
    plain, captured = problem.step(method=method), problem.step(method=twin)
    recorded = CapturedStep(captured, CudaRecorder(problem.device), print)
    for _ in range(WARM_UP + 3):
        plain(problem.batch(), 0.0)
        recorded(problem.batch(), 0.0)
    ends = ([p for p in m.parameters() if p.requires_grad] for m in (method, twin))
    apart = moved = 0.0
    for first, one, other in zip(start, *ends, strict=True):
        apart += float((one - other).detach().double().square().sum())
        moved += float((one - first).detach().double().square().sum())
    return (apart / moved) ** 0.5


def parts(problem: Problem, bfloat16: bool) -> dict[str, Callable[[], object]]:
    """Return the pieces of our step, to see where its time goes; together they do a little more than the step."""
    method = problem.method()
    step = problem.step(bfloat16, method)
    batch = problem.batch()

    def network() -> None:
        with step.autocast():
            features = method.encoder(torch.cat([batch.views["classifier"], batch.views["query"]]))
        features.float().sum().backward()

    queries = torch.randn(len(batch.labels), int(problem.config.queue.projection_dim or 0), device=problem.device)
    queries = nn.functional.normalize(queries).requires_grad_()

    def contrast() -> None:
        with step.autocast():
            keys = method.key_projection(method.queue.features)
        loss = method.contrast_loss(
            queries,
            batch.labels,
            keys,
            method.queue.offsets,
            query_ids=batch.ids,
            key_ids=method.queue.ids,
            key_mask=method.queue.filled,
        )
        loss.backward()

    def teacher() -> None:
        with step.autocast():
            method.teacher.features(batch.views["key"])
            method.teacher.logits(batch.views["classifier"])

    return {"student's network": network, "teacher, two views": teacher, "queue's projection and L_GML": contrast}


def network_cases(problem: Problem, batch: int) -> dict[str, Callable[[], object]]:
    """Return forward and backward of the student alone, in each memory layout and precision."""
    cases = {}
    for layout_name, layout in (("NCHW", torch.contiguous_format), ("channels last", torch.channels_last)):
        torch.manual_seed(0)
        network = build_encoder(str(problem.config.backbone), 3).to(problem.device).to(memory_format=layout)
        pixels: Tensor = problem.pixels[0].contiguous(memory_format=layout)
        for precision in ("float32", "bfloat16"):

            def run(network: nn.Module = network, pixels: Tensor = pixels, low: bool = precision != "float32") -> None:
                with torch.autocast(problem.device.type, dtype=torch.bfloat16, enabled=low):
                    features = network(pixels)
                features.float().square().sum().backward()

            cases[f"{precision}, {layout_name}"] = run
    return cases


def report(title: str, taken: dict[str, list[float]], base: str | None) -> dict[str, Any]:
    """Print milliseconds, and how many times faster than ``base``, and return them."""
    print(title)
    rows: dict[str, Any] = {}
    for name, values in taken.items():
        rows[name] = {"milliseconds": spread([1000 * value for value in values])}
        line = f"  {name:34} {show(rows[name]['milliseconds'])} ms"
        if base is not None and name != base:
            rows[name]["times_faster"] = ratios(taken[base], values)
            line += f"   x {show(rows[name]['times_faster'], 2)}"
        print(line)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--quick", action="store_true", help="a small problem, to see that it runs; nothing is written")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    small = {"backbone": "small_net", "teacher.backbone": "small_net"} if options.quick else {}
    problem = Problem(16 if options.quick else options.batch, device, options.quick, **small)
    errors = {"float32 against float64": check(problem)}
    if can_capture(device):
        errors["recorded against plain"] = check_captured(problem)
    for name, error in errors.items():
        print(f"{name}: {error:.1e}")

    steps: dict[str, Callable[[], object]] = {"textbook": plain_step(problem, options.quick)}
    batch = problem.batch()
    for name, low in (("ours, float32", False), ("ours, bfloat16", True)):
        step = problem.step(low)

        def run(step: TrainingStep = step) -> None:
            step(batch, 0.0)

        steps[name] = run
        if can_capture(device):
            recorded = CapturedStep(problem.step(low), CudaRecorder(device), print)

            def replay(recorded: CapturedStep = recorded) -> None:
                recorded(batch, 0.0)

            steps[f"{name}, recorded"] = replay
    warm_up = WARM_UP + 2 if can_capture(device) else 1
    repeats = 3 if options.quick else options.repeats
    rows = {
        "step": report("a step", in_turn(steps, repeats, device, warm_up), "textbook"),
        "network": report(
            "the student's network alone, forward and backward of one view",
            in_turn(network_cases(problem, options.batch), repeats, device),
            "float32, NCHW",
        ),
        "parts": report("parts of our step, float32", in_turn(parts(problem, False), repeats, device), None),
    }
    if not options.quick:
        what = f"one step of GML, CIFAR-100-LT's recipe, batch {options.batch}, 32x32x3; milliseconds"
        out = options.out or RESULTS / f"step-{device.type}.json"
        write(out, what, device, rows, repeats=repeats, seed=0, errors=errors, limits=limits(device))
    return int(max(errors.values()) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
