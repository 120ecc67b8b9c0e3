"""Array files: what is read, and one clear sentence for each way in which a file can be wrong."""

import io
import zipfile

import numpy as np
import pytest
import torch

from longtail.data.arrays import load_arrays, pixel_statistics
from longtail.errors import UserError

TRAIN, TEST, SIZE = 12, 6, 20


def _arrays(channels=None, size=SIZE):
    random = np.random.RandomState(0)
    shape = (size, size + 2) if channels is None else (size, size + 2, channels)
    return {
        "train_images": random.randint(0, 256, (TRAIN, *shape)).astype(np.uint8),
        "train_labels": np.arange(TRAIN) % 3,
        "test_images": random.randint(0, 256, (TEST, *shape)).astype(np.uint8),
        "test_labels": np.arange(TEST) % 3,
    }


def _write(folder, arrays):
    path = folder / "images.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("channels", "size", "views"),
    [(None, 20, "shift"), (1, 20, "shift"), (3, 20, "light"), (3, 14, "tiny"), (1, 8, "tiny")],
)
def test_images_labels_and_views(tmp_path, channels, size, views):
    arrays = _arrays(channels, size)
    splits = load_arrays(_write(tmp_path, arrays))
    for part, images in (("train", splits.train), ("test", splits.test)):
        source = arrays[f"{part}_images"]
        assert images.images.shape == (len(source), channels or 1, size, size + 2)
        for n, c, y, x in [(0, 0, 1, 2), (5, images.channels - 1, size - 1, size + 1)]:
            expected = source[n, y, x] if channels is None else source[n, y, x, c]
            assert images.images[n, c, y, x] == expected
        assert images.images.is_contiguous()
        assert images.labels.tolist() == arrays[f"{part}_labels"].tolist()
        assert images.labels.dtype == torch.int64
    assert splits.train.class_names == ("0", "1", "2")
    assert splits.views == views


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint64])
def test_column_labels_as_medmnist_has_them_and_other_arrays(tmp_path, dtype):
    arrays = _arrays(3)
    for part in ("train", "test"):
        arrays[f"{part}_labels"] = arrays[f"{part}_labels"].astype(dtype)[:, None]
    arrays["val_images"] = np.array("not looked at")
    splits = load_arrays(str(_write(tmp_path, arrays)))
    assert splits.train.labels.tolist() == [0, 1, 2] * 4


@pytest.mark.parametrize("names", [np.array(["cat", "dog", "eel"]), np.array([b"cat", b"dog", b"eel"])])
def test_class_names(tmp_path, names):
    splits = load_arrays(_write(tmp_path, {**_arrays(), "class_names": names}))
    assert splits.train.class_names == splits.test.class_names == ("cat", "dog", "eel")


def test_compressed_file(tmp_path):
    np.savez_compressed(tmp_path / "small.npz", **_arrays())
    assert len(load_arrays(tmp_path / "small.npz").train) == TRAIN


def test_statistics_against_numpy(tmp_path):
    arrays = _arrays(3)
    splits = load_arrays(_write(tmp_path, arrays))
    pixels = arrays["train_images"].astype(np.float64) / 255
    np.testing.assert_allclose(splits.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(splits.std, pixels.std(axis=(0, 1, 2)), rtol=1e-12)


def test_constant_channel_keeps_a_usable_standard_deviation():
    images = torch.full((2, 3, 4, 4), 51, dtype=torch.uint8)
    images[:, 1] = torch.arange(16).reshape(4, 4) * 10
    mean, std = pixel_statistics(images)
    assert mean[0] == pytest.approx(0.2)
    assert std[0] == std[2] == 1 / 255 < std[1]


def _refused(path, *words):
    with pytest.raises(UserError) as caught:
        load_arrays(path)
    message = str(caught.value)
    assert str(path) in message
    for word in words:
        assert word in message, message
    assert "\n" not in message
    assert message.rstrip(".").count(". ") == 0, f"more than one sentence: {message}"


BAD_ARRAYS = {
    "float images": (
        {"train_images": np.zeros((TRAIN, 20, 22), np.float32)},
        ["'train_images'", "float32", "* 255"],
    ),
    "wide integer images": (
        {"test_images": np.zeros((TEST, 20, 22), int)},
        ["'test_images'", "int64", "astype('uint8')"],
    ),
    "flat images": (
        {"train_images": np.zeros((TRAIN, 400), np.uint8)},
        ["'train_images'", "[12, 400]", "[N, H, W, 3]"],
    ),
    "channels first": (
        {"train_images": np.zeros((TRAIN, 3, 20, 22), np.uint8)},
        ["'train_images'", "[12, 3, 20, 22]"],
    ),
    "no training images": (
        {"train_images": np.zeros((0, 20, 22), np.uint8), "train_labels": np.zeros(0, int)},
        ["'train_images' is empty"],
    ),
    "no test images": (
        {"test_images": np.zeros((0, 20, 22), np.uint8), "test_labels": np.zeros(0, int)},
        ["'test_images' is empty"],
    ),
    "no labels": ({"test_labels": np.zeros(0, int)}, ["'test_labels' is empty"]),
    "fewer labels": ({"train_labels": np.arange(9) % 3}, ["12 'train_images'", "9 'train_labels'"]),
    "more test labels": ({"test_labels": np.arange(9) % 3}, ["6 'test_images'", "9 'test_labels'"]),
    "another test size": (
        {"test_images": np.zeros((TEST, 10, 22), np.uint8)},
        ["1x20x22", "1x10x22", "one size"],
    ),
    "another test channel": ({"test_images": np.zeros((TEST, 20, 22, 3), np.uint8)}, ["1x20x22", "3x20x22"]),
    "multi-label": (
        {"train_labels": np.zeros((TRAIN, 3), int)},
        ["'train_labels'", "[12, 3]", "multi-label"],
    ),
    "label cube": ({"train_labels": np.zeros((TRAIN, 1, 1), int)}, ["'train_labels'", "[N, 1]"]),
    "float labels": ({"train_labels": np.arange(TRAIN) % 3.0}, ["'train_labels'", "float64", "integers"]),
    "text labels": ({"test_labels": np.array(["a"] * TEST)}, ["'test_labels'", "integers"]),
    "negative label": ({"train_labels": np.arange(TRAIN) % 3 - 1}, ["'train_labels'", "negative label -1"]),
    "huge label": (
        {"train_labels": np.full(TRAIN, 2**63, np.uint64)},
        ["'train_labels'", "9223372036854775808"],
    ),
    "unknown test label": ({"test_labels": np.full(TEST, 3)}, ["test set has label 3", "0..2"]),
    "one class": (
        {"train_labels": np.zeros(TRAIN, int), "test_labels": np.zeros(TEST, int)},
        ["one class only"],
    ),
    "gap": ({"train_labels": np.array([0, 1, 3] * 4)}, ["class '2' (label 2)", "no training image"]),
    "labels from 1": (
        {"train_labels": np.arange(TRAIN) % 3 + 1},
        ["class '0' (label 0)", "no training image"],
    ),
    "stray label": ({"train_labels": np.array([0, 1] * 5 + [2, 2**31 - 1])}, ["class '3'", "2147483647"]),
    "too few names": (
        {"class_names": np.array(["a", "b"])},
        ["'train_labels' holds label 2", "2 classes (0..1)"],
    ),
    "too few names for the test": (
        {"class_names": np.array(["a", "b", "c"]), "test_labels": np.full(TEST, 3)},
        ["'test_labels' holds label 3", "3 classes (0..2)"],
    ),
    "name without images": (
        {"class_names": np.array(["a", "b", "c", "eel"])},
        ["class 'eel' (label 3)", "no training"],
    ),
    "name twice": ({"class_names": np.array(["a", "b", "a"])}, ["'class_names'", "'a' twice"]),
    "names in a table": ({"class_names": np.array([["a", "b", "c"]])}, ["'class_names'", "[1, 3]"]),
    "names that are no names": ({"class_names": np.array([0.5, 1.5, 2.5])}, ["'class_names'", "float64"]),
    "object images": (
        {"train_images": np.array([None] * TRAIN)},
        ["'train_images'", "object array", "pickle"],
    ),
    "object labels": (
        {"test_labels": np.array([[1], [1, 2]], dtype=object)},
        ["'test_labels'", "object array"],
    ),
    "object names": (
        {"class_names": np.array(["a", "b", "c"], dtype=object)},
        ["'class_names'", "object array"],
    ),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(tmp_path, case):
    changes, words = BAD_ARRAYS[case]
    _refused(_write(tmp_path, {**_arrays(), **changes}), *words)


def test_missing_array_names_what_there_is(tmp_path):
    arrays = _arrays()
    del arrays["test_labels"]
    _refused(_write(tmp_path, arrays), "'test_labels' is missing", "train_images, train_labels, test_images")


def test_empty_archive(tmp_path):
    _refused(_write(tmp_path, {}), "'train_images' is missing", "found: nothing")


def test_no_such_file(tmp_path):
    _refused(tmp_path / "nowhere.npz", "no such file")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 and then nothing"])
def test_not_an_archive(tmp_path, content):
    path = tmp_path / "images.npz"
    path.write_bytes(content)
    _refused(path, "not an .npz archive")


def test_single_array_file_is_not_an_archive(tmp_path):
    with open(tmp_path / "images.npz", "wb") as file:
        np.save(file, np.zeros(3))
    _refused(tmp_path / "images.npz", "not an .npz archive")


def test_cut_off_file(tmp_path):
    path = _write(tmp_path, _arrays())
    path.write_bytes(path.read_bytes()[:-40])
    _refused(path, "cut off")


@pytest.mark.parametrize("compress", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_array(tmp_path, compress):
    path = tmp_path / "images.npz"
    (np.savez if compress == zipfile.ZIP_STORED else np.savez_compressed)(path, **_arrays())
    content = bytearray(path.read_bytes())
    content[300:340] = bytes(40)
    path.write_bytes(content)
    _refused(path, "'train_images' cannot be read", "damaged")


def test_member_cut_short_inside_the_archive(tmp_path):
    buffers = {name: io.BytesIO() for name in _arrays()}
    for name, array in _arrays().items():
        np.save(buffers[name], array)
    path = tmp_path / "images.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, buffer in buffers.items():
            archive.writestr(f"{name}.npy", buffer.getvalue()[:-9])
    _refused(path, "'train_images' cannot be read")


def test_member_that_is_no_array(tmp_path):
    path = tmp_path / "images.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in _arrays():
            archive.writestr(name, "text")
    _refused(path, "'train_images' is not a numpy array")
