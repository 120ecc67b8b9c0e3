"""Pictures of a street for ``docs/segmentation.md``: which pixels a contrast compares, and who gets the queue's slots.

    python docs/pictures/street.py FOLDER

writes them as SVG into FOLDER. What is drawn comes from the package: the sample from ``sample_pixels``, the slots from
``queue_lengths`` and ``capped_counts``; the pixel counts are those of CamVid's training frames.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

import torch
from longtail.segmentation.sampling import capped_counts, sample_pixels
from torch import Tensor

from longtail.memory.class_queue import queue_lengths

CLASSES = ("sky", "building", "road", "pavement", "tree", "car", "person", "pole")
COLOURS = ("#7ea6c9", "#a8a39b", "#6b6670", "#b59a8c", "#6d9461", "#3c5a99", "#c8483c", "#d9a520")
HEIGHT, WIDTH, CELL = 60, 80, 5
CAMVID = {  # share of the training pixels in per cent
    "road": 33.0, "building": 22.9, "sky": 17.2, "tree": 10.7, "pavement": 5.5, "car": 6.2, "sign": 1.2, "fence": 1.2,
    "pole": 1.0, "pedestrian": 0.7, "bicyclist": 0.3,
}  # fmt: skip
SLOTS = 4096


def street() -> Tensor:
    """Return the classes of a small street, int64 ``[HEIGHT, WIDTH]``."""
    labels = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    labels[8:38, :26], labels[14:38, 58:] = 1, 1
    labels[38:] = 2
    labels[38:44, :30], labels[38:44, 54:] = 3, 3
    labels[18:38, 26:36] = 4
    labels[36:43, 38:50] = 5
    labels[34:43, 60:63] = 6
    labels[16:42, 54:55] = 7
    return labels


def sampled(labels: Tensor, number: int, per_class: int | None) -> Tensor:
    """Return which cells are compared, flat indices: class by class, or evenly where ``per_class`` is None."""
    classes = labels if per_class is not None else torch.zeros_like(labels)
    indices, _, _ = sample_pixels(classes[None], torch.tensor([0]), number, per_class or number, seed=0)
    return indices


def pixels_svg() -> str:
    """Return the street twice, with as many pixels drawn evenly and class by class."""
    labels = street()
    chosen = sampled(labels, 128, 16)
    ways = {"drawn evenly": sampled(labels, len(chosen), None), "class by class": chosen}
    wide, gap = WIDTH * CELL, 24
    parts = []
    for place, (name, indices) in enumerate(ways.items()):
        left = place * (wide + gap)
        people = int((labels.flatten()[indices] == CLASSES.index("person")).sum())
        text = f"{name}: {len(indices)} pixels, {people} of the person"
        parts.append(f'<text x="{left}" y="16">{escape(text)}</text>')
        for row in range(HEIGHT):
            start = 0
            for column in range(1, WIDTH + 1):  # one rectangle a run of equal cells
                if column == WIDTH or labels[row, column] != labels[row, start]:
                    colour, size = COLOURS[int(labels[row, start])], (column - start) * CELL
                    x, y = left + start * CELL, 26 + row * CELL
                    parts.append(f'<rect x="{x}" y="{y}" width="{size}" height="{CELL}" fill="{colour}"/>')
                    start = column
        for index in indices.tolist():
            x, y = left + (index % WIDTH + 0.5) * CELL, 26 + (index // WIDTH + 0.5) * CELL
            parts.append(f'<circle cx="{x}" cy="{y}" r="2.6" fill="#fff" stroke="#111"/>')
    legend = 26 + HEIGHT * CELL + 22
    for number, (name, colour) in enumerate(zip(CLASSES, COLOURS, strict=True)):
        x = number * 102
        parts.append(f'<rect x="{x}" y="{legend - 11}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{x + 17}" y="{legend}">{name}</text>')
    said = "Evenly drawn pixels are mostly sky, building and road; class by class, pole and person have as many."
    return _svg(2 * wide + gap, legend + 12, "Pixels that the contrast compares", said, parts)


def slots() -> dict[str, tuple[int, int]]:
    """Return the queue's slots of each class, by Eq. 6 on the pixel counts and on the capped ones."""
    counts = torch.tensor([round(share * 10_000) for share in CAMVID.values()])
    plain, capped = (queue_lengths(given, SLOTS, 16).tolist() for given in (counts, capped_counts(counts, 0.1)))
    return {name: (a, b) for name, a, b in zip(CAMVID, plain, capped, strict=True)}


def slots_svg() -> str:
    """Return the slots as bars."""
    found = slots()
    most, full, parts = max(max(pair) for pair in found.values()), 420, []
    for row, (name, pair) in enumerate(found.items()):
        top = 30 + 34 * row
        parts.append(f'<text class="end" x="92" y="{top + 18}">{name}</text>')
        for line, (value, kind) in enumerate(zip(pair, ("plain", "capped"), strict=True)):
            size = full * value / most
            parts.append(f'<rect class="{kind}" x="100" y="{top + 13 * line}" width="{size:.1f}" height="11"/>')
            parts.append(f'<text class="small" x="{106 + size:.1f}" y="{top + 10 + 13 * line}">{value}</text>')
    for line, (kind, text) in enumerate((("plain", "pixel counts as they are"), ("capped", "no class above a tenth"))):
        x = 100 + 220 * line
        parts.append(
            f'<rect class="{kind}" x="{x}" y="6" width="12" height="12"/><text x="{x + 18}" y="17">{text}</text>'
        )
    said = "; ".join(f"{name}: {a} slots, {b} with the cap" for name, (a, b) in found.items())
    return _svg(600, 40 + 34 * len(found), f"{SLOTS} slots of the queue on CamVid's pixel counts", said, parts)


def pictures() -> dict[str, str]:
    """Return every picture by its file name."""
    return {"pixels.svg": pixels_svg(), "slots.svg": slots_svg()}


_STYLE = """
svg { font: 13px system-ui, sans-serif } text { fill: #333 } .end { text-anchor: end } .small { font-size: 11px }
.plain { fill: #b5a08a } .capped { fill: #005f96 }
@media (prefers-color-scheme: dark) { text { fill: #ccc } .plain { fill: #8d7f70 } .capped { fill: #6cc0f2 } }
"""


def _svg(width: int, height: int, title: str, said: str, parts: list[str]) -> str:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head = f"<title>{escape(title)}</title><desc>{escape(said)}</desc><style>{_STYLE}</style>"
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>', head, *parts, "</svg>\n"])


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, svg in pictures().items():
        folder.joinpath(name).write_text(svg)
    print(", ".join(f"{name} {a} > {b}" for name, (a, b) in slots().items()))
