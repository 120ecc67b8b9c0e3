"""Manifests: CSV in every dialect and Parquet give the same listing; one sentence for each way to be wrong."""

import csv
import os
import sys

import pytest

from longtail.data.listing import Listing
from longtail.data.manifest import check_exists, read_manifest
from longtail.errors import UserError

ROWS = [
    ("a/1.jpg", "cat", "train", "p1"),
    ("a/2.jpg", "Rose, red", "train", "p2"),
    ("b 3.jpg", "cat", "test", "p3"),
    ("b/é.jpg", "Rose, red", "test", "p3"),
]
HEADER = ("path", "label", "split", "group")


def _read(file, root=None, test=None, **columns):
    names = {f"{name}_column": columns.get(name, name) for name in HEADER}
    return read_manifest(file, "photos", root=root, test=test, **names)


def _write(file, rows, header=HEADER, delimiter=",", encoding="utf-8"):
    with open(file, "w", newline="", encoding=encoding) as text:
        csv.writer(text, delimiter=delimiter).writerows([header[: len(rows[0])] if rows else header, *rows])
    return file


def _text(tmp_path, text):
    file = tmp_path / "m.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def _sentence(file, *words, **options):
    with pytest.raises(UserError) as caught:
        _read(file, **options)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv_in_every_dialect(tmp_path, delimiter, encoding):
    file = _write(tmp_path / "m.csv", ROWS, delimiter=delimiter, encoding=encoding)
    listing = _read(file)
    assert list(zip(listing.paths, listing.labels, listing.splits, listing.groups, strict=True)) == ROWS
    assert (listing.root, listing.class_names, listing.numbered, listing.notes) == (tmp_path, None, False, ())


@pytest.mark.parametrize("kind", ["plain", "dictionary", "large"])
def test_parquet_is_as_csv(tmp_path, kind):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {name: pa.array(values) for name, values in zip(HEADER, zip(*ROWS, strict=True), strict=True)}
    if kind == "dictionary":
        columns = {name: column.dictionary_encode() for name, column in columns.items()}
    if kind == "large":
        columns = {name: column.cast(pa.large_string()) for name, column in columns.items()}
    parquet.write_table(pa.table({"other": pa.array([[1], [2], [], None]), **columns}), tmp_path / "m.parquet")
    listing = _read(tmp_path / "m.parquet")
    assert list(zip(listing.paths, listing.labels, listing.splits, listing.groups, strict=True)) == ROWS


@pytest.mark.parametrize(("values", "expected"), [([0, 1], ["0", "1"]), ([0.0, 1.0], ["0", "1"]), ([0.5, 1.0], None)])
def test_parquet_numbers(tmp_path, values, expected):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"path": ["1.jpg", "2.jpg"], "label": values}), tmp_path / "m.parquet")
    labels = _read(tmp_path / "m.parquet").labels
    assert labels == (expected or ["0.5", "1"])


def test_parquet_numbers_that_are_no_labels(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def labelled(values):
        parquet.write_table(pa.table({"path": ["1.jpg", "2.jpg"], "label": values}), tmp_path / "m.parquet")
        return tmp_path / "m.parquet"

    _sentence(labelled([1.0, float("nan")]), "row 2", "'label' is empty")
    assert _read(labelled([1.0, float("inf")])).labels == ["1", "inf"]
    assert _read(labelled([2.0, 1e300])).labels == ["2", "1e+300"]
    twice = pa.table([pa.array(["1.jpg"]), pa.array(["a"]), pa.array(["b"])], names=["path", "label", "label"])
    parquet.write_table(twice, tmp_path / "m.parquet")
    _sentence(tmp_path / "m.parquet", "two columns named 'label'")


def test_bad_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = tmp_path / "m.parquet"
    file.write_bytes(b"PAR1 and no more")
    _sentence(file, "not a readable Parquet file")
    parquet.write_table(pa.table({"path": ["1.jpg", None], "label": ["a", "b"]}), file)
    _sentence(file, "row 2: column 'path' is empty")
    parquet.write_table(pa.table({"path": ["1.jpg", "2.jpg"], "label": [["a"], ["a", "b"]]}), file)
    _sentence(file, "column 'label' holds lists", "multi-label")
    parquet.write_table(pa.table({"path": [b"x", b"y"], "label": ["a", "b"]}), file)
    _sentence(file, "column 'path' holds binary")
    parquet.write_table(pa.table({"path": pa.array([], pa.string()), "label": pa.array([], pa.string())}), file)
    _sentence(file, "columns path, label but no rows")
    parquet.write_table(pa.table({"image": ["x"], "target": ["y"]}), file)
    _sentence(file, "no column 'path'", "'image', 'target'")


def test_parquet_without_its_reader(tmp_path, monkeypatch):
    (tmp_path / "m.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    _sentence(tmp_path / "m.parquet", "needs pyarrow")


def test_columns_by_other_names_in_any_order(tmp_path):
    file = _write(tmp_path / "m.csv", [("x", "cat", "1.jpg", "train"), ("y", "dog", "2.jpg", "test")],
                  header=("site", "kind", "file", "part"))  # fmt: skip
    listing = _read(file, path="file", label="kind", split="part", group="site")
    assert (listing.paths, listing.labels) == (["1.jpg", "2.jpg"], ["cat", "dog"])
    assert (listing.splits, listing.groups) == (["train", "test"], ["x", "y"])


def test_split_and_group_are_optional_unless_named(tmp_path):
    file = _write(tmp_path / "m.csv", [("1.jpg", "cat"), ("2.jpg", "dog")])
    listing = _read(file)
    assert (listing.splits, listing.groups) == (None, None)
    _sentence(file, "no column 'fold'", "'path', 'label'", "--source.split_column", split="fold")
    _sentence(file, "no column 'patient'", "--source.group_column", group="patient")


def test_missing_columns_say_which_were_found(tmp_path):
    file = _write(tmp_path / "m.csv", [("1.jpg", "cat")], header=("image", "class"))
    _sentence(file, str(file), "no column 'path'", "'image', 'class'", "--source.path_column")
    _sentence(file, "no column 'label'", "'image', 'class'", "--source.label_column", path="image")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "test"], ["train", "test"]),
        (["Training", "TESTING"], ["train", "test"]),
        (["train", "val"], ["train", "test"]),
        (["train", "valid"], ["train", "test"]),
        (["train", "dev"], ["train", "test"]),
        (["training", "Validation"], ["train", "test"]),
    ],
)
def test_split_words(tmp_path, words, expected):
    rows = [(f"{i}.jpg", "cat", word) for i, word in enumerate(words)]
    assert _read(_write(tmp_path / "m.csv", rows)).splits == expected


def test_validation_beside_test_is_left_aside(tmp_path):
    rows = [("1.jpg", "a", "train"), ("2.jpg", "a", "val"), ("3.jpg", "b", "test"), ("4.jpg", "b", "dev")]
    listing = _read(_write(tmp_path / "m.csv", rows))
    assert (listing.paths, listing.splits) == (["1.jpg", "3.jpg"], ["train", "test"])
    assert "2 images of the validation split left aside" in listing.notes[0]


def test_bad_splits(tmp_path):
    rows = [("1.jpg", "a", "train"), ("2.jpg", "a", "holdout")]
    _sentence(_write(tmp_path / "m.csv", rows), "line 3", "split 'holdout'")
    _sentence(_write(tmp_path / "m.csv", [("1.jpg", "a", "test")]), "no row as train")
    listing = _read(_write(tmp_path / "m.csv", [("1.jpg", "a", "train")]))
    assert listing.splits is None
    assert "marks every image as train" in listing.notes[0]


@pytest.mark.parametrize(("row", "column"), [(("", "a"), "path"), (("1.jpg", " "), "label")])
def test_empty_cells(tmp_path, row, column):
    _sentence(_write(tmp_path / "m.csv", [("0.jpg", "b"), row]), "line 3", f"column '{column}' is empty")


def test_ragged_rows_and_blank_ones(tmp_path):
    _sentence(_text(tmp_path, "path,label\n1.jpg,a\n2.jpg,b,c\n"), "line 3", "3 fields", "2 columns")
    _sentence(_text(tmp_path, "path,label\n1.jpg,a\n\n2.jpg\n"), "line 4", "1 field,", "2 columns")
    assert _read(_text(tmp_path, "\npath,label\n1.jpg,a\n\n,\n , \n2.jpg,b\n,,,\n")).paths == ["1.jpg", "2.jpg"]


def test_files_that_are_no_table(tmp_path):
    _sentence(_text(tmp_path, ""), "is empty")
    _sentence(_text(tmp_path, "path,label\n"), "has a header (columns path, label) but no rows")
    _sentence(_text(tmp_path, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), "not a text file")
    _sentence(_text(tmp_path, b"PK\x03\x04rest"), "Excel")
    _sentence(_text(tmp_path, "path,label\n1.jpg,a\n".encode("utf-16")), "UTF-16")
    _sentence(_text(tmp_path, b"path,label\n1.jpg,a\n2.jpg,caf\xe9\n"), "line 3", "UTF-8")
    _sentence(_text(tmp_path, 'path,label\n"1.jpg,a\n2.jpg,b\n'), "not a well-formed row")
    _sentence(_text(tmp_path, "path,label,label\n1.jpg,a,b\n"), "two columns named 'label'")
    _sentence(tmp_path / "nowhere.csv", "no such file")
    _sentence(tmp_path, "cannot be read")


def test_repeats(tmp_path):
    listing = _read(_write(tmp_path / "m.csv", [("1.jpg", "a"), ("2.jpg", "b"), ("./1.jpg", "a"), ("1.jpg", "a")]))
    assert (listing.paths, listing.labels) == (["1.jpg", "2.jpg"], ["a", "b"])
    assert "2 rows name an image again" in listing.notes[0]
    file = _write(tmp_path / "m.csv", [("1.jpg", "a"), ("2.jpg", "b"), ("1.jpg", "c")])
    _sentence(file, "line 4", "1.jpg has label 'c', but 'a' on line 2", "multi-label")
    file = _write(tmp_path / "m.csv", [("1.jpg", "a", "train"), ("1.jpg", "a", "test")])
    _sentence(file, "line 3", "1.jpg is in test, but in train on line 2")


def test_columns_of_0_and_1_instead_of_a_label(tmp_path):
    rows = [("1.jpg", "1", "0", "0.0", "33"), ("2.jpg", "1", "1", "1.0", "47")]
    file = _write(tmp_path / "m.csv", rows, header=("path", "mel", "nv", "bcc", "age"))
    _sentence(file, "3 columns of 0 and 1 (mel, nv, bcc)", "multi-label", "keep the main label", "one binary manifest")
    one = _write(tmp_path / "m.csv", [("1.jpg", "1"), ("2.jpg", "0")], header=("path", "sick"))
    assert "multi-label" not in _sentence(one, "no column 'label'", "'sick'")


def test_paths_are_tidied(tmp_path):
    listing = _read(_write(tmp_path / "m.csv", [("a\\1.jpg", "a"), ("./b//2.jpg", "b"), ("/abs/3.jpg", "c")]))
    assert listing.paths == ["a/1.jpg", "b/2.jpg", "/abs/3.jpg"]
    assert "backslashes in 1 image" in listing.notes[0]
    _sentence(_write(tmp_path / "m.csv", [("https://x.org/1.jpg", "a")]), "web address")


def test_root(tmp_path):
    file = _write(tmp_path / "m.csv", [("1.jpg", "a")])
    (tmp_path / "images").mkdir()
    assert _read(file, root=tmp_path / "images").root == tmp_path / "images"
    _sentence(file, "--root", "is no folder", root=tmp_path / "nowhere")


def test_second_manifest_holds_the_test_images(tmp_path):
    (tmp_path / "other").mkdir()
    train = _write(tmp_path / "m.csv", [("1.jpg", "a", "train"), ("2.jpg", "b", "train"), ("3.jpg", "b", "test")])
    beside = _write(tmp_path / "t.csv", [("4.jpg", "b")])
    listing = _read(train, test=beside)
    assert (listing.paths, listing.labels) == (["1.jpg", "2.jpg", "4.jpg"], ["a", "b", "b"])
    assert listing.splits == ["train", "train", "test"]
    assert "1 image not marked as train left aside" in listing.notes[0]
    far = _write(tmp_path / "other/t.csv", [("4.jpg", "b"), ("/abs/5.jpg", "a")])
    assert _read(train, test=far).paths[2:] == [(tmp_path / "other/4.jpg").as_posix(), "/abs/5.jpg"]
    assert _read(train, test=far, root=tmp_path).paths[2:] == ["4.jpg", "/abs/5.jpg"]
    again = _write(tmp_path / "t.csv", [("9.jpg", "a"), ("2.jpg", "b")])
    _sentence(train, str(again), "1 image of the training set named again", "first 2.jpg", test=again)


def test_groups_beside_a_second_manifest(tmp_path):
    train = _write(tmp_path / "m.csv", [("1.jpg", "a", "p")], header=("path", "label", "group"))
    test = _write(tmp_path / "t.csv", [("4.jpg", "b")])
    assert _read(train, test=test).groups == ["p", ""]


def _listing(root, paths):
    return Listing("photos", root, paths, ["a"] * len(paths), None, None)


@pytest.mark.parametrize("per_folder", [3, 40])  # few files are looked up, many are compared with the folder
def test_missing_files_are_counted_and_the_first_named(tmp_path, per_folder):
    paths = [f"{folder}/{i}.jpg" for folder in ("x/y", "z") for i in range(per_folder)] + ["top.jpg"]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    absolute = (tmp_path / "z/0.jpg").as_posix()
    check_exists(_listing(tmp_path, [*paths, absolute]))
    for lost in (paths[1], paths[-2], paths[-1]):
        os.remove(tmp_path / lost)
    with pytest.raises(UserError) as caught:
        check_exists(_listing(tmp_path, paths))
    words = (f"3 of {len(paths)} images", "first x/y/1.jpg", f"looked for in {tmp_path}", "--root")
    for word in words:
        assert word in str(caught.value)


def test_missing_files_with_a_near_name(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/ISIC_1.JPG").write_bytes(b"")
    for path in ("a/ISIC_1", "a/ISIC_1.jpg", "a/isic_1.png"):
        with pytest.raises(UserError, match=r"first a/.*which has ISIC_1\.JPG"):
            check_exists(_listing(tmp_path, [path]))
    with pytest.raises(UserError, match="where there is no folder b/c"):
        check_exists(_listing(tmp_path, ["b/c/1.jpg"]))
    with pytest.raises(UserError, match=r"1 of 1 image that it names is missing, first /nowhere\.jpg"):
        check_exists(_listing(tmp_path, ["/nowhere.jpg"]))


@pytest.mark.parametrize("count", [1, 20])
def test_a_folder_is_no_image(tmp_path, count):
    for i in range(count):
        (tmp_path / f"{i}.jpg").mkdir()
    with pytest.raises(UserError, match=rf"{count} of {count} image"):
        check_exists(_listing(tmp_path, [f"{i}.jpg" for i in range(count)]))
