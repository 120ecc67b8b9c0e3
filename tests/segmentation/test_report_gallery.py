"""Overlays, maps of errors, index PNGs and the choice of pictures, on masks that fit on a hand."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from longtail.segmentation.data.mask_set import IGNORE, MaskFiles
from longtail.segmentation.metrics import rarest_classes
from longtail.segmentation.overlays import (
    FALSE,
    FOUND,
    MISSED,
    NOWHERE,
    OTHER,
    class_overlay,
    error_map,
    hex_colour,
    index_png,
)
from longtail.segmentation.report.gallery import (
    MISSED as WHY_MISSED,
)
from longtail.segmentation.report.gallery import (
    MOST,
    SIDE,
    choose_images,
    small_picture,
    write_dense_gallery,
)

PALETTE = torch.tensor([[0, 0, 0], [255, 0, 0], [0, 200, 100], [9, 8, 7]], dtype=torch.uint8)
GRAY = 100


def test_overlay_mixes_image_and_colour_and_darkens_what_counts_nowhere() -> None:
    image = torch.full((3, 1, 3), GRAY, dtype=torch.uint8)
    drawn = class_overlay(image, torch.tensor([[1, 2, IGNORE]]), PALETTE, strength=0.5)
    assert drawn[:, 0].T.tolist() == [[178, 50, 50], [50, 150, 100], [50, 50, 50]]


def test_error_map_tells_found_missed_false_other_and_nowhere_apart() -> None:
    image = torch.full((3, 1, 6), GRAY, dtype=torch.uint8)
    truth = torch.tensor([[1, 1, 2, 2, 0, IGNORE]])
    predicted = torch.tensor([[1, 0, 1, 0, 0, 1]])
    shown = error_map(image, truth, predicted, label=1)[:, 0].T.tolist()
    assert shown == [[*FOUND], [*MISSED], [*FALSE], [*OTHER], [35, 35, 35], [*NOWHERE]]


@pytest.mark.parametrize("classes", [4, 256, 300])
def test_index_png_holds_the_class_numbers_and_the_palette_where_it_can(classes: int) -> None:
    labels = torch.randint(classes, (5, 7), generator=torch.Generator().manual_seed(0))
    labels[0, 0] = classes - 1
    palette = torch.arange(3 * classes).view(classes, 3).remainder(256).to(torch.uint8)
    with Image.open(io.BytesIO(index_png(labels, palette))) as image:
        assert np.array_equal(np.array(image), labels.numpy())
        if classes > 256:
            assert image.mode.startswith("I;16")
        else:
            assert image.mode == "P"
            assert np.array_equal(np.array(image.convert("RGB")), palette[labels].numpy())


def per_image(counts: list[list[tuple[int, int, int]]]) -> torch.Tensor:
    """Return ``[N, 3, C]`` of (right, predicted, true) by image and class."""
    return torch.tensor(counts).transpose(1, 2).contiguous()


def test_the_rarest_tested_classes_come_first_and_the_images_that_say_most_of_them() -> None:
    counts = per_image(
        [
            [(90, 95, 100), (10, 12, 30), (0, 5, 0), (1, 1, 1)],
            [(95, 99, 100), (1, 2, 25), (0, 0, 0), (4, 4, 4)],
            [(80, 99, 100), (28, 30, 29), (0, 0, 0), (4, 4, 4)],
        ]
    )
    # Class 2 has no test pixel, whatever was predicted.
    assert rarest_classes(torch.tensor([900, 50, 1, 50]), counts[:, 2].sum(0)) == [1, 3, 0]
    assert choose_images(counts, 1) == {0: [MOST], 1: [WHY_MISSED]}
    assert choose_images(counts, 0) == {0: [MOST], 2: [WHY_MISSED]}
    assert choose_images(counts, 3) == {1: [MOST]}  # nothing was missed
    counts[1, 0, 1] = 20
    assert choose_images(counts, 1) == {0: [MOST, WHY_MISSED]}


def test_a_picture_keeps_to_its_side_and_its_bytes() -> None:
    noise = torch.randint(256, (3, 700, 900), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    sizes = []
    for most in (10**6, 20_000):
        address = small_picture(noise, most)
        data = base64.b64decode(address.split(",")[1])
        assert len(data) <= most
        with Image.open(io.BytesIO(data)) as image:
            sizes.append(image.size)
    assert sizes[0] == (SIDE, round(SIDE * 700 / 900))
    assert sizes[1][0] < SIDE


class ByRed:
    """Sees the class in the red channel: 0, 60, 120 are classes 0, 1, 2; the third image's class 1 it takes for 2."""

    class_counts = torch.tensor([1000, 30, 20, 10])
    palette = PALETTE
    mean = torch.zeros(3)
    asked: object = None

    def logits(self, images: torch.Tensor, view: object = None) -> torch.Tensor:
        self.asked = view
        labels = images[:, 0].long() // 60
        blind = images[:, 1] == 255
        labels = torch.where(blind & (labels == 1), 2, labels)
        return torch.nn.functional.one_hot(labels, 4).permute(0, 3, 1, 2).float()


def write_set(folder: Path) -> tuple[MaskFiles, torch.Tensor]:
    """Write three images of 4 x 6 with masks, and count what :class:`ByRed` makes of them."""
    masks = torch.zeros(3, 4, 6, dtype=torch.int16)
    masks[0, 0, :4], masks[0, 1, 0] = 1, IGNORE
    masks[1, 2, :3] = 2
    masks[2, 3, :3] = 1
    counts = torch.zeros(3, 3, 4, dtype=torch.int64)
    for number, mask in enumerate(masks):
        red = mask.clamp(min=0).to(torch.uint8) * 60
        image = torch.stack([red, torch.full_like(red, 255 if number == 2 else 0), torch.zeros_like(red)])
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(folder / f"{number}.png")
        np.save(folder / f"{number}.npy", mask.numpy())
        predicted = ByRed().logits(image[None])[0].argmax(0)
        for label in range(4):
            said, true = (predicted == label) & (mask != IGNORE), mask == label
            counts[number, :, label] = torch.tensor([(said & true).sum(), said.sum(), true.sum()])
    files = MaskFiles(
        root=folder,
        images=[f"{number}.png" for number in range(3)],  # type: ignore[arg-type]
        masks=[f"{number}.npy" for number in range(3)],  # type: ignore[arg-type]
        read_mask=lambda path: torch.from_numpy(np.load(path)),
        class_names=("ground", "pole", "sign", "rider"),
        palette=PALETTE,
        pixels=counts[:, 2],
        sizes=torch.tensor([[4, 6]] * 3),
    )
    return files, counts


def decoded(address: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))) as image:
        return np.array(image.convert("RGB"))


def test_gallery_shows_truth_prediction_and_errors_of_the_right_images(tmp_path: Path) -> None:
    files, counts = write_set(tmp_path)
    segmenter, view = ByRed(), object()
    write_dense_gallery(tmp_path, segmenter, SimpleNamespace(per_image=counts), files, view)  # type: ignore[arg-type]
    data = (tmp_path / "gallery.json").read_bytes()
    record = json.loads(data)
    assert (
        record["palette"] == [hex_colour(colour) for colour in PALETTE] == ["#000000", "#ff0000", "#00c864", "#090807"]
    )
    shown = {entry["class"]: [(e["image"], e["why"]) for e in entry["entries"]] for entry in record["classes"]}
    assert shown == {2: [(1, ["most"])], 1: [(0, ["most"]), (2, ["missed"])], 0: [(1, ["most"])]}
    assert segmenter.asked is view
    missed = record["classes"][1]["entries"][1]
    assert (missed["file"], missed["found"], missed["true"], missed["predicted"]) == ("2.png", 0, 3, 0)
    assert missed["shown"][0] == 1
    assert set(missed["shown"]) == {0, 1, 2}
    errors = decoded(missed["pictures"]["error"])
    assert errors.shape == (4, 6, 3)
    assert errors[3, :3].tolist() == [[*MISSED]] * 3
    truth, predicted = (decoded(missed["pictures"][kind]).astype(int) for kind in ("truth", "prediction"))
    assert (truth[3, :3] != predicted[3, :3]).any()
    assert (truth[:3] == predicted[:3]).all()
    void = decoded(record["classes"][1]["entries"][0]["pictures"]["error"])
    assert void[1, 0].tolist() == [*NOWHERE]
    write_dense_gallery(tmp_path, segmenter, SimpleNamespace(per_image=counts), files, view)  # type: ignore[arg-type]
    assert (tmp_path / "gallery.json").read_bytes() == data
