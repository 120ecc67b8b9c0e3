"""Focal, class weights, LDAM, balanced softmax, post-hoc adjustment: one step of each against its formula, and when
weights begin.
"""

import copy
import json
import math
import signal
from dataclasses import replace

import pytest
import torch
from test_methods import build, loader_for

from longtail.data.samplers import SAMPLERS
from longtail.errors import UserError
from longtail.methods import MethodContext, Stage, get_method, is_read
from longtail.methods.ldam import LDAM
from longtail.models import Classifier, CosineHead, LinearHead
from longtail.training.guard import Interrupted
from whole_runs import run, stop_at_step

COUNTS = [24, 9, 2]
PRIOR = torch.tensor(COUNTS) / 35


def effective(beta):
    raw = [(1 - beta) / (1 - beta**n) for n in COUNTS]
    return [3 * weight / sum(raw) for weight in raw]


def slow_step(name, logits, labels):
    """The loss of a batch by loops; scale 30, margin 0.5, gamma 2, beta 0.9999."""
    weights = effective(0.9999)
    total = whole = 0.0
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        weight = weights[label] if name in ("class_balanced", "ldam_drw") else 1.0
        if name.startswith("ldam"):
            row[label] -= 30 * 0.5 * (2 / COUNTS[label]) ** 0.25
        if name == "balanced_softmax":
            row = [z + math.log(n) for z, n in zip(row, COUNTS, strict=True)]
        q = math.exp(row[label]) / math.fsum(math.exp(z) for z in row)
        total -= weight * (1 - q) ** (2 if name == "focal" else 0) * math.log(q)
        whole += weight
    return total / whole


@pytest.mark.parametrize(
    ("name", "loss", "head"),
    [
        ("focal", "focal", LinearHead),
        ("class_balanced", "rebalanced", LinearHead),
        ("ldam", "ldam", CosineHead),
        ("ldam_drw", "ldam", CosineHead),
        ("balanced_softmax", "classifier", LinearHead),
    ],
)
def test_a_step_against_the_formula(name, loss, head, tiny_config, tiny_splits):
    method = build(name, tiny_config(method=name), tiny_splits).eval()
    assert isinstance(method.head, head)
    batch = loader_for(method, tiny_splits).load(0, 0)
    method.on_epoch(0.9)
    losses = method(batch, 0.0)
    assert list(losses) == [loss]
    logits = method.head(method.encoder(batch.views["classifier"])).detach()
    assert losses[loss].item() == pytest.approx(slow_step(name, logits, batch.labels), rel=1e-5)
    # Only an unweighted cross entropy over the images as they are bounds the information on their labels.
    assert list(method.readings()) == (["bits"] if name == "balanced_softmax" else [])


def test_balanced_softmax_is_logit_adjustment_at_strength_one(tiny_config, tiny_splits):
    """On the same head: value and gradient."""
    balanced = build("balanced_softmax", tiny_config(method="balanced_softmax"), tiny_splits).eval()
    adjusted = build("logit_adjustment", tiny_config(method="logit_adjustment"), tiny_splits).eval()
    adjusted.encoder, adjusted.head = copy.deepcopy(balanced.encoder), copy.deepcopy(balanced.head)
    batch = loader_for(balanced, tiny_splits).load(0, 0)
    values = [method(batch, 0.0)["classifier"] for method in (balanced, adjusted)]
    assert torch.equal(*values)
    for value in values:
        value.backward()
    for one, other in zip(balanced.head.parameters(), adjusted.head.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    torch.testing.assert_close(balanced.classifier().logit_prior, torch.full((3,), 1 / 3))


@pytest.mark.parametrize("name", ["ldam_drw", "cross_entropy", "logit_adjustment", "focal", "balanced_softmax"])
def test_deferred_weights_begin_in_place_with_their_epoch(name, tiny_config, tiny_splits):
    changes = {"loss__class_weights": "effective", "loss__deferred_from": 0.8}
    changes = {} if name == "ldam_drw" else changes  # its defaults
    changes["epochs"] = 20
    method = build(name, tiny_config(method=name, **changes), tiny_splits).eval()
    plain = build(name, tiny_config(method=name, loss__class_weights="none"), tiny_splits).eval()
    batch = loader_for(method, tiny_splits).load(0, 0)
    place = method.loss.class_weights.data_ptr()
    (unweighted,) = plain(batch, 0.0).values()
    values = {}
    for progress in (None, 0.0, 0.75, 0.8, 0.9, 0.2):
        if progress is not None:
            method.on_epoch(progress)
        (values[progress],) = method(batch, math.nan).values()
        assert method.loss.class_weights.data_ptr() == place
        wanted = torch.tensor(effective(0.9999)) if (progress or 0) >= 0.8 else torch.ones(3)
        torch.testing.assert_close(method.loss.class_weights, wanted, rtol=1e-5, atol=0)
    for progress in (None, 0.0, 0.75, 0.2):
        torch.testing.assert_close(values[progress], unweighted)
    assert values[0.8] == values[0.9]
    assert abs(values[0.8] - unweighted) > 1e-4


@pytest.mark.parametrize(("epochs", "first"), [(1, 0), (2, 1), (3, 2), (4, 3), (5, 4), (8, 6), (200, 160)])
def test_deferred_weights_begin_when_a_milestone_would_and_in_the_last_epoch_at_least(
    epochs, first, tiny_config, tiny_splits
):
    method = build("ldam_drw", tiny_config(method="ldam_drw", epochs=epochs), tiny_splits)
    begun = []
    for epoch in range(epochs):
        method.on_epoch(epoch / epochs)
        begun.append(not torch.equal(method.loss.class_weights, torch.ones(3)))
    assert begun.index(True) == first
    assert all(begun[first:])


@pytest.mark.parametrize("changes", [{"loss__mixup": 0.5}, {"sampler": "class_balanced"}, {}], ids=str)
def test_gml_names_its_loss_by_what_it_can_be_compared_with(changes, tiny_config, tiny_splits):
    previous = build("logit_adjustment", tiny_config(), tiny_splits).classifier()
    method = build("gml", tiny_config(**changes), tiny_splits, previous)
    loader = loader_for(method, tiny_splits)
    method.prepare(loader.fetch, loader.labels)
    batch = loader.load(0, 0)
    method.update_memory(batch)
    assert ("classifier" in method(batch, 0.0)) == (not changes)
    assert ("bits" in method.readings()) == ("sampler" not in changes)


def losses_of(path):
    return [json.loads(line)["ldam"] for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("one_thread")
def test_a_run_is_re_weighted_in_its_last_fifth_only_also_if_resumed_there(
    tmp_path, tiny_config, tiny_splits, monkeypatch
):
    config = tiny_config(method="ldam_drw", epochs=5)
    run(tmp_path / "drw", config, tiny_splits)
    run(tmp_path / "ldam", tiny_config(method="ldam", epochs=5), tiny_splits)
    deferred, plain = losses_of(tmp_path / "drw"), losses_of(tmp_path / "ldam")
    assert deferred[:4] == plain[:4]
    assert deferred[4] != plain[4]
    prior = PRIOR * torch.tensor(effective(0.9999))
    torch.testing.assert_close(Classifier.load(tmp_path / "drw").logit_prior, prior / prior.sum())
    torch.testing.assert_close(Classifier.load(tmp_path / "ldam").logit_prior, PRIOR)

    stop_at_step(monkeypatch, LDAM, 18)  # the second step of the last of five epochs of four steps
    with pytest.raises(Interrupted):
        run(tmp_path / "stopped", config, tiny_splits)
    run(tmp_path / "stopped", config, tiny_splits, resume=True)
    for name in ("model.safetensors", "metrics.jsonl", "evaluation.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "drw" / name).read_bytes()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_with_a_sampler_resumes_to_the_same_bytes(name, tmp_path, tiny_config, tiny_splits, monkeypatch):
    config = tiny_config(method="ldam", epochs=3, sampler=name)
    run(tmp_path / "whole", config, tiny_splits)
    batches = stop_at_step(monkeypatch, LDAM, 7, signal.SIGTERM)
    with pytest.raises(Interrupted):
        run(tmp_path / "stopped", config, tiny_splits)
    run(tmp_path / "stopped", config, tiny_splits, resume=True)
    for file in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    drawn = torch.bincount(torch.cat([batch.labels for batch in batches]), minlength=3)
    assert drawn.sum() == 3 * 32
    # 35 draws an epoch, of which the last 3 make no batch.
    rarest = {"instance": 2, "class_balanced": 35 / 3, "square_root": 35 * 2**0.5 / (24**0.5 + 3 + 2**0.5)}
    rarest["progressive"] = 2 * 2 / 3 + 35 / 3 / 3  # in the mean over progress 0, 1/3, 2/3
    assert abs(int(drawn[2]) - 3 * rarest[name]) <= 3 * 4


@pytest.mark.parametrize("strength", [0.5, 1.0, 1.5])
def test_post_hoc_adjustment_is_the_shift_by_hand(strength, tiny_config, tiny_splits):
    name = "cross_entropy"
    plain = build(name, tiny_config(method=name), tiny_splits).eval()
    method = build(name, tiny_config(method=name, loss__post_hoc_strength=strength), tiny_splits).eval()
    before = method.head.bias.detach().clone()
    deployed, images = method.classifier(), tiny_splits.test.images
    raw = plain.classifier()
    torch.testing.assert_close(deployed.logits(images), raw.logits(images) - strength * PRIOR.log())
    torch.testing.assert_close(deployed.logit_prior, PRIOR ** (1 - strength) / (PRIOR ** (1 - strength)).sum())
    # What is told of another prior does not change by it.
    torch.testing.assert_close(deployed.predict(images, "uniform"), raw.predict(images, "uniform"))
    torch.testing.assert_close(deployed.predict(images, "train"), raw.predict(images, "train"))
    if strength == 1:
        torch.testing.assert_close(deployed.predict(images), raw.predict(images, "uniform"))
    # The trained bias stays, however often a model is asked for, and the step is that of cross entropy.
    assert torch.equal(method.head.bias, before)
    assert torch.equal(method.classifier().head.bias, deployed.head.bias)
    batch = loader_for(method, tiny_splits).load(0, 0)
    assert torch.equal(method(batch, 0.0)["classifier"], plain(batch, 0.0)["classifier"])
    assert deployed.encoder is method.encoder


@pytest.mark.usefixtures("one_thread")
def test_post_hoc_adjustment_of_a_moving_average_and_of_the_best_epoch(tmp_path, tiny_config, tiny_splits):
    """Saved is the average, shifted once."""
    splits = replace(tiny_splits, validation=tiny_splits.test)
    changes = {"method": "cross_entropy", "epochs": 3, "optimiser__ema": 0.9}
    changes |= {"val_fraction": 0.2, "select": "best"}
    run(tmp_path / "plain", tiny_config(**changes), splits)
    # Adjusted, another epoch may be the best one; a strength this small chooses the same.
    run(tmp_path / "shifted", tiny_config(**changes, loss__post_hoc_strength=1e-3), splits)
    plain, shifted = (Classifier.load(tmp_path / name) for name in ("plain", "shifted"))
    images = tiny_splits.test.images
    expected = plain.logits(images) - 1e-3 * PRIOR.log()
    torch.testing.assert_close(shifted.logits(images), expected, rtol=0, atol=1e-5)
    assert (shifted.head.bias - plain.head.bias).abs().max() > 1e-3


def implied(name, tiny_config, tiny_splits, **changes):
    return build(name, tiny_config(method=name, **changes), tiny_splits).classifier().logit_prior


def test_the_implied_prior_follows_sampler_and_weights(tiny_config, tiny_splits):
    uniform = torch.full((3,), 1 / 3)
    for changes, expected in (
        ({"sampler": "class_balanced"}, uniform),
        ({"loss__class_weights": "inverse"}, uniform),
        ({"sampler": "square_root"}, PRIOR.sqrt()),
        ({"sampler": "progressive", "epochs": 4}, PRIOR / 4 + uniform * 3 / 4),
        ({"sampler": "class_balanced", "loss__class_weights": "inverse"}, 1 / PRIOR),
        ({"loss__class_weights": "inverse", "loss__deferred_from": 0.5}, PRIOR),  # not begun yet
    ):
        found = implied("cross_entropy", tiny_config, tiny_splits, **changes)
        torch.testing.assert_close(found, expected / expected.sum(), msg=str(changes))
    found = implied("logit_adjustment", tiny_config, tiny_splits, sampler="class_balanced")
    torch.testing.assert_close(found, (1 / PRIOR) / (1 / PRIOR).sum())


def test_weights_and_adjustment_leave_teachers_alone(tiny_config, tiny_splits):
    """They are options of the run's own method; another stage that it asks for is as published."""
    for method, of in (("logit_adjustment", "gml"), ("cross_entropy", "crt")):
        config = tiny_config(method=of, loss__class_weights="inverse", loss__post_hoc_strength=1.0)
        stage = Stage("before", method, config.backbone, 1, sampler="instance")
        context = MethodContext(config, stage, tiny_splits.train, tiny_splits.mean, tiny_splits.std)
        built = get_method(method).build(context)
        assert built.loss.class_weights is None
        expected = PRIOR if method == "cross_entropy" else torch.full((3,), 1 / 3)
        torch.testing.assert_close(built.classifier().logit_prior, expected)
        if method == "cross_entropy":
            assert torch.equal(built.classifier().head.bias, built.head.bias)


def test_which_options_are_read():
    for method in ("cross_entropy", "focal", "class_balanced", "ldam", "ldam_drw", "logit_adjustment"):
        assert is_read(method, "loss.class_weights")
        assert is_read(method, "loss.deferred_from")
        assert not is_read(method, "queue.capacity")
    assert is_read("cross_entropy", "loss.post_hoc_strength")
    assert not is_read("focal", "loss.post_hoc_strength")
    assert is_read("focal", "loss.focal_gamma")
    assert is_read("ldam_drw", "loss.max_margin")
    assert not is_read("balanced_softmax", "loss.prior_strength")
    assert not is_read("gml", "loss.class_weights")


def test_weights_that_begin_without_being_there(tiny_config, tiny_splits):
    config = tiny_config(method="cross_entropy", loss__deferred_from=0.8)
    with pytest.raises(UserError, match=r"--loss.deferred_from 0.8 .* --loss.class_weights effective"):
        get_method("cross_entropy").check(config, tiny_splits.train)
    config = tiny_config(method="ldam_drw")
    get_method("ldam_drw").check(config, tiny_splits.train)
    assert (config.loss.class_weights, config.loss.deferred_from) == ("effective", 0.8)
    assert tiny_config(method="class_balanced").loss.deferred_from == 0
    assert tiny_config(method="ldam").loss.class_weights == "none"


def test_class_balanced_needs_weights(tiny_config, tiny_splits):
    config = tiny_config(method="class_balanced", loss__class_weights="none")
    with pytest.raises(UserError, match="use --method cross_entropy"):
        get_method("class_balanced").check(config, tiny_splits.train)
