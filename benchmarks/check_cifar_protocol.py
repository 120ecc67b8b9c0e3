"""Compare our long-tailed CIFAR draw with published index lists, index for index.

    python benchmarks/check_cifar_protocol.py cifar100-lt.npz [cifar10-lt.npz ...] [--seed 0]

Each packed file holds the sets that the published protocol makes from the official training file:
``train_index`` (positions in that file of 50,000, class by class, in drawn order, at imbalance 10), ``label``
and ``counts_10``, ``counts_50``, ``counts_100``. It does not hold the labels of the images that were dropped.
What can be checked without them is checked in four steps, and each can fail:

1. counts: ``exponential_profile`` gives the three published lists of class counts.
2. order: a class's shuffle is a permutation of ranks that depends only on the seed, the class's place and its
   size, so the published positions must be in the same order as the first ranks of that permutation.
3. places: that also says how many images of the class lie before, between and after the published positions.
   All classes together must be able to fill the unpublished positions, each exactly once (earliest deadline
   first, which finds an assignment whenever there is one).
4. draw: on the label file so completed, ``long_tailed_indices`` must return the published lists at all three
   imbalances. Their SHA-256 (of little-endian int64) is printed and compared with the one noted here.

The exit code is 1 if anything differs. ``--seed 1`` shows that the check does fail.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import sys
from pathlib import Path

import numpy as np
import torch

from longtail.data.counts import exponential_profile, long_tailed_indices

TRAINING_IMAGES = 50_000
IMBALANCES = (10, 50, 100)
NOTED_SHA256 = {  # (classes, imbalance)
    (10, 10): "a17d69f192b1cf6df09676b6c424e2ad5e7d7863ccc4b9ba70ef128885973218",
    (10, 50): "d7edcfaf02772bee1e2310a33be8b6c46232f043641158348b9de3ec731e26ac",
    (10, 100): "4bf45bff8878d2786e47dccd702f96ff33b2b11d8c7da3b5015f10937290f866",
    (100, 10): "b4fbf1bf0a7f33381467493f50b953ce21b03a2b6d45b0d5e8da5d95d9ffd736",
    (100, 50): "561fa940cc7d3551d441643e310c7e439bf84f86b7863a3f7364963522d2984a",
    (100, 100): "e0d58a4d2700c46062da852554e5d185bbee74d3c612b052ea2a839bdadf939e",
}


def rank_permutations(num_classes: int, class_size: int, seed: int) -> list[np.ndarray]:
    """Return, class after class, the ranks 0..class_size-1 as one numpy generator shuffles them."""
    generator = np.random.RandomState(seed)
    permutations = []
    for _ in range(num_classes):
        ranks = np.arange(class_size)
        generator.shuffle(ranks)
        permutations.append(ranks)
    return permutations


def classes_out_of_order(drawn: list[np.ndarray], permutations: list[np.ndarray]) -> list[int]:
    """Return the classes whose positions are not ordered like the ranks they were drawn with."""
    pairs = zip(drawn, permutations, strict=True)
    return [
        label
        for label, (positions, ranks) in enumerate(pairs)
        if not np.array_equal(np.argsort(positions), np.argsort(ranks[: len(positions)]))
    ]


def complete_labels(drawn: list[np.ndarray], permutations: list[np.ndarray], total: int) -> np.ndarray | None:
    """Return labels ``[total]`` that agree with every drawn position and its rank; None if there are none.

    Between two neighbouring drawn positions of a class lie as many more of its images as ranks are skipped.
    Each is a task with a release (after the left position) and a deadline (before the right one).
    """
    labels = np.full(total, -1, dtype=np.int64)
    tasks: list[tuple[int, int, int, int]] = []  # release, deadline, label, images
    for label, (positions, permutation) in enumerate(zip(drawn, permutations, strict=True)):
        labels[positions] = label
        ranks = permutation[: len(positions)]
        edges = np.concatenate([[-1], np.sort(positions), [total]])
        skipped = np.diff(np.concatenate([[-1], np.sort(ranks), [len(permutation)]])) - 1
        tasks += [(int(edges[i]), int(edges[i + 1]), label, int(images)) for i, images in enumerate(skipped) if images]
    tasks.sort(reverse=True)
    ready: list[tuple[int, int, int]] = []
    for position in np.flatnonzero(labels == -1).tolist():
        while tasks and tasks[-1][0] < position:
            _, deadline, label, images = tasks.pop()
            heapq.heappush(ready, (deadline, label, images))
        if not ready or ready[0][0] < position:
            return None
        deadline, label, images = ready[0]
        labels[position] = label
        if images > 1:
            heapq.heapreplace(ready, (deadline, label, images - 1))
        else:
            heapq.heappop(ready)
    return None if ready or tasks else labels


def check(path: Path, seed: int) -> bool:
    """Print the four steps for one packed file; return whether all of them hold."""
    with np.load(path, allow_pickle=False) as packed:
        positions = packed["train_index"].astype(np.int64)
        train_labels = packed["label"][: int(packed["n_train"])]
        counts = {imbalance: packed[f"counts_{imbalance}"].astype(int).tolist() for imbalance in IMBALANCES}
    num_classes = len(counts[10])
    class_size = TRAINING_IMAGES // num_classes
    starts = np.concatenate([[0], np.cumsum(counts[10])])
    drawn = [positions[starts[c] : starts[c + 1]] for c in range(num_classes)]
    whole = len(np.unique(positions)) == len(positions) and np.array_equal(
        train_labels, np.repeat(np.arange(num_classes), counts[10])
    )
    print(f"{path.name}: {len(positions):,} positions, {num_classes} classes, seed {seed}")
    passed = report("file", whole, "positions differ, labels class by class")

    for imbalance in IMBALANCES:
        ours = exponential_profile(class_size, num_classes, imbalance)
        passed &= report("counts", ours == counts[imbalance], f"imbalance {imbalance}: {sum(ours):,} images")

    permutations = rank_permutations(num_classes, class_size, seed)
    wrong = classes_out_of_order(drawn, permutations)
    passed &= report("order", not wrong, f"{num_classes - len(wrong)} of {num_classes} classes in drawn order")
    labels = None if wrong else complete_labels(drawn, permutations, TRAINING_IMAGES)
    passed &= report("places", labels is not None, "a label file of 50,000 agrees with all positions and ranks")
    if labels is None:
        return False

    for imbalance in IMBALANCES:
        published = np.concatenate([drawn[c][: counts[imbalance][c]] for c in range(num_classes)])
        ours_drawn = long_tailed_indices(torch.from_numpy(labels), counts[imbalance], seed).numpy()
        digest = hashlib.sha256(published.astype("<i8").tobytes()).hexdigest()
        same = np.array_equal(ours_drawn, published)
        same &= digest == NOTED_SHA256.get((num_classes, imbalance))
        passed &= report("draw", same, f"imbalance {imbalance}: {len(published):,} indices, sha256 {digest}")
    return passed


def report(step: str, holds: bool, detail: str) -> bool:
    """Print one line of the result and pass ``holds`` on."""
    print(f"  {'ok  ' if holds else 'FAIL'} {step:6} {detail}")
    return holds


def main() -> int:
    """Check the packed files named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packed", type=Path, nargs="+", help="packed file (cifar10-lt.npz or cifar100-lt.npz)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (0 is the published one)")
    options = parser.parse_args()
    results = [check(path, options.seed) for path in options.packed]  # all of them, also after a failure
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
