"""The report of a run on masks: one page, nothing fetched, nothing unescaped, and the figures of its files."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from longtail.config import TrainConfig, replace_options
from longtail.errors import UserError
from longtail.reporting.reproduce import reproduce_command
from longtail.reporting.training_curves import training_curves
from longtail.segmentation.report.charts import group_meaning, iou_chart, share_text
from longtail.segmentation.report.confusions import taken_for, wrongly_called
from longtail.segmentation.report.dense_class import DenseClass
from longtail.segmentation.report.gallery import small_picture
from longtail.segmentation.report.page import render_dense, write_dense_report

EVIL = "<script>alert(1)</script>"
NAMES = ["road", "sky", EVIL, "rider & 'bike'", "never"]
COUNTS = [60_000, 38_000, 1_500, 500, 0]
CONFUSION = [[900, 50, 10, 0, 0], [30, 700, 0, 0, 0], [40, 0, 50, 10, 0], [12, 0, 4, 4, 0], [0, 0, 0, 0, 0]]
FETCHING = {"src", "srcset", "href", "xlink:href", "data", "action", "formaction", "poster", "background", "ping"}


class Page(HTMLParser):
    """The parsed page: attributes, text, ids and rows of tables."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.attributes: list[tuple[str, str, str]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.scripts = 0
        self._in, self._cell = "", False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.scripts += tag == "script"
        self._in = tag if tag in ("script", "style") else self._in
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in = "" if tag == self._in else self._in
        self._cell = self._cell and tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        if self._in:
            return
        self.words.append(data)
        if self._cell:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def make_run(folder: Path, **changes: Any) -> Path:
    """Write a run of five classes, of which the last is nowhere."""
    counts = torch.tensor(CONFUSION)
    hit, true, said = counts.diag(), counts.sum(1), counts.sum(0)
    iou = [None if int(t + s) == 0 else float(h / (t + s - h)) for h, t, s in zip(hit, true, said, strict=True)]
    groups = ["many", "many", "medium", "few", "few"]
    of = {"many": (0.8, 2), "medium": (0.44, 1), "few": (0.13, 2)}
    by = {group: {"iou": value, "classes": number} for group, (value, number) in of.items()}
    evaluation = {
        "task": "segmentation",
        "miou": 0.567,
        "miou_interval": {"low": 0.54, "high": 0.592, "level": 0.95, "method": "bootstrap over images"},
        "iou": iou,
        "class_names": NAMES,
        "class_counts": COUNTS,
        "image_counts": [10, 10, 6, 1, 0],
        "test_pixels": true.tolist(),
        "groups_by_pixels": by,
        "groups_by_images": by | {"few": {"iou": None, "classes": 0}},
        "pixel_edges": [1.0, 0.1],
        "image_edges": [0.5, 0.1],
        "rarest_four": {
            "classes": [NAMES[3], NAMES[2], "sky", "road"],
            "miou": 0.431,
            "interval": {"low": 0.31, "high": 0.52},
        },
        "fw_iou": 0.876,
        "pixel_accuracy": 0.913,
        "balanced_accuracy": 0.654,
        "boundary_f": 0.321,
        "boundary_tolerance": 3,
        "ece": 0.0432,
        "worst_class": {"name": NAMES[3], "iou": iou[3]},
        "test_images": 12,
        "inference": "whole images, once",
        "selection": "last",
        "confusion": CONFUSION,
        "calibration": [
            {"low": 0.5, "high": 0.75, "count": 200, "confidence": 0.66, "accuracy": 0.5},
            {"low": 0.75, "high": 1.0, "count": 1800, "confidence": 0.9, "accuracy": 0.97},
        ],
    }
    evaluation |= changes
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    with open(folder / "per_class.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(
            "name group_by_pixels train_pixels train_images test_pixels iou recall precision boundary_f".split()
        )
        for k, name in enumerate(NAMES):
            recall = "" if not true[k] else float(hit[k] / true[k])
            precision = "" if not said[k] else float(hit[k] / said[k])
            figures = ["" if iou[k] is None else iou[k], recall, precision, "" if iou[k] is None else 0.25]
            rows.writerow([name, groups[k], COUNTS[k], evaluation["image_counts"][k], int(true[k]), *figures])
    options = {"task": "segmentation", "seed": 7, "segmentation.crop": [64, 96], "segmentation.test_mirror": True}
    config = replace_options(TrainConfig(data="/data/streets"), options)
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    return folder


def full(folder: Path) -> None:
    """Add what a run may have beside."""
    picture = small_picture(torch.zeros(3, 4, 4, dtype=torch.uint8), 10**6)
    entry = {
        "image": 3,
        "file": f"{EVIL}.png",
        "found": 4,
        "true": 20,
        "predicted": 14,
        "shown": [3, 0],
        "why": ["missed"],
    }
    entry["pictures"] = dict.fromkeys(("image", "truth", "prediction", "error"), picture)
    palette = ["#111111", "#22ff22", "#333333", "#4400ff", "#555555"]
    gallery = {"palette": palette, "classes": [{"class": 3, "images": 2, "entries": [entry]}]}
    (folder / "gallery.json").write_text(json.dumps(gallery))
    record = {"test_split": "its own folder", "train_images": 10, "test_images": 12, "notes": [f"note {EVIL}"]}
    record |= {"skipped_count": 1, "skipped": [{"file": f"{EVIL}.jpg", "reason": "cut off"}]}
    (folder / "data.json").write_text(json.dumps(record))
    log = [
        {"stage": "train", "epoch": e, "classifier": 2 / e, "lovasz": 1 / e, "bits": e - 2, "test_miou": e / 10}
        for e in (1, 2, 3)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, log)))
    environment = {"versions": {"torch": "2.15"}, "hardware": {"device": "abacus"}, "seconds": {"train": 75.0}}
    (folder / "environment.json").write_text(json.dumps(environment))


def test_the_page_holds_all_parts_and_the_figures(tmp_path: Path) -> None:
    full(make_run(tmp_path))
    path = write_dense_report(tmp_path)
    page = Page(path.read_text())
    ids = {value for _, name, value in page.attributes if name == "id"}
    assert ids >= set("figures classes pictures confusion calibration training data again settings".split())
    for words in (
        "On 12 test images the mean IoU over classes is 56.7 % (between 54.0 % and 59.2 %).",
        f"rider & 'bike', {EVIL}, sky and road, it is 43.1 %",
        "Figures of the last epoch; the test set selected nothing.",
        "The mean gap is 4.3 %",
        "whole images, once",
        "31.0 \u2013 52.0 %",
        "4 of 20 pixels found, 10 wrongly called",
        "its own folder",
        "Test mIoU",
        "Lov\u00e1sz loss",
        "--task segmentation",
        "--segmentation.crop '[64, 96]'",
        "abacus",
        "Label information is measured on training images, so it flatters (below 0",
        "1 min 15 s",
        "1 file that was skipped",
    ):
        assert words in page.text.replace("\u00a0", " "), words
    assert write_dense_report(tmp_path).read_bytes() == path.read_bytes()


def test_every_class_has_its_row_with_its_colour(tmp_path: Path) -> None:
    full(make_run(tmp_path))
    text = render_dense(tmp_path)
    rows = [[cell.replace("\u00a0", " ").strip() for cell in row] for row in Page(text).rows]
    assert [EVIL, "medium", "1.5 %", "6", "5.5 %", "43.9 %", "50.0 %", "78.1 %", "25.0 %", "road (40.0 %)"] in rows
    assert ["never", "few", "0.0 %", "0", "none", *["\u2013"] * 5] in rows
    taken = next(row for row in rows if row[0] == "rider & 'bike'" and len(row) == 5)
    assert [" ".join(cell.split()) for cell in taken[1:]] == [
        "20.0 %",
        f"road 60.0 %, {EVIL} 20.0 %",
        "28.6 %",
        f"{EVIL} 71.4 %",
    ]
    assert text.count("background:#4400ff") >= 4


@pytest.mark.parametrize("optional", [False, True])
def test_nothing_is_fetched_and_names_are_only_text(tmp_path: Path, optional: bool) -> None:
    make_run(tmp_path)
    if optional:
        full(tmp_path)
    text = render_dense(tmp_path)
    page = Page(text)
    assert page.scripts == 1
    assert EVIL not in text
    addresses = [value for _, name, value in page.attributes if name in FETCHING]
    assert addresses
    assert all(value.startswith(("#", "data:")) for value in addresses)
    assert "url(" not in text
    assert "@import" not in text
    policy = next(value for _, name, value in page.attributes if name == "content" and "default-src" in value)
    assert "default-src 'none'" in policy
    assert "sha256-" in policy
    assert all(value for tag, name, value in page.attributes if tag == "img" and name == "alt")


def test_the_teacher_stands_beside_the_run(tmp_path: Path) -> None:
    make_run(tmp_path)
    (tmp_path / "teacher").mkdir()
    make_run(tmp_path / "teacher", miou=0.4711, rarest_four={"classes": ["sky"], "miou": None})
    text = Page(render_dense(tmp_path)).text.replace("\u00a0", " ")
    assert "teacher: 47.1 %" in text
    assert "teacher: none" in text


def _lose(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = json.loads((folder / "evaluation.json").read_text())
        del values[name]
        (folder / "evaluation.json").write_text(json.dumps(values))

    return change


def _another_picture(folder: Path) -> None:
    text = (folder / "gallery.json").read_text()
    (folder / "gallery.json").write_text(text.replace("data:image/png;base64,", "https://x.org/"))


def _class_beyond(folder: Path) -> None:
    text = (folder / "gallery.json").read_text()
    (folder / "gallery.json").write_text(text.replace('"class": 3', '"class": 9'))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_lose("miou"), "evaluation.json lacks 'miou'"),
        (lambda folder: (folder / "per_class.csv").unlink(), "no such file: .*per_class.csv"),
        (lambda folder: (folder / "per_class.csv").write_text("name,iou\nroad,0.5\n"), "per_class.csv cannot be read"),
        (_another_picture, "gallery.json cannot be read as pictures"),
        (_class_beyond, "gallery.json cannot be read as pictures"),
        (lambda folder: (folder / "config.yaml").unlink(), "no config.yaml"),
    ],
)
def test_a_file_that_is_missing_or_changed_is_named(tmp_path: Path, change: Callable[[Path], None], words: str) -> None:
    full(make_run(tmp_path))
    change(tmp_path)
    with pytest.raises(UserError, match=words):
        render_dense(tmp_path)


def test_confusions_are_shares_of_truth_and_of_what_was_called() -> None:
    assert taken_for(CONFUSION, 2) == ((0, 0.4), (3, 0.1))
    assert wrongly_called(CONFUSION, 0) == ((2, 40 / 982), (1, 30 / 982), (3, 12 / 982))
    assert taken_for(CONFUSION, 4) == ()


def a_class(index: int, pixels: int, iou: float | None) -> DenseClass:
    return DenseClass(index, f"class {index}", "#102030", "many", pixels, pixels / 1000, 5, 9, iou, None, None, None)


@pytest.mark.parametrize("classes", [5, 60])
def test_bars_of_classes_stand_in_the_order_of_training_pixels(classes: int) -> None:
    rows = [a_class(index, 7 * index % classes, None if index == 2 else index / 100) for index in range(classes)]
    svg = str(iou_chart(rows))
    shown = [int(name) for name in re.findall(r"<title>class (\d+): IoU", svg)]
    assert shown == [row.index for row in sorted(rows, key=lambda row: -row.train_pixels) if row.iou is not None]
    wide = [float(value) for value in re.findall(r'class="fill many".*?width="([\d.]+)"', svg)]
    tall = [float(value) for value in re.findall(r'class="fill many".*?height="([\d.]+)"', svg)]
    lengths = wide if classes == 5 else tall
    full_bar = lengths[shown.index(classes - 1)]
    for index, length in zip(shown, lengths, strict=True):
        assert length == pytest.approx(full_bar * index / (classes - 1), abs=0.11)


def test_words_for_shares_and_groups() -> None:
    words = [share_text(share).replace("\u00a0", " ") for share in (0, 0.331, 0.0071, 0.00002)]
    assert words == ["0.0 %", "33.1 %", "0.71 %", "0.0020 %"]
    assert group_meaning([1 / 11, 1 / 110])["medium"].replace("\u00a0", " ") == "0.91 % to 9.1 %"


def test_dense_curves_have_names_and_per_cent() -> None:
    curves = training_curves([{"stage": "train", "epoch": 1, "val_miou": 0.5, "dice": 0.2}])[0]["curves"]
    assert [(curve["title"], curve["percent"]) for curve in curves] == [("Dice loss", False), ("Validation mIoU", True)]


def test_the_command_leaves_out_what_the_method_does_not_read() -> None:
    config = asdict(replace_options(TrainConfig(data="d"), {"task": "segmentation", "segmentation.queries": 77}))
    assert "--segmentation.queries 77" in reproduce_command(config, reads=lambda method, option: True)
    assert "queries" not in reproduce_command(config, reads=lambda method, option: option != "segmentation.queries")
