"""Mask files to labels: values, colours, tables of colours; palettes; pairs at another size."""

import json
import pickle

import numpy as np
import pytest
import torch
from mask_trees import COLOURS, NAMES
from PIL import Image

from longtail.data.decode import BadImage
from longtail.data.path_table import PathTable
from longtail.errors import UserError
from longtail.segmentation.data.class_files import ClassEntry, find_classes, read_palette
from longtail.segmentation.data.classes import default_palette, make_classes, numbered_entries
from longtail.segmentation.data.mask_labels import MaskLabels
from longtail.segmentation.data.mask_set import IGNORE, MaskFiles
from longtail.segmentation.data.raw_masks import pack, read_raw_mask
from longtail.segmentation.data.reading import read_pair

VALUES = np.random.default_rng(0).integers(0, 4, (10, 14)).astype(np.uint8)
TABLE = np.array(COLOURS[:4], np.uint8)
ENTRIES = [ClassEntry(name, colour) for name, colour in zip(NAMES[:4], COLOURS[:4], strict=True)]


def labels_of(tmp_path, image, reader, **how):
    path = tmp_path / "mask.png"
    image.save(path, **how)
    return reader(path)


def coloured():
    return make_classes(ENTRIES, (), False, "data").reader


FORMS = {
    "gray": lambda: Image.fromarray(VALUES),
    "16 bits": lambda: Image.fromarray(VALUES.astype(np.uint16)),
    "gray in three channels": lambda: Image.fromarray(VALUES[..., None].repeat(3, 2)),
    "gray with alpha": lambda: Image.merge("LA", [Image.fromarray(VALUES), Image.new("L", VALUES.T.shape, 255)]),
}


@pytest.mark.parametrize("form", FORMS)
def test_values_are_labels_in_every_form(tmp_path, form):
    labels = labels_of(tmp_path, FORMS[form](), make_classes(numbered_entries([3], False, ()), (), False, "x").reader)
    assert labels.dtype == torch.int16
    assert np.array_equal(labels.numpy(), VALUES)


@pytest.mark.parametrize("form", ["RGB", "RGBA", "smaller table", "table in class order"])
def test_colours_become_labels(tmp_path, form):
    rgb = Image.fromarray(TABLE[VALUES])
    image = rgb.convert("RGBA") if form == "RGBA" else rgb
    if form == "smaller table":  # what programs make of a colour mask to save space: its places are in any order
        image = Image.fromarray(3 - VALUES).convert("P")
        image.putpalette(TABLE[::-1].ravel().tolist())
    if form == "table in class order":
        image = Image.fromarray(VALUES).convert("P")
        image.putpalette(TABLE.ravel().tolist())
    assert np.array_equal(labels_of(tmp_path, image, coloured()).numpy(), VALUES)


def test_a_table_of_other_colours_holds_values(tmp_path):
    image = Image.fromarray(VALUES).convert("P")
    image.putpalette([level for place in range(4) for level in (200 + place, 10, 10)])
    assert np.array_equal(labels_of(tmp_path, image, coloured()).numpy(), VALUES)
    image.putpalette([*TABLE[[1, 0, 2]].ravel().tolist(), 9, 9, 9])  # some of the classes' colours, and another
    with pytest.raises(BadImage, match=r"colour \(9, 9, 9\) in \d+ pixels"):
        labels_of(tmp_path, image, coloured())


def test_gray_levels_are_colours_where_the_palette_is_gray(tmp_path):
    entries = [ClassEntry("ground", (0, 0, 0)), ClassEntry("crack", (255, 255, 255))]
    reader = make_classes(entries, (), False, "data").reader
    mask = Image.fromarray((VALUES > 2).astype(np.uint8) * 255)
    for image in (mask, mask.convert("RGB"), mask.convert("P"), mask.convert("1")):
        assert np.array_equal(labels_of(tmp_path, image, reader).numpy(), VALUES > 2)


def test_what_is_no_class_is_named(tmp_path):
    reader = MaskLabels(((0, 0), (1, 1), (2, IGNORE)))
    with pytest.raises(BadImage, match=rf"^mask value 3 in {(VALUES == 3).sum()} pixels is no class"):
        labels_of(tmp_path, Image.fromarray(VALUES), reader)
    off = TABLE.copy()
    off[2] = (1, 2, 3)
    with pytest.raises(
        BadImage, match=rf"^colour \(1, 2, 3\) in {(VALUES == 2).sum()} pixels is none of the palette's"
    ):
        labels_of(tmp_path, Image.fromarray(off[VALUES]), coloured())
    with pytest.raises(BadImage, match="no palette says"):
        labels_of(tmp_path, Image.fromarray(TABLE[VALUES]), reader)
    Image.fromarray(VALUES.astype(np.int32)).save(tmp_path / "whole.tif")
    assert np.array_equal(read_raw_mask(tmp_path / "whole.tif").codes, VALUES)
    Image.fromarray(VALUES.astype(np.float32)).save(tmp_path / "mask.tif")
    with pytest.raises(BadImage, match="floating-point"):
        reader(tmp_path / "mask.tif")
    Image.fromarray(VALUES).save(tmp_path / "mask.jpg")
    with pytest.raises(BadImage, match="JPEG"):
        reader(tmp_path / "mask.jpg")


def test_ignored_values_and_a_reader_that_travels(tmp_path):
    reader = make_classes([ClassEntry("a"), ClassEntry("b"), ClassEntry("c"), ClassEntry("d")], [1], False, "x").reader
    assert reader == pickle.loads(pickle.dumps(reader))
    labels = labels_of(tmp_path, Image.fromarray(np.where(VALUES == 0, 255, VALUES).astype(np.uint8)), reader)
    expected = np.array([IGNORE, IGNORE, 1, 2])[VALUES]  # 255 and 1 count nowhere; c and d close up
    assert np.array_equal(labels.numpy(), expected)


@pytest.mark.parametrize(
    ("names", "zero_is_other", "kept", "values"),
    [
        ("road sky void", False, ("road", "sky"), [0, 1, -1]),
        ("Unlabelled road sky", False, ("road", "sky"), [-1, 0, 1]),
        ("road other sky", False, ("road", "other", "sky"), [0, 1, 2]),
        ("road sky other", False, ("road", "sky"), [0, 1, -1]),
        ("road sky", True, ("road", "sky"), [-1, 0, 1]),
        ("other road sky", True, ("road", "sky"), [-1, 0, 1]),
    ],
)
def test_names_that_count_nowhere(names, zero_is_other, kept, values):
    classes = make_classes([ClassEntry(name) for name in names.split()], (), zero_is_other, "data")
    assert classes.names == kept
    assert classes.reader.labels_of("value", np.arange(3)).tolist() == values
    if len(kept) < len(names.split()):
        assert "counts nowhere" in classes.notes[0]


def test_too_few_classes():
    with pytest.raises(UserError, match="streets has 1 class that count"):
        make_classes([ClassEntry("road"), ClassEntry("void")], (), False, "streets")


PALETTES = {
    "first.txt": "# what it is\n128 0 0 road\n0 128 0 traffic sign\n",
    "last.txt": "road 128 0 0\ntraffic sign 0 128 0\n",
    "commas.txt": "road, 128, 0, 0\ntraffic sign, 0, 128, 0",
    "labelmap.txt": "# label:color_rgb:parts:actions\nroad:128,0,0::\ntraffic sign:0,128,0::\n",
    "table.csv": "name,r,g,b\nroad,128,0,0\ntraffic sign,0,128,0\n",
    "hex.csv": "id,name,color\n0,road,#800000\n1,traffic sign,#008000\n",
    "tabs.tsv": "Class\tRed\tGreen\tBlue\nroad\t128\t0\t0\ntraffic sign\t0\t128\t0\n",
    "list.json": json.dumps([{"name": "road", "color": [128, 0, 0]}, {"name": "traffic sign", "color": "#008000"}]),
    "names.json": json.dumps({"road": [128, 0, 0], "traffic sign": [0, 128, 0]}),
}


@pytest.mark.parametrize("file", PALETTES)
def test_palettes_in_every_form(tmp_path, file):
    (tmp_path / file).write_text(PALETTES[file])
    entries = read_palette(tmp_path / file)
    assert [(entry.name, entry.colour) for entry in entries] == [("road", (128, 0, 0)), ("traffic sign", (0, 128, 0))]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("128 0 0 road\nsky\n", "line 2"),
        ("300 0 0 road\n", "within 0..255"),
        ("1 0 0 road\n1 0 0 sky\n", "colour (1, 0, 0) twice"),
        ("1 0 0 road\n2 0 0 road\n", "class 'road' twice"),
        ("\n", "lists no class"),
    ],
)
def test_bad_palettes_are_named(tmp_path, text, says):
    path = tmp_path / "palette.txt"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_palette(path)
    assert says in str(error.value)
    assert str(path) in str(error.value)


def test_values_in_a_palette_and_names_beside_it(tmp_path):
    (tmp_path / "palette.txt").write_text("7 128 0 0 road\n9 0 128 0 sky\n")
    entries, place = find_classes(tmp_path, None)
    assert place.name == "palette.txt"
    assert make_classes(entries, (), False, "x").reader.labels_of("value", np.array([7, 9, 0])).tolist() == [0, 1, -2]
    (tmp_path / "palette.txt").write_text("128 0 0\n0 128 0\n")
    (tmp_path / "classes.txt").write_text("road\nsky\n")
    assert [entry.name for entry in find_classes(tmp_path, None)[0]] == ["road", "sky"]
    with pytest.raises(UserError, match="no such palette file"):
        find_classes(tmp_path, str(tmp_path / "none.txt"))


def test_default_palette_is_that_of_voc():
    def voc(number):  # as in the development kit, bit by bit
        red = green = blue = 0
        for place in range(8):
            red |= (number >> 0 & 1) << 7 - place
            green |= (number >> 1 & 1) << 7 - place
            blue |= (number >> 2 & 1) << 7 - place
            number >>= 3
        return [red, green, blue]

    palette = default_palette(300)
    assert palette.tolist() == [voc(number) for number in range(1, 301)]
    assert len(set(map(tuple, palette.tolist()))) == 300
    taken = make_classes([ClassEntry("a"), ClassEntry("b", (128, 0, 0)), ClassEntry("c")], (), False, "x").palette
    assert taken.tolist() == [[0, 128, 0], [128, 0, 0], [128, 128, 0]]


def pair(tmp_path, size=None, mask=VALUES):
    picture = np.random.default_rng(1).integers(0, 256, (10, 14, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    reader = make_classes(numbered_entries([3], False, ()), (), False, "x").reader
    none = torch.zeros(1, 4, dtype=torch.int64)
    paths = PathTable(["image.png"]), PathTable(["mask.png"])
    return MaskFiles(tmp_path, *paths, reader, ("a", "b", "c", "d"), default_palette(4), none, none, size), picture


@pytest.mark.parametrize("size", [None, (5, 7), (20, 28), (3, 40)])
def test_a_pair_at_its_size(tmp_path, size):
    files, picture = pair(tmp_path, size)
    image, labels = read_pair(files, 0)
    height, width = size or VALUES.shape
    assert image.shape == (3, height, width)
    wanted = Image.fromarray(VALUES).resize((width, height), Image.Resampling.NEAREST)
    assert np.array_equal(labels.numpy(), np.asarray(wanted))
    wanted = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(wanted))


def test_a_pair_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"mask\.png is 14 x 8 pixels, but its image image\.png is 14 x 10"):
        read_pair(pair(tmp_path, mask=VALUES[:8])[0], 0)
    off = VALUES.copy()
    off[0, 0] = 4
    with pytest.raises(UserError, match=r"mask .*mask\.png cannot be used: mask value 4 in 1 pixel is no class"):
        read_pair(pair(tmp_path, mask=off)[0], 0)
    files, _ = pair(tmp_path)
    (tmp_path / "image.png").unlink()
    with pytest.raises(UserError, match=r"image .*image\.png cannot be read: no such file"):
        read_pair(files, 0)


def test_packed_colours():
    assert pack(TABLE).tolist() == [0x800000, 0x008000, 0x808000, 0x000080]


def test_raw_masks_keep_what_is_stored(tmp_path):
    Image.fromarray(TABLE[VALUES]).save(tmp_path / "m.png")
    raw = read_raw_mask(tmp_path / "m.png")
    assert raw.kind == "colour"
    assert np.array_equal(raw.codes, pack(TABLE)[VALUES])
