"""What crops show of each class, against the crops that the loader gives."""

import torch
from mask_trees import split_tree

from longtail.option_groups import DataOptions
from longtail.segmentation.data.geometry import Geometry
from longtail.segmentation.data.loading import MaskLoader
from longtail.segmentation.data.shown import seen_more_often, shown_pixels
from longtail.segmentation.data.sources import load_masks
from longtail.segmentation_options import SegmentationOptions


def read(root):
    how = {"root": None, "source": DataOptions(), "options": SegmentationOptions(), "val_fraction": 0.0}
    return load_masks(str(root), on_bad="error", workers=0, **how).train


def shares(counts):
    return counts.double() / counts.sum()


def test_rare_crops_are_seen_as_the_loader_gives_them(tmp_path):
    split_tree(tmp_path / "tree", sizes={"train": 24, "test": 2}, classes=4)
    train = read(tmp_path / "tree")
    geometry = Geometry((8, 12), (0.75, 1.5), True, 1.0)
    loader = MaskLoader(
        train, {"classifier": "none"}, 8, 3, torch.device("cpu"), 60, geometry=geometry, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    given = torch.zeros(train.num_classes, dtype=torch.int64)
    for epoch in range(60):
        for step in range(3):
            labels = loader.load(epoch, step).labels
            given += torch.bincount(labels[labels >= 0], minlength=train.num_classes)
    shown, held = torch.zeros(0, train.num_classes), None
    for seed in range(20):  # one estimate is of a few crops
        crops, held = shown_pixels(train, geometry, seed)
        shown = torch.cat([shown, crops])
    ratio = seen_more_often(shown, held)
    assert torch.allclose(shares(train.class_counts * ratio), shares(given), atol=0.02)
    assert float(ratio[train.class_counts.argmin()]) > 1.3  # the rarest is seen far more often than it is there


def test_crops_of_whole_images_change_nothing(tmp_path):
    split_tree(tmp_path / "tree")
    train = read(tmp_path / "tree")
    shown, held = shown_pixels(train, Geometry((24, 32)), 0)
    assert torch.equal(shown[: len(train)], train.pixels)
    assert torch.equal(seen_more_often(shown, held), torch.ones(train.num_classes).double())


def test_a_class_that_no_crop_shows_keeps_its_share():
    shown, held = torch.tensor([[90, 10, 0]]), torch.tensor([[80, 10, 10]])
    assert seen_more_often(shown, held)[2] == 1
