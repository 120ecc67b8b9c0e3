"""Trees of images with masks to sets: layouts, counts, classes, what is wrong with files, and what is kept."""

import math
import os
import re

import numpy as np
import pytest
import torch
from mask_trees import (
    CAMVID_NAMES,
    COLOURS,
    HEIGHT,
    NAMES,
    WIDTH,
    ade20k_tree,
    ade_values,
    camvid_tree,
    camvid_values,
    cityscapes_tree,
    counts,
    plain_tree,
    split_tree,
    stripes,
    write_names,
    write_pair,
    write_palette,
)
from PIL import Image

from longtail.errors import UserError
from longtail.option_groups import DataOptions
from longtail.segmentation.data import mask_parts
from longtail.segmentation.data.holding_out import hold_out_blocks
from longtail.segmentation.data.reading import read_pair
from longtail.segmentation.data.sources import load_masks
from longtail.segmentation_options import SegmentationOptions


def names_in(files):
    return [files.images[place].rsplit("/", 1)[-1] for place in range(len(files))]


def slow_counts(files):
    """Count what `read_pair` gives, label by label."""
    labels = [read_pair(files, place)[1].numpy() for place in range(len(files))]
    return counts(labels, files.num_classes)


def refusal(path, **how):
    with pytest.raises(UserError) as error:
        load_masks(str(path), **how)
    text = str(error.value)
    assert text.endswith("."), text
    assert "\n" not in text
    return text


def said(splits, words):
    return [note for note in splits.notes if words in note]


@pytest.mark.parametrize("inside", [True, False])
def test_split_folders_above_and_below(tmp_path, inside):
    masks = split_tree(tmp_path, {"train": 5, "val": 2, "test": 3}, inside=inside)
    data = load_masks(str(tmp_path))
    assert (len(data.train), len(data.test), data.validation) == (5, 3, None)
    assert np.array_equal(data.train.pixels.numpy(), counts(masks["train"], 3))
    assert np.array_equal(data.test.pixels.numpy(), slow_counts(data.test))
    assert data.train.class_names == NAMES[:3]
    assert data.train.sizes.tolist() == [[HEIGHT, WIDTH]] * 5
    assert data.test_split == "given"
    assert said(data, "the 2 images of val are left aside")


def test_val_tests_where_there_is_no_test(tmp_path):
    split_tree(tmp_path, {"train": 4, "val": 2})
    data = load_masks(str(tmp_path))
    assert len(data.test) == 2
    assert "no test split" in data.test_split


@pytest.mark.parametrize(("masks", "ending"), [("masks", ""), ("labels", "_label"), ("annotations", "_mask")])
def test_plain_folders_hold_a_share_out(tmp_path, masks, ending):
    plain_tree(tmp_path, 10, masks=masks, ending=ending)
    data = load_masks(str(tmp_path))
    assert (len(data.train), len(data.test)) == (8, 2)
    again = load_masks(str(tmp_path), source=DataOptions(split_seed=1, test_share=0.4))
    assert len(again.test) == 4
    assert data.train.class_names == ("class 0", "class 1", "class 2")
    assert said(data, "nothing names the classes")
    assert said(data, "2 of 10 images are held out")
    for files in (data.train, data.test):
        for place in range(len(files)):
            image, mask = files.image_path(place), files.mask_path(place)
            assert mask.stem == image.stem + ending


def test_camvid_in_both_layouts(tmp_path):
    for segnet in (True, False):
        folder = tmp_path / str(segnet)
        camvid_tree(folder, segnet)
        data = load_masks(str(folder), val_fraction=0.5)
        assert data.train.class_names == tuple(CAMVID_NAMES[:11])
        assert data.train.palette[3].tolist() == [128, 64, 128]
        assert (len(data.train), len(data.validation), len(data.test)) == (5, 5, 3)
        assert said(data, "val split (2 images) is left unread")
        assert "of each of 2 films" in data.validation_split
        assert np.array_equal(data.test.pixels.numpy(), counts([camvid_values(index) for index in range(3)], 11))
        # Of each film one block: the frames held out follow each other.
        for film in ("0001TP", "0006R0"):
            numbers = [int(name[7:12]) // 30 for name in names_in(data.validation) if name.startswith(film)]
            assert numbers == list(range(numbers[0], numbers[0] + {"0001TP": 2, "0006R0": 3}[film]))


def test_user_groups_take_the_place_of_films(tmp_path):
    camvid_tree(tmp_path)
    data = load_masks(str(tmp_path), val_fraction=0.4, source=DataOptions(group_pattern=r"(\w+)_f?\d+\.png"))
    assert {name[:6] for name in names_in(data.validation)} == {"0001TP"}  # the film of 4 of 10 frames, as a whole


@pytest.mark.parametrize("names", ["csv", "txt", None])
def test_ade20k(tmp_path, names):
    ade20k_tree(tmp_path, names=names)
    data = load_masks(str(tmp_path))
    assert (len(data.train), len(data.test)) == (4, 2)
    assert data.train.class_names[149] == ("class 150" if names is None else "thing 150")
    expected = counts([ade_values(index).astype(int) - 1 for index in range(4)], 150)
    assert np.array_equal(data.train.pixels.numpy(), expected)
    assert expected.sum() == 4 * (HEIGHT - 4) * WIDTH  # 0 = other counts nowhere
    assert said(data, "146 classes have no pixel in the training masks")
    assert "as published" in data.test_split


def test_ade20k_by_name_and_with_zero_as_a_class(tmp_path):
    ade20k_tree(tmp_path / "ADEChallengeData2016")
    assert len(load_masks("ade20k", root=str(tmp_path)).train) == 4
    assert len(load_masks("ade20k", root=str(tmp_path / "ADEChallengeData2016")).train) == 4
    text = refusal("ade20k", root=str(tmp_path / "none"))
    assert "--root" in text
    # Masks that were shifted to 0..149 beforehand: 150 in a mask is then no class.
    text = refusal(tmp_path / "ADEChallengeData2016", options=SegmentationOptions(zero_is_other=False))
    assert "mask value 150 in 64 pixels is no class (classes are 0..149; if 0 is other, give" in text


@pytest.mark.parametrize("ids", [True, False])
def test_cityscapes(tmp_path, ids):
    cityscapes_tree(tmp_path, ids)
    data = load_masks(str(tmp_path), val_fraction=0.5)
    assert len(data.train) == len(data.validation) == len(data.test) == 2
    assert (data.train.num_classes, data.train.class_names[13]) == (19, "car")
    rows = dict(zip(data.train.class_names, (data.train.pixels[0] / WIDTH).tolist(), strict=True))
    assert {name: count for name, count in rows.items() if count} == {"road": 10, "building": 6, "rider": 2, "car": 4}
    assert data.train.palette[0].tolist() == [128, 64, 128]
    assert len({name.split("_")[0] for name in names_in(data.validation)}) == 1  # whole cities
    assert "2 groups kept whole" in data.validation_split


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_colour_masks_with_a_palette(tmp_path, mode):
    masks = plain_tree(tmp_path, 6, colours=COLOURS, mode=mode)
    given = tmp_path / "colours.txt"
    write_palette(given, COLOURS[:3])
    data = load_masks(str(tmp_path), options=SegmentationOptions(palette=str(given)))
    assert data.train.class_names == NAMES[:3]
    assert data.train.palette.tolist() == [list(colour) for colour in COLOURS[:3]]
    everything = torch.cat([data.train.pixels, data.test.pixels]).sum(0)
    assert everything.tolist() == counts(masks, 3).sum(0).tolist()
    assert np.array_equal(data.train.pixels.numpy(), slow_counts(data.train))
    write_palette(tmp_path / "palette.txt", COLOURS[:3])  # one that lies in the tree is found
    assert load_masks(str(tmp_path)).train.class_names == NAMES[:3]


def test_colours_without_a_palette_and_colours_that_it_lacks(tmp_path):
    plain_tree(tmp_path, 4, colours=COLOURS)
    text = refusal(tmp_path)
    assert "scene000.png holds colours, such as (" in text
    assert "--segmentation.palette" in text
    write_palette(tmp_path / "palette.txt", COLOURS[:2])
    text = refusal(tmp_path)
    assert re.search(r"masks/scene000\.png \(colour \(128, 128, 0\) in \d+ pixels is none of the palette's\)", text)


def test_masks_of_0_and_255(tmp_path):
    for index in range(5):
        write_pair(tmp_path / f"images/{index}.png", tmp_path / f"masks/{index}.png", stripes({0: 20, 255: 4}))
    text = refusal(tmp_path)
    assert "255 counts nowhere" in text
    assert "palette.txt" in text
    write_palette(tmp_path / "palette.txt", ((0, 0, 0), (255, 255, 255)), ("ground", "crack"))
    assert load_masks(str(tmp_path)).test.pixels.tolist() == [[20 * WIDTH, 4 * WIDTH]]


def test_void_and_ignored_values_count_nowhere(tmp_path):
    split_tree(tmp_path, {"train": 4, "test": 2}, classes=4, names=("road", "sky", "tree", "void"))
    data = load_masks(str(tmp_path))
    assert data.train.class_names == ("road", "sky", "tree")
    assert said(data, "'void' (mask value 3) counts nowhere, because of its name")
    assert np.array_equal(data.train.pixels.numpy(), slow_counts(data.train))
    data = load_masks(str(tmp_path), options=SegmentationOptions(ignore=[255, 1]))
    assert data.train.class_names == ("road", "tree")
    assert said(data, "'sky' (mask value 1) counts nowhere, because mask value 1 does not")


BAD = {
    "another size": ("masks/train/s000.png", "32 x 20 pixels, but its image is 32 x 24"),
    "no class": ("masks/train/s001.png", "mask value 9 in 64 pixels is no class"),
    "no mask": ("images/train/s002.png", "an image without a mask"),
    "no image": ("masks/train/left.png", "a mask without an image"),
    "cut off": ("masks/train/s003.png", "cut off"),
    "no picture": ("images/train/s004.png", "not an image"),
    "smoothed": ("masks/train/s005.png", "5120 different values"),
}


def spoil(root, how):
    path = root / BAD[how][0]
    if how == "another size":
        Image.fromarray(stripes({0: 20}, 20)).save(path)
    elif how == "no class":
        Image.fromarray(stripes({0: 22, 9: 2})).save(path)
    elif how == "no mask":
        (root / "masks/train/s002.png").unlink()
    elif how == "no image":
        Image.fromarray(stripes({0: HEIGHT})).save(path)
    elif how == "cut off":
        path.write_bytes(path.read_bytes()[:-40])
    elif how == "no picture":
        path.write_bytes(b"no picture at all")
    elif how == "smoothed":
        Image.fromarray(np.arange(80 * 64, dtype=np.uint16).reshape(80, 64)).save(path)
        Image.new("RGB", (64, 80)).save(root / "images/train/s005.png")


@pytest.mark.parametrize("how", BAD)
def test_bad_files_are_named_or_left_out(tmp_path, how):
    split_tree(tmp_path, {"train": 8, "test": 2}, inside=False)
    spoil(tmp_path, how)
    file, reason = BAD[how]
    text = refusal(tmp_path)
    assert f"{file} ({reason}" in text
    assert "--on_bad_image skip" in text
    data = load_masks(str(tmp_path), on_bad="skip")
    assert len(data.train) == (8 if how == "no image" else 7)
    assert [pair[0] for pair in data.skipped] == [file]
    assert said(data, "left out")
    assert np.array_equal(data.train.pixels.numpy(), slow_counts(data.train))


def test_nothing_left_nothing_there(tmp_path):
    assert "has no layout of images with masks (it holds nothing)" in refusal(tmp_path)
    split_tree(tmp_path, {"train": 2, "test": 1}, inside=False)
    for path in (tmp_path / "masks/train").iterdir():
        path.unlink()
    assert "images/train/s000.png (an image without a mask)" in refusal(tmp_path)
    assert "no training image with a mask" in refusal(tmp_path, on_bad="skip")
    assert "no such folder" in refusal("no/such")
    write_pair(tmp_path / "other/images/a.png", tmp_path / "other/masks/b.png", stripes({0: 24}))
    assert "no mask in" in refusal(tmp_path / "other")


def test_classes_without_pixels_and_masks_without_classes(tmp_path):
    split_tree(tmp_path, {"train": 3, "test": 2}, names=None)
    write_names(tmp_path, NAMES)
    write_pair(tmp_path / "train/images/z.png", tmp_path / "train/masks/z.png", stripes({255: HEIGHT}))
    data = load_masks(str(tmp_path))
    note = said(data, "4 classes have no pixel in the training masks (car, sign, pole, rider)")
    assert note
    assert said(data, "in 1 training mask no pixel counts (train/masks/z.png)")
    for path in (tmp_path / "train/masks").iterdir():
        Image.fromarray(stripes({0: HEIGHT})).save(path)
    assert "only 'road'" in refusal(tmp_path)


def test_a_second_tree_to_test_on(tmp_path):
    split_tree(tmp_path / "a", {"train": 4, "test": 2})
    split_tree(tmp_path / "b", {"train": 3, "test": 1})
    data = load_masks(str(tmp_path / "a"), source=DataOptions(test=str(tmp_path / "b")))
    assert (len(data.train), len(data.test), data.test.root) == (4, 1, tmp_path / "b")
    assert said(data, "its 2 images of the other split are left aside")
    assert read_pair(data.test, 0)[1].shape == (HEIGHT, WIDTH)
    write_names(tmp_path / "b", ("road", "tree", "sky"))
    text = refusal(tmp_path / "a", source=DataOptions(test=str(tmp_path / "b")))
    assert "'tree' where that has 'sky'" in text
    plain_tree(tmp_path / "c", 3)  # whole, and without names of its own
    data = load_masks(str(tmp_path / "a"), source=DataOptions(test=str(tmp_path / "c")))
    assert len(data.test) == 3
    assert data.test.class_names == NAMES[:3]
    text = refusal(tmp_path / "c", source=DataOptions(test=str(tmp_path / "c")))
    assert "holds 3 images to train on (first images/scene000.png)" in text


def test_only_the_test_images(tmp_path):
    split_tree(tmp_path / "a", {"train": 4, "test": 2})
    assert len(load_masks(str(tmp_path / "a"), test_only=True).test) == 2
    plain_tree(tmp_path / "b", 5, names=NAMES[:3])
    assert len(load_masks(str(tmp_path / "b"), test_only=True).test) == 5


def test_mean_and_deviation_are_those_of_the_training_pixels(tmp_path):
    split_tree(tmp_path, {"train": 4, "test": 2})
    data = load_masks(str(tmp_path), options=SegmentationOptions(resize=[12, 16]))
    pixels = np.stack([np.asarray(Image.open(data.train.image_path(place))) / 255 for place in range(4)])
    assert data.mean == pytest.approx(pixels.mean((0, 1, 2)).tolist(), abs=1e-12)
    assert data.std == pytest.approx(pixels.std((0, 1, 2)).tolist(), abs=1e-12)
    assert data.train.size == (12, 16)
    assert read_pair(data.train, 0)[0].shape == (3, 12, 16)
    assert "--segmentation.resize" in refusal(tmp_path, options=SegmentationOptions(resize=[12]))


def test_findings_are_kept_until_a_file_changes(tmp_path, monkeypatch):
    split_tree(tmp_path, {"train": 4, "test": 2})
    fresh = load_masks(str(tmp_path))
    looked = []
    check = mask_parts.check_masks

    def counting(listing, workers, cache, progress):
        reader = "longtail.segmentation.data.check_masks.read_raw_mask"
        real = __import__("longtail.segmentation.data.raw_masks", fromlist=["x"]).read_raw_mask
        monkeypatch.setattr(reader, lambda path: looked.append(path.name) or real(path))
        return check(listing, workers, cache, progress)

    monkeypatch.setattr(mask_parts, "check_masks", counting)
    again = load_masks(str(tmp_path))
    assert looked == []
    assert again.train.fingerprint() == fresh.train.fingerprint()
    assert (again.mean, again.std) == (fresh.mean, fresh.std)
    # Another reading of the same masks needs no new look.
    assert load_masks(str(tmp_path), options=SegmentationOptions(ignore=[255, 2])).train.num_classes == 2
    assert looked == []
    path = again.train.mask_path(1)
    Image.fromarray(stripes({0: 12, 1: 6, 2: 6})).save(path)
    os.utime(path, ns=(1, 1))
    changed = load_masks(str(tmp_path))
    assert looked == ["s001.png"]
    assert changed.train.pixels[1].tolist() == [12 * WIDTH, 6 * WIDTH, 6 * WIDTH]
    assert changed.train.fingerprint() != fresh.train.fingerprint()


def test_worker_processes_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("longtail.segmentation.data.check_masks._PAIRS_A_WORKER", 1)
    monkeypatch.setenv("LONGTAIL_CACHE", "")
    split_tree(tmp_path, {"train": 17, "test": 2}, inside=False)
    spoil(tmp_path, "no class")
    seen = []
    alone = load_masks(str(tmp_path), on_bad="skip")
    crew = load_masks(str(tmp_path), on_bad="skip", workers=2, progress=lambda *at: seen.append(at))
    assert crew.train.fingerprint() == alone.train.fingerprint()
    assert crew.skipped == alone.skipped
    assert seen[-1] == (19, 19)


def test_rare_classes_keep_training_images(tmp_path):
    for index in range(20):  # class 2 lies in two images only, class 3 in one
        rows = {0: 12, 1: 12} if index > 2 else {0: 12, 1: 6, 2: 6} if index else {0: 12, 1: 6, 3: 6}
        write_pair(tmp_path / f"images/{index:02d}.png", tmp_path / f"masks/{index:02d}.png", stripes(rows))
    for seed in range(6):
        data = load_masks(str(tmp_path), source=DataOptions(split_seed=seed), val_fraction=0.3)
        assert len(data.test) == 4
        assert data.test.image_counts.tolist()[2:] == [1, 0]  # one to test on, one to train on; the last is never taken
        assert data.train.image_counts.tolist()[2:] == [1, 1]
        assert len(data.validation) == math.floor(0.3 * 16 + 0.5)
        names = names_in(data.train) + names_in(data.validation) + names_in(data.test)
        assert sorted(names) == [f"{index:02d}.png" for index in range(20)]


def test_groups_stay_whole(tmp_path):
    plain_tree(tmp_path, 12, names=NAMES[:3])
    pattern = r"scene0(\d)\d"  # 10 in one group, 2 in the other
    data = load_masks(str(tmp_path), source=DataOptions(group_pattern=pattern, test_share=0.2))
    assert names_in(data.test) == ["scene010.png", "scene011.png"]
    assert "2 groups kept whole" in data.test_split
    assert "without leaving a class untrained" in refusal(tmp_path, source=DataOptions(group_pattern="scene"))


def test_layouts_colours_are_for_overlays_only(tmp_path):
    """CamVid's void is black, and so is place 0 of many tables: masks of values stay masks of values."""
    camvid_tree(tmp_path)
    expected = load_masks(str(tmp_path)).train.pixels
    for path in tmp_path.glob("*annot/*.png"):
        mask = Image.fromarray(np.asarray(Image.open(path))).convert("P")
        mask.putpalette([0, 0, 0, *range(100, 133)])
        mask.save(path)
        assert Image.open(path).mode == "P"
    assert torch.equal(load_masks(str(tmp_path)).train.pixels, expected)


def test_large_groups_can_be_held_out(tmp_path):
    plain_tree(tmp_path, 20, names=NAMES[:3])
    data = load_masks(str(tmp_path), source=DataOptions(group_pattern=r"scene0(\d)\d", test_share=0.1))
    assert len(data.test) == 10


def test_blocks_of_films_spare_the_last_frames_of_a_class():
    frames = 10
    presence = torch.ones(2 * frames, 3, dtype=torch.bool)
    presence[:, 2] = False
    presence[[4, 14], 2] = True  # class 2 in one frame of each film
    for draw in range(8):
        bits = torch.arange(2 * frames) + draw
        held = hold_out_blocks(presence, bits, 0.5, ["a"] * frames + ["b"] * frames)
        assert held.view(2, frames).sum(1).tolist() == [5, 5]
        assert int(presence[~held][:, 2].sum()) >= 1
        for film in held.view(2, frames):
            assert int((film[1:] != film[:-1]).sum()) <= 2  # in one piece
    held = hold_out_blocks(presence, bits, 0.9, ["a"] * 2 * frames)
    assert not held.any() or int(presence[~held][:, 2].sum()) >= 1
    assert hold_out_blocks(presence[:1], bits[:1], 0.5, ["a"]).tolist() == [False]
