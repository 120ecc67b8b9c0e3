"""Features as a source: folds, test sets, equal rows, and what options do to them."""

import numpy as np
import pytest
import torch

from longtail.data import load_data
from longtail.errors import UserError
from longtail.option_groups import DataOptions
from test_feature_files import COUNTS, arrays, write


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
