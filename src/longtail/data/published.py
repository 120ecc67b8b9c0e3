"""The published long-tailed photograph sets by name: ImageNet-LT, iNaturalist 2018 and Places-LT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from longtail.data.listing import Listing
from longtail.data.manifest import check_exists
from longtail.data.split_list import read_split_list
from longtail.errors import UserError, unknown_name

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PublishedSet:
    """What a published data set is made of.

    Attributes:
        title: its name in papers.
        train_list, test_list: the file names of its lists.
        lists_from: where the lists come from.
        images: what its images are, in words.
        num_classes, train_images, test_images: as published.
        mean, std: per-channel statistics used to normalise, on the 0..1 scale.
    """

    title: str
    train_list: str
    test_list: str
    lists_from: str
    images: str
    num_classes: int
    train_images: int
    test_images: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


PUBLISHED: dict[str, PublishedSet] = {
    "imagenet-lt": PublishedSet(
        "ImageNet-LT",
        "ImageNet_LT_train.txt",
        "ImageNet_LT_test.txt",
        "made by Liu et al. 2019",
        "the images of ImageNet (ILSVRC 2012)",
        num_classes=1000,
        train_images=115_846,
        test_images=50_000,
    ),
    "inaturalist2018": PublishedSet(
        "iNaturalist 2018",
        "iNaturalist18_train.txt",
        "iNaturalist18_val.txt",
        "made from the split of the competition",
        "the images of the iNaturalist 2018 competition",
        num_classes=8142,
        train_images=437_513,
        test_images=24_426,
        mean=(0.466, 0.471, 0.380),
        std=(0.195, 0.194, 0.192),
    ),
    "places-lt": PublishedSet(
        "Places-LT",
        "Places_LT_train.txt",
        "Places_LT_test.txt",
        "made by Liu et al. 2019",
        "the images of Places365",
        num_classes=365,
        train_images=62_500,
        test_images=36_500,
    ),
}
"""The published sets by the name that ``longtail train`` takes."""


def read_published(name: str, root: Path, exist: bool = True) -> Listing:
    """Return the images of a published set over its lists, which lie in ``root`` or ``root/lists``.

    Paths in the lists are relative to ``root``; ``exist`` says whether each is looked for. Other numbers of classes and
    images than the published ones are told in a note.

    Raises:
        UserError: no such set, or lists or images are missing; the message says what the set is made of.
    """
    if name not in PUBLISHED:
        raise unknown_name("published data set", name, PUBLISHED)
    published = PUBLISHED[name]
    root = root.expanduser()
    train, test = (_find_list(published, root, file) for file in (published.train_list, published.test_list))
    listing = read_split_list(train, name, root=root, test=test)
    assert listing.splits is not None
    for split, file in (("train", train), ("test", test)):
        _check_image_folder(published, root, listing.paths[listing.splits.index(split)], file)
    if exist:
        check_exists(listing)
    return replace(listing, notes=(*listing.notes, *_differences(published, listing, listing.splits)))


def _find_list(published: PublishedSet, root: Path, file: str) -> Path:
    for place in (root / file, root / "lists" / file):
        if place.is_file():
            return place
    raise _missing(published, root, f"the list {file} is not there, nor in {root / 'lists'}")


def _check_image_folder(published: PublishedSet, root: Path, path: str, file: Path) -> None:
    """Raise if the folder that the first image of a list lies below is not in ``root`` at all."""
    top = path.partition("/")[0]
    if top and not (root / top).exists():
        raise _missing(published, root, f"the folder {top} is not there, but {file} names {path}")


def _missing(published: PublishedSet, root: Path, what: str) -> UserError:
    return UserError(
        f"{published.title} is made of {published.images} and the lists {published.train_list} and "
        f"{published.test_list} ({published.lists_from}), all in {root}: {what}; neither lists nor images are "
        "downloaded here, because they have terms of use: get them from their publishers, and name their folder by "
        "--root."
    )


def _differences(published: PublishedSet, listing: Listing, splits: Sequence[str]) -> list[str]:
    train = splits.count("train")
    found = (len(set(listing.labels)), train, len(splits) - train)
    expected = (published.num_classes, published.train_images, published.test_images)
    if found == expected:
        return []

    def say(numbers: tuple[int, int, int]) -> str:
        return "{:,} classes, {:,} training and {:,} test images".format(*numbers)

    return [f"{listing.name}: {published.title} as published has {say(expected)}; these lists have {say(found)}."]
