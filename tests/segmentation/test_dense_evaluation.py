"""Evaluation of segmenters on a whole test set, against torchmetrics over all pixels; files, sentences, comparison."""

import csv
import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassCalibrationError, MulticlassJaccardIndex

from longtail.data.image_set import PathTable
from longtail.errors import UserError
from longtail.segmentation.compare import compare_dense
from longtail.segmentation.data.mask_set import IGNORE, MaskFiles
from longtail.segmentation.evaluation import (
    dense_summary,
    dense_warnings,
    evaluate_segmenter,
    quick_look,
    read_per_image,
    write_dense_evaluation,
)
from longtail.segmentation.metrics import paired_miou_difference
from longtail.segmentation_options import SegmentationOptions

CLASSES, ABSENT = 6, 5
CPU = torch.device("cpu")
COUNTS = torch.tensor([9000, 600, 250, 100, 40, 10])
IMAGES = torch.tensor([60, 40, 20, 8, 5, 1])  # of 100: no class is in all of them
SIZES = [(12, 16), (12, 16), (20, 9), (12, 16), (7, 7)]  # equal ones follow each other, and are met again


class Painter:
    """Stands in for a segmenter: red says which class, green how surely; the rest is shared by the other classes."""

    def __init__(self, classes=CLASSES):
        self.num_classes, self.class_names = classes, tuple(f"class{label}" for label in range(classes))
        self.class_counts, self.image_counts = COUNTS[:classes], IMAGES[:classes]
        self.batches = []

    def to(self, device):
        return self

    def predict(self, images, view=None):
        self.batches.append(len(images))
        label, sure = images[:, 0].long(), (0.4 + 0.59 * images[:, 1].double() / 255).float()
        others = ((1 - sure) / (self.num_classes - 1))[:, None].expand(-1, self.num_classes, -1, -1)
        return others.scatter(1, label[:, None], sure[:, None])


def read_png(path):
    labels = torch.tensor(list(Image.open(path).tobytes()), dtype=torch.int16).view(Image.open(path).size[::-1])
    return torch.where(labels == 255, IGNORE, labels).to(torch.int16)


def tree(folder, seed=0, wrong=0.3, sizes=SIZES):
    """Images that say what is predicted, masks with 10 % ignored pixels, and both as tensors."""
    generator = torch.Generator().manual_seed(seed)
    truth, given, names = [], [], [f"{index}.png" for index in range(len(sizes))]
    for name, size in zip(names, sizes, strict=True):
        labels = torch.randint(ABSENT, size, generator=generator)
        guess = torch.where(
            torch.rand(size, generator=generator) < wrong, torch.randint(ABSENT, size, generator=generator), labels
        )
        labels[torch.rand(size, generator=generator) < 0.1] = IGNORE
        image = torch.zeros(*size, 3, dtype=torch.uint8)
        image[..., 0], image[..., 1] = guess, torch.randint(256, size, generator=generator)
        (folder / "i").mkdir(parents=True, exist_ok=True)
        (folder / "m").mkdir(exist_ok=True)
        Image.fromarray(image.numpy()).save(folder / "i" / name)
        Image.fromarray(torch.where(labels == IGNORE, 255, labels).to(torch.uint8).numpy()).save(folder / "m" / name)
        truth.append(labels)
        given.append(image)
    files = MaskFiles(
        root=folder,
        images=PathTable([f"i/{name}" for name in names]),
        masks=PathTable([f"m/{name}" for name in names]),
        read_mask=read_png,
        class_names=tuple(f"class{label}" for label in range(CLASSES)),
        palette=torch.zeros(CLASSES, 3, dtype=torch.uint8),
        pixels=torch.stack([torch.bincount(y[y >= 0], minlength=CLASSES) for y in truth]),
        sizes=torch.tensor(sizes),
    )
    return files, truth, given


def evaluated(files, model=None, **given):
    return evaluate_segmenter(model or Painter(), files, CPU, SegmentationOptions(), 0, **given)


def test_figures_over_all_pixels_as_torchmetrics(tmp_path):
    files, truth, given = tree(tmp_path)
    model = Painter()
    found = evaluated(files, model, train_images=100)
    assert model.batches == [2, 1, 1, 1]  # only neighbours of one size go together
    labels = torch.cat([y.flatten() for y in truth])
    pixels = torch.cat([image.flatten(0, 1) for image in given])
    probabilities = Painter().predict(pixels.t()[None, :, :, None])[0, :, :, 0].t()
    kept = labels != IGNORE
    jaccard = MulticlassJaccardIndex(CLASSES, average="none", ignore_index=IGNORE)(pixels[:, 0].long(), labels)
    figures = found.figures
    assert figures["iou"][:ABSENT] == pytest.approx(jaccard[:ABSENT].tolist(), abs=1e-6)
    assert figures["iou"][ABSENT] is None  # neither true nor predicted
    assert figures["miou"] == pytest.approx(float(jaccard[:ABSENT].mean()), abs=1e-6)
    error = MulticlassCalibrationError(CLASSES, n_bins=15, norm="l1")
    assert figures["ece"] == pytest.approx(float(error(probabilities[kept], labels[kept])), abs=1e-5)
    rare = kept & (labels > 0)  # the class without test pixels is not one of the rarest four
    assert figures["rarest_four"]["classes"] == ["class4", "class3", "class2", "class1"]
    assert figures["rarest_four"]["miou"] == pytest.approx(float(jaccard[1:ABSENT].mean()), abs=1e-6)
    assert figures["rarest_four"]["ece"] == pytest.approx(float(error(probabilities[rare], labels[rare])), abs=1e-5)
    assert found.per_image[:, 2].tolist() == files.pixels.tolist()
    assert torch.equal(found.per_image.sum(0)[0], found.confusion.diagonal())
    json.dumps(figures, allow_nan=False)


def test_images_of_a_class_are_a_share_of_all_training_images(tmp_path):
    files, _, _ = tree(tmp_path)
    rows = evaluated(files, train_images=100).rows
    assert [row["group_by_images"] for row in rows] == ["many", "medium", "medium", "few", "few", "few"]
    assert [row["group_by_pixels"] for row in rows] == ["many", "medium", "medium", "few", "few", "few"]
    assert rows[1]["train_pixel_share"] == pytest.approx(0.06)


def test_a_second_evaluation_and_smaller_batches_say_the_same(tmp_path, monkeypatch):
    files, _, _ = tree(tmp_path)
    first, model = evaluated(files), Painter()
    monkeypatch.setattr("longtail.segmentation.evaluation._BATCH_VALUES", CLASSES * 200)
    again = evaluated(files, model)
    assert model.batches == [1] * 5  # 2 x 192 pixels are too many
    assert (again.figures, again.rows) == (first.figures, first.rows)


def test_one_perfect_image(tmp_path):
    files, _, _ = tree(tmp_path, wrong=0.0, sizes=[(16, 16)])
    figures = evaluated(files).figures
    assert [figures[key] for key in ("miou", "fw_iou", "pixel_accuracy", "balanced_accuracy", "boundary_f")] == [1] * 5
    assert figures["miou_interval"]["low"] is None
    assert "(" not in dense_summary(figures).split(";")[0]


def test_an_image_of_one_class_that_is_called_so(tmp_path):
    files, _, _ = tree(tmp_path, sizes=[(12, 16), (12, 16)])
    Image.new("RGB", (16, 12), (2, 255, 0)).save(tmp_path / "i" / "0.png")
    Image.new("L", (16, 12), 2).save(tmp_path / "m" / "0.png")
    rows = evaluated(files).rows
    other = evaluated(files.subset(torch.tensor([1]))).rows
    assert rows[2]["boundary_f"] == pytest.approx((1 + other[2]["boundary_f"]) / 2)  # no outline, and none missed


def test_what_cannot_be_evaluated_is_a_sentence(tmp_path):
    files, _, _ = tree(tmp_path)
    ignored = replace(files, read_mask=lambda path: torch.full_like(read_png(path), IGNORE))
    with pytest.raises(UserError, match="all are ignored"):
        evaluated(ignored)

    class Diverged(Painter):
        def predict(self, images, view=None):
            return super().predict(images) * float("nan")

    for size in (None, (24, 32)):  # as they are, and brought to a size and back
        with pytest.raises(UserError, match=r"0\.png is not finite"):
            evaluated(replace(files, size=size), Diverged())


def test_masks_are_scored_at_their_own_size_where_images_are_resized(tmp_path):
    files, truth, given = tree(tmp_path)
    found = evaluated(replace(files, size=(24, 32)))
    assert found.per_image[:, 2].tolist() == files.pixels.tolist()
    for index, (labels, image) in enumerate(zip(truth, given, strict=True)):
        resized = Image.fromarray(image.numpy()).resize((32, 24), Image.Resampling.BILINEAR)
        pixels = torch.tensor(list(resized.tobytes()), dtype=torch.uint8).view(1, 24, 32, 3).movedim(-1, 1)
        back = torch.nn.functional.interpolate(Painter().predict(pixels), labels.shape, mode="bilinear")[0]
        guess = back.argmax(0)[labels != IGNORE]
        assert found.per_image[index, 1].tolist() == torch.bincount(guess, minlength=CLASSES).tolist()
    assert found.figures["inference"].endswith("images brought to 24 x 32, masks at their own size")


def test_the_quick_look_has_the_figures_of_the_evaluation(tmp_path):
    files, _, _ = tree(tmp_path)
    figures = evaluated(files).figures
    assert quick_look(Painter(), files, CPU, 0, of="val") == {
        "val_miou": pytest.approx(figures["miou"]),
        "val_balanced_accuracy": pytest.approx(figures["balanced_accuracy"]),
    }


def test_files_are_read_back(tmp_path):
    files, _, _ = tree(tmp_path / "data")
    found = evaluated(files)
    write_dense_evaluation(tmp_path, found)
    assert torch.equal(read_per_image(tmp_path), found.per_image)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == found.figures
    rows = list(csv.DictReader((tmp_path / "per_class.csv").open()))
    assert [row["iou"] for row in rows] == [*(str(value) for value in found.figures["iou"][:ABSENT]), ""]
    (tmp_path / "per_image.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="per_image"):
        read_per_image(tmp_path)


def test_summary_and_warnings_name_what_matters(tmp_path):
    files, _, _ = tree(tmp_path)
    figures = evaluated(files).figures
    assert f"mean IoU {100 * figures['miou']:.1f} % (" in dense_summary(figures)
    found = dense_warnings(figures)
    assert len(found) == 2
    assert "class5" in found[0]
    assert "5 images" in found[1]
    missed = {**figures, "iou": [0.5, 0.0, 0.5, 0.5, 0.5, None], "test_images": 500}
    assert [line for line in dense_warnings(missed) if "class1" in line]
    assert not dense_warnings({**missed, "iou": [0.5] * 6, "test_pixels": [9] * 6})


def run_of(folder, evaluation, task="segmentation"):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"data: camvid\ntask: {task}\nmethod: cross_entropy\n")
    if evaluation is not None:
        write_dense_evaluation(folder, evaluation)
    return str(folder)


def test_runs_are_compared_pair_by_pair(tmp_path):
    one = evaluated(tree(tmp_path / "a", wrong=0.4)[0])
    other = evaluated(tree(tmp_path / "b", wrong=0.1)[0])
    assert torch.equal(one.per_image[:, 2], other.per_image[:, 2])
    elsewhere = evaluated(tree(tmp_path / "c", seed=1)[0])
    renamed = replace(one, figures={**one.figures, "class_names": [f"other{label}" for label in range(CLASSES)]})
    runs = [run_of(tmp_path / f"run{k}", part) for k, part in enumerate((one, other, elsewhere, renamed))]
    rows = compare_dense(runs, out=str(tmp_path / "table.md"), quiet=True).rows
    assert rows[0].difference is None
    expected = paired_miou_difference(other.per_image, one.per_image)
    assert rows[1].difference["mean IoU"] == expected
    assert expected["low"] > 0
    assert rows[1].difference["rarest four"] == paired_miou_difference(other.per_image, one.per_image, [4, 3, 2, 1])
    assert [(row.difference, row.note) for row in rows[2:]] == [(None, "other test images"), (None, "other classes")]
    assert "other test images, so no paired difference" in (tmp_path / "table.md").read_text()


def test_what_cannot_be_compared_is_a_sentence(tmp_path):
    found = evaluated(tree(tmp_path / "data")[0])
    one, other = run_of(tmp_path / "one", found), run_of(tmp_path / "other", found)
    for runs, options, words in (
        ([one], {}, "name two or more"),
        ([one, other], {"baseline": "none"}, "none of the runs"),
        ([one, run_of(tmp_path / "open", None)], {}, "not finished"),
        ([one, run_of(tmp_path / "images", found, "classification")], {}, "run of classification"),
        ([str(tmp_path / "x*")], {}, "matches no finished run"),
    ):
        with pytest.raises(UserError, match=words):
            compare_dense(runs, quiet=True, **options)
