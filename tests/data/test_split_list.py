"""Split lists in the published format, against what was written, and one sentence for each bad line."""

import pytest

from longtail.data.labels import number_labels
from longtail.data.split_list import read_split_list
from longtail.errors import UserError


def _write(file, *lines):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def _read(file, root=None, test=None):
    return read_split_list(file, "photos", root=root, test=test)


def _sentence(file, *words, **options):
    with pytest.raises(UserError) as caught:
        _read(file, **options)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def test_imagenet_lt_lines(tmp_path):
    train = _write(
        tmp_path / "ImageNet_LT_train.txt",
        "train/n01440764/n01440764_762.JPEG 0",
        "train/n01440764/n01440764_3778.JPEG 0",
        "train/n01443537/n01443537_9315.JPEG 1",
    )
    _write(tmp_path / "ImageNet_LT_test.txt", "val/ILSVRC2012_val_00000293.JPEG 1")
    _write(tmp_path / "ImageNet_LT_val.txt", "train/n01443537/never.JPEG 1")
    listing = _read(train)
    assert listing.paths[2:] == ["train/n01443537/n01443537_9315.JPEG", "val/ILSVRC2012_val_00000293.JPEG"]
    assert listing.labels == ["0", "0", "1", "1"]
    assert listing.splits == ["train", "train", "train", "test"]
    assert listing.class_names == ("n01440764", "n01443537")
    assert (listing.numbered, listing.root, listing.groups) == (True, tmp_path, None)
    assert listing.notes == ("photos: the test images are those of ImageNet_LT_test.txt beside it.",)


def test_inaturalist_lines(tmp_path):
    train = _write(
        tmp_path / "iNaturalist18_train.txt",
        "train_val2018/Plantae/7291/9f8e.jpg 1",
        "train_val2018/Insecta/673/cb75.jpg 0",
    )
    _write(tmp_path / "iNaturalist18_val.txt", "train_val2018/Insecta/673/0001.jpg 0")
    listing = _read(train)
    assert listing.class_names == ("Insecta/673", "Plantae/7291")
    assert listing.splits == ["train", "train", "test"]
    assert number_labels(listing)[1].tolist() == [1, 0, 0]


def test_places_lines_with_nested_names(tmp_path):
    train = _write(
        tmp_path / "p.txt", "train/airfield/00002049.jpg 0", "train/a/apse/indoor/1.jpg 1", "train/b/bar/2.jpg 2"
    )
    assert _read(train).class_names == ("airfield", "a/apse/indoor", "b/bar")


def test_numbers_name_the_classes_where_folders_do_not(tmp_path):
    two_folders = _write(tmp_path / "a.txt", "t/a/1.jpg 0", "t/b/2.jpg 0", "t/c/3.jpg 1")
    shared = _write(tmp_path / "b.txt", "t/a/1.jpg 0", "t/a/2.jpg 1", "t/c/3.jpg 2")
    flat = _write(tmp_path / "c.txt", "1.jpg 0", "2.jpg 1")
    above = _write(tmp_path / "d.txt", "t/1.jpg 0", "t/a/2.jpg 1")
    mixed = _write(tmp_path / "e.txt", "t/a/1.jpg 0", "/t/b/2.jpg 1")
    for file, names in ((two_folders, 2), (shared, 3), (flat, 2), (above, 2), (mixed, 2)):
        assert _read(file).class_names == tuple(str(c) for c in range(names))


def test_other_separators_comments_and_blanks_in_paths(tmp_path):
    file = _write(
        tmp_path / "list.txt",
        "# path label",
        "",
        "a dir/x y.jpg 0",
        "b/1.jpg\t1",
        "b/2.jpg, 1",
        "c d.jpg,0",
        " e.jpg   2 ",
    )
    listing = _read(file)
    assert listing.paths == ["a dir/x y.jpg", "b/1.jpg", "b/2.jpg", "c d.jpg", "e.jpg"]
    assert listing.labels == ["0", "1", "1", "0", "2"]
    assert listing.splits is None


def test_byte_order_mark_and_windows_lines(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa\\1.jpg 0\r\nb\\2.jpg 1\r\n")
    listing = _read(tmp_path / "list.txt")
    assert (listing.paths, listing.labels) == (["a/1.jpg", "b/2.jpg"], ["0", "1"])
    assert "backslashes in 2 images" in listing.notes[0]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("my_train.txt", "my_test.txt"),
        ("Train.txt", "Val.txt"),
        ("TRAIN.lst", "TEST.lst"),
        ("train_of_train.txt", "train_of_val.txt"),
    ],
)
def test_sibling_lists(tmp_path, train, test):
    _write(tmp_path / train, "a/1.jpg 0", "b/1.jpg 1")
    _write(tmp_path / test, "a/2.jpg 0")
    listing = _read(tmp_path / train)
    assert listing.splits == ["train", "train", "test"]
    assert test in listing.notes[0]


def test_given_test_list_wins_and_may_lie_elsewhere(tmp_path):
    train = _write(tmp_path / "d/train.txt", "a/1.jpg 0", "b/1.jpg 1")
    _write(tmp_path / "d/test.txt", "a/9.jpg 0")
    other = _write(tmp_path / "e/held.txt", "a/2.jpg 0")
    listing = _read(train, test=other)
    assert listing.paths[2:] == [(tmp_path / "e/a/2.jpg").as_posix()]
    assert listing.notes == ()
    assert _read(train, root=tmp_path, test=other).paths[2:] == ["a/2.jpg"]
    _sentence(train, "the training list itself", test=train)
    _sentence(train, "1 image of the training set named again", "first a/1.jpg",
              test=_write(tmp_path / "d/t.txt", "a/1.jpg 0"))  # fmt: skip


def test_root(tmp_path):
    file = _write(tmp_path / "list.txt", "a/1.jpg 0")
    (tmp_path / "images").mkdir()
    assert _read(file, root=tmp_path / "images").root == tmp_path / "images"
    _sentence(file, "--root", "is no folder", root=tmp_path / "x")


@pytest.mark.parametrize(
    "line", ["a/1.jpg", "a/1.jpg cat", "path,label", "a/1.jpg -1", "a/1.jpg 1.5", " 7", ",7", "a.jpg ²"]
)
def test_bad_lines(tmp_path, line):
    file = _write(tmp_path / "list.txt", "a/1.jpg 0", "# fine", line)
    _sentence(file, f"{file}, line 3", repr(line.strip()), "train/n01440764/n01440764_762.JPEG 0")


def test_bad_files(tmp_path):
    _sentence(tmp_path / "nowhere.txt", "no such file")
    _sentence(_write(tmp_path / "a.txt"), "is empty")
    _sentence(_write(tmp_path / "a.txt", "# only this"), "names no image")
    (tmp_path / "a.txt").write_bytes(b"\x00\x01")
    _sentence(tmp_path / "a.txt", "not a text file")
    (tmp_path / "a.txt").write_bytes(b"a.jpg 0\nb\xff.jpg 1\n")
    _sentence(tmp_path / "a.txt", "line 2", "UTF-8")


def test_repeats(tmp_path):
    listing = _read(_write(tmp_path / "a.txt", "a.jpg 0", "b.jpg 1", "a.jpg 00"))
    assert (listing.paths, listing.labels) == (["a.jpg", "b.jpg"], ["0", "1"])
    assert "1 line names an image again" in listing.notes[0]
    _sentence(_write(tmp_path / "a.txt", "a.jpg 0", "", "a.jpg 1"), "line 3", "'1', but '0' on line 1", "multi-label")


def test_gap_is_told_when_labels_are_numbered(tmp_path):
    listing = _read(_write(tmp_path / "a.txt", "t/a/1.jpg 0", "t/b/2.jpg 2"))
    assert listing.class_names is None
    with pytest.raises(UserError, match="no image has 1"):
        number_labels(listing)


def test_label_of_the_test_list_only(tmp_path):
    train = _write(tmp_path / "train.txt", "t/a/1.jpg 0", "t/b/2.jpg 1")
    _write(tmp_path / "test.txt", "t/c/1.jpg 2", "t/b/4.jpg 1")
    listing = _read(train)
    with pytest.raises(UserError, match=r"1 test label that no training image has: '2' \(1 image\)"):
        number_labels(listing)
    kept, labels, names, _ = number_labels(listing, unknown="skip")
    assert (kept.paths[2:], labels.tolist(), names) == (["t/b/4.jpg"], [0, 1, 1], ("a", "b"))
