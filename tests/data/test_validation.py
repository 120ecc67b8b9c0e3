"""The validation set: how much of each class, out of every source, with nothing torn apart and no class untrained."""

import csv
import sys
import types

import numpy as np
import pytest
import torch

from longtail.data import ImageFiles, load_data
from longtail.data.arrays import pixel_statistics
from longtail.errors import UserError
from longtail.option_groups import DataOptions

COUNTS = {"ant": 30, "bee": 11, "cat": 3, "dog": 2, "eel": 1}


def split(data, fraction=0.2, folds=None, imbalance=None, root=None, **source):
    return load_data(
        str(data), val_fraction=fraction, folds=folds, imbalance=imbalance, root=root, source=DataOptions(**source)
    )


def wanted(counts, fraction):
    """The definition: a share of each class, at least one image, never the last."""
    return [min(count - 1, max(1, round(fraction * count))) if count > 1 else 0 for count in counts]


def names(images):
    """What tells one image from another: its path, or its pixels."""
    if isinstance(images, ImageFiles):
        return [images.path(index) for index in range(len(images))]
    return [image.numpy().tobytes() for image in images.images]


def write_arrays(path, counts, test=(3, 3, 3), repeat=()):
    """Write gray 20x20 images of noise; those at positions in ``repeat`` (pairs) have the same pixels."""
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 20, 20), dtype=np.uint8)
    for first, second in repeat:
        images[second] = images[first]
    test_labels = np.repeat(np.arange(len(test)), test)
    test_images = np.random.default_rng(1).integers(0, 256, (len(test_labels), 20, 20), dtype=np.uint8)
    np.savez(path, train_images=images, train_labels=labels, test_images=test_images, test_labels=test_labels)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory, make_photos):
    return make_photos(tmp_path_factory.mktemp("data") / "photos", COUNTS)


class StandInCifar:
    def __init__(self, root, train, download):
        count = 30 if train else 4
        self.targets = np.repeat(np.arange(10), count).tolist()
        self.data = np.random.default_rng(train).integers(0, 256, (10 * count, 32, 32, 3)).astype(np.uint8)
        self.classes = [f"class {c}" for c in range(10)]


def source_of(kind, folder, photos, make_photos, monkeypatch):
    """Return what names the data of this kind, and further options."""
    found = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    if kind == "cifar":
        module = types.ModuleType("torchvision")
        module.datasets = types.SimpleNamespace(CIFAR10=StandInCifar, CIFAR100=None)
        monkeypatch.setitem(sys.modules, "torchvision", module)
        return "cifar10-lt", {"imbalance": 10}
    if kind == "digits":
        return "digits-lt", {"imbalance": 60}
    if kind == "arrays":
        return write_arrays(folder / "a.npz", [40, 9, 2]), {}
    if kind == "cut":
        return write_arrays(folder / "a.npz", [40, 40, 40]), {"imbalance": 8}
    if kind == "folder":
        return photos, {}
    if kind == "cut folder":
        return photos, {"imbalance": 20}
    if kind == "second folder":
        return photos, {"test": str(make_photos(folder / "more", {"ant": 2, "bee": 1}, first=60))}
    if kind == "list":
        lines = [f"{path} {list(COUNTS).index(path.split('/')[0])}\n" for path in found]
        (folder / "all.txt").write_text("".join(lines))
        return folder / "all.txt", {"root": str(photos)}
    with (folder / "all.csv").open("w", newline="") as file:
        rows = [(path, path.split("/")[0], "test" if path.endswith("00.png") else "train") for path in found]
        rows = [(path, name, "train" if COUNTS[name] == 1 else split) for path, name, split in rows]
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return folder / "all.csv", {"root": str(photos)}


KINDS = ["arrays", "cut", "digits", "cifar", "folder", "cut folder", "second folder", "list", "manifest"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_a_share_of_every_class_out_of_the_training_set_of_any_source(
    kind, fraction, tmp_path, photos, make_photos, monkeypatch
):
    data, options = source_of(kind, tmp_path, photos, make_photos, monkeypatch)
    whole, splits = split(data, 0.0, **options), split(data, fraction, **options)
    assert whole.validation is None
    counts = whole.train.class_counts.tolist()
    assert splits.validation.class_counts.tolist() == wanted(counts, fraction)
    assert (splits.train.class_counts + splits.validation.class_counts).tolist() == counts
    kept, held = names(splits.train), names(splits.validation)
    assert sorted([*kept, *held]) == sorted(names(whole.train))
    assert [name for name in names(whole.train) if name in set(kept)] == kept  # in the order they had
    assert names(splits.test) == names(whole.test)
    [note] = [note for note in splits.notes if "validation" in note]
    assert f"{len(held)} of {len(kept) + len(held)} training images are held out" in note
    alone = [name for name, count in zip(whole.train.class_names, counts, strict=True) if count == 1]
    assert ("have none" in note or "has none" in note) == bool(alone)
    if alone:
        assert f"first {alone[0]!r}" in note
    again = split(data, fraction, **options)
    assert names(again.validation) == held
    assert again.train.fingerprint() == splits.train.fingerprint()
    if kind != "second folder":
        assert names(split(data, fraction, **options, split_seed=1).validation) != held


def test_arrays_are_normalised_by_the_images_that_are_left_and_cifar_as_published(tmp_path, photos, monkeypatch):
    splits = split(write_arrays(tmp_path / "a.npz", [40, 9, 2]), 0.3)
    assert (splits.mean, splits.std) == pixel_statistics(splits.train.images)
    assert splits.mean != split(tmp_path / "a.npz", 0.0).mean
    data, options = source_of("cifar", tmp_path, photos, None, monkeypatch)
    assert split(data, 0.3, **options).mean == (0.4914, 0.4822, 0.4465)


def test_the_choice_among_arrays_hangs_on_pixels_not_on_places(tmp_path):
    held = names(split(write_arrays(tmp_path / "a.npz", [40, 9, 2]), 0.2).validation)
    with np.load(tmp_path / "a.npz") as arrays:
        order = np.random.default_rng(5).permutation(51)
        shuffled = {name: arrays[name][order] if "train" in name else arrays[name] for name in arrays.files}
    np.savez(tmp_path / "b.npz", **shuffled)
    assert sorted(names(split(tmp_path / "b.npz", 0.2).validation)) == sorted(held)


def test_images_of_the_same_pixels_stay_together(tmp_path, make_photos):
    pairs = [(place, place + 20) for place in range(0, 20, 2)] + [(40, 41)]
    for seed in range(6):
        splits = split(write_arrays(tmp_path / "a.npz", [40, 9, 2], repeat=pairs), 0.3, split_seed=seed)
        assert not set(names(splits.train)) & set(names(splits.validation))
    photos = make_photos(tmp_path / "photos", {"ant": 12, "bee": 6})
    for number in range(0, 12, 2):
        (photos / "ant" / f"copy{number}.png").write_bytes((photos / "ant" / f"{number:02d}.png").read_bytes())
    for seed in range(6):
        splits = split(photos, 0.3, split_seed=seed)
        kept, held = set(splits.train.digests.tolist()), set(splits.validation.digests.tolist())
        assert not kept & held
        assert held


def sites(folder, paint):
    """Images of two classes taken at 8 sites, three at each, and one class at a single site."""
    for label, name in enumerate(("ant", "bee")):
        for number in range(24):
            paint(folder / name / f"site{number // 3}_{number}.png", label, number)
    for number in range(4):
        paint(folder / "cat" / f"site9_{number}.png", 2, number)
    return folder


@pytest.mark.parametrize("imbalance", [None, 3])
@pytest.mark.parametrize("folds", [None, 2])
@pytest.mark.parametrize("how", ["pattern", "column", "given test set"])
def test_groups_stay_together(how, folds, imbalance, tmp_path, paint):
    data, options = sites(tmp_path / "photos", paint), {"group_pattern": r"(site\d+)_"}
    if how == "column":
        found = [path.relative_to(data).as_posix() for path in sorted(data.rglob("*.png"))]
        with (tmp_path / "all.csv").open("w", newline="") as file:
            rows = [(path, path.split("/")[0], path.split("/")[1].split("_")[0]) for path in found]
            csv.writer(file).writerows([("path", "label", "group"), *rows])
        data, options = tmp_path / "all.csv", {"root": str(data)}
    if how == "given test set":
        paint(tmp_path / "more" / "ant" / "site77_0.png", 0, 99)
        paint(tmp_path / "more" / "bee" / "site77_1.png", 1, 99)
        options["test"] = str(tmp_path / "more")
    splits = split(data, 0.25, folds, imbalance, **options)

    def of(images):
        return {name.rsplit("/", 1)[1].split("_")[0] for name in names(images)}

    assert of(splits.validation)
    assert not of(splits.train) & of(splits.validation)
    assert bool((splits.train.class_counts > 0).all())
    # The class at one site cannot be looked at without being lost.
    assert splits.validation.class_counts[2] == 0
    assert any("1 class has none" in note and "'cat'" in note for note in splits.notes)
    assert len(splits.train_groups) == len(splits.train)


def test_each_fold_holds_out_of_its_own_training_part(photos):
    held = []
    for fold in range(3):
        without, splits = split(photos, 0.0, 3, fold=fold), split(photos, 0.2, 3, fold=fold)
        assert names(splits.test) == names(without.test)
        assert sorted([*names(splits.train), *names(splits.validation)]) == sorted(names(without.train))
        held.append(set(names(splits.validation)))
    # A draw of its own in each fold: no image is kept from training in all of them.
    assert not held[0] & held[1] & held[2]


@pytest.mark.parametrize(
    ("counts", "pattern", "why"),
    [
        ({"ant": 1, "bee": 1}, None, "no class has more than one image"),
        ({"ant": 3, "bee": 2}, r"(\w+)/", "every group holds all images of some class"),
    ],
)
def test_nothing_to_spare_is_told(counts, pattern, why, tmp_path, make_photos):
    data, test = make_photos(tmp_path / "a", counts), make_photos(tmp_path / "b", counts, first=50)
    with pytest.raises(UserError, match=rf"--val_fraction 0\.2: nothing can be held out .* because {why}"):
        split(data, 0.2, test=str(test), group_pattern=pattern)


def test_the_test_hold_out_does_not_move(photos):
    splits = split(photos, 0.2)
    assert names(splits.test) == names(split(photos, 0.0).test)
    assert not torch.isin(splits.validation.digests, torch.cat([splits.train.digests, splits.test.digests])).any()
