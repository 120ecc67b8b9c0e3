"""The estimators: what they learn, what they assume, what they leave alone, and scikit-learn's and others' tools."""

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from imblearn.over_sampling import RandomOverSampler
from imblearn.pipeline import make_pipeline as imblearn_pipeline
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import longtail
from longtail import CosineClassifier, GMLClassifier, LogitAdjustedClassifier
from longtail.config import TrainConfig, replace_options
from longtail.data import DataSplits, FeatureSet
from longtail.data.feature_files import load_features
from longtail.data.feature_set import STORED
from longtail.options import make_config
from longtail.training.defaults import resolve
from longtail.training.weight_defaults import choose_pretrained

KINDS = (GMLClassifier, LogitAdjustedClassifier, CosineClassifier)
COUNTS = (90, 40, 20, 8)


@pytest.fixture(scope="module")
def data():
    """Four blobs in 6 dimensions, 90 down to 8 rows of a class, in random order."""
    generator = np.random.default_rng(0)
    y = generator.permutation(np.repeat(np.arange(4), COUNTS))
    centres = generator.normal(size=(4, 6)) * 2
    return (centres[y] + generator.normal(size=(len(y), 6))).astype(np.float32), y


def weights_of(model):
    return model.classifier_.state_dict()


def assert_same(first, second):
    a, b = weights_of(first), weights_of(second)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


# --- One code base


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_those_of_the_command_line(kind, data, tmp_path):
    X, y = data
    np.savez(tmp_path / "features.npz", train_features=X, train_labels=y, test_features=X[:9], test_labels=y[:9])
    method = "gml" if kind is GMLClassifier else "logit_adjustment"
    loss = {"prior_strength": 0.0} if kind is CosineClassifier else {}
    options = {"method": method, "epochs": 3, "seed": 7, "device": "cpu", "quiet": True, "loss": loss}
    run = longtail.train(tmp_path / "features.npz", out=tmp_path / "run", **options).load()
    model = kind(epochs=3, random_state=7).fit(X, y)
    ours, theirs = weights_of(model), run.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_open_is_what_the_command_line_chooses(kind, data, tmp_path, monkeypatch):
    X, y = data
    np.savez(tmp_path / "features.npz", train_features=X, train_labels=y, test_features=X[:9], test_labels=y[:9])

    class Chosen(Exception):
        pass

    def chosen(config, data):
        raise Chosen(config)

    monkeypatch.setattr("longtail.estimators.base.train_in_memory", chosen)
    with pytest.raises(Chosen) as caught:
        kind(random_state=0).fit(X, y)
    method, strength = {
        GMLClassifier: ("gml", 1.0),
        LogitAdjustedClassifier: ("logit_adjustment", 1.0),
        CosineClassifier: ("logit_adjustment", 0.0),
    }[kind]
    config = make_config({"data": str(tmp_path / "features.npz"), "method": method, "loss.prior_strength": strength})
    splits = load_features(config.data, config.source)
    config, _ = choose_pretrained(*resolve(replace_options(config, {"device": "cpu"}), splits)[:1], splits)
    assert replace_options(config, {"data": ""}) == caught.value.args[0]


def chosen_for(rows, width, classes):
    """What is left open, chosen for so many features; none of them is made."""
    labels = torch.arange(rows) % classes
    train = FeatureSet(torch.zeros(1, 1, width).expand(rows, -1, -1), labels, tuple(map(str, range(classes))))
    data = DataSplits("features", train, train, (0.0,) * width, (1.0,) * width, STORED)
    return resolve(TrainConfig(method="gml", pretrained="none"), data)[0]


def test_what_the_docstrings_say_of_defaults():
    few, many = chosen_for(50, 8, 5), chosen_for(400_000, 600, 5)
    words = " ".join(GMLClassifier.__doc__.split())
    assert f"about a third of the data, {few.queue.capacity} to {many.queue.capacity}," in words
    assert f"half that of the features, {few.queue.projection_dim} to {many.queue.projection_dim}." in words
    middle = chosen_for(3000, 100, 5)
    assert (middle.queue.capacity, middle.queue.projection_dim) == (1024, 50)
    assert "more than 2048 classes" in words
    assert [chosen_for(5000, 8, classes).queue.capacity for classes in (1024, 2048, 2049)] == [2048, 4096, 8192]
    assert "2 where there is room, 3 in a queue of 16384" in words
    assert [chosen_for(50, 8, classes).queue.min_per_class for classes in (100, 4097)] == [2, 3]
    for kind in KINDS:
        words, default = " ".join(kind.__doc__.split()), kind().get_params()
        assert f"within {many.epochs} to {few.epochs} epochs" in words
        assert f"by the number of samples, {chosen_for(64, 8, 5).batch_size} to {many.batch_size}." in words
        assert (default["learning_rate"], default["weight_decay"]) == (few.optimiser.lr, few.optimiser.weight_decay)
        assert default["scale"] == few.loss.scale
        assert default.get("temperature", 0.1) == few.loss.temperature
        assert default.get("prior_strength", 1.0) == few.loss.prior_strength


def test_given_options_reach_the_training(data, tmp_path):
    X, y = data
    np.savez(tmp_path / "features.npz", train_features=X, train_labels=y, test_features=X[:9], test_labels=y[:9])
    run = longtail.train(
        tmp_path / "features.npz",
        out=tmp_path / "run",
        quiet=True,
        device="cpu",
        epochs=2,
        batch_size=50,
        backbone="features",
        loss={"temperature": 0.2, "learn_temperature": False, "prior_strength": 0.5, "scale": 20.0},
        queue={"capacity": 64, "min_per_class": 3, "projection_dim": 5},
        optimiser={"lr": 0.02, "weight_decay": 0.1},
    ).load()
    model = GMLClassifier(
        epochs=np.int64(2),
        batch_size=50,
        learning_rate=np.float64(0.02),
        weight_decay=0.1,
        temperature=0.2,
        learn_temperature=False,
        prior_strength=0.5,
        queue_size=64,
        min_per_class=3,
        projection_dim=5,
        scale=20,
        adapter=False,
        random_state=0,
    ).fit(X, y)
    for name, value in run.state_dict().items():
        assert torch.equal(weights_of(model)[name], value), name


# --- What is learned


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_digits_with_a_long_tail(kind):
    X, y = load_digits(return_X_y=True)
    generator = np.random.default_rng(1)
    train, test = [], []
    for label in range(10):
        rows = generator.permutation(np.flatnonzero(y == label))
        test += list(rows[:40])
        train += list(rows[40 : 40 + round(120 * 30 ** (-label / 9))])
    model = kind(epochs=20, learning_rate=0.01, prior="uniform", random_state=0).fit(X[train], y[train])
    assert balanced_accuracy_score(y[test], model.predict(X[test])) > 0.8  # chance is 0.1
    assert model.n_iter_ == len(model.loss_curve_) == 20
    assert model.loss_curve_[-1] < 0.5 * model.loss_curve_[0]


@pytest.mark.parametrize("kind", KINDS)
def test_fitted_attributes(kind, data):
    X, y = data
    model = kind(epochs=1, random_state=0).fit(X, np.array(["d", "c", "b", "a"])[y])
    assert model.classes_.tolist() == ["a", "b", "c", "d"]
    assert model.class_prior_.tolist() == [count / 158 for count in COUNTS[::-1]]
    assert model.class_prior_.dtype == np.float64
    assert model.n_features_in_ == 6
    assert model.classifier_.class_names == ("a", "b", "c", "d")
    assert model.classifier_.class_counts.tolist() == list(COUNTS[::-1])
    assert not model.classifier_.training


def test_the_classifier_is_one_of_the_package(data, tmp_path):
    X, y = data
    model = GMLClassifier(epochs=2, random_state=0).fit(X, y)
    model.classifier_.save(tmp_path)
    loaded = longtail.load(tmp_path)
    ours, theirs = model.predict_proba(X), loaded.predict(torch.from_numpy(X), prior="uniform")
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


# --- The prior that predictions assume


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prior", ["uniform", "train", [4, 3, 2, 1], np.array([0.7, 0.1, 0.2, 0.0])], ids=str)
def test_the_prior_is_bayes_rule_on_the_classifier(kind, prior, data):
    X, y = data
    model = kind(epochs=2, prior=prior, random_state=0).fit(X, y)
    wanted = prior if isinstance(prior, str) else torch.tensor(np.array(prior, dtype=float))
    expected = model.classifier_.predict(torch.from_numpy(X), prior=wanted).numpy()
    np.testing.assert_allclose(model.predict_proba(X), expected, atol=1e-5)
    np.testing.assert_array_equal(model.predict(X), model.classes_[model.predict_proba(X).argmax(1)])
    logits = model.decision_function(X)
    with np.errstate(divide="ignore"):
        log = np.log(model.predict_proba(X))
    shown = np.isfinite(logits).all(0)  # a class of prior 0 has the logit -inf and is never predicted
    np.testing.assert_allclose(np.diff(logits[:, shown]), np.diff(log[:, shown]), atol=1e-9)


def test_the_default_priors(data):
    X, y = data
    plain = CosineClassifier(epochs=2, random_state=0).fit(X, y)
    raw = plain.classifier_.predict(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(plain.predict_proba(X), raw, atol=1e-5)
    adjusted = LogitAdjustedClassifier(epochs=2, random_state=0).fit(X, y)
    raw = adjusted.classifier_.predict(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(adjusted.predict_proba(X), raw, atol=1e-5)


def test_a_prior_may_be_set_after_the_fit(data):
    X, y = data
    model = GMLClassifier(epochs=2, random_state=0).fit(X, y)
    uniform = model.predict_proba(X)
    model.set_params(prior="train")
    odds = uniform * model.class_prior_
    np.testing.assert_allclose(model.predict_proba(X), odds / odds.sum(1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ("balanced", "unknown prior 'balanced'"),
        ([1, 2], r"prior has shape \[2\]; give one weight for each of 4 classes"),
        ([1, -1, 1, 1], "negative or not finite"),
        (None, "prior must be 'uniform', 'train' or one weight for each of 4 classes"),
        ({}, "prior must be 'uniform', 'train' or one weight for each of 4 classes"),
    ],
)
def test_a_prior_that_is_none_is_refused_before_training(prior, message, data):
    with pytest.raises(ValueError, match=message):
        GMLClassifier(epochs=1, prior=prior).fit(*data)
    model = GMLClassifier(epochs=1).fit(*data).set_params(prior=prior)
    with pytest.raises(ValueError, match=message):
        model.predict(data[0])


# --- Random numbers


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_model_whatever_was_drawn_before(kind, data):
    first = kind(epochs=2, random_state=3).fit(*data)
    torch.rand(5)
    np.random.seed(1)  # noqa: NPY002 - the generator that scikit-learn reads
    assert_same(first, kind(epochs=2, random_state=3).fit(*data))
    assert not torch.equal(
        first.classifier_.head.weight, kind(epochs=2, random_state=4).fit(*data).classifier_.head.weight
    )


def test_a_generator_moves_on_and_none_is_the_global_one(data):
    state = np.random.RandomState(0)
    first, second = (LogitAdjustedClassifier(epochs=1, random_state=state).fit(*data) for _ in range(2))
    assert not torch.equal(first.classifier_.head.weight, second.classifier_.head.weight)
    assert_same(first, LogitAdjustedClassifier(epochs=1, random_state=np.random.RandomState(0)).fit(*data))
    np.random.seed(0)  # noqa: NPY002
    assert_same(first, LogitAdjustedClassifier(epochs=1).fit(*data))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_global_is_moved(kind, data):
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    facts = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype()
    kind(epochs=1, random_state=0).fit(*data).predict(data[0])
    if kind is not GMLClassifier:
        kind(epochs=1, random_state=0).partial_fit(*data, classes=[0, 1, 2, 3])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_default_dtype(),
    ) == facts


# --- With other tools


@pytest.mark.parametrize("kind", KINDS)
def test_copies_predict_alike(kind, data):
    X, y = data
    model = kind(epochs=2, random_state=0).fit(X, y)
    restored = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(restored.predict_proba(X), model.predict_proba(X))
    fresh = clone(model)
    assert not hasattr(fresh, "classifier_")
    assert fresh.get_params() == model.get_params()
    assert_same(fresh.fit(X, y), model)


def test_pipelines_search_and_cross_validation(data):
    X, y = data
    pipeline = make_pipeline(StandardScaler(), GMLClassifier(epochs=4, learning_rate=0.02, random_state=0))
    assert pipeline.fit(X, y).score(X, y) > 0.8
    pipeline.fit(X, y, gmlclassifier__sample_weight=np.ones(len(y)))
    model = LogitAdjustedClassifier(epochs=20, learning_rate=0.03, random_state=0)
    grid = {"prior_strength": [0.0, 1.0], "learning_rate": np.array([0.001, 0.03])}
    search = GridSearchCV(model, grid, cv=3, scoring="balanced_accuracy", error_score="raise").fit(X, y)
    assert search.best_score_ > 0.8
    assert len(set(search.cv_results_["mean_test_score"].tolist())) > 1  # the parameters do something
    scores = cross_val_score(model, X, y, cv=3, scoring="balanced_accuracy", error_score="raise")
    assert scores.mean() > 0.8


def test_an_imbalanced_learn_pipeline(data):
    X, y = data
    pipeline = imblearn_pipeline(RandomOverSampler(random_state=0), CosineClassifier(epochs=2, random_state=0))
    pipeline.fit(X, y)
    # What was resampled is what the classifier saw.
    assert pipeline[-1].class_prior_.tolist() == [0.25] * 4
    resampled = RandomOverSampler(random_state=0).fit_resample(X, y)
    assert_same(pipeline[-1], CosineClassifier(epochs=2, random_state=0).fit(*resampled))


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
@pytest.mark.parametrize("kind", KINDS)
def test_frames_with_string_labels(frame, kind, data):
    X, y = data
    names = [f"embedding_{i}" for i in range(6)]
    table = frame(dict(zip(names, X.T, strict=True)))
    words = np.array(["ant", "bee", "cat", "dog"])[y]
    labels = pd.Series(words) if frame is pd.DataFrame else pl.Series(words.tolist())
    model = kind(epochs=2, random_state=0).fit(table, labels)
    assert model.feature_names_in_.tolist() == names
    assert_same_numbers = kind(epochs=2, random_state=0).fit(X, words)
    assert_same(model, assert_same_numbers)
    assert set(model.predict(table)) <= {"ant", "bee", "cat", "dog"}
    np.testing.assert_array_equal(model.predict(table), assert_same_numbers.predict(X))
    other = frame(dict(zip(names[::-1], X.T, strict=True)))
    with pytest.raises(ValueError, match="feature names"):
        model.predict(other)


# --- Mistakes


@pytest.mark.filterwarnings("ignore:overflow encountered in cast", "ignore:invalid value encountered in reduce")
@pytest.mark.parametrize("kind", KINDS)
def test_bad_input(kind, data):
    X, y = data
    model = kind(epochs=1, random_state=0)
    with pytest.raises(ValueError, match=f"{kind.__name__} needs samples of two classes or more.* one class, 'cat'"):
        model.fit(X, ["cat"] * len(y))
    with pytest.raises(ValueError, match=r"1 sample.*minimum of 2"):
        model.fit(X[:1], y[:1])
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        model.fit(X, y + 0.5)
    holed = X.copy()
    holed[3, 2] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        model.fit(holed, y)
    assert not hasattr(model, "classifier_")
    model.fit(X, y)
    with pytest.raises(ValueError, match="Input X contains NaN"):
        model.predict(holed)
    with pytest.raises(ValueError, match=r"X has 5 features, but .* is expecting 6"):
        model.predict_proba(X[:, :5])
    with pytest.raises(ValueError, match="too large for dtype"):
        model.predict(X.astype(np.float64) * 1e60)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "^epochs must be above 0"),
        ({"epochs": 2.5}, r"^epochs must be a whole number, got 2\.5"),
        ({"batch_size": 1}, "^batch_size must be 2 or more"),
        ({"batch_size": True}, "^batch_size must be a whole number"),
        ({"learning_rate": "fast"}, "^learning_rate must be a finite number, got 'fast'"),
        ({"learning_rate": np.nan}, "^learning_rate must be a finite number"),
        ({"learning_rate": 30.0}, "^weight_decay 0.05 times learning_rate"),
        ({"temperature": -1.0}, "^temperature must be above 0"),
        ({"adapter": "yes"}, "^adapter must be True or False"),
        ({"queue_size": 3}, "a queue capacity of 3 cannot hold"),
        ({"device": "abacus"}, "^device abacus names no device"),
        ({"random_state": "one"}, "'one' cannot be used to seed"),
    ],
    ids=str,
)
def test_parameters_that_cannot_be_meant(wrong, message, data):
    model = GMLClassifier(**{"epochs": 1, "min_per_class": 2, **wrong})  # told by fit, as scikit-learn does
    with pytest.raises(ValueError, match=message):
        model.fit(*data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [2, 3, 33])
def test_few_rows(kind, rows, data):
    """Fewer than a batch, a class with one row, one constant feature."""
    X, _ = data
    y = np.arange(rows) == 0
    narrow = np.ones((rows, 1), dtype=np.float32)
    for features in (X[:rows], narrow):
        model = kind(epochs=2, random_state=0).fit(features, y)
        assert np.isfinite(model.predict_proba(features)).all()


def test_training_that_diverges_is_told_in_the_words_of_the_parameters(data):
    X, y = data
    with pytest.raises(longtail.Diverged, match="lower learning_rate"):
        CosineClassifier(epochs=9, batch_size=8, scale=3e38, random_state=0).fit(X, y)
