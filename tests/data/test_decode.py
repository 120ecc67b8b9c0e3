"""Every kind of image file, written here, comes out as the RGB pixels that its format means."""

import contextlib
import itertools
import math
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from longtail.data.decode import BadImage, crop, fit, gray_levels, read_image, reduced_side, upright_rgb
from longtail.data.image_set import Framing

WHITE = (255, 255, 255)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def pixels(path, **options):
    image = read_image(path, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def as_gray(levels):
    return np.repeat(np.asarray(levels, dtype=np.uint8)[:, :, None], 3, axis=2)


def scene(rng, height=12, width=16):
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def over_white(color, alpha):
    return np.rint((color.astype(float) * alpha + 255.0 * (255 - alpha)) / 255)


# Kinds of files


@pytest.mark.parametrize("ending", ["png", "bmp", "ppm", "tif", "webp", "jp2"])
def test_lossless_rgb_is_kept(tmp_path, rng, ending):
    values = scene(rng)
    Image.fromarray(values).save(tmp_path / f"x.{ending}", **({"lossless": True} if ending == "webp" else {}))
    np.testing.assert_array_equal(pixels(tmp_path / f"x.{ending}"), values)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "bmp", "gif", "pgm"])
def test_gray(tmp_path, ending):
    values = np.arange(0, 256, 8, dtype=np.uint8).reshape(4, 8)
    Image.fromarray(values).save(tmp_path / f"x.{ending}", **({"quality": 100} if ending == "jpg" else {}))
    got = pixels(tmp_path / f"x.{ending}").astype(int)
    assert (got == got[:, :, :1]).all()
    assert np.abs(got - as_gray(values)).max() <= (2 if ending == "jpg" else 0)


@pytest.mark.parametrize("ending", ["png", "tif", "bmp", "pbm"])
def test_one_bit(tmp_path, rng, ending):
    values = rng.integers(0, 2, (5, 11)).astype(bool)
    Image.fromarray(values).save(tmp_path / f"x.{ending}")
    np.testing.assert_array_equal(pixels(tmp_path / f"x.{ending}"), as_gray(values * 255))


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
@pytest.mark.parametrize("channels", [2, 4])
def test_transparency_is_laid_over_white(tmp_path, rng, channels, ending):
    values = rng.integers(0, 256, (6, 7, channels), dtype=np.uint8)
    values[0, 0, -1], values[0, 1, -1] = 0, 255
    save = {"lossless": True, "exact": True} if ending == "webp" else {}
    Image.fromarray(values, mode={2: "LA", 4: "RGBA"}[channels]).save(tmp_path / f"x.{ending}", **save)
    got = pixels(tmp_path / f"x.{ending}").astype(float)
    assert np.abs(got - over_white(values[..., :-1], values[..., -1:])).max() <= 1
    assert (got[0, 0] == 255).all()
    assert (got[0, 1] == values[0, 1, :-1]).all()


PALETTE = [255, 0, 0, 0, 255, 0, 0, 0, 255, 10, 20, 30]


@pytest.mark.parametrize("ending", ["png", "gif", "tif", "bmp"])
def test_palette(tmp_path, ending):
    image = Image.fromarray(np.array([[0, 1], [2, 3]], dtype=np.uint8), mode="P")
    image.putpalette(PALETTE)
    image.save(tmp_path / f"x.{ending}")
    np.testing.assert_array_equal(pixels(tmp_path / f"x.{ending}").reshape(-1), PALETTE)


@pytest.mark.parametrize(
    ("ending", "transparency", "expected"),
    [
        ("png", 1, [(255, 0, 0), WHITE, (0, 0, 255), (10, 20, 30)]),
        ("gif", 2, [(255, 0, 0), (0, 255, 0), WHITE, (10, 20, 30)]),
        ("png", bytes([255, 0, 51, 255]), [(255, 0, 0), WHITE, (204, 204, 255), (10, 20, 30)]),
    ],
)
def test_palette_with_transparency(tmp_path, ending, transparency, expected):
    image = Image.fromarray(np.array([[0, 1], [2, 3]], dtype=np.uint8), mode="P")
    image.putpalette(PALETTE)
    image.save(tmp_path / f"x.{ending}", transparency=transparency)
    np.testing.assert_array_equal(pixels(tmp_path / f"x.{ending}").reshape(4, 3), expected)


def test_a_transparent_colour_of_gray_and_rgb_pngs(tmp_path):
    gray = Image.fromarray(np.array([[7, 9]], dtype=np.uint8))
    gray.save(tmp_path / "l.png", transparency=9)
    np.testing.assert_array_equal(pixels(tmp_path / "l.png"), as_gray([[7, 255]]))
    Image.fromarray(np.array([[(1, 2, 3), (4, 5, 6)]], dtype=np.uint8)).save(
        tmp_path / "rgb.png", transparency=(1, 2, 3)
    )
    np.testing.assert_array_equal(pixels(tmp_path / "rgb.png"), [[WHITE, (4, 5, 6)]])
    deep = png(1, 2, 16, 0, struct.pack(">HH", 65535, 257), [(b"tRNS", struct.pack(">H", 257))])
    (tmp_path / "deep.png").write_bytes(deep)
    np.testing.assert_array_equal(pixels(tmp_path / "deep.png"), as_gray([[255, 255]]))


def cmyk_as_rgb(values):
    cyan_magenta_yellow, black = values[..., :3].astype(float), values[..., 3:].astype(float)
    return (255 - cyan_magenta_yellow) * (255 - black) / 255


def test_cmyk(tmp_path, rng):
    values = rng.integers(0, 256, (5, 6, 4), dtype=np.uint8)
    Image.fromarray(values, mode="CMYK").save(tmp_path / "x.tif")
    assert np.abs(pixels(tmp_path / "x.tif") - cmyk_as_rgb(values)).max() <= 1
    flat = np.broadcast_to(np.array([200, 100, 30, 60], dtype=np.uint8), (16, 16, 4))
    Image.fromarray(np.ascontiguousarray(flat), mode="CMYK").save(tmp_path / "x.jpg", quality=100)
    assert np.abs(pixels(tmp_path / "x.jpg") - cmyk_as_rgb(flat)).max() <= 3


def test_ycck_jpeg(tmp_path):
    # The stored (inverted) channels of a CMYK file, declared to be Y, Cb, Cr and K instead.
    flat = np.broadcast_to(np.array([105, 120, 140, 60], dtype=np.uint8), (16, 16, 4))
    Image.fromarray(np.ascontiguousarray(flat), mode="CMYK").save(tmp_path / "x.jpg", quality=100)
    data = bytearray((tmp_path / "x.jpg").read_bytes())
    marker = data.index(b"Adobe")
    assert data[marker + 11] == 0  # the colour transform: none
    data[marker + 11] = 2
    (tmp_path / "x.jpg").write_bytes(data)
    luma, blue, red, black = (255 - flat[0, 0]).astype(float)
    rgb = (
        luma + 1.402 * (red - 128),
        luma - 0.344136 * (blue - 128) - 0.714136 * (red - 128),
        luma + 1.772 * (blue - 128),
    )
    # The decoder turns YCC into inverted CMY (255 - RGB), which is stored inverted once more.
    expected = np.array([255 - value for value in rgb]) * black / 255
    assert np.abs(pixels(tmp_path / "x.jpg") - expected).max() <= 3


def test_ycbcr(tmp_path):
    flat = np.broadcast_to(np.array([120, 100, 160], dtype=np.uint8), (8, 8, 3))
    Image.fromarray(np.ascontiguousarray(flat), mode="YCbCr").save(tmp_path / "x.tif")
    expected = [120 + 1.402 * 32, 120 + 0.344136 * 28 - 0.714136 * 32, 120 - 1.772 * 28]
    assert np.abs(pixels(tmp_path / "x.tif") - np.array(expected)).max() <= 1


@pytest.mark.skipif(not features.check("littlecms2"), reason="Pillow without LittleCMS cannot convert LAB")
def test_lab(tmp_path):
    rgb = Image.new("RGB", (4, 4), (200, 60, 90))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.applyTransform(rgb, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    lab.save(tmp_path / "x.tif")
    assert Image.open(tmp_path / "x.tif").mode == "LAB"
    assert np.abs(pixels(tmp_path / "x.tif").astype(int) - (200, 60, 90)).max() <= 3


def test_kinds_that_no_file_holds():
    np.testing.assert_array_equal(np.asarray(upright_rgb(Image.new("HSV", (1, 1), (0, 255, 200)))), [[(200, 0, 0)]])
    premultiplied = Image.new("RGBA", (1, 1), (100, 50, 0, 128)).convert("RGBa")
    assert np.abs(np.asarray(upright_rgb(premultiplied)).astype(int) - (177, 152, 127)).max() <= 2
    gray = Image.new("LA", (1, 1), (100, 128)).convert("La")
    assert np.abs(np.asarray(upright_rgb(gray)).astype(int) - 177).max() <= 2


# More than 8 bits


@pytest.mark.parametrize(("bits", "maximum"), [(8, 255), (12, 4095), (16, 65535)])
@pytest.mark.parametrize("form", ["png", "little", "big", "signed 32", "float"])
def test_deep_gray(tmp_path, bits, maximum, form):
    values = np.linspace(0, maximum, 60).astype(np.uint16).reshape(6, 10)
    path = tmp_path / ("x.png" if form == "png" else "x.tif")
    if form == "big":
        path.write_bytes(big_endian_tiff(values))
        assert Image.open(path).mode == "I;16B"
    else:
        kind = {"signed 32": np.int32, "float": np.float32}.get(form, np.uint16)
        Image.fromarray(values.astype(kind)).save(path)
    np.testing.assert_array_equal(pixels(path), as_gray(np.rint(values * (255 / (2**bits - 1)))))


def test_images_of_one_set_share_a_scale():
    # A dark and a bright image of a 12-bit camera: the same count of photons is the same gray.
    dark, bright = np.array([[300, 600]], dtype=np.uint16), np.array([[600, 4000]], dtype=np.uint16)
    assert gray_levels(dark)[0, 1] == gray_levels(bright)[0, 0] == round(600 * 255 / 4095)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0.0, 0.5, 1.0]], [0, 128, 255]),
        ([[-0.1, 0.25, 1.04]], [0, 64, 255]),  # interpolation overshoots
        ([[-3.0, 0.0, 255.0]], [0, 0, 255]),
        ([[0.0, 100.0, 4095.0]], [0, 6, 255]),
        ([[0.0, 0.0, 0.0]], [0, 0, 0]),
        ([[0.0, 1e30, 2e30]], [0, 128, 255]),
    ],
)
def test_float_tiff(tmp_path, values, expected):
    Image.fromarray(np.array(values, dtype=np.float32)).save(tmp_path / "x.tif")
    assert pixels(tmp_path / "x.tif")[0, :, 0].tolist() == expected


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_float_that_is_no_number(tmp_path, value):
    Image.fromarray(np.array([[0.5, value, 1.0]], dtype=np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(BadImage, match=r"^holds NaN or infinity$"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize(("values", "expected"), [([[-500, 0, 4095]], [0, 0, 255]), ([[0, 2**23, 2**24 - 1]], None)])
def test_integers_below_zero_and_of_24_bits(values, expected):
    assert gray_levels(np.array(values, dtype=np.int32))[0].tolist() == (expected or [0, 128, 255])


@pytest.mark.parametrize("alpha", [False, True])
def test_16_bit_rgb_png_keeps_the_upper_bits(tmp_path, rng, alpha):
    values = rng.integers(0, 65536, (4, 5, 4 if alpha else 3), dtype=np.uint16)
    if alpha:
        values[..., 3] = 65535
    (tmp_path / "x.png").write_bytes(png(4, 5, 16, 6 if alpha else 2, values.astype(">u2").tobytes()))
    assert np.abs(pixels(tmp_path / "x.png").astype(int) - (values[..., :3] >> 8)).max() <= 1


def png(height, width, depth, color, data, chunks=()):
    """A PNG file put together by hand: Pillow writes neither 16-bit RGB nor an odd chunk."""
    row = len(data) // max(1, height)
    lines = b"".join(b"\0" + data[top * row : top * row + row] for top in range(height))
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    crc = ((kind, body, zlib.crc32(kind + body)) for kind, body in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check) for kind, body, check in crc
    )


def big_endian_tiff(values, more_tags=()):
    """A 16-bit gray TIFF in Motorola order, uncompressed, put together by hand."""
    height, width = values.shape
    data = values.astype(">u2").tobytes()
    tags = [(256, 3, width), (257, 3, height), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 3, height), (279, 4, len(data)), *more_tags]
    entries = b"".join(
        struct.pack(">HHI", tag, kind, 1) + (struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value))
        for tag, kind, value in tags
    )
    return b"MM\0*" + struct.pack(">I", 8 + len(data)) + data + struct.pack(">H", len(tags)) + entries + b"\0" * 4


# Orientation and frames


TURNED = {  # how the stored pixels become the displayed ones, by the EXIF standard's words
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "webp", "tif", "jpg"])
def test_orientations(tmp_path, rng, orientation, ending):
    blocks = rng.integers(0, 2, (3, 5, 3)).astype(np.uint8) * 255
    values = blocks.repeat(16, 0).repeat(16, 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(ending, {})
    Image.fromarray(values).save(tmp_path / f"x.{ending}", exif=exif, **options)
    got = pixels(tmp_path / f"x.{ending}").astype(int)
    expected = TURNED[orientation](values).astype(int)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= (8 if ending == "jpg" else 0)


def test_what_comes_back_is_turned_for_good(tmp_path, rng):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(scene(rng)).save(tmp_path / "x.jpg", exif=exif)
    image = read_image(tmp_path / "x.jpg")
    assert image.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("value", [0, 9, 77])
def test_an_orientation_that_does_not_exist(tmp_path, rng, value):
    exif = Image.Exif()
    exif[0x0112] = value
    values = scene(rng)
    Image.fromarray(values).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(pixels(tmp_path / "x.png"), values)


def test_corrupt_exif_leaves_the_image_good(tmp_path, rng, capfd):
    values = scene(rng)
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x011A], exif[0x0128] = "maker", 1, 72.0, 2
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01"
    block = exif.tobytes()
    Image.fromarray(values).save(tmp_path / "x.webp", exif=exif, lossless=True)
    data = (tmp_path / "x.webp").read_bytes()
    start = data.index(block[6:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(200):
            broken = bytearray(data)
            for place in rng.integers(start, start + len(block) - 6, 6):
                broken[place] = rng.integers(0, 256)
            (tmp_path / "x.webp").write_bytes(broken)
            assert sorted(read_image(tmp_path / "x.webp").size) == [12, 16]
    for noise in (b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + rng.bytes(50)):
        Image.fromarray(values).save(tmp_path / "x.jpg", exif=noise)
        assert read_image(tmp_path / "x.jpg").size == (16, 12)
    gray = rng.integers(0, 65536, (4, 5), dtype=np.uint16)
    for folder in (0, 9, 10**6, 2**32 - 1):  # where its EXIF block is said to begin
        (tmp_path / "x.tif").write_bytes(big_endian_tiff(gray, [(0x8769, 4, folder), (0x8825, 4, folder)]))
        np.testing.assert_array_equal(pixels(tmp_path / "x.tif"), as_gray(np.rint(gray / 257)))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tif"])
def test_first_frame(tmp_path, rng, ending):
    frames = [Image.fromarray(np.full((6, 8, 3), level, dtype=np.uint8)) for level in (250, 100, 0)]
    options = {"webp": {"lossless": True}}.get(ending, {})
    frames[0].save(tmp_path / f"x.{ending}", save_all=True, append_images=frames[1:], **options)
    assert Image.open(tmp_path / f"x.{ending}").n_frames == 3
    assert (pixels(tmp_path / f"x.{ending}") == 250).all()


# Sizes


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_very_small_and_very_long(tmp_path, size):
    Image.new("L", size, 77).save(tmp_path / "x.png")
    image = read_image(tmp_path / "x.png")
    assert image.size == size
    framed = fit(image, Framing((8, 8), 9))
    assert framed.shape == (8, 8, 3)
    assert (framed == 77).all()


def test_very_large_without_a_word(tmp_path, capfd):
    Image.new("L", (9000, 10000), 50).save(tmp_path / "x.png", compress_level=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow warns of images above 89 million pixels
        image = read_image(tmp_path / "x.png")
    assert image.size == (9000, 10000)
    assert image.getpixel((8999, 9999)) == (50, 50, 50)
    assert capfd.readouterr() == ("", "")


def test_beyond_the_limit_of_pixels(tmp_path):
    (tmp_path / "x.png").write_bytes(png(20000, 20000, 8, 0, b""))
    with pytest.raises(BadImage, match=r"^too large, over 179 million pixels$"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_no_pixels(tmp_path, size):
    (tmp_path / "x.png").write_bytes(png(*size, 8, 0, b""))
    with pytest.raises(BadImage):
        read_image(tmp_path / "x.png")


# Damage


SAVE = {"gif": {}, "jpg": {}, "png": {}, "webp": {}, "tif": {}, "bmp": {}, "ppm": {}, "jp2": {}}


@pytest.mark.parametrize("ending", SAVE)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_cut_off(tmp_path, rng, ending, share):
    path = tmp_path / f"x.{ending}"
    Image.fromarray(scene(rng, 60, 80)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BadImage, match=r"^(cut off|cut off or damaged|not an image)$") as error:
        read_image(path)
    assert error.value.reason == str(error.value)
    path.write_bytes(whole)
    assert read_image(path).size == (80, 60)


def test_a_jpeg_that_lacks_its_last_byte_is_cut_off(tmp_path, rng):
    Image.fromarray(scene(rng)).save(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").write_bytes((tmp_path / "x.jpg").read_bytes()[:-20])
    with pytest.raises(BadImage, match=r"^cut off$"):
        read_image(tmp_path / "x.jpg", least_side=4)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "gif", "ppm"])
def test_random_damage_raises_nothing_else(tmp_path, ending, rng, capfd):
    path = tmp_path / f"x.{ending}"
    Image.fromarray(scene(rng, 30, 40)).save(path)
    whole = path.read_bytes()
    reasons = set()
    for _ in range(60):
        broken = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 200), 4):
            broken[place] = rng.integers(0, 256)
        path.write_bytes(broken)
        try:
            assert read_image(path).mode == "RGB"
        except BadImage as error:
            reasons.add(error.reason)
    assert reasons
    assert all(0 < len(reason) <= 80 and str(tmp_path) not in reason for reason in reasons)
    assert capfd.readouterr() == ("", "")


def test_what_is_no_image_file(tmp_path):
    def reason(name):
        with pytest.raises(BadImage) as error:
            read_image(tmp_path / name)
        return error.value.reason

    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("<html>404 not found</html>")
    (tmp_path / "noise.jpg").write_bytes(bytes(range(256)))
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "nowhere.jpg").symlink_to(tmp_path / "gone.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert reason("empty.jpg") == "empty, 0 bytes"
    assert reason("text.jpg") == reason("noise.jpg") == "not an image"
    assert reason("folder.jpg") == "a folder"
    assert reason("pipe.jpg") == "not a regular file"
    assert reason("missing.jpg") == reason("nowhere.jpg") == "no such file"
    assert "null" in reason("a\0b.jpg")
    assert reason("a" * 300) == "file name too long"


def test_programs_are_not_run(tmp_path):
    # Pillow would hand an EPS file to Ghostscript.
    (tmp_path / "x.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n%%EndComments\nshowpage\n")
    with pytest.raises(BadImage, match=r"^not an image$"):
        read_image(tmp_path / "x.jpg")


def test_no_permission(tmp_path, monkeypatch):
    Image.new("L", (2, 2)).save(tmp_path / "x.png")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("longtail.data.decode.open", refuse, raising=False)
    with pytest.raises(BadImage, match=r"^permission denied$"):
        read_image(tmp_path / "x.png")


def test_a_machine_out_of_file_handles_is_not_a_bad_image(tmp_path, monkeypatch):
    Image.new("L", (2, 2)).save(tmp_path / "x.png")

    def refuse(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("longtail.data.decode.open", refuse, raising=False)
    with pytest.raises(OSError, match="Too many open files"):
        read_image(tmp_path / "x.png")


def test_the_name_says_nothing(tmp_path, rng):
    values = scene(rng)
    Image.fromarray(values).save(tmp_path / "x", format="png")
    (tmp_path / "x").rename(tmp_path / "really.jpg")
    np.testing.assert_array_equal(pixels(tmp_path / "really.jpg"), values)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files as Linux lists them")
def test_no_file_stays_open(tmp_path, rng):
    image = Image.fromarray(scene(rng))
    good = [tmp_path / f"x.{ending}" for ending in ("jpg", "png", "tif", "gif", "webp")]
    for path in good:
        image.save(path, **({"save_all": True, "append_images": [image]} if path.suffix in (".tif", ".gif") else {}))
    image.save(tmp_path / "lzw.tif", compression="tiff_lzw")
    (tmp_path / "cut.jpg").write_bytes(good[0].read_bytes()[:300])
    (tmp_path / "text.png").write_text("no")
    before = set(os.listdir("/proc/self/fd"))
    kept = []
    for path in [*good, tmp_path / "lzw.tif", tmp_path / "cut.jpg", tmp_path / "text.png"]:
        with contextlib.suppress(BadImage):
            kept.append(read_image(path))
    assert len(kept) == 6
    assert set(os.listdir("/proc/self/fd")) == before


# Reduced reading


@pytest.mark.parametrize(
    ("size", "least", "expected"),
    [
        ((400, 300), None, (400, 300)),
        ((400, 300), 300, (400, 300)),
        ((400, 300), 151, (400, 300)),
        ((400, 300), 150, (200, 150)),
        ((400, 300), 75, (100, 75)),
        ((400, 300), 5, (50, 38)),
        ((401, 301), 150, (201, 151)),
        ((20, 300), 100, (20, 300)),
    ],
)
def test_least_side(tmp_path, size, least, expected):
    Image.new("RGB", size, (10, 120, 200)).save(tmp_path / "x.jpg")
    image = read_image(tmp_path / "x.jpg", least)
    assert image.size == expected
    assert np.abs(np.asarray(image).astype(int) - (10, 120, 200)).max() <= 3
    Image.new("RGB", size).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png", least).size == size


def test_reduced_and_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (400, 300)).save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg", 100).size == (150, 200)


def test_reduced_side_is_enough_for_every_crop():
    framing = Framing((192, 224), 256)
    for area in (0.08, 0.2, 0.5, 1.0):
        side = reduced_side(framing, area)
        assert side >= framing.resize == reduced_side(framing)
        for height, width, aspect in itertools.product((side, 2 * side), (side, 3 * side), (3 / 4, 1, 4 / 3)):
            crop_width = math.sqrt(area * height * width * aspect)
            assert crop_width >= 224 - 1e-6
            assert crop_width / aspect >= 192
    assert reduced_side(framing, 0.08) == math.ceil(224 / math.sqrt(0.06))


# Framing


def resize_then_crop(image, framing, across_first=True):
    """The two-step way, with torchvision's roundings, and one direction of the resize after the other."""
    short, long = min(image.size), max(image.size)
    lengths = framing.resize, int(framing.resize * long / short)
    size = lengths if image.width <= image.height else lengths[::-1]
    kind = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[framing.interpolation]
    between = (size[0], image.height) if across_first else (image.width, size[1])
    resized = np.asarray(image.resize(between, kind).resize(size, kind))
    height, width = framing.size
    top, left = round((size[1] - height) / 2.0), round((size[0] - width) / 2.0)
    return resized[top : top + height, left : left + width]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (61, 40), (33, 33), (7, 90), (2, 3), (1, 1), (101, 64)])
@pytest.mark.parametrize("framing", [((32, 32), 37), ((24, 40), 40), ((33, 31), 64)])
def test_fit_is_resize_then_centre_crop(rng, size, framing, interpolation):
    framing = Framing(*framing, interpolation)
    image = Image.fromarray(scene(rng, size[1], size[0]))
    got = fit(image, framing)
    assert got.shape == (*framing.size, 3)
    assert got.dtype == np.uint8
    # Pillow takes first the direction that leaves less to do; what bicubic overshoots in between is clipped.
    orders = (resize_then_crop(image, framing, across_first) for across_first in (True, False))
    assert min(np.abs(got.astype(int) - expected).max() for expected in orders) <= 1
    smooth = Image.fromarray(scene(rng, 5, 5)).resize(size, Image.Resampling.BICUBIC)
    assert np.abs(fit(smooth, framing).astype(int) - resize_then_crop(smooth, framing)).max() <= 2


def test_fit_against_torchvision(rng):
    transforms = pytest.importorskip("torchvision.transforms")
    steps = transforms.Compose([transforms.Resize(40), transforms.CenterCrop((32, 36))])
    for size in ((101, 67), (67, 101), (50, 51)):
        image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        got = fit(image, Framing((32, 36), 40)).astype(int)
        assert np.abs(got - np.asarray(steps(image))).max() <= 1


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1)])
def test_fit_of_a_line_makes_no_large_image(size, monkeypatch):
    ramp = np.linspace(0, 255, 5000).astype(np.uint8)
    image = Image.fromarray(as_gray(ramp[:, None] if size[0] == 1 else ramp[None]))
    assert image.size == size
    sizes, resize = [], Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, *a, **k: sizes.append(a[0]) or resize(self, *a, **k))
    got = fit(image, Framing((224, 224), 256))
    assert sizes == [(224, 224)]
    assert np.abs(got.astype(int) - 127).max() <= 2  # the middle of the ramp


def test_an_image_of_the_right_size_keeps_its_pixels(rng):
    image = Image.fromarray(scene(rng, 32, 32))
    np.testing.assert_array_equal(fit(image, Framing((32, 32), 32, "bicubic")), np.asarray(image))
    wide = Image.fromarray(scene(rng, 32, 40))
    np.testing.assert_array_equal(fit(wide, Framing((32, 32), 32)), np.asarray(wide)[:, 4:36])
    assert fit(image, Framing((32, 32), 32)).flags.writeable


def box_means(values, size):
    return values.reshape(size, values.shape[0] // size, size, values.shape[1] // size, 3).mean((1, 3))


def test_crop(rng):
    values = scene(rng, 40, 60)
    image = Image.fromarray(values)
    np.testing.assert_array_equal(crop(image, (7, 5, 8, 8), Framing((8, 8), 8)), values[5:13, 7:15])
    # Smooth pixels, a third of the size: as good as the mean of 3 x 3.
    smooth = np.add.outer(np.arange(40) * 2, np.arange(60) * 3)
    image = Image.fromarray(as_gray(smooth))
    got = crop(image, (12, 6, 24, 24), Framing((8, 8), 8)).astype(float)
    assert np.abs(got - box_means(as_gray(smooth)[6:30, 12:36], 8)).max() <= 1
    # Fractions shift what is seen: two pixels down are 4 levels.
    low, high = (crop(image, (12.5, top, 16.0, 16.0), Framing((8, 8), 8)).astype(float) for top in (4.25, 6.25))
    assert np.abs(high - low - 4).max() <= 1


def test_crop_is_antialiased():
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    got = crop(Image.fromarray(as_gray(checks)), (0, 0, 64, 64), Framing((8, 8), 8))
    assert np.abs(got.astype(int) - 127).max() <= 12


def test_crop_up_to_the_edge_survives_rounding():
    image = Image.new("RGB", (30, 30))
    left = 30 - 30 / 7
    assert crop(image, (left, left, 30 / 7 + 1e-9, 30 / 7 + 1e-9), Framing((4, 4), 4)).shape == (4, 4, 3)
    with pytest.raises(ValueError):
        crop(image, (40, 0, 5, 5), Framing((4, 4), 4))
