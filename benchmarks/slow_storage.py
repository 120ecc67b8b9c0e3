"""Images a second from storage that answers late, by workers and by files asked for at once, against the bounds.

    python benchmarks/slow_storage.py [--images 256] [--seconds 4] [--out benchmarks/results/slow_storage.json]

Every file is given late on purpose, by a sleep before its bytes are read, in the processes that decode. Three bounds
hold, and the least of them is what can be had: *latency*, workers x files asked for at once / latency; *compute*, the
cores in use / the time that one core takes for an image (measured in the same run without latency); *training*, the
batch / the time of a step, where a training is pretended by a sleep. First table: constant latency, no training, files
asked for one by one and together (as is done by itself where storage is slow, longtail.data.slow_reads). Second: a
training of a given pace, and one read in 200 that takes half a second: how much of its time the training waits, by
batches prepared ahead (--loading.prefetch).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

import torch

from longtail.data import Framing, ImageFiles, build_view, decode, slow_reads, streaming
from longtail.data.path_table import PathTable
from longtail.data.streaming_loader import StreamingLoader
from measuring import RESULTS, write
from stream import MEAN, STD, make_photographs

BATCH = 32
STALL_EVERY, STALL = 200, 0.5  # reads, seconds
_READ = decode._bytes_of


class Late:
    """The reader of bytes, with a sleep before each read, and a longer one before every so manieth of a process."""

    def __init__(self, latency: float, stall_every: int = 0) -> None:
        self.latency, self.stall_every = latency, stall_every
        self._count, self._lock = 0, threading.Lock()

    def __call__(self, path: str) -> object:
        """Return the opened file, late."""
        with self._lock:
            self._count += 1
            stalls = self.stall_every and self._count % self.stall_every == 0
        if self.latency or stalls:
            time.sleep(STALL if stalls else self.latency)
        return _READ(path)


def rate(files: ImageFiles, workers: int, prefetch: int, seconds: float, step: float = 0.0) -> tuple[float, float]:
    """Return images a second and the share of time that the training waits, the first two batches not counted."""
    views = {"classifier": build_view("photo", MEAN, STD)}
    loader = StreamingLoader(files, views, BATCH, 0, torch.device("cpu"), 10_000, workers, prefetch)
    places = ((epoch, number) for epoch in range(10_000) for number in range(loader.steps_per_epoch))
    began = waited = 0.0
    steps = -2
    for epoch, number in places:
        before = time.perf_counter()
        loader.load(epoch, number)
        now = time.perf_counter()
        if steps == 0:
            began = before
        if steps >= 0:
            waited += now - before
        steps += 1
        if step:
            time.sleep(step)
        if steps >= 4 and time.perf_counter() - began > seconds:
            break
    taken = time.perf_counter() - began
    loader.close()
    return steps * BATCH / taken, waited / taken


def core_seconds(files: ImageFiles) -> float:
    """Return the seconds of one core that an image takes, from bytes to an augmented view."""
    views = {"classifier": build_view("photo", MEAN, STD)}
    loader = StreamingLoader(files, views, BATCH, 0, torch.device("cpu"), 2, 0)
    loader.load(0, 0)
    began = time.process_time()
    for number in range(1, loader.steps_per_epoch):
        loader.load(0, number)
    return (time.process_time() - began) / (BATCH * (loader.steps_per_epoch - 1))


def one_by_one(self: slow_reads.SlowReads, read: object, items: object) -> list:
    """Stand for :meth:`longtail.data.slow_reads.SlowReads.all` where nothing is asked for at once."""
    return [read(item) for item in items]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=4.0, help="measured time of each row")
    parser.add_argument("--latencies", type=float, nargs="+", default=[0, 10, 50], help="milliseconds")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--prefetch", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--out", type=Path, default=RESULTS / "slow_storage.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cores, together = os.cpu_count() or 1, slow_reads.SlowReads.all
    with tempfile.TemporaryDirectory() as made:
        names = make_photographs(Path(made), options.images)
        zeros = torch.zeros(len(names), dtype=torch.int64)
        sizes = torch.zeros(len(names), 2, dtype=torch.int32)
        files = ImageFiles(Path(made), PathTable(names), zeros, ("photo",), sizes, zeros, Framing((224, 224), 256))
        cost = core_seconds(files)
        print(f"an image takes {1000 * cost:.1f} ms of a core")
        rows = []
        for latency in options.latencies:
            decode._bytes_of = Late(latency / 1000)
            for workers in options.workers:
                row = {"latency_ms": latency, "workers": workers, "compute_bound": min(workers, cores) / cost}
                for name, at_once, how in (("one by one", 1, one_by_one), ("together", slow_reads.AT_ONCE, together)):
                    slow_reads.SlowReads.all, streaming._READS.slow = how, False
                    measured, _ = rate(files, workers, 4, options.seconds)
                    if at_once == 1:  # reading and decoding take turns
                        bound = min(workers / (latency / 1000 + cost), cores / cost)
                    else:
                        waiting = workers * at_once / (latency / 1000) if latency else float("inf")
                        bound = min(waiting, row["compute_bound"])
                    row[name] = {"images_a_second": measured, "bound": bound, "share_of_bound": measured / bound}
                rows.append(row)
                shown = ", ".join(
                    f"{name} {row[name]['images_a_second']:.0f} of {row[name]['bound']:.0f}"
                    for name in ("one by one", "together")
                )
                print(f"latency {latency:g} ms, {workers} workers: {shown} images/s", flush=True)
        decode._bytes_of = Late(0, STALL_EVERY)
        slow_reads.SlowReads.all = together
        workers = min(2, cores)
        step = 2 * BATCH * cost / workers  # a training half as fast as the decoding
        stalls = []
        for prefetch in options.prefetch:
            measured, waits = rate(files, workers, prefetch, 3 * options.seconds, step)
            stalls.append({"prefetch": prefetch, "images_a_second": measured, "share_waited": waits})
            stalls[-1] |= {"training_bound": BATCH / step, "share_of_bound": measured * step / BATCH}
            print(
                f"stalls of {STALL} s, prefetch {prefetch}: {measured:.0f} of {BATCH / step:.0f} images/s, waits "
                f"{100 * waits:.0f} % of the time",
                flush=True,
            )
    write(
        options.out,
        "images a second from storage that answers late",
        torch.device("cpu"),
        {"constant": rows, "stalls": stalls},
        images=options.images,
        batch=BATCH,
        core_milliseconds_an_image=1000 * cost,
        stall={"every": STALL_EVERY, "seconds": STALL, "workers": workers, "step_seconds": step},
        cores=cores,
        seed=0,
    )


if __name__ == "__main__":
    main()
