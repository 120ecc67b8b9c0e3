"""Image folders: each layout against the tree it was written from, and one sentence for each wrong one."""

import os
import re

import pytest

from longtail.data.folder import read_folder
from longtail.errors import UserError


def _make(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")
    return root


def _rows(listing):
    return sorted(zip(listing.paths, listing.labels, listing.splits or [None] * len(listing), strict=True))


def _sentence(folder, *words, test=None):
    with pytest.raises(UserError) as caught:
        read_folder(folder, "photos", test)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert "\n" not in message
    return message


def test_class_folders_without_splits(tmp_path):
    _make(tmp_path, "cat/2.jpg", "cat/1.PNG", "dog/a b.webp", "Eel/x.tif", "cat/.hidden.jpg", ".git/x.jpg", "README.md")
    _make(tmp_path, "__MACOSX/cat/1.jpg", "cat/Thumbs.db")
    listing = read_folder(tmp_path, "photos")
    assert (listing.paths, listing.labels) == (
        ["Eel/x.tif", "cat/1.PNG", "cat/2.jpg", "dog/a b.webp"],
        ["Eel", "cat", "cat", "dog"],
    )
    assert listing.splits is None
    assert listing.class_names == ("Eel", "cat", "dog")  # code points: capitals first
    assert (listing.name, listing.root, listing.numbered, listing.notes) == ("photos", tmp_path, False, ())


@pytest.mark.parametrize("train", ["train", "Training", "TRAIN"])
@pytest.mark.parametrize("test", ["test", "Testing", "val", "VAL", "valid", "validation"])
def test_split_folders_by_any_of_their_names(tmp_path, train, test):
    _make(tmp_path, f"{train}/cat/1.jpg", f"{train}/dog/1.jpg", f"{test}/cat/2.jpg")
    assert _rows(read_folder(tmp_path, "photos")) == sorted(
        [
            (f"{train}/cat/1.jpg", "cat", "train"),
            (f"{train}/dog/1.jpg", "dog", "train"),
            (f"{test}/cat/2.jpg", "cat", "test"),
        ]
    )


def test_validation_beside_test_is_left_aside_and_counted(tmp_path):
    _make(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "val/a/1.jpg", "val/b/2.jpg", "val/c/3.jpg")
    listing = read_folder(tmp_path, "photos")
    assert listing.splits.count("test") == 1
    assert listing.class_names == ("a", "b")
    assert listing.notes == ("photos: 3 images of 'val' left aside, because 'test' is the test set.",)


def test_classes_are_the_union_of_training_and_test(tmp_path):
    _make(tmp_path, "train/a/1.jpg", "train/c/1.jpg", "test/b/1.jpg")
    (tmp_path / "train/empty").mkdir()
    assert read_folder(tmp_path, "photos").class_names == ("a", "b", "c", "empty")


def test_files_that_are_no_images_are_counted(tmp_path):
    _make(tmp_path, "a/1.jpg", "b/1.jpg", "b/notes.txt", "a/z.xml", "a/noending", "banner.txt")
    assert read_folder(tmp_path, "photos").notes == ("photos: 3 files that are no images left out, first a/noending.",)


def test_images_and_empty_folders_beside_split_folders_are_noted(tmp_path):
    _make(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "cover.jpg", "docs/readme.txt")
    listing = read_folder(tmp_path, "photos")
    assert len(listing) == 3
    assert any("1 image beside the split folders left out, first cover.jpg" in note for note in listing.notes)
    assert any("'docs' holds no images" in note for note in listing.notes)


@pytest.mark.parametrize("words", [("train", "bus", "car"), ("valid", "invalid")])
def test_split_words_can_be_classes(tmp_path, words):
    _make(tmp_path, *(f"{word}/1.jpg" for word in words))
    listing = read_folder(tmp_path, "photos")
    assert listing.class_names == tuple(sorted(words))
    assert listing.splits is None


def test_second_folder_holds_the_test_images(tmp_path):
    _make(tmp_path, "mine/cat/1.jpg", "mine/dog/1.jpg", "other/cat/9.jpg")
    listing = read_folder(tmp_path / "mine", "photos", tmp_path / "other")
    assert _rows(listing) == sorted(
        [
            ("cat/1.jpg", "cat", "train"),
            ("dog/1.jpg", "dog", "train"),
            ((tmp_path / "other/cat/9.jpg").as_posix(), "cat", "test"),
        ]
    )
    for path in listing.paths:
        assert os.path.isfile(os.path.join(listing.root, path))


def test_second_folder_inside_the_first_is_no_class(tmp_path):
    _make(tmp_path, "cat/1.jpg", "dog/1.jpg", "held/cat/2.jpg")
    listing = read_folder(tmp_path, "photos", tmp_path / "held")
    assert listing.class_names == ("cat", "dog")
    assert _rows(listing)[-1] == ("held/cat/2.jpg", "cat", "test")


def test_second_folder_replaces_the_test_split(tmp_path):
    _make(tmp_path, "d/train/cat/1.jpg", "d/train/dog/1.jpg", "d/test/cat/2.jpg", "other/dog/3.jpg")
    listing = read_folder(tmp_path / "d", "photos", tmp_path / "other")
    assert [path for path, split in zip(listing.paths, listing.splits, strict=True) if split == "test"] == [
        (tmp_path / "other/dog/3.jpg").as_posix()
    ]
    assert "1 image of 'test' left aside" in listing.notes[0]


def test_only_a_training_split_with_a_second_folder(tmp_path):
    _make(tmp_path, "d/train/cat/1.jpg", "d/train/dog/1.jpg", "other/dog/3.jpg")
    assert read_folder(tmp_path / "d", "photos", tmp_path / "other").splits == ["train", "train", "test"]


def test_links_are_followed_and_circles_end(tmp_path):
    _make(tmp_path, "elsewhere/1.jpg", "d/cat/1.jpg")
    (tmp_path / "d/dog").symlink_to(tmp_path / "elsewhere")
    assert read_folder(tmp_path / "d", "photos").paths == ["cat/1.jpg", "dog/1.jpg"]
    (tmp_path / "d/cat/self").symlink_to(tmp_path / "d/cat/self")  # leads nowhere
    assert len(read_folder(tmp_path / "d", "photos")) == 2
    (tmp_path / "empty/a").mkdir(parents=True)
    (tmp_path / "empty/a/b").symlink_to(tmp_path / "empty")
    _sentence(tmp_path / "empty", "no image")


def test_empty_folder(tmp_path):
    _sentence(tmp_path, str(tmp_path), "empty", "manifest")


def test_only_images(tmp_path):
    _make(tmp_path, "b.jpg", "a.jpg")
    _sentence(tmp_path, "2 images", "first a.jpg", "no class folders", "folder named after its class")
    _make(tmp_path, "labels.csv")
    _sentence(tmp_path, f"is {tmp_path / 'labels.csv'} one?")


def test_images_beside_class_folders(tmp_path):
    _make(tmp_path, "cat/1.jpg", "dog/1.jpg", "stray.jpg")
    _sentence(tmp_path, "1 image beside its class folders", "first stray.jpg")


def test_folders_of_folders_of_folders(tmp_path):
    _make(tmp_path, "pets/cat/1.jpg", "pets/dog/1.jpg", "farm/cow/1.jpg")
    _sentence(tmp_path, "farm holds the folder 'cow'", "such as farm/cow/1.jpg", "which level names the class")
    deep = _make(tmp_path / "deep", "a/b/c/1.jpg", "x/1.jpg")
    _sentence(deep, "a holds the folder 'b'", "a/b/c/1.jpg")


def test_folder_one_level_too_high_is_told_the_right_one(tmp_path):
    _make(tmp_path, "photos/cat/1.jpg", "photos/dog/1.jpg")
    _sentence(tmp_path, f"give {tmp_path / 'photos'} as the folder")


def test_one_class(tmp_path):
    _make(tmp_path, "cat/1.jpg")
    _sentence(tmp_path, "only one class folder, 'cat'")


def test_no_images_in_class_folders(tmp_path):
    _make(tmp_path, "cat/1.txt", "dog/1.mp4")
    _sentence(tmp_path, "no image in its 2 class folders", "first 'cat'")


def test_training_split_alone(tmp_path):
    _make(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg")
    _sentence(tmp_path, "neither 'test' nor 'val'", f"give {tmp_path / 'train'}", "--source.test")


def test_test_split_without_training(tmp_path):
    _make(tmp_path, "test/cat/1.jpg", "val/dog/1.jpg")
    _sentence(tmp_path, "'test' and 'val'", "no folder 'train'")


def test_test_split_beside_classes_is_pointed_to_the_option(tmp_path):
    _make(tmp_path, "cat/1.jpg", "dog/1.jpg", "test/cat/2.jpg")
    _sentence(tmp_path, "beside the folder 'cat'", f"--source.test {tmp_path / 'test'}")
    assert read_folder(tmp_path, "photos", tmp_path / "test").splits == ["train", "train", "test"]


def test_split_and_class_folders_at_one_level(tmp_path):
    _make(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "cat/2.jpg")
    _sentence(tmp_path, "split folder 'train'", "'cat' with images", "such as cat/2.jpg")


def test_two_folders_for_one_split(tmp_path):
    _make(tmp_path, "train/cat/1.jpg", "training/cat/1.jpg", "test/cat/1.jpg")
    _sentence(tmp_path, "both 'train' and 'training'")


@pytest.mark.parametrize("split", ["train", "test"])
def test_split_with_loose_images(tmp_path, split):
    _make(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "test/cat/1.jpg", f"{split}/7.jpg")
    if split == "train":  # images in `train` itself: neither a class beside classes nor a split
        (tmp_path / "train/7.jpg").rename(tmp_path / "train/8.jpg")
    _sentence(tmp_path, str(tmp_path / split), "1 image outside of class folders", "class is not known")


def test_splits_that_hold_only_images(tmp_path):
    _make(tmp_path, "train/1.jpg", "test/2.jpg")
    _sentence(tmp_path, "1 image outside of class folders")


@pytest.mark.parametrize("split", ["train", "test"])
def test_empty_split(tmp_path, split):
    other = "test" if split == "train" else "train"
    _make(tmp_path, f"{other}/cat/1.jpg", f"{other}/dog/1.jpg")
    (tmp_path / split).mkdir()
    _sentence(tmp_path, f"{tmp_path / split} holds no class folders")
    (tmp_path / split / "cat").mkdir()
    _sentence(tmp_path, "no image" if split == "test" else "no training image")


def test_not_a_folder(tmp_path):
    _make(tmp_path, "a.jpg")
    _sentence(tmp_path / "a.jpg", "is a file")
    _sentence(tmp_path / "nowhere", "no such folder")


def test_folder_that_may_not_be_read(tmp_path, monkeypatch):
    _make(tmp_path, "cat/1.jpg", "dog/1.jpg")
    real = os.scandir

    def refuse(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    _sentence(tmp_path, str(tmp_path / "dog"), "Permission denied", "permissions")


def test_second_folder_of_another_layout(tmp_path):
    _make(tmp_path, "d/cat/1.jpg", "d/dog/1.jpg", "flat/1.jpg", "nested/test/cat/1.jpg")
    _sentence(tmp_path / "d", str(tmp_path / "flat"), "first 1.jpg", "--source.test", test=tmp_path / "flat")
    _sentence(tmp_path / "d", f"give {tmp_path / 'nested/test'}", test=tmp_path / "nested")
    _sentence(tmp_path / "d", "names the folder of the training images itself", test=tmp_path / "d")
    _sentence(tmp_path / "d", "no such folder", test=tmp_path / "nowhere")


def test_names_that_are_not_utf8(tmp_path):
    _make(tmp_path, "cat/1.jpg", "dog/1.jpg")
    try:
        os.close(os.open(os.fsencode(tmp_path) + b"/cat/\xff.jpg", os.O_CREAT | os.O_WRONLY))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert re.search(r"cat/\\udcff\.jpg", _sentence(tmp_path, "not UTF-8"))
