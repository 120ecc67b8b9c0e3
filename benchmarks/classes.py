"""Time and memory of what grows with the number of classes: linear in it, without a C x C matrix anywhere.

    python benchmarks/classes.py [--images 1024] [--repeats 5] [--classes 1000 8142 100000] [--out FILE]

Each job is timed at every number of classes, in turn. `growth` is its time at the most classes over that at the
fewest, divided by the ratio of classes: 1 is linear, less is better (costs that do not grow), and a C x C matrix or a
loop over classes times images would show as up to 100. Memory is the highest beside what was there before, pages of
files left out. `evaluation` is all of it from batches of logits on: kept (beyond 1 GiB in a file), one pass over them,
every figure, a row a class; the images are few for 100,000 classes, its time grows with them. Bytes of its logits stand
beside the memory that it took.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from longtail.deployment.priors import read_prior, write_prior
from longtail.losses import LogitAdjustedCrossEntropy
from longtail.memory import ClassQueue
from longtail.metrics import bootstrap_intervals, class_hits, conformal_thresholds, rare_together
from longtail.metrics.at_prior import accuracy_at_prior
from longtail.metrics.paired import paired_by_image
from longtail.metrics.per_image import summarise_logits
from longtail.metrics.summary import class_rows, figures_of
from longtail.training.logit_store import logit_store
from measuring import RESULTS, show, spread, write

BATCH, WIDTH = 64, 64
TESTED = 25_000
"""Test images of the jobs that need no logits."""


class Peak:
    """The most memory that this process held of its own while the block ran, beside what it held before, in MiB."""

    def __enter__(self) -> Peak:
        self.before = self.highest = held()
        self.done = threading.Event()
        self.watch = threading.Thread(target=self._look)
        self.watch.start()
        return self

    def _look(self) -> None:
        while not self.done.wait(0.002):
            self.highest = max(self.highest, held())

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.watch.join()
        self.mib = (max(self.highest, held()) - self.before) / 2**20


def held() -> int:
    """Return the bytes of this process's own memory (pages of files give way, and do not count)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def jobs(classes: int, images: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Return everything that is timed, for this many classes."""
    generator = torch.Generator().manual_seed(0)
    counts = (1000 * torch.arange(1, classes + 1).double() ** -0.7).long().clamp(min=1)
    prior = counts.double() / counts.sum()
    labels = torch.randint(classes, (TESTED,), generator=generator)
    guesses = [torch.randint(classes, (TESTED,), generator=generator) for _ in range(2)]
    kept = [torch.rand(TESTED, generator=generator) < 0.5 for _ in range(2)]
    first, second = (torch.where(keep, labels, guess) for keep, guess in zip(kept, guesses, strict=True))
    scores = torch.rand(TESTED, generator=generator).double()
    correct, total = class_hits(first, labels, classes)
    names = [f"class {index}" for index in range(classes)]
    part = torch.randn(BATCH, classes, generator=generator)
    truth = torch.randint(classes, (images,), generator=generator)
    capacity = 2 * classes
    queue = ClassQueue(counts, capacity, WIDTH)
    batch = torch.randn(256, WIDTH, generator=generator)
    theirs = torch.randint(classes, (256,), generator=generator)
    everyone = torch.arange(classes).repeat(3)
    loss = LogitAdjustedCrossEntropy(counts)
    table = folder / f"prior-{classes}.csv"

    def evaluation() -> object:
        store = logit_store(images, classes, folder)

        def batches():
            for start in range(0, images, BATCH):
                store[start : start + BATCH] = part[: images - start]
                yield store[start : start + BATCH]

        seen = summarise_logits(batches(), truth, prior)
        return figures_of(seen, counts), class_rows(seen, counts, names)

    def prior_table() -> object:
        write_prior(table, names, prior)
        return read_prior(table, names)

    return {
        "evaluation": evaluation,
        "bootstrap intervals": lambda: bootstrap_intervals(correct, total, counts),
        "paired difference": lambda: paired_by_image(first == labels, second == labels, labels, counts),
        "accuracy at a prior": lambda: accuracy_at_prior(correct, total, prior),
        "shortlist thresholds": lambda: conformal_thresholds(
            scores, labels, classes, 0.9, rare_together(torch.bincount(labels, minlength=classes), 0.9)
        ),
        "logit-adjusted loss": lambda: loss(part, labels[:BATCH]),
        "prior as a table": prior_table,
        "queue, made": lambda: ClassQueue(counts, capacity, WIDTH),
        "queue, plan to fill": lambda: queue.prime_plan(everyone),
        "queue, 256 more": lambda: queue.enqueue(batch, theirs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024, help="images whose logits are evaluated (default 1024)")
    parser.add_argument("--classes", type=int, nargs="+", default=[1000, 8142, 100_000])
    parser.add_argument("--repeats", type=int, default=5, help="timed turns, at least 5 (default 5)")
    parser.add_argument("--out", type=Path, default=RESULTS / "classes.json")
    options = parser.parse_args()
    if options.repeats < 5:
        parser.error("--repeats must be at least 5")
    torch.set_num_threads(1)
    sizes = sorted(options.classes)
    rows = []
    with tempfile.TemporaryDirectory(dir=options.out.resolve().parent) as place:
        work = {size: jobs(size, options.images, Path(place)) for size in sizes}
        for name in work[sizes[0]]:
            taken: dict[int, list[float]] = {size: [] for size in sizes}
            memory: dict[int, float] = {}
            for turn in range(-1, options.repeats):
                for size in sizes:
                    with Peak() as peak:
                        began = time.perf_counter()
                        work[size][name]()
                        spent = time.perf_counter() - began
                    if turn < 0:
                        memory[size] = peak.mib  # of the first run: later ones find memory that was not given back
                    else:
                        taken[size].append(1000 * spent)
            times = {size: spread(milliseconds) for size, milliseconds in taken.items()}
            least, most = (statistics.median(taken[size]) for size in (sizes[0], sizes[-1]))
            growth = most / least / (sizes[-1] / sizes[0])
            row = {"what": name, "growth": growth}
            row["at"] = {str(size): {"milliseconds": times[size], "peak_mib": memory[size]} for size in sizes}
            if name == "evaluation":
                row["logits_mib"] = {str(size): 4 * options.images * size / 2**20 for size in sizes}
            rows.append(row)
            cells = "   ".join(f"{size}: {show(times[size])} ms, {memory[size]:.0f} MiB" for size in sizes)
            print(f"{name:<22} growth {growth:5.2f}   {cells}", flush=True)
    what = "milliseconds and memory by the number of classes"
    write(
        options.out,
        what,
        torch.device("cpu"),
        rows,
        images=options.images,
        tested=TESTED,
        batch=BATCH,
        queue_width=WIDTH,
        repeats=options.repeats,
        threads=1,
        seed=0,
    )


if __name__ == "__main__":
    main()
