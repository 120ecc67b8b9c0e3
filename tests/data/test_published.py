"""The published sets by name over tiny trees in the published layout, and what is told when a piece is missing."""

import pytest

from longtail.data.labels import number_labels
from longtail.data.published import PUBLISHED, read_published
from longtail.errors import UserError

LINES = {
    "imagenet-lt": (
        ["train/n01440764/n01440764_762.JPEG 0", "train/n01440764/n01440764_3.JPEG 0", "train/n01443537/n0_1.JPEG 1"],
        ["val/ILSVRC2012_val_00000293.JPEG 0", "val/ILSVRC2012_val_00000236.JPEG 1"],
    ),
    "inaturalist2018": (
        ["train_val2018/Plantae/7291/9f8e.jpg 1", "train_val2018/Insecta/673/cb75.jpg 0"],
        ["train_val2018/Plantae/7291/0000.jpg 1"],
    ),
    "places-lt": (
        ["train/airfield/00002049.jpg 0", "train/a/apartment/1.jpg 1"],
        ["val/airfield/00002658.jpg 0", "val/Places365_val_00000001.jpg 1"],
    ),
}  # fmt: skip
CLASSES = {
    "imagenet-lt": ("n01440764", "n01443537"),
    "inaturalist2018": ("Insecta/673", "Plantae/7291"),
    "places-lt": ("airfield", "a/apartment"),
}


def _tree(root, name, lists=""):
    published = PUBLISHED[name]
    for file, lines in zip((published.train_list, published.test_list), LINES[name], strict=True):
        (root / lists).mkdir(parents=True, exist_ok=True)
        (root / lists / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
        for line in lines:
            path = root / line.split()[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")


def _sentence(name, root, *words):
    with pytest.raises(UserError) as caught:
        read_published(name, root)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
@pytest.mark.parametrize("lists", ["", "lists"])
def test_lists_and_images_in_the_published_layout(tmp_path, name, lists):
    _tree(tmp_path, name, lists)
    listing = read_published(name, tmp_path)
    train, test = LINES[name]
    assert [f"{path} {label}" for path, label in zip(listing.paths, listing.labels, strict=True)] == [*train, *test]
    assert listing.splits == ["train"] * len(train) + ["test"] * len(test)
    assert (listing.root, listing.name, listing.class_names) == (tmp_path, name, CLASSES[name])
    assert number_labels(listing)[1].tolist() == [int(line.split()[1]) for line in [*train, *test]]
    published = PUBLISHED[name]
    assert len(listing.notes) == 1
    for word in (
        f"{published.num_classes:,} classes, {published.train_images:,} training",
        f"2 classes, {len(train)} ",
    ):
        assert word in listing.notes[0]


def test_published_facts():
    facts = {name: (p.num_classes, p.train_images, p.test_images) for name, p in PUBLISHED.items()}
    assert facts == {
        "imagenet-lt": (1000, 115846, 50000),
        "inaturalist2018": (8142, 437513, 24426),
        "places-lt": (365, 62500, 36500),
    }
    assert (PUBLISHED["inaturalist2018"].mean, PUBLISHED["inaturalist2018"].std) == (
        (0.466, 0.471, 0.380),
        (0.195, 0.194, 0.192),
    )
    assert PUBLISHED["places-lt"].mean == PUBLISHED["imagenet-lt"].mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_no_lists(tmp_path, name):
    published = PUBLISHED[name]
    lists = (published.train_list, published.test_list, f"{published.train_list} is not there")
    _sentence(name, tmp_path, published.title, *lists, "terms of use", str(tmp_path), "--root")
    _tree(tmp_path, name)
    (tmp_path / published.test_list).unlink()
    _sentence(name, tmp_path, f"{published.test_list} is not there")


def test_no_images(tmp_path):
    _tree(tmp_path, "imagenet-lt")
    (tmp_path / "val").rename(tmp_path / "validation")
    _sentence(
        "imagenet-lt", tmp_path, "the folder val is not there", "ImageNet_LT_test.txt names val/ILSVRC2012", "terms"
    )
    (tmp_path / "train").rename(tmp_path / "images")
    _sentence("imagenet-lt", tmp_path, "the folder train is not there")


def test_one_image_missing(tmp_path):
    _tree(tmp_path, "places-lt")
    (tmp_path / "train/a/apartment/1.jpg").unlink()
    _sentence("places-lt", tmp_path, "1 of 4 images", "first train/a/apartment/1.jpg")


def test_unknown_name(tmp_path):
    _sentence("imagenet_lt", tmp_path, "did you mean 'imagenet-lt'")
