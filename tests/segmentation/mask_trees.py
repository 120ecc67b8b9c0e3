"""Little data trees of images with masks, one maker a layout, with known pixel counts.

Every mask is made of horizontal stripes: the rows of class c in image i are known, so that pixel counts are a formula.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 24, 32
COLOURS = ((128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (64, 0, 0))
NAMES = ("road", "sky", "tree", "car", "sign", "pole", "rider")
CAMVID_NAMES = (
    "Sky Building Pole Road Pavement Tree SignSymbol Fence Car Pedestrian Bicyclist Unlabelled".split()
)  # the order of the masks' values; the last counts nowhere


def stripes(rows, height=HEIGHT, width=WIDTH):
    """Return values uint8 ``[height, width]``: ``rows[v]`` rows of each value v, top to bottom; they must fill it."""
    assert sum(rows.values()) == height
    return np.repeat(np.array(list(rows), np.uint8), list(rows.values()))[:, None].repeat(width, 1)


def rows_of(index, classes=3, rare=None, height=HEIGHT):
    """Return rows of each value for image ``index``: class 0 most, ``rare`` (if given) two rows in every third."""
    rows = {value: 3 + (index + value) % 2 for value in range(1, classes) if value != rare}
    if rare is not None and index % 3 == 0:
        rows[rare] = 2
    return {0: height - sum(rows.values()), **rows}


def photo(values, seed=0):
    """Return an RGB image in which each value has a gray level of its own, with a little noise."""
    noise = np.random.default_rng(seed).integers(0, 16, (*values.shape, 3))
    return Image.fromarray((values[..., None].astype(int) * 29 % 200 + 20 + noise).astype(np.uint8))


def write_pair(image, mask, values, seed=0, colours=None, mode="L"):
    """Write an image and its mask; ``colours`` by value make a colour mask, ``mode`` P one with a table of colours."""
    image, mask = Path(image), Path(mask)
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    photo(values, seed).save(image)
    if colours is None:
        Image.fromarray(values).save(mask)
    elif mode == "P":
        coded = Image.fromarray(values, "L").convert("P")
        coded.putpalette([part for colour in colours for part in colour])
        coded.save(mask)
    else:
        Image.fromarray(np.array(colours, np.uint8)[values]).save(mask)


def counts(masks, classes):
    """Return pixels of each class, int ``[N, classes]``, of masks given as values, the slow way."""
    return np.array([[int((mask == label).sum()) for label in range(classes)] for mask in masks])


def plain_tree(root, images=6, classes=3, rare=None, colours=None, mode="L", masks="masks", ending="", names=None):
    """Write ``images/IMAGE.png`` and ``masks/IMAGE{ending}.png``; return the values of each mask, by name."""
    root, written = Path(root), []
    for index in range(images):
        values = stripes(rows_of(index, classes, rare))
        stem = f"scene{index:03d}"
        write_pair(root / "images" / f"{stem}.png", root / masks / f"{stem}{ending}.png", values, index, colours, mode)
        written.append(values)
    write_names(root, names)
    return written


def split_tree(root, sizes=None, classes=3, rare=None, names=NAMES, inside=True, colours=None):
    """Write ``{train,val,test}/{images,masks}`` (or, not ``inside``, ``{images,masks}/{train,...}``)."""
    root, written, number = Path(root), {}, 0
    for split, size in (sizes or {"train": 6, "test": 3}).items():
        written[split] = []
        for index in range(size):
            values = stripes(rows_of(index, classes, rare))
            pair = [f"{split}/{kind}" if inside else f"{kind}/{split}" for kind in ("images", "masks")]
            stem = f"s{number:03d}.png"
            write_pair(root / pair[0] / stem, root / pair[1] / stem, values, number, colours)
            written[split].append(values)
            number += 1
    write_names(root, names[:classes] if names else None)
    return written


def write_names(root, names):
    """Write ``classes.txt``, if there are names."""
    if names is not None:
        (Path(root) / "classes.txt").write_text("\n".join(names) + "\n")


def write_palette(path, colours=COLOURS, names=NAMES):
    """Write a palette file of lines ``R G B name``."""
    lines = [f"{r} {g} {b} {name}" for (r, g, b), name in zip(colours, names, strict=False)]
    Path(path).write_text("\n".join(lines) + "\n")


def camvid_values(index):
    """Return a mask of the 11 classes of CamVid and void (11); bicyclist (10) only where ``index`` is even."""
    rows = {0: 4, 1: 3, 2: 1, 3: 5, 4: 2, 5: 2, 6: 1, 7: 1, 8: 2, 9: 1, 10: 1 - index % 2, 11: 1 + index % 2}
    return stripes(rows)


def camvid_tree(root, segnet=True, frames=None):
    """Write a tree with CamVid's file names, in SegNet's layout or in ``{train,val,test}/{images,masks}``."""
    root = Path(root)
    frames = frames or {"train": {"0001TP": 4, "0006R0": 6}, "val": {"0016E5": 2}, "test": {"Seq05VD": 3}}
    for split, sequences in frames.items():
        folders = (split, f"{split}annot") if segnet else (f"{split}/images", f"{split}/masks")
        for sequence, count in sequences.items():
            for index in range(count):
                name = f"{sequence}_{'f' if sequence.startswith('Seq') else ''}{30 * index:05d}.png"
                write_pair(root / folders[0] / name, root / folders[1] / name, camvid_values(index), index)
    if not segnet:
        write_names(root, CAMVID_NAMES)


def ade_values(index):
    """Return an ADE20K mask: 0 = other, values 1, 2, 3 in every one and 150 in every other."""
    return stripes({0: 4, 1: 10, 2: 6, 3: 4 - index % 2 * 2} | ({150: 2} if index % 2 else {}))


def ade20k_tree(root, training=4, validation=2, names="csv"):
    """Write ADE20K's published layout, with ``objectInfo150.csv`` or ``.txt`` (class n is called ``thing n``)."""
    root = Path(root)
    for split, size in {"training": training, "validation": validation}.items():
        for index in range(size):
            stem = f"ADE_{split[:5]}_{index + 1:08d}"
            write_pair(
                root / f"images/{split}/{stem}.jpg", root / f"annotations/{split}/{stem}.png", ade_values(index), index
            )
    if names == "csv":
        head, line = "Idx,Ratio,Train,Val,Stuff,Name", "{0},0.01,5,5,0,thing {0};object"
        rows = [head, *(line.format(number) for number in range(1, 151))]
        (root / "objectInfo150.csv").write_text("\n".join(rows) + "\n")
    elif names == "txt":
        rows = [
            "Idx\tRatio\tTrain\tVal\tName",
            *(f"{n}\t0.01\t5\t5\tthing {n}, object             " for n in range(1, 151)),
        ]
        (root / "objectInfo150.txt").write_text("\n".join(rows) + "\n")


def cityscapes_tree(root, ids=True, train=("aachen", "bochum"), validation=("munster",), frames=2):
    """Write ``leftImg8bit/SPLIT/CITY`` and ``gtFine/SPLIT/CITY``, masks of the 34 ids or of the 19 training ids.

    Of each mask (24 rows) 10 are road (id 7), 6 building (11), 4 car (26), 2 rider (25) and 2 ego vehicle (1: none).
    """
    root = Path(root)
    values = stripes({7: 10, 11: 6, 26: 4, 25: 2, 1: 2} if ids else {0: 10, 2: 6, 13: 4, 12: 2, 255: 2})
    kind = "labelIds" if ids else "labelTrainIds"
    for split, cities in {"train": train, "val": validation}.items():
        for city in cities:
            for frame in range(frames):
                stem = f"{city}_{frame:06d}_000019"
                write_pair(
                    root / f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png",
                    root / f"gtFine/{split}/{city}/{stem}_gtFine_{kind}.png",
                    values,
                    frame,
                )
