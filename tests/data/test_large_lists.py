"""Large split lists: packed paths against a list, chunks against the whole, the cache, and what is not looked at."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from longtail.data import file_splits, list_lines, load_data, path_table
from longtail.data.file_splits import FileChecks
from longtail.data.list_lines import read_lines
from longtail.data.path_table import PathTable
from longtail.errors import UserError
from longtail.option_groups import DataOptions

PATHS = ["a/b.jpg", "", "ü/ß.png", "\udcff.jpg", "日本/猫.png", "last", "a/b.jpg"]


@pytest.mark.parametrize("chunk", [2, 1 << 16])
def test_packed_paths_are_a_list(chunk, monkeypatch):
    monkeypatch.setattr(path_table, "_CHUNK", chunk)
    table = PathTable(PATHS)
    assert list(table) == [table[index] for index in range(len(table))] == PATHS
    assert table == PATHS
    assert table != [*PATHS[:-1], "other"]
    assert table != PATHS[:-1]
    assert table[-2] == "last"
    assert table[1:6:2] == PATHS[1:6:2]
    with pytest.raises(IndexError):
        table[len(PATHS)]
    order = np.random.default_rng(0).integers(0, len(PATHS), 20)
    assert table.select(order) == [PATHS[index] for index in order]
    assert table.select([]) == []
    assert PathTable(PATHS[:3]) + PATHS[3:] == table
    assert PathTable.packed(table.data(), table.lengths()).digest() == table.digest()
    with pytest.raises(ValueError, match="paths of 3 bytes in 2 bytes"):
        PathTable.packed(b"ab", np.array([1, 2]))


def write(file, *lines):
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def test_lines_come_in_chunks_but_mean_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(list_lines, "_CHUNK", 2)
    lines = ["# a comment", "b/1 2.jpg 1", r"a\2.jpg 00", "./a/3.jpg,0", "", "ü.jpg\t1", r"c\\4.jpg 2", "b/1 2.jpg 01"]
    read = read_lines(write(tmp_path / "list.txt", *lines))
    assert read.paths == ["b/1 2.jpg", "a/2.jpg", "a/3.jpg", "ü.jpg", "c/4.jpg"]
    assert read.labels == ["1", "0", "0", "1", "2"]
    assert "backslashes in 2 images' paths" in read.notes[0]
    assert "1 line names an image again" in read.notes[1]
    with pytest.raises(UserError, match=r"line 9: a/3\.jpg has label '1', but '0' on line 4"):
        read_lines(write(tmp_path / "list.txt", *lines, "a//3.jpg 1"))


def test_a_large_list_is_kept_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(list_lines, "_KEPT_FROM", 3)
    cache = tmp_path / "cache"
    cache.mkdir()
    file = write(tmp_path / "list.txt", "a/1.jpg 0", r"b\2.jpg 1", "a/3.jpg 0", "a/3.jpg 0")
    first = read_lines(file, cache)
    with monkeypatch.context() as patched:
        patched.setattr(list_lines, "open_text", None)  # reading it again would fail
        kept = read_lines(file, cache)
    assert (kept.paths, kept.labels, kept.notes) == (first.paths, first.labels, first.notes)
    assert len(kept.notes) == 2
    (place,) = cache.iterdir()
    for broken in (place.read_bytes()[:-40], b"", b"PK\3\4"):
        place.write_bytes(broken)
        assert read_lines(file, cache).paths == first.paths
    before = os.stat(file)
    write(file, "a/1.jpg 0", r"b\2.jpg 1", "a/4.jpg 0", "a/4.jpg 0")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert read_lines(file, cache).paths == ["a/1.jpg", "b/2.jpg", "a/4.jpg"]
    assert read_lines(write(tmp_path / "short.txt", "a/1.jpg 0", "b.jpg 1"), cache).labels == ["0", "1"]
    assert len(list(cache.iterdir())) == 1


def test_images_are_ordered_by_class_then_path():
    random = np.random.default_rng(0)
    paths = [f"{random.integers(100)}/é{random.integers(10**9)}.jpg" for _ in range(200)]
    labels = torch.from_numpy(random.integers(0, 7, 200))
    labels[labels == 3] = 4  # a class without an image
    expected = sorted(range(200), key=lambda index: (int(labels[index]), paths[index]))
    for given in (paths, PathTable(paths)):
        assert file_splits._by_class_and_path(labels, given).tolist() == expected


def test_a_sample_looks_for_no_more_files_than_it_opens(tmp_path, monkeypatch):
    monkeypatch.setattr(file_splits, "_SAMPLE", 2)
    for number in range(6):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    file = write(tmp_path / "list.txt", *(f"{number}.png {number // 3}" for number in range(6)))

    def load(check):
        return load_data(str(file), source=DataOptions(check=check), checks=FileChecks())

    (tmp_path / "4.png").unlink()
    assert len(load("sample").train) + len(load("sample").test) == 6
    with pytest.raises(UserError, match=r"1 of 6 images that it names is missing, first 4\.png"):
        load("full")
    (tmp_path / "3.png").unlink()  # numbers 0 and 3 are opened
    with pytest.raises(UserError, match=r"1 of 6 images cannot be read: 3\.png \(no such file\)"):
        load("sample")
