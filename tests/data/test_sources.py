"""From what the user wrote to checked splits: names, files, CIFAR through a stand-in, and every refusal."""

import math
import sys
import types
import urllib.error

import numpy as np
import pytest
import torch

from longtail.data import exponential_profile, load_data, long_tailed_indices, source_names
from longtail.data.cifar import cifar_lt
from longtail.data.digits import digits_lt
from longtail.data.file_splits import FileChecks
from longtail.errors import UserError
from longtail.option_groups import DataOptions


def _write(path, counts, seed=0):
    """Write gray 20x20 images, each filled with its own number, so that an image tells its position."""
    labels = np.random.RandomState(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    images = np.broadcast_to(np.arange(len(labels), dtype=np.uint8)[:, None, None], (len(labels), 20, 20))
    test = np.arange(len(counts))
    np.savez(path, train_images=images, train_labels=labels, test_images=images[: len(counts)], test_labels=test)
    return torch.from_numpy(labels)


def _positions(images):
    return images.images[:, 0, 0, 0].tolist()


def test_names():
    assert source_names() == [
        "cifar10-lt",
        "cifar100-lt",
        "digits-lt",
        "imagenet-lt",
        "inaturalist2018",
        "places-lt",
    ]


def test_digits_by_name_with_default_imbalance_and_with_another():
    assert load_data("digits-lt").train.class_counts.tolist() == exponential_profile(134, 10, 100)
    ours = load_data("digits-lt", imbalance=10, source=DataOptions(profile="step"))
    assert torch.equal(ours.train.images, digits_lt(10, "step").train.images)


def test_file_as_it_is(tmp_path):
    labels = _write(tmp_path / "a.npz", [5, 20, 9])
    splits = load_data(str(tmp_path / "a.npz"))
    assert _positions(splits.train) == list(range(34))
    assert torch.equal(splits.train.labels, labels)
    assert splits.name == str(tmp_path / "a.npz")


def test_file_that_has_the_profile_is_left_as_it_is(tmp_path):
    counts = exponential_profile(60, 4, 10)
    _write(tmp_path / "a.npz", counts)
    splits = load_data(str(tmp_path / "a.npz"), imbalance=10)
    assert _positions(splits.train) == list(range(sum(counts)))


def test_file_is_cut_to_the_profile(tmp_path):
    labels = _write(tmp_path / "a.npz", [70, 20, 70, 70])
    whole = load_data(str(tmp_path / "a.npz"))
    splits = load_data(str(tmp_path / "a.npz"), imbalance=8)
    # 70, 35, 17.5, 8.75 from the largest class down, which class 1 is not
    assert splits.train.class_counts.tolist() == [70, 8, 35, 17]
    assert _positions(splits.train) == long_tailed_indices(labels, [70, 8, 35, 17]).tolist()
    assert torch.equal(labels[_positions(splits.train)], splits.train.labels)
    pixels = splits.train.images.double() / 255
    assert splits.mean == pytest.approx((float(pixels.mean()),))
    assert splits.std == pytest.approx((float(pixels.std(correction=0)),))
    assert splits.mean != whole.mean
    assert torch.equal(splits.test.images, whole.test.images)


def test_file_cut_by_steps(tmp_path):
    _write(tmp_path / "a.npz", [40, 40, 40, 3])
    splits = load_data(str(tmp_path / "a.npz"), imbalance=4, source=DataOptions(profile="step"))
    assert splits.train.class_counts.tolist() == [40, 40, 10, 3]


def test_the_same_pixels_in_an_array_file_are_in_one_fold(tmp_path):
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (24, 8, 8)).astype(np.uint8)
    images[[5, 9, 20]] = images[2]
    labels = np.arange(24) % 2
    labels[[2, 5, 9, 20]] = 1
    np.savez(
        tmp_path / "a.npz",
        train_images=images[:18], train_labels=labels[:18], test_images=images[18:], test_labels=labels[18:],
    )  # fmt: skip
    tested = []
    for fold in range(3):
        splits = load_data(str(tmp_path / "a.npz"), folds=3, source=DataOptions(fold=fold))
        train, test = ({image.numpy().tobytes() for image in part.images} for part in (splits.train, splits.test))
        assert not train & test
        tested += [image.numpy().tobytes() for image in splits.test.images]
        assert not any("also in the training set" in note for note in splits.notes)
    assert sorted(tested) == sorted(image.tobytes() for image in images)


def test_options_that_arrays_have_no_use_for_are_told(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (8, 8, 8)).astype(np.uint8)
    arrays = {
        "train_images": pixels,
        "train_labels": np.arange(8) % 2,
        "test_images": 255 - pixels,
        "test_labels": [0, 1] * 4,
    }
    np.savez(tmp_path / "a.npz", **arrays)
    source = DataOptions(group_pattern="(x)", unknown_labels="skip", split_seed=3)
    (note,) = load_data(str(tmp_path / "a.npz"), root="here", source=source).notes
    assert note.endswith("without effect are --root, --source.group_pattern, --source.unknown_labels.")
    (note,) = load_data(str(tmp_path / "a.npz"), checks=FileChecks("skip")).notes
    assert note.endswith("without effect are --on_bad_image.")
    assert load_data(str(tmp_path / "a.npz"), source=DataOptions(split_seed=3)).notes == ()


def test_the_same_pixels_in_both_arrays_are_told(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (8, 8, 8)).astype(np.uint8)
    test = 255 - pixels[:4]
    test[2] = pixels[5]
    arrays = {
        "train_images": pixels,
        "train_labels": np.arange(8) % 2,
        "test_images": test,
        "test_labels": [0, 1, 1, 0],
    }
    np.savez(tmp_path / "a.npz", **arrays)
    (note,) = load_data(str(tmp_path / "a.npz")).notes
    assert "1 test image is also in the training set (first: test image 2 = training image 5)" in note


def test_file_dealt_into_folds(tmp_path):
    _write(tmp_path / "a.npz", [9, 4, 2])
    whole = load_data(str(tmp_path / "a.npz"))
    images = len(whole.train) + len(whole.test)
    seen = []
    for fold in range(3):
        splits = load_data(str(tmp_path / "a.npz"), folds=3, source=DataOptions(fold=fold))
        assert len(splits.train) + len(splits.test) == images
        assert splits.test_split == f"fold {fold + 1} of 3"
        assert bool((splits.train.class_counts > 0).all())
        seen += splits.test.labels.tolist()
    assert sorted(seen) == sorted(whole.train.labels.tolist() + whole.test.labels.tolist())


def test_published_sets_are_not_dealt_anew():
    with pytest.raises(UserError, match=r"digits-lt has a test set of its own.*leave out --folds"):
        load_data("digits-lt", folds=3)


class _StandInCifar:
    """What the CIFAR code uses of a torchvision data set: 30 training and 4 test images a class."""

    num_classes = 10
    asked = ()

    def __init__(self, root, train, download):
        type(self).asked += ((root, train, download),)
        per_class = 30 if train else 4
        random = np.random.RandomState(train)
        self.targets = random.permutation(np.repeat(np.arange(self.num_classes), per_class)).tolist()
        self.data = random.randint(0, 256, (len(self.targets), 32, 32, 3)).astype(np.uint8)
        self.classes = [f"class {c}" for c in range(self.num_classes)]


def _install(monkeypatch, **sources):
    """Put stand-ins in torchvision's place: importing the real one takes seconds."""
    module = types.ModuleType("torchvision")
    module.datasets = types.SimpleNamespace(**{"CIFAR10": None, "CIFAR100": None, **sources})
    monkeypatch.setitem(sys.modules, "torchvision", module)


@pytest.fixture
def stand_in(monkeypatch):
    def install(num_classes):
        source = type("StandIn", (_StandInCifar,), {"num_classes": num_classes, "asked": ()})
        _install(monkeypatch, **{f"CIFAR{num_classes}": source})
        return source

    return install


@pytest.mark.parametrize("num_classes", [10, 100])
def test_cifar(stand_in, num_classes):
    source = stand_in(num_classes)
    splits = load_data(f"cifar{num_classes}-lt", imbalance=10, root="some/folder")
    assert source.asked == (("some/folder", True, True), ("some/folder", False, True))
    official = source("", train=True, download=False)
    counts = exponential_profile(30, num_classes, 10)
    kept = long_tailed_indices(torch.tensor(official.targets), counts)
    assert splits.train.class_counts.tolist() == counts
    expected = torch.from_numpy(official.data[kept.numpy()])
    for channel in range(3):
        assert torch.equal(splits.train.images[:, channel], expected[..., channel])
    assert splits.train.labels.tolist() == [official.targets[i] for i in kept]
    test = source("", train=False, download=False)
    assert splits.test.labels.tolist() == test.targets
    assert splits.test.class_names == tuple(test.classes)
    assert splits.mean == (0.4914, 0.4822, 0.4465)
    assert splits.std == (0.2023, 0.1994, 0.2010)
    assert (splits.name, splits.views) == (f"cifar{num_classes}-lt", "cifar")


def test_cifar_default_imbalance_is_100(stand_in, tmp_path):
    stand_in(10)
    assert load_data("cifar10-lt", root=str(tmp_path)).train.class_counts.tolist() == exponential_profile(30, 10, 100)


def test_cifar_takes_10_or_100_classes():
    with pytest.raises(ValueError, match="10 or 100"):
        cifar_lt(20, "x")


@pytest.mark.parametrize("num_classes", [10, 100])
@pytest.mark.parametrize(
    "failure",
    [urllib.error.URLError("no route"), RuntimeError("Dataset not found.\nUse download=True"), EOFError()],
)
def test_cifar_not_to_be_had(monkeypatch, num_classes, failure):
    def fail(root, train, download):
        raise failure

    _install(monkeypatch, **{f"CIFAR{num_classes}": fail})
    with pytest.raises(UserError) as caught:
        load_data(f"cifar{num_classes}-lt", root="my/folder")
    message = str(caught.value)
    archive = "cifar-10-python.tar.gz" if num_classes == 10 else "cifar-100-python.tar.gz"
    for word in (f"CIFAR-{num_classes} is not in my/folder", archive, "into my/folder", ".npz"):
        assert word in message
    assert "\n" not in message


@pytest.mark.check
def test_cifar_of_the_real_torchvision_without_download_and_without_files(tmp_path):
    with pytest.raises(UserError, match=r"put the official archive cifar-10-python\.tar\.gz into"):
        cifar_lt(10, tmp_path, download=False)


@pytest.mark.parametrize("imbalance", [0.5, 0, -1, math.nan, math.inf])
@pytest.mark.parametrize("data", ["digits-lt", "cifar10-lt", "nowhere.npz"])
def test_bad_imbalance_is_told_before_anything_is_read(data, imbalance):
    with pytest.raises(UserError, match="imbalance"):
        load_data(data, imbalance=imbalance)


def test_unknown_profile_is_told_before_anything_is_read():
    with pytest.raises(UserError, match="unknown profile 'steps'; did you mean 'step'"):
        load_data("cifar10-lt", source=DataOptions(profile="steps"))


def test_unknown_name_names_near_matches():
    with pytest.raises(UserError, match="unknown data 'digit-lt'; did you mean 'digits-lt'"):
        load_data("digit-lt")
    with pytest.raises(UserError, match="unknown data 'qq'; known: cifar10-lt, cifar100-lt, digits-lt"):
        load_data("qq")
    with pytest.raises(UserError, match="unknown data ''"):
        load_data("")


@pytest.mark.parametrize("data", ["no/such/place", "missing.npz", "./missing"])
def test_path_that_does_not_exist(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"no such file or folder: {data}"):
        load_data(data)


def test_other_file_names_the_accepted_forms(tmp_path):
    other = tmp_path / "images.zip"
    other.write_bytes(b"x")
    with pytest.raises(UserError, match=r"images\.zip is not of a kind that is read; .*\.npz.*digits-lt"):
        load_data(str(other))


def test_bad_file_is_told_by_name(tmp_path):
    _write(tmp_path / "a.npz", [3, 0, 2])
    with pytest.raises(UserError, match=r"a\.npz: class '1' \(label 1\) has no training image"):
        load_data(str(tmp_path / "a.npz"))
