"""The look at files before training, and what it remembers."""

import multiprocessing
import os
import signal
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from longtail.data import check_cache
from longtail.data import check_images as module
from longtail.data.check_cache import default_cache
from longtail.data.check_images import MODES, bad_image_message, check_images, pixel_digest
from longtail.data.decode import read_image


@pytest.fixture
def folder(tmp_path):
    """Seven files: good ones of several kinds, and three bad ones."""
    root = tmp_path / "images"
    (root / "cat").mkdir(parents=True)
    rng = np.random.default_rng(3)
    values = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    image.save(root / "cat/a.png")
    image.save(root / "cat/same pixels.bmp")
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(root / "cat/turned.jpg", exif=turned)
    image.convert("P").save(root / "cat/moving.gif", save_all=True, append_images=[image.transpose(0).convert("P")])
    (root / "cat/cut.jpg").write_bytes((root / "cat/turned.jpg").read_bytes()[:-60])
    (root / "cat/text.png").write_text("hello")
    paths = ["cat/a.png", "cat/cut.jpg", "cat/gone.jpg", "cat/moving.gif", "cat/same pixels.bmp", "cat/text.png"]
    return root, [*paths, "cat/turned.jpg"]


@pytest.fixture
def opened_files(monkeypatch):
    """Names of the files that are opened."""
    names, opened = [], module.opened

    def note(path):
        names.append(os.path.basename(path))
        return opened(path)

    monkeypatch.setattr(module, "opened", note)
    return names


def squares(root, count):
    root.mkdir(exist_ok=True)
    for index in range(count):
        Image.new("L", (index % 7 + 1, 2), index % 256).save(root / f"{index}.png")
    return [f"{index}.png" for index in range(count)]


def same(one, other):
    for name in ("widths", "heights", "modes", "frames", "digests"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    return one.errors == other.errors


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_full(folder, workers):
    root, paths = folder
    facts = check_images(root, paths, "full", workers, None)
    assert facts.errors == {1: "cut off", 2: "no such file", 5: "not an image"}
    assert list(facts.errors) == [1, 2, 5]
    assert facts.widths.tolist() == [30, 0, 0, 30, 30, 0, 20]
    assert facts.heights.tolist() == [20, 0, 0, 20, 20, 0, 30]
    assert facts.frames.tolist() == [1, 0, 0, 2, 1, 0, 1]
    assert [facts.mode_names[mode] for mode in facts.modes] == ["RGB", "", "", "P", "RGB", "", "RGB"]
    good = [index for index in range(7) if index not in facts.errors]
    for index in good:
        assert facts.digests[index] == pixel_digest(read_image(root / paths[index])) != 0
    assert facts.digests[0] == facts.digests[4]
    assert len({int(facts.digests[index]) for index in good}) == 3
    kinds = [facts.widths, facts.heights, facts.modes, facts.frames, facts.digests]
    assert [array.dtype for array in kinds] == [np.int32, np.int32, np.uint8, np.int32, np.int64]


def test_header_opens_only(folder):
    root, paths = folder
    full, header = check_images(root, paths, "full", 1, None), check_images(root, paths, "header", 1, None)
    assert header.errors == {2: "no such file", 5: "not an image"}
    assert (header.digests == 0).all()
    assert header.widths[1] == 20  # the cut file's header is whole
    good = [0, 3, 4, 6]
    for name in ("widths", "heights", "modes", "frames"):
        np.testing.assert_array_equal(getattr(header, name)[good], getattr(full, name)[good])


def test_none_touches_nothing(folder, tmp_path, opened_files):
    root, paths = folder
    facts = check_images(root, paths, "none", 2, tmp_path / "cache")
    assert not facts.errors
    assert not opened_files
    assert len(facts.widths) == len(facts.digests) == 7
    assert not any(array.any() for array in (facts.widths, facts.heights, facts.modes, facts.frames, facts.digests))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("ending", ["tif", "png", "jpg", "webp"])
def test_sizes_are_as_displayed(tmp_path, ending, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / f"x.{ending}", exif=exif)
    for level in ("header", "full"):
        facts = check_images(tmp_path, [f"x.{ending}"], level, 1, None)
        assert (facts.widths[0], facts.heights[0]) == read_image(tmp_path / f"x.{ending}").size
        assert facts.widths[0] == (30 if orientation == 1 else 20)


def test_absolute_paths_and_no_paths(folder, tmp_path):
    root, paths = folder
    facts = check_images(tmp_path / "elsewhere", [str(root / paths[0])], "full", 1, None)
    assert facts.widths.tolist() == [30]
    assert not facts.errors
    assert check_images(root, [], "full", 2, tmp_path / "cache").widths.shape == (0,)


def test_digest_is_of_size_and_pixels(monkeypatch):
    rng = np.random.default_rng(1)
    values = rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)
    digest = pixel_digest(Image.fromarray(values))
    assert digest == pixel_digest(Image.fromarray(values.copy()))
    assert digest != pixel_digest(Image.fromarray(values.reshape(10, 12, 3)))
    values[11, 9, 2] ^= 1
    assert digest != pixel_digest(Image.fromarray(values))
    values[11, 9, 2] ^= 1
    monkeypatch.setattr(module, "_HASH_BYTES", 50)  # in strips of one row
    assert digest == pixel_digest(Image.fromarray(values))
    assert -(2**63) <= digest < 2**63


def test_frames_of_a_damaged_animation_do_not_matter(tmp_path):
    frames = [Image.new("L", (4, 4), level) for level in (10, 200)]
    frames[0].save(tmp_path / "x.tif", save_all=True, append_images=frames[1:])
    data = bytearray((tmp_path / "x.tif").read_bytes())
    first = int.from_bytes(data[4:8], "little")
    following = first + 2 + 12 * int.from_bytes(data[first : first + 2], "little")
    data[following : following + 4] = b"\xff\xff\xff\x00"
    (tmp_path / "x.tif").write_bytes(data)
    facts = check_images(tmp_path, ["x.tif"], "full", 1, None)
    assert not facts.errors
    assert facts.digests[0] == pixel_digest(Image.new("RGB", (4, 4), (10, 10, 10)))


def test_large_images_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_LARGE", 4)
    paths = squares(tmp_path / "s", 200)
    facts = check_images(tmp_path / "s", paths, "full", 3, None)
    assert not facts.errors
    assert (facts.digests != 0).all()


# The cache


def test_a_second_run_looks_only_at_what_changed(folder, tmp_path, opened_files):
    root, paths = folder
    cache = tmp_path / "cache"
    first = check_images(root, paths, "full", 2, cache)
    assert len(opened_files) == 7
    opened_files.clear()
    assert same(first, check_images(root, paths, "full", 2, cache))
    assert sorted(opened_files) == ["cut.jpg", "gone.jpg", "text.png"]  # bad ones are looked at again
    opened_files.clear()
    Image.new("RGB", (3, 4)).save(root / "cat/a.png")  # changed
    os.utime(root / "cat/same pixels.bmp", ns=(1, 1))  # touched
    Image.new("RGB", (5, 6)).save(root / "cat/gone.jpg")  # mended
    third = check_images(root, paths, "full", 2, cache)
    assert sorted(opened_files) == ["a.png", "cut.jpg", "gone.jpg", "same pixels.bmp", "text.png"]
    assert third.widths.tolist() == [3, 0, 5, 30, 30, 0, 20]
    assert third.errors == {1: "cut off", 5: "not an image"}
    assert same(third, check_images(root, paths, "full", 2, None))


def test_a_file_that_breaks_is_found(folder, tmp_path):
    root, paths = folder
    check_images(root, paths, "full", 1, tmp_path / "cache")
    (root / paths[0]).write_bytes((root / paths[0]).read_bytes()[:100])
    (root / paths[4]).unlink()
    facts = check_images(root, paths, "full", 1, tmp_path / "cache")
    assert facts.errors == {0: "cut off", 1: "cut off", 2: "no such file", 4: "no such file", 5: "not an image"}
    assert facts.digests[0] == facts.widths[0] == facts.widths[4] == 0


def test_order_and_listing_may_change(folder, tmp_path, opened_files):
    root, paths = folder
    first = check_images(root, paths, "full", 1, tmp_path / "cache")
    opened_files.clear()
    again = check_images(root, [*paths[::-1], paths[0]], "full", 1, tmp_path / "cache")
    assert sorted(opened_files) == ["cut.jpg", "gone.jpg", "text.png"]
    np.testing.assert_array_equal(again.digests, [*first.digests[::-1], first.digests[0]])


def test_levels_in_the_cache(folder, tmp_path, opened_files):
    root, paths = folder
    cache = tmp_path / "cache"
    header = check_images(root, paths, "header", 1, cache)
    opened_files.clear()
    full = check_images(root, paths, "full", 1, cache)
    assert len(opened_files) == 7  # a look at the header is not enough
    opened_files.clear()
    again = check_images(root, paths, "header", 1, cache)
    assert set(opened_files) == {"cut.jpg", "gone.jpg", "text.png"}
    assert same(header, again)  # no digests from the full look
    assert same(full, check_images(root, paths, "full", 1, cache))


def cached_count(cache):
    return [len(np.load(path, allow_pickle=False)["keys"]) for path in sorted(cache.glob("*.npz"))]


def test_no_growth_and_no_loss(tmp_path, opened_files):
    root, cache = tmp_path / "s", tmp_path / "cache"
    paths = squares(root, 90)
    check_images(root, paths, "full", 1, cache, "folder")
    check_images(root, paths[:10], "full", 1, cache, "part")
    assert sorted(cached_count(cache)) == [10, 90]
    opened_files.clear()
    check_images(root, paths, "full", 1, cache, "folder")  # the part's list took nothing away
    assert not opened_files
    check_images(root, paths[:30], "full", 1, cache, "folder")
    assert sorted(cached_count(cache)) == [10, 30]
    assert not opened_files


def test_an_unchanged_cache_is_not_written_again(tmp_path, monkeypatch):
    paths = squares(tmp_path / "s", 20)
    check_images(tmp_path / "s", paths, "full", 1, tmp_path / "cache")
    monkeypatch.setattr(check_cache, "write_bytes", lambda *_: pytest.fail("written"))
    check_images(tmp_path / "s", paths, "full", 1, tmp_path / "cache")


def tampered(cache, **changes):
    (path,) = cache.glob("*.npz")
    with np.load(path, allow_pickle=False) as stored:
        arrays = {**stored, **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-200]),
        lambda path: path.write_bytes(os.urandom(500)),
        lambda path: np.save(path.open("wb"), np.zeros(3)),
        lambda path: path.write_bytes(path.read_bytes().replace(b"\x01", b"\x02")),
        lambda path: tampered(path.parent, head=np.array("something else")),
        lambda path: tampered(path.parent, digests=None),
        lambda path: tampered(path.parent, digests=np.ones(3, dtype=np.int64)),
        lambda path: tampered(path.parent, widths=np.ones(20)),
        lambda path: tampered(path.parent, keys=np.zeros(20, dtype=np.int64)),
        lambda path: tampered(path.parent, head=np.array([{"a": 1}], dtype=object)),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_a_broken_or_foreign_cache_is_ignored(tmp_path, spoil, opened_files):
    paths = squares(tmp_path / "s", 20)
    first = check_images(tmp_path / "s", paths, "full", 1, tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*.npz")
    spoil(path)
    opened_files.clear()
    assert same(first, check_images(tmp_path / "s", paths, "full", 1, tmp_path / "cache"))
    assert len(opened_files) == 20


def test_a_cache_of_another_pillow_is_ignored(tmp_path, monkeypatch, opened_files):
    paths = squares(tmp_path / "s", 5)
    check_images(tmp_path / "s", paths, "full", 1, tmp_path / "cache")
    opened_files.clear()
    monkeypatch.setattr(check_cache, "_VERSION", "1, Pillow 0")
    check_images(tmp_path / "s", paths, "full", 1, tmp_path / "cache")
    assert len(opened_files) == 5


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    paths = squares(tmp_path / "s", 5)
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert not check_images(tmp_path / "s", paths, "full", 1, tmp_path / "cache").errors


def _check_again_and_again(root, cache, count):
    for turn in range(6):
        facts = check_images(root, [f"{index}.png" for index in range(count - turn)], "full", 1, cache)
        assert not facts.errors
        assert (facts.digests != 0).all()


def test_two_processes_at_once(tmp_path):
    squares(tmp_path / "s", 60)
    processes = [
        multiprocessing.get_context("fork").Process(
            target=_check_again_and_again, args=(tmp_path / "s", tmp_path / "cache", count)
        )
        for count in (60, 50)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert cached_count(tmp_path / "cache")[0] in (55, 45)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npz"]


def test_where_the_cache_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("LONGTAIL_CACHE", str(tmp_path / "own"))
    assert default_cache() == tmp_path / "own"
    assert (tmp_path / "own").is_dir()
    monkeypatch.setenv("LONGTAIL_CACHE", "")
    assert default_cache() is None
    monkeypatch.delenv("LONGTAIL_CACHE")
    assert default_cache() == tmp_path / "xdg/longtail"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert default_cache() == tmp_path / "home/.cache/longtail"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert default_cache() is None
    (tmp_path / "file").touch()
    monkeypatch.setenv("LONGTAIL_CACHE", str(tmp_path / "file"))
    assert default_cache() is None


# Progress and interruption


def slowly(monkeypatch, seconds):
    digest = module.pixel_digest
    monkeypatch.setattr(module, "pixel_digest", lambda image: time.sleep(seconds) or digest(image))


def test_progress(tmp_path, monkeypatch):
    slowly(monkeypatch, 0.003)
    paths = squares(tmp_path / "s", 130)
    seen = []
    check_images(tmp_path / "s", paths, "full", 1, None, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (130, 130)
    assert len(seen) > 2
    assert seen == sorted(seen)


def test_ctrl_c_stops_soon_and_keeps_what_was_seen(tmp_path, monkeypatch, opened_files):
    root, cache = tmp_path / "s", tmp_path / "cache"
    paths = squares(root, 400)
    check_images(root, paths[:50], "full", 2, cache)
    os.utime(root / "3.png", ns=(1, 1))
    opened_files.clear()
    with monkeypatch.context() as patch:
        slowly(patch, 0.01)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
        try:
            with pytest.raises(KeyboardInterrupt):
                check_images(root, paths, "full", 2, cache, progress=lambda *_: signal.raise_signal(signal.SIGINT))
        finally:
            signal.signal(signal.SIGINT, before)
    seen = set(opened_files)
    assert 0 < len(seen) < 200
    assert 50 <= cached_count(cache)[0] == 49 + len(seen)
    opened_files.clear()
    check_images(root, paths, "full", 2, cache)
    assert set(opened_files) == {os.path.basename(path) for path in paths[50:]} - seen


def test_a_long_check_is_saved_on_the_way(tmp_path, monkeypatch):
    slowly(monkeypatch, 0.003)
    monkeypatch.setattr(module, "_SAVE_EVERY", 0.0)
    paths = squares(tmp_path / "s", 130)
    counts = []
    check_images(
        tmp_path / "s",
        paths,
        "full",
        1,
        tmp_path / "c",
        progress=lambda *_: counts.append(cached_count(tmp_path / "c")),
    )
    assert any(count and 0 < count[0] < 130 for count in counts)


def test_an_error_that_is_not_about_a_file_goes_on(tmp_path, monkeypatch):
    paths = squares(tmp_path / "s", 80)
    monkeypatch.setattr(module, "pixel_digest", lambda _: (_ for _ in ()).throw(OSError(24, "Too many open files")))
    with pytest.raises(OSError, match="Too many open files"):
        check_images(tmp_path / "s", paths, "full", 2, None)


class Repeated:
    """A million paths in no memory."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return f"{index % 3}.png"


def test_memory_of_many_files(tmp_path):
    squares(tmp_path / "s", 3)
    count = 8_000
    check_images(tmp_path / "s", Repeated(count), "header", 1, tmp_path / "cache")
    tracemalloc.start()
    facts = check_images(tmp_path / "s", Repeated(count), "header", 1, tmp_path / "cache")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (facts.widths > 0).all()
    assert peak / count < 300  # bytes a file: 0.3 GB for a million


# Sentences


def test_messages():
    paths = [f"train/cat/{index}.jpg" for index in range(20)]
    errors = {7: "cut off", 3: "not an image", 11: "no such file"}
    assert bad_image_message(errors, paths, 120) == (
        "3 of 120 images cannot be read: train/cat/3.jpg (not an image), train/cat/7.jpg (cut off), train/cat/11.jpg "
        "(no such file); mend or delete them, or leave them out with --on_bad_image skip."
    )
    assert bad_image_message(errors, paths, 120, limit=1, skipped=True) == (
        "3 of 120 images cannot be read and are left out: train/cat/3.jpg (not an image) and 2 more."
    )
    assert bad_image_message({7: "cut off"}, paths, 2) == (
        "1 of 2 images cannot be read: train/cat/7.jpg (cut off); mend or delete it, or leave it out with "
        "--on_bad_image skip."
    )
    assert bad_image_message({7: "cut off"}, paths, 2, skipped=True) == (
        "1 of 2 images cannot be read and is left out: train/cat/7.jpg (cut off)."
    )


def test_modes_are_those_of_pillow():
    assert set(Image.MODES) <= set(MODES)
    assert MODES[0] == ""
