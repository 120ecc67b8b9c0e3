"""Files of features: what is read, what is refused, how they are split."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from longtail.data import FeatureSet, load_data
from longtail.data.feature_arrays import join_parts, packed_paths
from longtail.data.feature_files import feature_rows
from longtail.data.feature_set import feature_statistics
from longtail.data.path_table import PathTable
from longtail.errors import UserError
from longtail.files import save_tensors
from longtail.option_groups import DataOptions

COUNTS = (40, 20, 6)


def arrays(dim=5, views=None, seed=0):
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(COUNTS)), COUNTS)
    shape = (len(labels), dim) if views is None else (len(labels), views, dim)
    test = np.repeat(np.arange(len(COUNTS)), 4)
    return {
        "train_features": random.normal(3, 2, shape).astype("float32"),
        "train_labels": labels,
        "test_features": random.normal(3, 2, (len(test), dim)).astype("float32"),
        "test_labels": test,
    }


def write(path, content, names=None):
    if path.suffix == ".npz":
        np.savez(path, **content, **({} if names is None else {"class_names": np.array(names)}))
    else:
        meta = None if names is None else {"class_names": json.dumps(names)}
        save_file(
            {name: torch.tensor(array) for name, array in content.items()},
            path,
            metadata=meta,
        )
    return str(path)


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_what_is_written_is_what_is_read(ending, tmp_path):
    content = arrays()
    names = ["ant", "fire\xa0ant", "fl\u200dy"]
    splits = load_data(write(tmp_path / f"f.{ending}", content, names))
    assert isinstance(splits.train, FeatureSet)
    assert splits.train.class_names == tuple(names)
    assert splits.train.channels == 5
    assert splits.train.views == 1
    np.testing.assert_array_equal(splits.train.features[:, 0], content["train_features"])
    np.testing.assert_array_equal(splits.test.labels, content["test_labels"])
    np.testing.assert_allclose(splits.mean, content["train_features"].astype("float64").mean(0), rtol=1e-9)
    np.testing.assert_allclose(splits.std, content["train_features"].astype("float64").std(0), rtol=1e-9)


def test_statistics_are_of_the_first_view_and_a_constant_counts_as_deviation_one():
    features = torch.stack([torch.tensor([[1.0, 7.0], [3.0, 7.0]]), torch.full((2, 2), 100.0)], 1)
    mean, std = feature_statistics(features)
    assert mean == (2.0, 7.0)
    assert std == (1.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_only_rounding_of_the_stored_type_counts_as_constant(dtype):
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(500, 1, 1, generator=random)
    eps = torch.finfo(dtype).eps
    for scale in (1e-3, 1.0, 1e3):
        for offset in (0.0, 1.0, 8.0):
            [mean], [std] = feature_statistics((scale * (offset + max(8 * eps * offset, 0.1) * noise)).to(dtype))
            assert std < scale, (scale, offset)
            assert abs(mean - scale * offset) < 0.02 * scale
    for constant in (0.0, 3.0, 60000.0):
        flips = (torch.arange(500) % 2).view(-1, 1, 1)  # between a number and the next one
        column = (constant * (1 + eps * flips)).to(dtype)
        [mean], [std] = feature_statistics(column)
        assert std >= 1
        assert float(((column.float() - torch.tensor(mean)) / torch.tensor(std)).abs().max()) < 0.01


def test_units_of_measure_change_no_standardised_feature():
    random = torch.Generator().manual_seed(1)
    noise = torch.randn(400, 1, 2, generator=random)
    for columns in (1e-7 * noise, 1e-30 * noise, 1e30 * noise, 1.6e9 + 1000 * noise):
        mean, std = (torch.tensor(values, dtype=torch.float32) for values in feature_statistics(columns))
        out = (columns - mean) * (1 / std)
        # Of 1.6e9, float32 rounds to 128.
        torch.testing.assert_close(out, (noise - noise.mean(0)) / noise.std(0, correction=0), atol=0.15, rtol=0)
        assert 0.99 < float(out.std()) < 1.01
    [_], [std] = feature_statistics(torch.tensor([[[0.0]], [[1e-45]]]))
    assert std == 1  # its reciprocal would be no float32


@pytest.mark.parametrize("weights", [None, torch.arange(1.0, 301.0).double()])
def test_statistics_hang_on_no_block_and_need_no_copy(weights, monkeypatch):
    features = torch.randn(300, 2, 7, generator=torch.Generator().manual_seed(2)) + 5
    whole = feature_statistics(features, weights)
    plain = features[:, 0].double().numpy()
    np.testing.assert_allclose(whole[0], np.average(plain, 0, weights), rtol=1e-13)
    deviation = np.average((plain - np.average(plain, 0, weights)) ** 2, 0, weights) ** 0.5
    np.testing.assert_allclose(whole[1], deviation, rtol=1e-13)
    for values in (1, 100, 1000):
        monkeypatch.setattr("longtail.data.feature_set._BLOCK_VALUES", values)
        for ours, theirs in zip(feature_statistics(features, weights), whole, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-14)
            np.testing.assert_array_equal(np.float32(ours), np.float32(theirs))


def test_features_that_are_not_split_give_a_test_set_that_hangs_on_them_alone(tmp_path):
    whole = arrays()
    rows = {"features": whole["train_features"], "labels": whole["train_labels"]}
    one = load_data(write(tmp_path / "a.npz", rows))
    order = np.random.default_rng(1).permutation(len(rows["labels"]))
    other = load_data(write(tmp_path / "b.npz", {name: array[order] for name, array in rows.items()}))
    held = [{tuple(row) for row in splits.test.features[:, 0].tolist()} for splits in (one, other)]
    assert held[0] == held[1]
    assert one.test.class_counts.tolist() == [8, 4, 1]
    third = load_data(write(tmp_path / "a.npz", rows), source=DataOptions(test_share=0.5))
    assert third.test.class_counts.tolist() == [20, 10, 3]


def test_folds_validation_and_imbalance_work_as_on_arrays(tmp_path):
    file = write(tmp_path / "f.npz", arrays())
    folds = [load_data(file, folds=2, source=DataOptions(fold=fold)) for fold in (0, 1)]
    tested = torch.cat([splits.test.features[:, 0] for splits in folds])
    assert len(torch.unique(tested, dim=0)) == len(tested) == sum(COUNTS) + 12
    held = load_data(file, val_fraction=0.25)
    assert held.validation.class_counts.tolist() == [10, 5, 2]
    assert held.mean == feature_statistics(held.train.features)[0]
    cut = load_data(file, imbalance=40)
    assert cut.train.class_counts.tolist() == [40, 6, 1]
    assert cut.mean == feature_statistics(cut.train.features)[0]


def bad(**changes):
    content = arrays()
    for name, change in changes.items():
        content[name] = change(content[name].copy())
        if content[name] is None:
            del content[name]
    return content


def nan_in_row(row):
    def change(array):
        array[row, 2] = np.nan
        return array

    return change


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bad(train_features=nan_in_row(17)), ["'train_features'", "not finite", "row 17"]),
        (bad(test_features=lambda a: a[:, :4]), ["width 5", "'test_features' 4"]),
        (bad(test_labels=lambda a: None), ["'test_labels' is missing", "train_labels"]),
        (bad(train_labels=lambda a: a[:-1]), ["66 rows", "65 'train_labels'"]),
        (bad(train_labels=lambda a: a - 1), ["negative label -1"]),
        (bad(train_labels=lambda a: a.astype("float32")), ["'train_labels' is float32", "integers"]),
        (bad(train_labels=lambda a: np.where(a == 1, 2, a)), ["class 1 has no training row", "up to 2"]),
        (bad(test_labels=lambda a: np.full_like(a, 3)), ["'test_labels' holds label 3", "3 classes"]),
        (bad(train_features=lambda a: a.astype("int64")), ["'train_features' is int64", "floating point"]),
        (bad(train_labels=lambda a: a * 0, test_labels=lambda a: a * 0), ["one class only"]),
    ],
)
def test_what_cannot_be_used_is_named(ending, content, words, tmp_path):
    file = write(tmp_path / f"f.{ending}", content)
    with pytest.raises(UserError) as error:
        load_data(file)
    for word in [file, *words]:
        assert word in str(error.value)


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bad(train_features=nan_in_row(17)), ["'features'", "not finite", "row 17"]),
        (bad(train_labels=lambda a: a[:-1]), ["66 rows in 'features' but 65 'labels'"]),
        (bad(train_labels=lambda a: np.where(a == 1, 2, a)), ["class 1 has no training row, though 'labels'"]),
        (bad(train_labels=lambda a: None), ["array 'labels' is missing; found: features"]),
        (bad(train_features=lambda a: np.float32(1)), ["'features' is float32 []"]),
        (bad(train_labels=lambda a: np.int64(1)), ["'labels' is int64 []"]),
        (bad(train_features=lambda a: a.astype("float64") + 1e300), ["'features'", "beyond float32, in row 0"]),
    ],
)
def test_arrays_are_named_as_the_file_names_them(ending, content, words, tmp_path):
    content = {name.removeprefix("train_"): content[name] for name in content if name.startswith("train_")}
    file = write(tmp_path / f"f.{ending}", content)
    with pytest.raises(UserError) as error:
        load_data(file)
    for word in [file, *words]:
        assert word in str(error.value)
    assert "train_" not in str(error.value)


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
@pytest.mark.parametrize("name", ["features", "test_features"])
def test_features_to_predict_on_are_named_as_the_file_names_them(ending, name, tmp_path):
    for array, words in ((np.float32(1), r"float32 \[\]"), (np.full((3, 2), np.nan, "float32"), "not finite")):
        with pytest.raises(UserError, match=rf"f\.{ending}: '{name}' .*{words}"):
            feature_rows(write(tmp_path / f"f.{ending}", {name: array}))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (np.array("ant"), "no list of strings"),
        (np.array([["ant", "bee", "fly"]]), "no list of strings"),
        (np.array([1.5, 2.5, 3.5]), "no list of strings"),
        (np.array(["ant", "bee", None], dtype=object), "'class_names' is an object array"),
        (np.array(["ant", "bee", "ant"]), "names 'ant' twice"),
        (np.array(["ant", "bee", "f\x07"]), "not printable"),
    ],
)
def test_class_names_that_are_none(names, words, tmp_path):
    np.savez(tmp_path / "f.npz", **arrays(), class_names=names)
    with pytest.raises(UserError, match=rf"f\.npz: .*{words}"):
        load_data(str(tmp_path / "f.npz"))


@pytest.mark.parametrize(
    ("stored", "words"), [("ant, bee", "is not JSON"), ('"ant"', "no list of strings"), ('{"ant": 0}', "no list of")]
)
def test_class_names_in_metadata_that_are_none(stored, words, tmp_path):
    tensors = {name: torch.from_numpy(array) for name, array in arrays().items()}
    save_file(tensors, tmp_path / "f.safetensors", metadata={"class_names": stored})
    with pytest.raises(UserError, match=rf"f\.safetensors: 'class_names' .*{words}"):
        load_data(str(tmp_path / "f.safetensors"))


def test_class_names_stored_as_bytes_are_text(tmp_path):
    np.savez(tmp_path / "f.npz", **arrays(), class_names=np.array([b"ant", b"bee", b"fly"]))
    assert load_data(str(tmp_path / "f.npz")).train.class_names == ("ant", "bee", "fly")


@pytest.mark.parametrize("text", ['{"made": "by me"}', "[1, 2]", "{", "\xff"])
def test_a_json_file_of_ones_own_may_lie_beside(text, tmp_path):
    file = write(tmp_path / "f.safetensors", arrays(), ["ant", "bee", "fly"])
    (tmp_path / "f.json").write_text(text, encoding="latin-1")
    assert load_data(file).train.class_names == ("ant", "bee", "fly")


def test_a_record_that_was_cut_off_is_told_of(tmp_path):
    tensors = {name: torch.from_numpy(array) for name, array in arrays().items()}
    save_tensors(tmp_path, "f", tensors, {"class_names": ["ant", "bee", "fly"]})
    assert load_data(str(tmp_path / "f.safetensors")).train.class_names == ("ant", "bee", "fly")
    record = tmp_path / "f.json"
    record.write_bytes(record.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"f\.json cannot be read as JSON"):
        load_data(str(tmp_path / "f.safetensors"))


def test_parts_are_joined_and_let_go():
    parts = [torch.full((rows, 2, 3), float(rows), dtype=torch.float16) for rows in (4, 0, 1)]
    whole = torch.cat(parts)
    assert torch.equal(join_parts("train_features", parts), whole)
    assert parts == []
    paths = [packed_paths(PathTable(names)) for names in (["a", "b"], ["c"])]
    assert join_parts("test_paths", paths).numpy().tobytes() == b"a\0b\0c"


def test_a_file_cut_off_is_no_traceback(tmp_path):
    for ending in ("npz", "safetensors"):
        path = tmp_path / f"f.{ending}"
        write(path, arrays())
        path.write_bytes(path.read_bytes()[: 1000 if ending == "safetensors" else 3000])
        with pytest.raises(UserError, match=rf"f\.{ending}"):
            load_data(str(path))


def test_rows_to_predict_on(tmp_path):
    content = arrays(views=3)
    file = write(tmp_path / "new.safetensors", {"features": content["train_features"]})
    np.testing.assert_array_equal(feature_rows(file), content["train_features"][:, 0])
    with pytest.raises(UserError, match="no array 'features'; found: other"):
        feature_rows(write(tmp_path / "none.safetensors", {"other": content["train_features"]}))


def test_paths_are_packed_and_come_back_whatever_they_hold():
    names = ["a.jpg", "b c/ü.png", "x\udcff.jpg"]
    packed = packed_paths(PathTable(names))
    assert packed.numpy().tobytes().decode("utf-8", "surrogateescape").split("\0") == names
