"""Pictures of GML on the unit circle: three classes of animals, two numbers a feature, so that all can be seen.

    python docs/pictures/circle.py FOLDER

writes them as SVG into FOLDER and prints the figures that ``docs/idea.md`` quotes. Everything that is drawn comes from
the package: the queue from ``ClassQueue``, the densities from ``class_logmeanexp``, the bits from ``GMLLoss``.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from drawing import Panel
from torch import Tensor

from longtail.data import exponential_profile
from longtail.losses import GMLLoss, class_logmeanexp
from longtail.memory import ClassQueue
from longtail.memory.class_queue import queue_lengths

CLASSES = ("fox", "badger", "lynx")
COUNTS = torch.tensor([60, 20, 4])
# Where the images of a class lie, in degrees. Foxes come in two kinds (by day, by night), on both sides of the lynx.
CENTRES = ((10.0, 120.0), (220.0,), (65.0,))
CONCENTRATION = 16.0  # of each cluster: a von Mises distribution, about 14 degrees wide
TEMPERATURE = 0.1
LISTED_TEMPERATURES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
GRID = torch.linspace(-60, 300, 721, dtype=torch.float64)


def unit_vectors(degrees: Tensor) -> Tensor:
    """Return points of the unit circle ``[N, 2]`` at angles ``[N]``."""
    radians = torch.deg2rad(degrees)
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def draw(counts: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return (angles [N] in degrees, labels [N]) of that many features of each class."""
    torch.manual_seed(seed)
    angles = []
    for count, centres in zip(counts.tolist(), CENTRES, strict=True):
        around = torch.distributions.VonMises(torch.zeros(()), torch.tensor(CONCENTRATION)).sample((count,))
        angles.append(torch.tensor(centres).repeat(count)[:count] + torch.rad2deg(around))
    return torch.cat(angles).double(), torch.arange(len(counts)).repeat_interleave(counts)


def fill_queue(angles: Tensor, labels: Tensor) -> ClassQueue:
    """Return a queue of 24 keys, at least 2 a class, of those features."""
    queue = ClassQueue(COUNTS, capacity=24, dim=2, min_per_class=2).double()
    queue.prime(labels, lambda indices, rounds: unit_vectors(angles[indices]))
    return queue


def log_densities(keys: Tensor, offsets: Tensor, temperature: float) -> Tensor:
    """Return log s(z|c) along the grid, ``[len(GRID), C]``."""
    return class_logmeanexp(unit_vectors(GRID) @ keys.t() / temperature, offsets)


def over_the_circle(log_values: Tensor) -> Tensor:
    """Scale densities ``[len(GRID), C]`` so that each has the mean 1 over the circle."""
    values = (log_values - log_values.amax(0)).exp()
    return values / values[:-1].mean(0)


def posterior(log_values: Tensor, prior_strength: float) -> Tensor:
    """Return p(c|z) along the grid: Bayes' rule, with the prior of the training counts or without."""
    return (log_values + prior_strength * (COUNTS / COUNTS.sum()).log()).softmax(1)


def mean_directions(angles: Tensor, labels: Tensor) -> Tensor:
    """Return one unit vector a class, the direction of its mean ``[C, 2]``."""
    points = unit_vectors(angles)
    means = torch.stack([points[labels == c].mean(0) for c in range(len(CLASSES))])
    return torch.nn.functional.normalize(means)


def true_bits() -> float:
    """Return I(Z; Y) in bits of the distribution that the features are drawn from, by adding up over the circle."""
    around = torch.arange(0, 360, 0.05, dtype=torch.float64)
    prior = COUNTS.double() / COUNTS.sum()
    density = torch.stack(
        [
            torch.stack([(CONCENTRATION * torch.deg2rad(around - centre).cos()).exp() for centre in centres]).mean(0)
            for centres in CENTRES
        ]
    )
    density /= density.sum(1, keepdim=True)
    mixture = (prior[:, None] * density).sum(0)
    return float((prior[:, None] * density * (density / mixture).log2()).sum())


def bits_of(keys: Tensor, offsets: Tensor, temperature: float) -> float:
    """Return H(Y) - L in bits on 21,000 fresh features, for densities of ``keys``."""
    angles, labels = draw(COUNTS * 250, seed=1)
    loss = GMLLoss(COUNTS, temperature)
    nobody, ids = torch.full_like(labels, -1), torch.arange(len(keys))
    loss(unit_vectors(angles), labels, keys, offsets, nobody, ids)
    return float(loss.information)


def bits_with_own_keys(keys: Tensor, offsets: Tensor, temperature: float) -> float:
    """Return what the same formula says on the keys themselves, each of which meets its own key."""
    labels = torch.arange(len(CLASSES)).repeat_interleave(offsets.diff())
    prior = (COUNTS / COUNTS.sum()).double()
    entropy = -float((prior * prior.log()).sum())
    losses = [GMLLoss(COUNTS, temperature)(keys[labels == c], labels[labels == c], keys, offsets) for c in range(3)]
    return (entropy - float((prior * torch.stack(losses)).sum())) / math.log(2)


def keys_on_the_circle(angles: Tensor, labels: Tensor, queue: ClassQueue) -> str:
    """Training features as strokes outside the circle, keys of the queue as dots on it."""
    panel = Panel(360, 300)
    panel.circle()
    for angle, label in zip(angles.tolist(), labels.tolist(), strict=True):
        panel.ray(angle, 1.08, 1.16, CLASSES[label])
    for key, label in zip(queue.features.tolist(), queue.labels.tolist(), strict=True):
        panel.dot(key[0], key[1], CLASSES[label])
    for line, (name, count, length) in enumerate(zip(CLASSES, COUNTS.tolist(), queue.lengths.tolist(), strict=True)):
        panel.legend(line, name, f"{name}: {count} images, {length} keys")
    said = "Foxes lie in two groups on both sides of the few lynxes, badgers on the far side of the circle."
    return panel.svg("Features and keys on the unit circle", said)


def densities(queue: ClassQueue, temperature: float, said: str) -> str:
    """Class densities along the circle."""
    values = over_the_circle(log_densities(queue.features, queue.offsets, temperature))
    return along_the_circle(values, f"temperature {temperature:g}", said, width=224)


def posteriors(keys: Tensor, offsets: Tensor, prior_strength: float, heading: str, said: str) -> str:
    """p(c|z) along the circle."""
    return along_the_circle(posterior(log_densities(keys, offsets, TEMPERATURE), prior_strength), heading, said)


def along_the_circle(values: Tensor, heading: str, said: str, width: int = 320) -> str:
    """One curve a class of ``values [len(GRID), C]``."""
    panel = Panel(width, 220, heading)
    panel.axes(float(GRID[0]), float(GRID[-1]), max(1.0, float(values.max())), "angle")
    for label, name in enumerate(CLASSES):
        panel.curve(GRID.tolist(), values[:, label].tolist(), name)
    return panel.svg(heading, said)


def ages(capacity: int = 4096, minimum: int = 2, batch: int = 128) -> list[tuple[int, float]]:
    """Return (training images, steps until a key is replaced) of each class of CIFAR-100-LT at imbalance 100.

    A class of n among N images fills ``batch * n / N`` slots a step on average, so its K_c slots last that many times.
    """
    counts = exponential_profile(500, 100, 100.0)
    lengths = queue_lengths(counts, capacity, minimum).tolist()
    return [(n, k * sum(counts) / (batch * n)) for n, k in zip(counts, lengths, strict=True)]


def stale_keys() -> str:
    """Steps that a key stays in the queue, against the size of its class."""
    shown = ages()
    panel = Panel(440, 240, "steps until a key is replaced")
    panel.axes(4, 600, max(age for _, age in shown), "training images of the class", log=True)
    for count, age in shown:
        panel.mark(count, age)
    said = f"{shown[0][1]:.0f} steps for the largest class, {shown[-1][1]:.0f} for the smallest."
    return panel.svg("Steps that a key stays in its queue", said)


def pictures() -> dict[str, str]:
    """Return every picture as SVG, by file name."""
    angles, labels = draw(COUNTS, seed=0)
    queue = fill_queue(angles, labels)
    means, each = mean_directions(angles, labels), torch.arange(len(CLASSES) + 1)
    keys, offsets = queue.features, queue.offsets
    return {
        "keys.svg": keys_on_the_circle(angles, labels, queue),
        "densities-cold.svg": densities(queue, 0.003, "A narrow spike at every key."),
        "densities.svg": densities(queue, TEMPERATURE, "One hill for each group of images."),
        "densities-warm.svg": densities(queue, 1.0, "Hills so wide that every class is everywhere."),
        "one-vector.svg": posteriors(means, each, 0.0, "one vector a class", "Foxes and lynxes share one place."),
        "all-keys.svg": posteriors(keys, offsets, 0.0, "all keys of a class", "Two places of foxes, lynxes between."),
        "without-prior.svg": posteriors(keys, offsets, 0.0, "all classes equally frequent", "Wide room for lynxes."),
        "with-prior.svg": posteriors(keys, offsets, 1.0, "as frequent as in training", "Less room for lynxes."),
        "stale.svg": stale_keys(),
    }


def figures() -> str:
    """Return the figures that the text quotes."""
    angles, labels = draw(COUNTS, seed=0)
    queue = fill_queue(angles, labels)
    prior = COUNTS / COUNTS.sum()
    lines = [
        f"H(Y) = {-float((prior * prior.log2()).sum()):.2f} bits, I(Z; Y) = {true_bits():.2f} bits",
        "",
        "| temperature | bits on fresh features | bits with own keys |",
        "|---|---|---|",
    ]
    for temperature in LISTED_TEMPERATURES:
        fresh = bits_of(queue.features, queue.offsets, temperature)
        own = bits_with_own_keys(queue.features, queue.offsets, temperature)
        lines.append(f"| {temperature:g} | {fresh:.2f} | {own:.2f} |")
    means = mean_directions(angles, labels)
    one = bits_of(means, torch.arange(len(CLASSES) + 1), TEMPERATURE)
    lines += ["", f"one vector a class, temperature {TEMPERATURE}: {one:.2f} bits"]
    first, last = ages()[0], ages()[-1]
    lines.append(f"steps that a key stays: {first[1]:.0f} (class of {first[0]}), {last[1]:.0f} (class of {last[0]})")
    return "\n".join(lines)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    folder.mkdir(parents=True, exist_ok=True)
    for name, svg in pictures().items():
        (folder / name).write_text(svg, encoding="utf-8")
    print(figures())
