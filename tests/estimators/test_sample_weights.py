"""Sample weights: what holds bit for bit, and what on average."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from longtail import CosineClassifier, GMLClassifier, LogitAdjustedClassifier, estimators

KINDS = (GMLClassifier, LogitAdjustedClassifier, CosineClassifier)


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    y = generator.permutation(np.repeat(np.arange(3), (70, 30, 10)))
    centres = generator.normal(size=(3, 5)) * 2
    return (centres[y] + generator.normal(size=(len(y), 5))).astype(np.float32), y


def weights_of(model):
    return [value for name, value in model.classifier_.state_dict().items() if name != "class_counts"]


def assert_same(first, second):
    for a, b in zip(weights_of(first), weights_of(second), strict=True):
        assert torch.equal(a, b)
    np.testing.assert_array_equal(first.class_prior_, second.class_prior_)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [1, 0.1, 7.3])
def test_equal_weights_are_none(kind, weight, data):
    X, y = data
    assert_same(
        kind(epochs=2, random_state=0).fit(X, y),
        kind(epochs=2, random_state=0).fit(X, y, sample_weight=np.full(len(y), weight)),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("even", [True, False])
def test_a_weight_of_zero_leaves_the_sample_out(kind, even, data):
    X, y = data
    generator = np.random.default_rng(3)
    kept = generator.random(len(y)) < 0.7
    weight = np.ones(len(y)) if even else generator.random(len(y)) + 0.1
    spoilt = np.where(kept[:, None], X, 1e6)
    model = kind(epochs=2, random_state=0).fit(spoilt, y, sample_weight=weight * kept)
    assert_same(model, kind(epochs=2, random_state=0).fit(X[kept], y[kept], sample_weight=weight[kept]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_that_weighs_nothing_is_none(kind, data):
    X, y = data
    model = kind(epochs=1, random_state=0).fit(X, y, sample_weight=y != 1)
    assert model.classes_.tolist() == [0, 2]
    assert model.class_prior_.tolist() == [70 / 80, 10 / 80]


@pytest.mark.parametrize("kind", KINDS)
def test_only_ratios_matter(kind, data):
    X, y = data
    weight = 1.0 + np.arange(len(y)) % 4
    first, second = (kind(epochs=2, random_state=0).fit(X, y, sample_weight=factor * weight) for factor in (1, 8))
    assert_same(first, second)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [7.3, 1e-3])
def test_a_factor_on_the_weights_is_rounding(kind, factor, data):
    X, y = data
    weight = 1.0 + np.arange(len(y)) % 4
    first, second = (kind(epochs=2, random_state=0).fit(X, y, sample_weight=times * weight) for times in (1, factor))
    np.testing.assert_allclose(first.class_prior_, second.class_prior_, rtol=1e-12)
    np.testing.assert_allclose(first.predict_proba(X), second.predict_proba(X), atol=1e-4)


def test_one_number_is_a_weight_for_all(data):
    X, y = data
    model, other = (LogitAdjustedClassifier(epochs=1, random_state=0) for _ in range(2))
    assert_same(model.fit(X, y, sample_weight=3), other.fit(X, y))


def test_nothing_private_of_scikit_learn_is_used():
    """A name with an underscore may go in any release of it."""
    for file in Path(estimators.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sklearn"):
                parts = [*str(node.module).split("."), *(name.name for name in node.names)]
                assert not [part for part in parts if part.startswith("_")], file.name


@pytest.mark.parametrize("kind", KINDS)
def test_whole_weights_count_as_repetition_does(kind, data):
    """All that is no draw is the same: prior, class counts, mean and deviation of the features."""
    X, y = data
    times = 1 + np.arange(len(y)) % 3
    weighted = kind(epochs=1, random_state=0).fit(X, y, sample_weight=times)
    repeated = kind(epochs=1, random_state=0).fit(X.repeat(times, 0), y.repeat(times))
    np.testing.assert_array_equal(weighted.class_prior_, repeated.class_prior_)
    a, b = weighted.classifier_, repeated.classifier_
    assert torch.equal(a.class_counts, b.class_counts)
    torch.testing.assert_close(a.logit_prior, b.logit_prior)
    torch.testing.assert_close(a.mean, b.mean)
    torch.testing.assert_close(a.std, b.std)


def test_weights_that_are_no_whole_numbers_give_their_prior(data):
    X, y = data
    weight = np.array([0.013, 1.7, 29.0])[y]
    model = LogitAdjustedClassifier(epochs=1, random_state=0).fit(X, y, sample_weight=weight)
    expected = np.array([0.013 * 70, 1.7 * 30, 290.0])
    np.testing.assert_allclose(model.class_prior_, expected / expected.sum(), rtol=1e-12)
    counts = model.classifier_.class_counts.double().numpy()
    np.testing.assert_allclose(counts / counts.sum(), expected / expected.sum(), rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_move_what_is_learned(kind):
    """Two clouds, both labels in each at random: in either the label that weighs more is what is predicted."""
    generator = np.random.default_rng(0)
    cloud, y = generator.integers(0, 2, (2, 200))
    X = (generator.normal(size=(200, 4)) + 4 * cloud[:, None]).astype(np.float32)
    for heavier in (cloud, 1 - cloud):
        model = kind(epochs=20, learning_rate=0.03, random_state=0)
        model.fit(X, y, sample_weight=np.where(y == heavier, 9.0, 1.0))
        assert np.mean(model.predict(X) == heavier) > 0.9


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.zeros(110), "zero"),
        (-np.ones(110), "Negative values in data passed to `sample_weight`"),
        (np.ones(109), r"sample_weight has shape \[109\]; give one for each of 110 samples"),
        (np.ones((110, 1)), r"sample_weight has shape \[110, 1\]"),
        (np.full(110, np.nan), "sample_weight contains NaN"),
        (["a few"] * 110, "could not convert string"),
        (0, "zero for every sample"),
        (-1.0, "Negative values"),
    ],
)
def test_weights_that_are_none(weight, message, data):
    with pytest.raises(ValueError, match=message):
        LogitAdjustedClassifier(epochs=1).fit(*data, sample_weight=weight)
