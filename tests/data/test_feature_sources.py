"""Features as a source: folds, test sets, equal rows, and what options do to them."""

import numpy as np
import pytest
from test_feature_files import COUNTS, arrays, write

from longtail.data import load_data
from longtail.data.sources import load_test_set
from longtail.deployment.feature_store import FeatureStore
from longtail.errors import UserError
from longtail.option_groups import DataOptions


def rows_of(features):
    return {tuple(row) for row in features.reshape(len(features), -1).tolist()}


def test_folds_keep_the_stored_views_of_training_rows(tmp_path):
    content = arrays(views=3)
    file = write(tmp_path / "f.npz", content)
    plain = rows_of(np.repeat(content["test_features"][:, None], 3, 1))
    stored = rows_of(content["train_features"])
    for fold in (0, 1):
        splits = load_data(file, folds=2, source=DataOptions(fold=fold))
        assert splits.train.views == 3
        # A row of the given test set has one view, which every draw gives.
        assert rows_of(splits.train.features) < stored | plain
        assert rows_of(splits.train.features) & plain
        assert rows_of(splits.train.features) & stored
        assert rows_of(splits.train.features) | rows_of(splits.test.features) == stored | plain


def unsplit(content):
    return {"features": content["train_features"], "labels": content["train_labels"]}


def test_a_given_test_set_stands_beside_features_and_labels(tmp_path):
    content = arrays()
    given = {name: content[name] for name in ("test_features", "test_labels")}
    splits = load_data(write(tmp_path / "f.npz", unsplit(content) | given))
    assert splits.test_split == "given"
    np.testing.assert_array_equal(splits.train.features[:, 0], content["train_features"])
    np.testing.assert_array_equal(splits.test.features[:, 0], content["test_features"])


def test_a_second_file_is_the_test_set_by_class_name(tmp_path):
    content = arrays()
    file = write(tmp_path / "f.npz", unsplit(content), ["ant", "bee", "fly"])
    other = {"features": content["test_features"], "labels": content["test_labels"]}
    second = write(tmp_path / "g.safetensors", other, ["fly", "ant", "wasp"])
    with pytest.raises(UserError, match=r"g\.safetensors has 1 class .*'wasp'; 4 rows.*--source.unknown_labels skip"):
        load_data(file, source=DataOptions(test=second))
    splits = load_data(file, source=DataOptions(test=second, unknown_labels="skip"))
    assert len(splits.train) == sum(COUNTS)
    assert splits.test.labels.tolist() == [2] * 4 + [0] * 4
    np.testing.assert_array_equal(splits.test.features[:, 0], content["test_features"][:8])
    assert splits.notes == ("4 rows of 1 class that the model does not know left out, first 'wasp'.",)


def test_a_second_file_that_does_not_fit_is_refused(tmp_path):
    content = arrays()
    file = write(tmp_path / "f.npz", unsplit(content))
    narrow = {"features": content["test_features"][:, :4], "labels": content["test_labels"]}
    second = write(tmp_path / "g.npz", narrow)
    with pytest.raises(UserError, match=r"'features' have width 5, but the features of .*g\.npz 4"):
        load_data(file, source=DataOptions(test=second))
    with pytest.raises(UserError, match=r"photos is no file of features, as .*f\.npz is"):
        load_data(file, source=DataOptions(test="photos"))
    with pytest.raises(UserError, match=r"holds its own test_features; leave out --source\.test\."):
        load_data(write(tmp_path / "h.npz", content), source=DataOptions(test=second))


def test_a_share_for_a_test_set_that_is_given_is_told_to_be_without_effect(tmp_path):
    file = write(tmp_path / "f.npz", arrays())
    assert load_data(file).notes == ()
    [note] = load_data(file, source=DataOptions(test_share=0.5)).notes
    assert note == "the test set is given: without effect is --source.test_share."
    file = write(tmp_path / "g.npz", unsplit(arrays()))
    assert load_data(file, source=DataOptions(test_share=0.5)).notes == ()
    [note] = load_data(file, folds=2, source=DataOptions(test_share=0.5)).notes
    assert note == "--folds deals all rows out: without effect is --source.test_share."


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_a_model_is_evaluated_on_all_rows_by_class_name(ending, tmp_path):
    content = arrays()
    names = ("ant", "bee", "fly")
    # All of features that are not split; the order of the file's classes is its own, and one of the model's is lacking.
    rows = {"features": content["train_features"], "labels": content["train_labels"] % 2}
    found = load_test_set(write(tmp_path / f"a.{ending}", rows, ["fly", "ant"]), names)
    assert found.test.class_names == names
    assert found.test.labels.tolist() == [{0: 2, 1: 0}[label] for label in rows["labels"].tolist()]
    np.testing.assert_array_equal(found.test.features[:, 0], content["train_features"])
    # The test set of those that are; without training rows too.
    split = write(tmp_path / f"b.{ending}", content, names)
    alone = {name: content[name] for name in ("test_features", "test_labels")}
    for file in (split, write(tmp_path / f"c.{ending}", alone, names)):
        np.testing.assert_array_equal(load_test_set(file, names).test.features[:, 0], content["test_features"])
    # Without names: places, or the names that are numbers.
    file = write(tmp_path / f"d.{ending}", unsplit(content))
    assert load_test_set(file, names).test.labels.tolist() == content["train_labels"].tolist()
    assert set(load_test_set(file, ("2", "1", "0")).test.labels[-COUNTS[2] :].tolist()) == {0}


def test_rows_of_classes_that_the_model_does_not_know(tmp_path):
    file = write(tmp_path / "f.npz", unsplit(arrays()), ["ant", "bee", "fly"])
    with pytest.raises(UserError, match=r"1 class that .* \(first 'bee'; 20 rows\); add --unknown_labels skip"):
        load_test_set(file, ("fly", "ant"))
    found = load_test_set(file, ("fly", "ant"), source=DataOptions(unknown_labels="skip"))
    assert found.test.class_counts.tolist() == [6, 40]
    assert found.notes == ("20 rows of 1 class that the model does not know left out, first 'bee'.",)
    with pytest.raises(UserError, match=r"no row of the model's classes: it has 'ant' .* the model 'cat'"):
        load_test_set(file, ("cat", "dog"), source=DataOptions(unknown_labels="skip"))
    with pytest.raises(UserError, match="'labels' holds label 2, but there are 2 classes"):
        load_test_set(write(tmp_path / "g.npz", unsplit(arrays()), ["ant", "bee"]), ("ant", "bee"))


def test_equal_rows_are_held_out_together(tmp_path):
    content = arrays()
    features = content["train_features"]
    features[1::2] = features[::2]
    splits = load_data(write(tmp_path / "f.npz", unsplit(content)))
    assert not rows_of(splits.train.features) & rows_of(splits.test.features)
    assert splits.test.class_counts.tolist() == [8, 4, 2]


def test_equal_rows_are_told(tmp_path):
    content = arrays()
    content["test_features"][2] = content["train_features"][5]
    content["train_features"][41] = content["train_features"][0]
    notes = load_data(write(tmp_path / "f.npz", content)).notes
    assert notes[0].startswith("1 test row is also in the training set (first: test row 2 = training row 5)")
    assert notes[1].startswith("1 row is there under more than one class (first: training row 0 as 0 = training row 41")
    assert notes[2].startswith("1 training row repeats another value by value (first: training row 0 = training row 41")
    assert len(notes) == 3


def test_an_embedding_that_was_cut_off_is_told_of(tmp_path):
    for out, data in ((tmp_path / "shards", "shards"), (tmp_path / "f.safetensors", "f.safetensors")):
        FeatureStore(out, {"views": 1}, overwrite=False)
        with pytest.raises(UserError, match="cut off; give the same longtail embed command again"):
            load_data(str(tmp_path / data))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "plan.json").write_text('{"plan": "mine"}')
    with pytest.raises(UserError, match="no images"):
        load_data(str(tmp_path / "photos"))
