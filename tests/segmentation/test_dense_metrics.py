"""Figures of segmentation against torchmetrics and against loops over pixels."""

import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError, MulticlassConfusionMatrix, MulticlassJaccardIndex

from longtail.segmentation.data.mask_set import IGNORE
from longtail.segmentation.metrics import (
    PixelReliability,
    bootstrap_miou,
    boundary_f_scores,
    boundary_tolerance,
    confusion_of,
    frequency_weighted_iou,
    group_iou,
    groups_by_images,
    groups_by_pixels,
    iou_of,
    mean_iou,
    paired_miou_difference,
    pixel_accuracy,
    precision_of,
    rarest_classes,
    recall_of,
    regions_of,
)


def maps(seed=0, classes=6, shape=(5, 24, 32), wrong=0.4):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, shape, generator=generator)
    labels[labels == 4] = 0  # a class that the masks do not hold
    given = torch.where(
        torch.rand(shape, generator=generator) < wrong, torch.randint(4, shape, generator=generator), labels
    )
    labels[torch.rand(shape, generator=generator) < 0.1] = IGNORE
    return given, labels


def per_image_of(given, labels, classes=6):
    return torch.stack([regions_of(confusion_of(g, y, classes)) for g, y in zip(given, labels, strict=True)])


@pytest.mark.parametrize("classes", [6, 150])
def test_overlap_as_torchmetrics(classes):
    given, labels = maps(classes=classes, shape=(3, 40, 40))
    confusion = confusion_of(given, labels, classes)
    theirs = MulticlassConfusionMatrix(classes, ignore_index=IGNORE)
    assert torch.equal(confusion, theirs(given, labels))
    iou = iou_of(regions_of(confusion))
    jaccard = MulticlassJaccardIndex(classes, average="none", ignore_index=IGNORE)(given, labels)
    occurs = ~iou.isnan()
    assert int((~occurs).sum()) >= 1  # class 4 is nowhere: torchmetrics calls that 0, we leave it out
    assert torch.allclose(iou[occurs].float(), jaccard[occurs], atol=1e-6)
    assert float(mean_iou(regions_of(confusion))) == pytest.approx(float(jaccard[occurs].mean()), abs=1e-6)


def test_figures_by_hand():
    labels = torch.tensor([[0, 0, 0, 1], [0, 0, 1, IGNORE]])
    given = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 2]])  # the class 2 lies on an ignored pixel: predicted nowhere
    regions = regions_of(confusion_of(given, labels, 3))
    assert regions.tolist() == [[4, 1, 0], [5, 2, 0], [5, 2, 0]]
    iou = iou_of(regions)
    assert iou[:2].tolist() == pytest.approx([4 / 6, 1 / 3])
    assert iou[2].isnan()
    assert recall_of(regions)[:2].tolist() == pytest.approx([4 / 5, 1 / 2])
    assert precision_of(regions)[:2].tolist() == pytest.approx([4 / 5, 1 / 2])
    assert pixel_accuracy(regions) == pytest.approx(5 / 7)
    assert frequency_weighted_iou(regions) == pytest.approx((5 * 4 / 6 + 2 / 3) / 7)
    assert float(mean_iou(regions, torch.tensor([1, 2]))) == pytest.approx(1 / 3)


def test_a_class_that_is_only_predicted_counts_as_zero():
    regions = regions_of(confusion_of(torch.tensor([0, 1]), torch.tensor([0, 0]), 2))
    assert iou_of(regions).tolist() == [0.5, 0.0]


def test_all_ignored_and_perfect():
    nothing = regions_of(confusion_of(torch.zeros(9).long(), torch.full((9,), IGNORE), 3))
    assert mean_iou(nothing).isnan()
    _, labels = maps()
    perfect = regions_of(confusion_of(labels.clamp(min=0), labels, 6))
    assert float(mean_iou(perfect)) == frequency_weighted_iou(perfect) == pixel_accuracy(perfect) == 1.0


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="shape"):
        confusion_of(torch.zeros(3).long(), torch.zeros(4).long(), 2)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        confusion_of(torch.tensor([2]), torch.tensor([0]), 2)


def test_bootstrap_as_a_loop_over_draws():
    per_image = per_image_of(*maps(shape=(12, 8, 8)))
    found = bootstrap_miou(per_image, draws=200, seed=3)
    generator = torch.Generator().manual_seed(3)
    values = []
    for size in [50] * 4:  # as many at once as the function draws
        drawn = torch.randint(12, (size, 12), generator=generator)
        values += [float(mean_iou(per_image[images].sum(0))) for images in drawn]
    low, high = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert found["low"] < float(mean_iou(per_image.sum(0))) < found["high"]
    assert bootstrap_miou(per_image[:1])["low"] is None
    only = bootstrap_miou(per_image, [1, 2], draws=200, seed=3)
    assert (only["low"], only["high"]) != (found["low"], found["high"])


def test_a_paired_difference_is_narrower_than_two_intervals():
    given, labels = maps(shape=(20, 8, 8))
    better = torch.where(torch.rand(given.shape, generator=torch.Generator().manual_seed(1)) < 0.2, labels, given)
    better = better.clamp(min=0)
    one, other = per_image_of(better, labels), per_image_of(given, labels)
    found, wide = paired_miou_difference(one, other), bootstrap_miou(one)
    assert found["difference"] == pytest.approx(float(mean_iou(one.sum(0)) - mean_iou(other.sum(0))))
    assert 0 < found["low"] < found["difference"] < found["high"]
    assert found["high"] - found["low"] < wide["high"] - wide["low"]
    same = paired_miou_difference(one, one)
    assert (same["difference"], same["low"], same["high"]) == (0, 0, 0)
    with pytest.raises(ValueError, match="same images"):
        paired_miou_difference(one, other.flip(0))


def slow_boundary(given, labels, label, radius):
    """Precision and recall of outlines by looking at every pair of pixels."""
    height, width = labels.shape

    def outline(map_):
        points = []
        for r in range(height):
            for c in range(width):
                near = [(r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)]
                values = [map_[y, x] for y, x in near if 0 <= y < height and 0 <= x < width]
                if map_[r, c] == label and any(v not in (label, IGNORE) for v in values):
                    points.append((r, c))
        return points

    one, other = outline(given), outline(labels)
    close = lambda p, points: any(max(abs(p[0] - y), abs(p[1] - x)) <= radius for y, x in points)  # noqa: E731
    precision = sum(close(p, other) for p in one) / len(one) if one else 0.0
    recall = sum(close(p, one) for p in other) / len(other) if other else 0.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("radius", [1, 2])
def test_boundary_f_by_every_pair_of_pixels(radius):
    labels = torch.zeros(14, 18, dtype=torch.int64)
    labels[3:9, 4:11], labels[9:, 12:], labels[:2, 14:] = 1, 2, IGNORE
    given = labels.roll((1, 2), (0, 1)).clamp(min=0)
    found = boundary_f_scores(given, labels, 4, radius)
    ignored = torch.where(labels == IGNORE, IGNORE, given).numpy()
    for label in range(3):
        assert float(found[label]) == pytest.approx(slow_boundary(ignored, labels.numpy(), label, radius)), label
    assert found[3].isnan()
    assert boundary_f_scores(labels.clamp(min=0), labels, 4, radius)[:3].tolist() == [1.0] * 3


def test_boundaries_of_one_class_alone():
    whole = torch.zeros(6, 6, dtype=torch.int64)
    assert boundary_f_scores(whole, whole, 2, 1)[0] == 1.0
    assert boundary_f_scores(torch.ones_like(whole), whole, 2, 1).tolist() == [0.0, 0.0]
    assert (boundary_tolerance(360, 480), boundary_tolerance(10, 10)) == (4, 1)


def test_calibration_as_torchmetrics_gathered_image_by_image():
    given, labels = maps(shape=(4, 30, 30))
    probabilities = torch.rand(4, 6, 30, 30, generator=torch.Generator().manual_seed(2)).softmax(1)
    probabilities = (probabilities * 4).softmax(1)
    confidence, given = probabilities.max(1)
    reliability = PixelReliability()
    for image in range(4):
        reliability.see(confidence[image], given[image], labels[image])
    kept = labels != IGNORE
    flat = probabilities.movedim(1, -1)[kept]
    theirs = MulticlassCalibrationError(6, n_bins=15, norm="l1")(flat, labels[kept])
    assert reliability.error() == pytest.approx(float(theirs), abs=1e-5)
    table = reliability.table()
    assert sum(row["count"] for row in table) == int(kept.sum())
    assert PixelReliability().error() is None


def test_groups_by_shares():
    counts = torch.tensor([6000, 2000, 1500, 400, 100])
    assert groups_by_pixels(counts, [1.0, 0.1]) == ["many", "medium", "medium", "medium", "few"]
    assert groups_by_images(torch.tensor([51, 50, 10, 9, 0]), 100, [0.5, 0.1]) == [
        "many",
        *["medium"] * 2,
        *["few"] * 2,
    ]
    iou = torch.tensor([0.9, 0.8, float("nan"), 0.2, 0.1])
    found = group_iou(iou, ["many", "medium", "medium", "medium", "few"])
    assert found["medium"] == {"iou": pytest.approx(0.5), "classes": 3}
    assert group_iou(iou, ["many"] * 5)["few"] == {"iou": None, "classes": 0}
    assert rarest_classes(counts, torch.tensor([1, 1, 1, 1, 0]), 2) == [3, 2]
