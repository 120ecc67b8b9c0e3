"""Training on parts of the data, one after the other."""

import pickle

import numpy as np
import pytest
import torch

from longtail import CosineClassifier, GMLClassifier, LogitAdjustedClassifier
from longtail.estimators import in_parts

KINDS = (LogitAdjustedClassifier, CosineClassifier)
CLASSES = ["ant", "bee", "cat"]


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    y = generator.permutation(np.repeat(np.arange(3), (140, 60, 20)))
    centres = generator.normal(size=(3, 5)) * 2
    return (centres[y] + generator.normal(size=(len(y), 5))).astype(np.float32), np.array(CLASSES)[y]


def parts(data, size=55):
    X, y = data
    for start in range(0, len(y), size):
        yield X[start : start + size], y[start : start + size]


def test_gml_does_not_offer_it():
    assert not hasattr(GMLClassifier(), "partial_fit")


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_part_by_part(kind, data):
    X, y = data
    model = kind(learning_rate=0.02, prior="uniform", random_state=0)
    for _ in range(10):
        for part in parts(data):
            assert model.partial_fit(*part, classes=CLASSES) is model
    assert model.score(X, y) > 0.85
    assert model.n_iter_ == len(model.loss_curve_) == 40
    assert model.loss_curve_[-1] < 0.5 * model.loss_curve_[0]
    np.testing.assert_allclose(model.class_prior_, [140 / 220, 60 / 220, 20 / 220], rtol=1e-12)
    assert model.classifier_.class_counts.tolist() == [1400, 600, 200]


@pytest.mark.parametrize("kind", KINDS)
def test_the_prior_runs_along_and_the_statistics_stay(kind, data):
    X, y = data
    model = kind(random_state=0).partial_fit(X[:50], y[:50], classes=CLASSES)
    counts = np.array([(y[:50] == name).sum() for name in CLASSES])
    np.testing.assert_array_equal(model.class_prior_, counts / 50)
    torch.testing.assert_close(model.classifier_.mean, torch.from_numpy(X[:50].mean(0)))
    model.partial_fit(X[50:] + 9, y[50:])
    np.testing.assert_allclose(model.class_prior_, [140 / 220, 60 / 220, 20 / 220], rtol=1e-12)
    torch.testing.assert_close(model.classifier_.mean, torch.from_numpy(X[:50].mean(0)))


def test_the_loss_uses_the_prior_so_far(data):
    """The first step's loss on new weights, in numpy: log p(c) of the part is added, the absent class as the rarest."""
    X, y = data
    few = np.flatnonzero(y != "cat")[:20]
    fresh = LogitAdjustedClassifier(adapter=False, learning_rate=1e-12, random_state=0, prior="uniform")
    model = fresh.partial_fit(X[few], y[few], classes=CLASSES)
    counts = np.array([(y[few] == name).sum() for name in CLASSES], dtype=float)
    counts[2] = counts[:2].min()
    logits = model.decision_function(X[few]) + np.log(counts / counts.sum())
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    target = np.searchsorted(CLASSES, y[few])
    assert model.loss_curve_[0] == pytest.approx(-logits[np.arange(20), target].mean(), rel=1e-4)
    assert model.class_prior_[2] == 0
    # A class that never came is not expected where the training frequencies are.
    assert (model.set_params(prior="train").predict_proba(X)[:, 2] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_from_a_fit(kind, data):
    X, y = data
    model = kind(epochs=20, learning_rate=0.02, random_state=0).fit(X, y)
    before = model.predict_proba(X)
    still = pickle.loads(pickle.dumps(model)).set_params(learning_rate=1e-12).partial_fit(X[:30], y[:30])
    counts = np.array([(np.append(y, y[:30]) == name).sum() for name in CLASSES])
    np.testing.assert_allclose(still.class_prior_, counts / 250, rtol=1e-12)
    if kind is LogitAdjustedClassifier:
        np.testing.assert_allclose(still.predict_proba(X), before, atol=1e-5)
    moved = model.partial_fit(X[:30], y[:30])
    assert np.abs(moved.predict_proba(X) - before).max() > 1e-4
    assert moved.n_iter_ == 21
    # And a fit starts anew.
    again = model.fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X), before)
    assert again.n_iter_ == 20


def begun(start, model, data):
    """A model that began with ``fit`` or with a first part."""
    X, y = data
    return model.fit(X[:60], y[:60]) if start == "fit" else model.partial_fit(X[:60], y[:60], classes=CLASSES)


CHANGES = {
    "scale": 5.0,
    "adapter": False,
    "weight_decay": 0.9,
    "batch_size": 7,
    "random_state": 5,
    "epochs": 9,
    "device": "abacus",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", ["fit", "part"])
def test_parameters_that_are_set_later_change_nothing_but_the_rate(kind, start, data):
    X, y = data
    later = {**CHANGES, "prior_strength": 0.0} if kind is LogitAdjustedClassifier else CHANGES
    a, b = (begun(start, kind(epochs=2, batch_size=50, random_state=0), data) for _ in range(2))
    before = a.classifier_.spec
    b.set_params(**later)
    for rows in (slice(60, 140), slice(140, 220)):
        a.partial_fit(X[rows], y[rows])
        b.partial_fit(X[rows], y[rows])
    assert a.classifier_.spec == b.classifier_.spec == before
    assert torch.equal(a.classifier_.logit_prior, b.classifier_.logit_prior)
    np.testing.assert_array_equal(a.predict_proba(X), b.predict_proba(X))
    a.set_params(learning_rate=0.1).partial_fit(X, y)
    b.partial_fit(X, y)
    assert np.abs(a.predict_proba(X) - b.predict_proba(X)).max() > 1e-3
    # And a fit reads them all.
    c = b.set_params(device="cpu").fit(X, y)
    fresh = kind(**c.get_params()).fit(X, y)
    np.testing.assert_array_equal(c.predict_proba(X), fresh.predict_proba(X))
    assert c.classifier_.spec["scale"] == 5.0


@pytest.mark.parametrize("start", ["fit", "part"])
def test_a_rate_that_cannot_be_meant_is_refused_at_every_part(start, data):
    X, y = data
    model = begun(start, LogitAdjustedClassifier(epochs=1, random_state=0), data)
    for wrong, message in ((30.0, "^weight_decay 0.05 times learning_rate"), (-1.0, "^learning_rate must be above 0")):
        for _ in range(2):
            with pytest.raises(ValueError, match=message):
                model.set_params(learning_rate=wrong).partial_fit(X, y)
    assert model.n_iter_ == 1
    assert np.isfinite(model.set_params(learning_rate=0.01).partial_fit(X, y).predict_proba(X)).all()


@pytest.mark.parametrize("start", ["fit", "part"])
@pytest.mark.parametrize(("asked", "size"), [(50, 50), (None, 32)])
def test_a_small_first_part_leaves_the_batches_of_later_ones_as_they_are(start, asked, size, data, monkeypatch):
    X, y = data
    few = 40 if start == "fit" else 1
    model = LogitAdjustedClassifier(epochs=1, batch_size=asked, random_state=0)
    if start == "fit":
        model.fit(X[:few], y[:few])
    else:
        model.partial_fit(X[:few], y[:few], classes=CLASSES)
    sizes = []

    class Spy(in_parts.TrainingStep):
        def __call__(self, batch, progress):
            sizes.append(len(batch.ids))
            super().__call__(batch, progress)

    monkeypatch.setattr(in_parts, "TrainingStep", Spy)
    model.partial_fit(X[60:160], y[60:160], classes=np.unique(y[:few]) if start == "fit" else CLASSES)
    assert sizes[0] == size


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_between_two_parts_changes_nothing(kind, data):
    first = kind(random_state=0)
    second = kind(random_state=0)
    for part in parts(data):
        first.partial_fit(*part, classes=CLASSES)
        second.partial_fit(*part, classes=CLASSES)
        second = pickle.loads(pickle.dumps(second))
        torch.rand(3)
    np.testing.assert_array_equal(first.predict_proba(data[0]), second.predict_proba(data[0]))
    assert second._parts.method.context.train.features.numel() == 3 * 5  # no part is kept


@pytest.mark.parametrize("kind", KINDS)
def test_one_row_at_a_time_and_a_last_batch(kind, data, monkeypatch):
    X, y = data
    model = kind(random_state=0)
    for row in range(4):
        model.partial_fit(X[row : row + 1], y[row : row + 1], classes=CLASSES)
    assert np.isfinite(model.predict_proba(X)).all()
    # 33 rows are a batch of 32 and one of 1: the row that is alone is learned from too.
    seen = []

    class Spy(in_parts.TrainingStep):
        def __call__(self, batch, progress):
            seen.append(batch.ids.tolist())
            super().__call__(batch, progress)

    monkeypatch.setattr(in_parts, "TrainingStep", Spy)
    kind(batch_size=32, random_state=0).partial_fit(X[:33], y[:33], classes=CLASSES)
    assert [len(ids) for ids in seen] == [32, 1]
    assert sorted(seen[0] + seen[1]) == list(range(33))


def test_sample_weights(data):
    X, y = data
    weight = np.where(y == "ant", 0.5, 2.0)
    model = LogitAdjustedClassifier(random_state=0)
    model.partial_fit(X[:100], y[:100], classes=CLASSES, sample_weight=weight[:100])
    model.partial_fit(X[100:], y[100:], sample_weight=weight[100:])
    masses = np.array([140 * 0.5, 60 * 2.0, 20 * 2.0])
    np.testing.assert_allclose(model.class_prior_, masses / masses.sum(), rtol=1e-12)
    spoilt = np.concatenate([X[:100], np.full((1, 5), 1e6, np.float32)])
    a = LogitAdjustedClassifier(random_state=0).partial_fit(X[:100], y[:100], CLASSES)
    b = LogitAdjustedClassifier(random_state=0)
    b.partial_fit(spoilt, [*y[:100], "cat"], CLASSES, sample_weight=[1] * 100 + [0])
    np.testing.assert_array_equal(a.predict_proba(X), b.predict_proba(X))


@pytest.mark.parametrize("kind", KINDS)
def test_mistakes(kind, data):
    X, y = data
    model = kind(random_state=0)
    with pytest.raises(ValueError, match="classes must be passed on the first call to partial_fit"):
        model.partial_fit(X, y)
    with pytest.raises(ValueError, match=r"labels that are not among the classes \['ant', 'bee'\]: \['cat'\]"):
        model.partial_fit(X, y, classes=["ant", "bee"])
    with pytest.raises(ValueError, match="two classes or more"):
        model.partial_fit(X, ["ant"] * len(y), classes=["ant"])
    assert not hasattr(model, "classifier_")
    model.partial_fit(X, y, classes=CLASSES)
    with pytest.raises(ValueError, match="are not those of the earlier calls"):
        model.partial_fit(X, y, classes=[*CLASSES, "dog"])
    with pytest.raises(ValueError, match="X has 4 features"):
        model.partial_fit(X[:, :4], y)
