"""CIFAR by name from array files: which file is used when, and what each must hold."""

import http.client
import sys
import types

import numpy as np
import pytest
import torch

from longtail.data import exponential_profile, long_tailed_indices, step_profile
from longtail.data.cifar import cifar_lt
from longtail.errors import UserError

PER_CLASS = 12


def _arrays(path, counts, side=32, channels=3, named=True):
    draw = np.random.RandomState(len(counts))
    labels = draw.permutation(np.repeat(np.arange(len(counts)), counts))
    images = draw.randint(0, 256, (len(labels), side, side, channels)).astype(np.uint8)
    names = {"class_names": np.array([f"kind {c}" for c in range(len(counts))])} if named else {}
    test = np.arange(len(counts))
    np.savez(path, train_images=images, train_labels=labels, test_images=images[test], test_labels=test, **names)
    return images, torch.from_numpy(labels)


@pytest.fixture
def torchvision(monkeypatch):
    """Put a stand-in in torchvision's place that finds no network, and count how often it is asked."""
    asked = []

    def fail(root, train, download):
        asked.append(download)
        raise http.client.HTTPException("no route")

    module = types.ModuleType("torchvision")
    module.datasets = types.SimpleNamespace(CIFAR10=fail, CIFAR100=fail)
    monkeypatch.setitem(sys.modules, "torchvision", module)
    return asked


@pytest.mark.parametrize(("num_classes", "profile"), [(10, "exponential"), (100, "exponential"), (10, "step")])
def test_array_of_all_images_is_cut_by_the_protocol(tmp_path, torchvision, num_classes, profile):
    images, labels = _arrays(tmp_path / f"cifar{num_classes}.npz", [PER_CLASS] * num_classes)
    splits = cifar_lt(num_classes, tmp_path, 4, profile)
    counts = {"exponential": exponential_profile, "step": step_profile}[profile](PER_CLASS, num_classes, 4)
    kept = long_tailed_indices(labels, counts)
    assert torch.equal(splits.train.labels, labels[kept])
    assert torch.equal(splits.train.images, torch.from_numpy(images[kept.numpy()]).permute(0, 3, 1, 2))
    assert splits.test.labels.tolist() == list(range(num_classes))
    assert splits.train.class_names == tuple(f"kind {c}" for c in range(num_classes))
    assert (splits.mean, splits.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert (splits.name, splits.views) == (f"cifar{num_classes}-lt", "cifar")
    assert torchvision == []  # nothing is asked for beside a file that serves


@pytest.mark.parametrize("imbalance", [4, 2.5])
def test_array_that_is_cut_already_is_taken_as_it_is(tmp_path, torchvision, imbalance):
    counts = exponential_profile(PER_CLASS, 10, imbalance)
    images, labels = _arrays(tmp_path / f"cifar10-lt-{imbalance:g}.npz", counts, named=False)
    splits = cifar_lt(10, str(tmp_path), imbalance)
    assert torch.equal(splits.train.labels, labels)
    assert torch.equal(splits.train.images, torch.from_numpy(images).permute(0, 3, 1, 2))
    assert (splits.mean, splits.views) == ((0.4914, 0.4822, 0.4465), "cifar")
    assert splits.train.class_names == tuple("0123456789")


def test_array_of_all_images_comes_before_a_cut_one(tmp_path, torchvision):
    _arrays(tmp_path / "cifar10.npz", [PER_CLASS] * 10)
    _arrays(tmp_path / "cifar10-lt-4.npz", [3] * 10)
    assert cifar_lt(10, tmp_path, 4).train.class_counts.tolist() == exponential_profile(PER_CLASS, 10, 4)


def test_cut_array_with_other_counts(tmp_path, torchvision):
    _arrays(tmp_path / "cifar10-lt-4.npz", exponential_profile(PER_CLASS, 10, 3))
    wanted = exponential_profile(PER_CLASS, 10, 4)
    with pytest.raises(UserError) as caught:
        cifar_lt(10, tmp_path, 4)
    # 12 / 3^(2/9) = 9.4 and 12 / 4^(2/9) = 8.8; classes 0 and 1 come out alike.
    words = ("cifar10-lt-4.npz is not cut to the exponential profile of imbalance 4", "class 2", "has 9 images, not 8")
    for word in (*words, "cifar10.npz"):
        assert word in str(caught.value)
    _arrays(tmp_path / "cifar10-lt-4.npz", wanted)
    with pytest.raises(UserError, match="not cut to the step profile"):
        cifar_lt(10, tmp_path, 4, "step")


@pytest.mark.parametrize(
    ("options", "word"), [({"side": 28}, "28x28"), ({"channels": 1}, "1 channels"), ({"counts": [5] * 9}, "9 classes")]
)
def test_array_that_is_not_cifar(tmp_path, torchvision, options, word):
    _arrays(tmp_path / "cifar10.npz", **{"counts": [5] * 10, **options})
    with pytest.raises(UserError, match=rf"cifar10\.npz is not CIFAR-10: .*{word}"):
        cifar_lt(10, tmp_path, 4)


def test_damaged_array_is_told_by_name(tmp_path, torchvision):
    (tmp_path / "cifar10.npz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"cifar10\.npz: not an \.npz archive"):
        cifar_lt(10, tmp_path)


@pytest.mark.parametrize("official", ["cifar-10-python.tar.gz", "cifar-10-batches-py"])
def test_official_files_come_first_and_the_array_helps_when_they_fail(tmp_path, torchvision, official):
    _arrays(tmp_path / "cifar10.npz", [PER_CLASS] * 10)
    (tmp_path / official).mkdir()
    splits = cifar_lt(10, tmp_path, 4)
    assert torchvision == [True]
    assert splits.train.class_counts.tolist() == exponential_profile(PER_CLASS, 10, 4)


@pytest.mark.parametrize(("num_classes", "archive"), [(10, "cifar-10-python.tar.gz"), (100, "cifar-100-python.tar.gz")])
def test_nothing_to_be_had_names_all_three_ways(tmp_path, torchvision, num_classes, archive):
    _arrays(tmp_path / "cifar10-lt-7.npz", [2] * 10)  # of another imbalance
    with pytest.raises(UserError) as caught:
        cifar_lt(num_classes, tmp_path, 50)
    for word in (archive, f"cifar{num_classes}.npz", f"cifar{num_classes}-lt-50.npz", str(tmp_path), "no route"):
        assert word in str(caught.value)
    assert torchvision == [True]
