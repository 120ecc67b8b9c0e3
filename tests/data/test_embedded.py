"""Images inside Parquet files and hub sets: found by schema, written once as files, read like any other files."""

import io
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from longtail.data import embedded_files, load_data
from longtail.data.embedded_columns import find_columns
from longtail.data.file_splits import FileChecks
from longtail.data.sources import load_test_set
from longtail.errors import UserError
from longtail.option_groups import DataOptions
from longtail.options import make_config
from longtail.training.defaults import resolve
from longtail.training.progress import ProgressReporter
from longtail.training.run_data import frame_for_run
from whole_runs import run

datasets = pytest.importorskip("datasets")
NAMES = ["wolf", "ant", "bee"]  # not in the order of the alphabet: the schema's order is kept
COUNTS = {"train": (6, 4, 2), "test": (2, 2, 2), "validation": (1, 2, 1)}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def encoded(label, number, kind="PNG", side=20):
    pixels = np.random.default_rng([label, number]).integers(0, 120, (side, side, 3), dtype=np.uint8)
    pixels[:, 5 * label : 5 * label + 5] += 100
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def rows_of(split, kind="PNG"):
    """Encoded images and labels, classes mixed."""
    start = 100 * list(COUNTS).index(split)
    pairs = [(start + n, label) for label, count in enumerate(COUNTS[split]) for n in range(count)]
    pairs.sort()
    return [encoded(label, number, kind) for number, label in pairs], [label for _, label in pairs]


def hub_table(split, labels=None, image="image", label="label", kind="PNG"):
    """A split as `datasets` holds it."""
    images, given = rows_of(split, kind)
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=NAMES)})
    made = {image: [{"bytes": data, "path": None} for data in images], label: given if labels is None else labels}
    return datasets.Dataset.from_dict(made, features=features)


def write_hub_folder(folder, splits=("train", "test"), shards=1, **how):
    """A folder as the hub stores it: data/train-00000-of-00002.parquet and so on."""
    (folder / "data").mkdir(parents=True)
    for split in splits:
        table = hub_table(split, **how)
        for shard in range(shards):
            table.shard(shards, shard).to_parquet(folder / "data" / f"{split}-{shard:05d}-of-{shards:05d}.parquet")
    return folder


def pixels_in_order(splits, part):
    """Decoded pixels and class names of a set, sorted, whatever the files are called."""
    files = getattr(splits, part)
    names = [files.class_names[label] for label in files.labels.tolist()]
    read = [np.asarray(Image.open(files.path(index)).convert("RGB")).tobytes() for index in range(len(files))]
    return sorted(zip(names, read, strict=True))


def expected(split):
    images, labels = rows_of(split)
    return sorted(
        (NAMES[label], np.asarray(Image.open(io.BytesIO(data))).tobytes())
        for data, label in zip(images, labels, strict=True)
    )


# --- What is read


@pytest.mark.parametrize("shards", [1, 2])
def test_a_folder_as_the_hub_stores_it(tmp_path, shards):
    splits = load_data(str(write_hub_folder(tmp_path / "pets", shards=shards)))
    assert splits.train.class_names == ("wolf", "ant", "bee")
    assert splits.train.class_counts.tolist() == list(COUNTS["train"])
    assert splits.test_split == "given"
    for part in ("train", "test"):
        assert pixels_in_order(splits, part) == expected(part)


def test_the_bytes_are_not_touched_and_the_name_tells_the_row(tmp_path):
    write_hub_folder(tmp_path / "pets", kind="JPEG")
    images, labels = rows_of("train", "JPEG")
    splits = load_data(str(tmp_path / "pets"))
    for index in range(len(splits.train)):
        path = splits.train.path(index)
        assert path.startswith(".data/hf/pets-")
        _, _, name = path.partition("/data/train-00000-of-00001.parquet/")
        row = int(name.removeprefix("row-").removesuffix(".jpg"))
        with open(path, "rb") as file:
            assert file.read() == images[row - 1]
        assert int(splits.train.labels[index]) == labels[row - 1]


def test_a_second_reading_writes_nothing_and_gives_the_same(tmp_path, monkeypatch):
    write_hub_folder(tmp_path / "pets")
    first = load_data(str(tmp_path / "pets"))
    monkeypatch.setattr(embedded_files, "_write", lambda *_: pytest.fail("written again"))
    second = load_data(str(tmp_path / "pets"))
    assert second.train.fingerprint() == first.train.fingerprint()


@pytest.mark.parametrize("harm", ["missing", "cut", "index"])
def test_a_cache_that_is_no_longer_whole_is_written_again(tmp_path, harm):
    write_hub_folder(tmp_path / "pets")
    first = load_data(str(tmp_path / "pets"))
    path = first.train.path(0)
    if harm == "missing":
        os.unlink(path)
    elif harm == "cut":
        os.truncate(path, 10)
    else:
        os.truncate(os.path.join(os.path.dirname(path), "index.parquet"), 3)
    assert load_data(str(tmp_path / "pets")).train.fingerprint() == first.train.fingerprint()


def test_other_rows_under_the_same_name_are_another_cache(tmp_path):
    folder = write_hub_folder(tmp_path / "pets")
    before = load_data(str(folder)).train.fingerprint()
    shutil.rmtree(folder)
    write_hub_folder(folder, kind="JPEG")
    assert load_data(str(folder)).train.fingerprint() != before


def test_equal_size_and_time_are_not_taken_for_equal_rows(tmp_path):
    images, labels = rows_of("train", "BMP")  # all of one size, and nothing is packed
    file, how = tmp_path / "a.parquet", {"compression": "none", "use_dictionary": False, "write_statistics": False}
    found = []
    for order in (images, images[::-1]):
        pyarrow.parquet.write_table(pyarrow.table({"image": order, "label": labels}), file, **how)
        os.utime(file, ns=(1, 1))
        splits = load_data(str(file))
        found.append((file.stat().st_size, pixels_in_order(splits, "train") + pixels_in_order(splits, "test")))
    (size, before), (other_size, after) = found
    assert size == other_size
    assert sorted(after) != sorted(before)


def test_files_that_differ_in_their_ending_keep_their_images_apart(tmp_path):
    folder = tmp_path / "pets"
    folder.mkdir()
    for split, name in (("train", "train.parquet"), ("validation", "train.pq"), ("test", "test.parquet")):
        hub_table(split).to_parquet(folder / name)
    hub_table("train").select(range(4, 8)).to_parquet(folder / "train.parquet")  # as many rows as the other
    splits = load_data(str(folder))
    some = [(NAMES[label], data) for data, label in list(zip(*rows_of("train"), strict=True))[4:8]]
    pixels = [(name, np.asarray(Image.open(io.BytesIO(data))).tobytes()) for name, data in some]
    assert pixels_in_order(splits, "train") == sorted(pixels + expected("validation"))


def test_a_killed_process_leaves_nothing_that_counts(tmp_path):
    folder = write_hub_folder(tmp_path / "pets")
    code = (
        "import os\nfrom longtail.data import embedded_files as files, load_data\nreal, seen = files._content, []\n"
        "def content(*a):\n    seen.append(1)\n    if len(seen) == 5: os.kill(os.getpid(), 9)\n    return real(*a)\n"
        "files._content = content\nload_data('pets')"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == -9
    left = [path.name for path in (tmp_path / ".data").rglob("*.tmp")]
    assert len(left) == 1
    assert pixels_in_order(load_data(str(folder)), "train") == expected("train")
    assert not list((tmp_path / ".data").rglob("*.tmp"))


def test_bare_tables_of_pyarrow_and_pandas(tmp_path):
    images, labels = rows_of("train")
    texts = [NAMES[label] for label in labels]
    table = pyarrow.table({"img": pyarrow.array(images, pyarrow.large_binary()), "species": texts, "weight": labels})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    frame = pandas.DataFrame({"image": [{"bytes": data, "path": "x.png"} for data in images], "class": labels})
    frame.to_parquet(tmp_path / "b.parquet")
    first, second = load_data(str(tmp_path / "a.parquet")), load_data(str(tmp_path / "b.parquet"))
    assert first.train.class_names == ("ant", "bee", "wolf")
    assert second.train.class_names == ("0", "1", "2")
    for splits in (first, second):
        assert "held out" in splits.test_split
        assert len(splits.train) + len(splits.test) == 12
        assert set(pixels_in_order(splits, "train")).isdisjoint(pixels_in_order(splits, "test"))


def test_a_table_with_columns_of_splits_and_groups(tmp_path):
    images, labels = rows_of("train")
    splits = ["test" if index % 4 == 3 else "train" for index in range(len(labels))]
    groups = [f"g{index}" for index in range(len(labels))]
    table = pyarrow.table({"image": images, "label": labels, "split": splits, "group": groups})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    read = load_data(str(tmp_path / "a.parquet"), source=DataOptions(unknown_labels="skip"))
    assert len(read.test) == splits.count("test")
    rows = {int(read.test.paths[index][-8:-4]) for index in range(len(read.test))}
    assert rows == {index + 1 for index, split in enumerate(splits) if split == "test"}


def test_a_parquet_of_paths_is_still_a_manifest(tmp_path):
    images, labels = rows_of("train")
    for index, data in enumerate(images):
        (tmp_path / f"{index}.png").write_bytes(data)
    paths = [f"{index}.png" for index in range(len(images))]
    table = pyarrow.table({"path": paths, "label": labels, "thumbnail": [b"no image"] * len(images)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    splits = load_data(str(tmp_path / "a.parquet"))
    assert splits.train.paths[0].endswith(".png")
    assert not (tmp_path / ".data").exists()


def test_a_second_file_of_test_images(tmp_path):
    for split in ("train", "test"):
        hub_table(split).to_parquet(tmp_path / f"{split}.parquet")
    splits = load_data(str(tmp_path / "train.parquet"), source=DataOptions(test=str(tmp_path / "test.parquet")))
    for part in ("train", "test"):
        assert pixels_in_order(splits, part) == expected(part)


def test_evaluating_takes_the_test_split_by_class_name(tmp_path):
    write_hub_folder(tmp_path / "pets")
    read = load_test_set(str(tmp_path / "pets"), ("ant", "bee", "wolf"))
    assert [read.test.class_names[label] for label in read.test.labels.tolist()] == sorted(
        NAMES[label] for label in rows_of("test")[1]
    )


# --- Splits in words


def test_validation_stands_in_for_a_test_split_that_is_not_there(tmp_path):
    splits = load_data(str(write_hub_folder(tmp_path / "pets", ("train", "validation"))))
    assert pixels_in_order(splits, "test") == expected("validation")
    assert any("no test split, so its validation split" in note for note in splits.notes)


def test_validation_beside_a_test_split_is_left_aside(tmp_path):
    splits = load_data(str(write_hub_folder(tmp_path / "pets", tuple(COUNTS))))
    assert pixels_in_order(splits, "test") == expected("test")
    assert any("4 images of the validation split left aside" in note for note in splits.notes)


def test_labels_that_are_kept_back(tmp_path):
    folder = write_hub_folder(tmp_path / "pets", ("train", "validation"))
    hub_table("test", labels=[-1] * 6).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    splits = load_data(str(folder))
    assert pixels_in_order(splits, "test") == expected("validation")
    assert any("test split are -1, kept back: the validation split is tested on" in note for note in splits.notes)
    (folder / "data" / "validation-00000-of-00001.parquet").unlink()
    splits = load_data(str(folder))
    assert "held out" in splits.test_split
    assert any("-1, kept back: test images are held out" in note for note in splits.notes)
    hub_table("test", labels=[0, 1, -1, 1, 2, 2]).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(UserError, match=r"test-00000-of-00001\.parquet, row 3: label -1 names no class"):
        load_data(str(folder))


def test_numbers_of_minus_one_and_one_are_judged_as_numbers(tmp_path):
    images, labels = rows_of("train")
    table = pyarrow.table({"image": images, "label": [-1 if label else 1 for label in labels]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"label -1 is no class number.*--source.labels names"):
        load_data(str(tmp_path / "a.parquet"))
    read = load_data(str(tmp_path / "a.parquet"), source=DataOptions(labels="names"))
    assert read.train.class_names == ("-1", "1")


# --- What is wrong


def test_a_broken_image_is_told_by_its_row(tmp_path):
    images, labels = rows_of("train")
    images[4], images[6] = images[4][:40], None
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": labels}), tmp_path / "a.parquet")
    with pytest.raises(
        UserError, match=r"2 of 12 images cannot be read: .*row-00000007\.img \(empty.*row-00000005\.png"
    ):
        load_data(str(tmp_path / "a.parquet"))
    splits = load_data(str(tmp_path / "a.parquet"), checks=FileChecks("skip"))
    assert sorted(path.rpartition("/")[2] for path, _ in splits.skipped) == ["row-00000005.png", "row-00000007.img"]
    assert len(splits.train) + len(splits.test) == 10


def refused(path, table, match, **source):
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    with pytest.raises(UserError, match=match):
        load_data(str(path), source=DataOptions(**source))
    assert not (path.parent / ".data").exists()


def test_columns_that_are_missing_or_several(tmp_path):
    images, labels = rows_of("train")
    path = tmp_path / "a.parquet"
    two = r"several columns may hold the images \(left, right\).*it has left \(binary\).*--source\.path_column"
    refused(path, {"left": images, "right": images, "label": labels}, two)
    refused(path, {"image": images, "size": labels}, r"no column of labels found; it has .*--source\.label_column")
    refused(path, {"image": images, "fine_label": labels, "class": labels}, r"several columns may hold the labels")
    refused(path, {"image": images, "label": labels}, r"no column 'kind' of labels", label_column="kind")
    with pytest.raises(UserError, match=r"column 'label' holds int64, not encoded images; .*--source\.path_column"):
        find_columns(pyarrow.table({"image": images, "label": labels}).schema, "hf:zoo/pets", "label", "label")
    refused(path, {"image": images, "label": [None, *labels[1:]]}, r"a\.parquet, row 1: column 'label' is empty")
    refused(path, {"image": images, "label": [[0]] * len(labels)}, r"holds lists")
    table = pyarrow.table({"left": images, "right": images, "fine_label": labels, "class": labels})
    pyarrow.parquet.write_table(table, path)
    assert load_data(str(path), source=DataOptions(path_column="left", label_column="class")).train.num_classes == 3


def test_several_declared_classes_want_a_word(tmp_path):
    images, labels = rows_of("train")
    kinds = {"image": datasets.Image(), "fine": datasets.ClassLabel(names=NAMES)}
    kinds |= {"coarse": datasets.ClassLabel(names=["x", "y", "z"])}
    made = {"image": [{"bytes": data, "path": None} for data in images], "fine": labels, "coarse": labels}
    datasets.Dataset.from_dict(made, features=datasets.Features(kinds)).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"several columns may hold the labels \(fine, coarse\)"):
        load_data(str(tmp_path / "a.parquet"))
    read = load_data(str(tmp_path / "a.parquet"), source=DataOptions(label_column="coarse"))
    assert read.train.class_names == ("x", "y", "z")


def test_a_class_without_an_image_is_no_class_and_other_numbers_are_refused(tmp_path):
    hub_table("train", labels=[0, 1] * 6).to_parquet(tmp_path / "a.parquet")
    assert load_data(str(tmp_path / "a.parquet")).train.class_names == ("wolf", "ant")
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    table = table.set_column(1, table.schema.field("label"), pyarrow.array([7] + [0, 1] * 5 + [1]))
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"row 1: label 7 in column 'label' is none of its 3 classes, 0 to 2"):
        load_data(str(tmp_path / "a.parquet"))


def test_subsets_side_by_side_and_no_training_images_are_refused(tmp_path):
    for subset in ("small", "large"):
        write_hub_folder(tmp_path / "pets" / subset, ("test",))
    with pytest.raises(UserError, match=r"several folders \(large/data, small/data\)"):
        load_data(str(tmp_path / "pets"))
    with pytest.raises(UserError, match=r"no images to train on, only the splits test"):
        load_data(str(tmp_path / "pets" / "small"))


# --- Files that rows name


def paths_table(path, names):
    """Rows that hold no image but the name of a file."""
    labels = [number % 2 for number in range(len(names))]
    made = [{"bytes": None, "path": str(name)} for name in names]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    pyarrow.parquet.write_table(pyarrow.table({"image": pyarrow.array(made, kind), "label": labels}), path)


def test_rows_may_name_files_beside_the_table_and_below(tmp_path):
    pets = tmp_path / "pets"
    (pets / "images").mkdir(parents=True)
    images = rows_of("train")[0][:8]
    for index, data in enumerate(images):
        (pets / "images" / f"{index}.dat").write_bytes(data)
    relative = [f"images/{index}.dat" for index in range(8)]
    for names in (relative, [pets / name for name in relative]):
        paths_table(pets / "a.parquet", names)
        splits = load_data(str(pets / "a.parquet"))
        read = {pixels for part in ("train", "test") for _, pixels in pixels_in_order(splits, part)}
        assert read == {np.asarray(Image.open(io.BytesIO(data))).tobytes() for data in images}


def test_rows_may_not_name_other_files(tmp_path, monkeypatch):
    pets = tmp_path / "pets"
    (pets / "below").mkdir(parents=True)
    good = encoded(0, 0)
    for place in (pets / "good.dat", tmp_path / "secret.dat"):
        place.write_bytes(good)
    (pets / "link.dat").symlink_to(tmp_path / "secret.dat")
    (pets / "round.dat").symlink_to("round.dat")
    os.mkfifo(pets / "pipe.dat")
    (pets / "large.dat").write_bytes(b"")
    os.truncate(pets / "large.dat", (256 << 20) + 1)
    for name, words in (
        ("/etc/hostname", "is not below"),
        ("/dev/zero", "is not below"),
        (tmp_path / "secret.dat", "is not below"),
        ("../secret.dat", "is not below"),
        ("link.dat", "is not below"),
        ("pipe.dat", "is no ordinary file"),
        ("below", "is no ordinary file"),
        ("large.dat", "has more than 256 MiB"),
        ("gone.dat", "cannot be read .No such file"),
        ("round.dat", "cannot be read"),
        ("a\0b", "cannot be read"),
    ):
        paths_table(pets / "a.parquet", ["good.dat", name, "good.dat", "good.dat"])
        with pytest.raises(UserError, match=rf"a\.parquet, row 2: it holds no image but the path .*, which {words}"):
            load_data(str(pets / "a.parquet"))


# --- Files that do not agree


def named_rows(path, names, labels=None, split="train", **more):
    """The images of a split in one file whose ClassLabel has `names`, or whose labels are bare numbers (None)."""
    images, given = rows_of(split)
    number = {name: number for number, name in enumerate(names or NAMES)}
    made = {"image": images, "label": labels or [number[NAMES[label]] for label in given], **more}
    if names is None:
        pyarrow.parquet.write_table(pyarrow.table(made), path)
        return
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    kinds |= {name: datasets.Value("string") for name in more}
    made["image"] = [{"bytes": data, "path": None} for data in images]
    datasets.Dataset.from_dict(made, features=datasets.Features(kinds)).to_parquet(path)


def test_each_file_numbers_its_classes_in_its_own_way(tmp_path):
    folder = tmp_path / "pets"
    folder.mkdir()
    named_rows(folder / "train-0.parquet", NAMES)
    named_rows(folder / "train-1.parquet", ["bee", "wolf", "ant"], split="validation")
    named_rows(folder / "test-0.parquet", ["ant", "cow", "bee", "wolf"], split="test")
    splits = load_data(str(folder))
    assert pixels_in_order(splits, "train") == sorted(expected("train") + expected("validation"))
    assert pixels_in_order(splits, "test") == expected("test")
    assert set(splits.train.class_names) == set(NAMES)
    test = DataOptions(test=str(folder / "test-0.parquet"))
    splits = load_data(str(folder / "train-0.parquet"), source=test)
    assert pixels_in_order(splits, "test") == expected("test")


def test_numbers_without_names_beside_names_are_refused(tmp_path):
    for number, names in enumerate((None, NAMES, None)):
        folder = tmp_path / f"pets{number}"
        folder.mkdir()
        named_rows(folder / "train-0.parquet", names)
        named_rows(folder / "train-1.parquet", None if names else NAMES, split="validation")
        bare, named = (1, 0) if names else (0, 1)
        words = rf"train-{bare}\.parquet does not name the classes .* 'label', but .*train-{named}\.parquet does; write"
        with pytest.raises(UserError, match=words):
            load_data(str(folder))
        source = DataOptions(test=str(folder / "train-1.parquet"))
        with pytest.raises(UserError, match=words):
            load_data(str(folder / "train-0.parquet"), source=source)


def test_names_in_place_of_numbers_may_lie_beside_numbers_with_names(tmp_path):
    folder = tmp_path / "pets"
    folder.mkdir()
    texts = [NAMES[label] for label in rows_of("validation")[1]]
    named_rows(folder / "train-0.parquet", None, texts, "validation")
    named_rows(folder / "train-1.parquet", NAMES)
    named_rows(folder / "test-0.parquet", NAMES, split="test")
    splits = load_data(str(folder))
    assert splits.train.class_names == tuple(NAMES)
    assert pixels_in_order(splits, "train") == sorted(expected("train") + expected("validation"))
    named_rows(folder / "train-0.parquet", None, ["cow", *texts[1:]], "validation")
    with pytest.raises(UserError, match=r"row 1: label cow in column 'label' is none of the 3 classes that other"):
        load_data(str(folder))


def test_groups_in_some_files_only_are_refused(tmp_path):
    folder = tmp_path / "pets"
    folder.mkdir()
    groups = [f"g{index}" for index in range(len(rows_of("train")[1]))]
    for number in range(2):
        named_rows(folder / f"train-{number}.parquet", NAMES, group=groups)
        named_rows(folder / f"train-{1 - number}.parquet", NAMES, split="validation")
        words = rf"train-{1 - number}\.parquet has no column 'group' of groups, but .*train-{number}\.parquet has; add"
        with pytest.raises(UserError, match=words):
            load_data(str(folder))


# --- The hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one set: what `load_dataset` is asked for is read from a local folder."""
    import huggingface_hub

    real, asked = datasets.load_dataset, []
    folder = write_hub_folder(tmp_path / "stored")

    def load(name, subset=None, revision=None, **how):
        asked.append((name, subset, revision))
        return real(str(folder), **how)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    return asked


def test_a_set_of_the_hub(hub, tmp_path, monkeypatch):
    splits = load_data("hf:zoo/pets@v2:small", root=str(tmp_path / "there"))
    assert hub == [("zoo/pets", "small", "v2")]
    assert splits.train.class_names == tuple(NAMES)
    for part in ("train", "test"):
        assert pixels_in_order(splits, part) == expected(part)
    assert splits.train.path(0).startswith(f"{tmp_path}/there/hf/zoo--pets--v2--small-")
    monkeypatch.setattr(embedded_files, "_write", lambda *_: pytest.fail("written again"))
    assert load_data("hf:zoo/pets@v2:small", root=str(tmp_path / "there")).train.fingerprint() == (
        splits.train.fingerprint()
    )


def test_images_that_a_set_names_by_path(hub, tmp_path, monkeypatch):
    images, labels = rows_of("train")
    there = tmp_path / "datasets" / "downloads"
    there.mkdir(parents=True)
    for index, data in enumerate(images):
        (there / f"{index}.png").write_bytes(data)
    made = {"image": [str(there / f"{index}.png") for index in range(len(images))], "label": labels}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    rows = datasets.Dataset.from_dict(made, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict({"train": rows}))
    splits = load_data("hf:zoo/pets")
    assert sorted(pixels_in_order(splits, "train") + pixels_in_order(splits, "test")) == expected("train")
    (there / "3.png").rename(tmp_path / "3.png")
    shutil.rmtree(".data")
    with pytest.raises(UserError, match=r"hf:zoo/pets, split train, row 4: it holds no image but the path .*3\.png"):
        load_data("hf:zoo/pets")
    made["image"][3] = str(tmp_path / "3.png")
    rows = datasets.Dataset.from_dict(made, features=features)
    with pytest.raises(UserError, match=rf"row 4: .*3\.png', which is not below {tmp_path}/datasets or "):
        load_data("hf:zoo/pets")


@pytest.mark.parametrize("name", ["zoo/pets", "pets"])
def test_a_folder_of_the_name_of_a_set_is_not_taken_for_it(tmp_path, name, monkeypatch):
    import huggingface_hub

    write_hub_folder(tmp_path / name)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    with pytest.raises(
        UserError, match=rf"but {name} lies here and would be read in its place; .* give {name} without"
    ):
        load_data(f"hf:{name}")


def test_a_kind_of_files_is_not_taken_for_a_set(tmp_path, monkeypatch):
    import huggingface_hub

    hub_table("train").to_parquet(tmp_path / "train.parquet")
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    with pytest.raises(UserError, match="hf:parquet is the name of a kind of files, not of a set of the hub"):
        load_data("hf:parquet")


@pytest.mark.parametrize("data", ["hf:", "hf:a/b/c", "hf:a b", "hf:zoo/pets@", "hf:zoo/pets:"])
def test_what_is_no_name_of_a_set(data, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(UserError, match="no data set of the hub, which is written hf:owner/name"):
        load_data(data)


def test_without_a_network_one_sentence_and_no_waiting(desk):
    """As a user meets it: the client's own switch, in a process of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(desk.folder / "home")}
    words = [sys.executable, "-m", "longtail", "train", "hf:zoo/pets"]
    done = subprocess.run(words, cwd=desk.folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("longtail: hf:zoo/pets: no network for this data set, and no copy of it here; name")
    assert done.stderr.count("\n") == 1
    assert not (desk.folder / "runs").exists()


def test_what_the_hub_and_datasets_say_is_one_sentence(hub, monkeypatch):
    import huggingface_hub
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import errors

    def fail(error):
        def raise_it(*_, **__):
            raise error

        return raise_it

    for error, words in (
        (DatasetNotFoundError("Dataset 'zoo/pets' doesn't exist on the Hub"), "the hub has no such data set"),
        (ValueError("Config name is missing.\nPlease pick one among ['a', 'b']"), r"subsets is meant\? .*\['a', 'b'\]"),
        (RuntimeError("Dataset scripts are no longer supported"), "datasets cannot read it .Dataset scripts"),
        (OSError(28, "No space left on device"), "cannot be stored here"),
    ):
        monkeypatch.setattr(datasets, "load_dataset", fail(error))
        with pytest.raises(UserError, match=words):
            load_data("hf:zoo/pets")
    missing = errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail(missing))
    with pytest.raises(UserError, match="hf:zoo/pets: the hub has no such repository or revision"):
        load_data("hf:zoo/pets")


def test_a_copy_that_is_here_is_taken_where_the_hub_does_not_answer(hub, monkeypatch):
    import huggingface_hub

    def no_answer(*_, **__):
        raise OSError("unreachable")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", no_answer)
    real, seen = datasets.load_dataset, []

    def load(*names, **how):
        seen.append(datasets.config.HF_HUB_OFFLINE)
        return real(*names, **how)

    before = datasets.config.HF_HUB_OFFLINE
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(load_data("hf:zoo/pets").train) == 12
    assert seen == [True]
    assert before == datasets.config.HF_HUB_OFFLINE


def test_without_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'longtail\[hf\]'"):
        load_data("hf:zoo/pets")


# --- Whole runs


@pytest.mark.parametrize("data", ["pets", "hf:zoo/pets"])
def test_a_whole_run(hub, tmp_path, data, one_thread):
    write_hub_folder(tmp_path / "pets")
    options = {"data": data, "method": "cross_entropy", "backbone": "small_net", "image_size": 16, "epochs": 2}
    config = make_config({**options, "device": "cpu", "batch_size": 4, "source.check": "full"})
    splits = load_data(data)
    config, _ = resolve(config, splits)
    splits = frame_for_run(config, splits, ProgressReporter(quiet=True))
    evaluation = run(tmp_path / "run", config, splits)
    assert evaluation["test_images"] == 6
    assert torch.tensor(evaluation["class_counts"]).tolist() == [6, 4, 2]


def test_evaluating_may_name_the_columns(hub, desk):
    tiny = "--backbone small_net --image_size 16 --batch_size 4 --device cpu --quiet --epochs 1"
    desk.run("train", "hf:zoo/pets", "--method", "cross_entropy", *tiny.split(), "--out", "run")
    images, labels = rows_of("test")
    texts, wrong = [NAMES[label] for label in labels], [NAMES[0]] * len(labels)
    table = {"left": images, "right": images[:1] * len(labels), "species": texts, "class": wrong}
    pyarrow.parquet.write_table(pyarrow.table(table), desk.folder / "others.parquet")
    desk.refuse(
        "evaluate", "run", "others.parquet", naming=["left, right", "say which one holds them by --path_column"]
    )
    desk.refuse("evaluate", "run", "others.parquet", "--path_column", "left", naming=["species", " by --label_column"])
    desk.refuse("evaluate", "run", "--path_column", "left", naming=["--path_column", "longtail evaluate RUN DATA"])
    columns = ("--path_column", "left", "--label_column", "species")
    desk.run("evaluate", "run", "others.parquet", *columns, "--quiet", "--out", "these.json")
    desk.run("evaluate", "run", "hf:zoo/pets", "--quiet", "--out", "those.json")
    assert (desk.folder / "these.json").read_bytes() == (desk.folder / "those.json").read_bytes()


def test_the_commands_take_it(hub, desk):
    tiny = "--backbone small_net --image_size 16 --batch_size 4 --device cpu --quiet --epochs 1"
    desk.run("train", "hf:zoo/pets", "--method", "cross_entropy", *tiny.split(), "--out", "run")
    desk.run("evaluate", "run", "hf:zoo/pets", "--quiet")
    desk.run("evaluate", "run", "--quiet")
    out, _ = desk.run("inspect", "hf:zoo/pets", "--json", *tiny.split()[:-3])
    assert '"wolf"' in out
