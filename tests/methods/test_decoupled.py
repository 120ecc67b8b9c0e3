"""Classifiers on a frozen representation against loops; runs that are stopped and resumed leave the encoder alone."""

import json
import math
import os
import signal
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from test_methods import build, loader_for

import longtail
from longtail.config import replace_options
from longtail.data import Framing
from longtail.errors import UserError
from longtail.methods import METHODS, get_method, is_read
from longtail.methods.decoupled import ClassifierRetraining, Decoupled, NearestClassMean, ScaledHead
from longtail.models import Classifier, CosineHead, LinearHead
from longtail.training.guard import Interrupted
from whole_runs import run, stop_at_step

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("crt", "lws", "tau_norm", "ncm")
STEPPED = ("crt", "lws")
RESULTS = ["model.safetensors", "model.json", "metrics.jsonl", "evaluation.json", "representation/model.safetensors"]


def representation(config, splits):
    """A cross entropy model after some steps, so that its BatchNorm statistics are its own."""
    method = build("cross_entropy", config, splits)
    loader, optimiser = loader_for(method, splits), torch.optim.SGD(method.parameters(), lr=0.05)
    for step in range(4):
        sum(method(loader.load(0, step), 0.0).values()).backward()
        optimiser.step()
        optimiser.zero_grad()
    return method.classifier().eval()


@pytest.fixture
def made(tiny_config, tiny_splits):
    """Return a function from a method's name to the method, the representation that it is on, and its loader."""

    def make(name, **changes):
        config = tiny_config(method=name, **changes)
        model = representation(config, tiny_splits)
        method = build(name, config, tiny_splits, model)
        return method, model, loader_for(method, tiny_splits)

    return make


def test_stages_and_their_samplers(tiny_config):
    for name in NAMES:
        config = tiny_config(method=name, epochs=45)
        first, last = get_method(name).stages(config, name)
        assert (first.name, first.method, first.epochs, first.sampler) == (
            *("representation", "cross_entropy", 45),
            "instance",
        )
        assert (last.name, last.method, last.takes) == ("classifier", name, "representation")
        assert last.epochs == (5 if name in STEPPED else 0)
        sampler = last.sampler or config.sampler
        assert sampler == ("class_balanced" if name in STEPPED else "instance")
        ready = replace_options(config, {"decoupled.run": "there"})
        (only,) = get_method(name).stages(ready, name)
        assert only == replace(last, ready="there")
    assert tiny_config(method="crt", sampler="square_root").sampler == "square_root"
    assert is_read("crt", "decoupled.epochs")
    assert not is_read("ncm", "decoupled.epochs")
    assert is_read("tau_norm", "decoupled.tau")
    assert not is_read("gml", "decoupled.run")


@pytest.mark.parametrize("name", NAMES)
def test_the_encoder_is_frozen_to_the_bit(name, made):
    method, model, loader = made(name)
    method.train()
    assert not any(module.training for module in method.encoder.modules())
    before = {key: value.clone() for key, value in model.encoder.state_dict().items()}
    method.prepare(loader.fetch, loader.labels)
    if name in STEPPED:
        optimiser = torch.optim.SGD(method.param_groups(), lr=0.1, weight_decay=0.1)
        trained = {id(p) for group in optimiser.param_groups for p in group["params"]}
        assert trained == {id(p) for p in method.head.parameters()}
        sum(method(loader.load(0, 0), 0.0).values()).backward()
        optimiser.step()
    else:
        assert [p for group in method.param_groups() for p in group["params"]] == []
    for key, value in method.encoder.state_dict().items():
        assert torch.equal(value, before[key]), key
        assert torch.equal(model.encoder.state_dict()[key], before[key]), key
    assert all(p.grad is None for p in method.encoder.parameters())
    assert method.encoder is not model.encoder


def test_crt_is_cross_entropy_of_a_new_head_on_frozen_features(made):
    method, model, loader = made("crt")
    assert type(method.head) is LinearHead
    assert not torch.equal(method.head.weight, model.head.weight)
    batch = loader.load(0, 0)
    with torch.no_grad():
        features = model.encoder(batch.views["classifier"])
    log_q = (features @ method.head.weight.T + method.head.bias).log_softmax(1)
    expected = -sum(log_q[row, label] for row, label in enumerate(batch.labels.tolist())) / 8
    losses = method(batch, 0.0)
    assert list(losses) == ["rebalanced"]
    torch.testing.assert_close(losses["rebalanced"], expected)
    torch.testing.assert_close(method.classifier().logit_prior, torch.full((3,), 1 / 3))


def test_lws_scales_each_class_and_folds_into_a_linear_head(made, tiny_splits):
    method, model, loader = made("lws")
    images = tiny_splits.test.images
    assert torch.equal(method.classifier().logits(images), model.logits(images))  # all factors are 1
    (group,) = method.param_groups()
    assert group["weight_decay"] == 0
    assert [p.shape for p in group["params"]] == [(3,)]
    factors = torch.tensor([0.5, 1.5, -2.0])
    with torch.no_grad():
        method.head.factors.copy_(factors)
    batch = loader.load(0, 0)
    with torch.no_grad():
        features = model.encoder(batch.views["classifier"])
    logits = torch.stack(
        [f * (features @ w + b) for f, w, b in zip(factors, model.head.weight, model.head.bias, strict=True)], 1
    )
    torch.testing.assert_close(method(batch, 0.0)["rebalanced"], F.cross_entropy(logits, batch.labels))
    deployed = method.classifier()
    assert type(deployed.head) is LinearHead
    torch.testing.assert_close(deployed.logits(images), factors * model.logits(images))
    assert {name for name, _ in ScaledHead(model.head).named_parameters()} == {"factors"}


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 2.0])
def test_tau_normalised_weights_by_loops(tau, made, tiny_splits):
    method, model, _ = made("tau_norm", decoupled__tau=tau)
    deployed = method.classifier()
    for old, new in zip(model.head.weight.tolist(), deployed.head.weight.tolist(), strict=True):
        norm = math.sqrt(math.fsum(value**2 for value in old))
        assert new == pytest.approx([value / norm**tau for value in old], rel=1e-5)
    assert not deployed.head.bias.any()
    assert model.head.bias.any()
    prior = (torch.tensor([24.0, 9.0, 2.0]) / 35) ** (1 - tau)
    torch.testing.assert_close(deployed.logit_prior, prior / prior.sum())
    if tau == 0:
        images = tiny_splits.test.images
        torch.testing.assert_close(deployed.logits(images), model.logits(images) - model.head.bias.detach())
    if tau == 1:
        torch.testing.assert_close(deployed.head.weight.norm(dim=1), torch.ones(3))


def test_a_weight_of_zero_stays_zero(tiny_config, tiny_splits):
    config = tiny_config(method="tau_norm")
    model = representation(config, tiny_splits)
    with torch.no_grad():
        model.head.weight[1] = 0
    assert not build("tau_norm", config, tiny_splits, model).head.weight[1].any()


@pytest.mark.parametrize("batch_size", [8, 35])
def test_nearest_class_mean_by_loops(batch_size, made, tiny_splits):
    method, model, loader = made("ncm", batch_size=batch_size)
    method.train()
    method.prepare(loader.fetch, loader.labels)
    train, test = tiny_splits.train, tiny_splits.test

    def features(images):
        with torch.no_grad():
            return model.encoder(model.preprocess(images)).double()

    every = features(train.images)
    means = [every[train.labels == c].mean(0) for c in range(3)]
    deployed = method.classifier()
    assert type(deployed.head) is CosineHead
    torch.testing.assert_close(deployed.head.weight.double(), torch.stack(means), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(deployed.logit_prior, torch.full((3,), 1 / 3))
    called = deployed.logits(test.images).argmax(1).tolist()
    for feature, answer in zip(features(test.images), called, strict=True):
        cosines = [float(feature @ mean / feature.norm() / mean.norm()) for mean in means]
        distances = [float((feature - mean / mean.norm()).norm()) for mean in means]
        assert answer == cosines.index(max(cosines)) == distances.index(min(distances))
    assert len(set(called)) > 1


def test_a_class_without_images_is_nearest_to_nothing(tiny_config, tiny_splits):
    config = tiny_config(method="ncm")
    splits = replace(tiny_splits, train=replace(tiny_splits.train, class_names=("left", "middle", "right", "none")))
    method = build("ncm", config, splits, representation(config, splits))
    loader = loader_for(method, splits)
    method.prepare(loader.fetch, loader.labels)
    assert (method.classifier().logits(tiny_splits.test.images).argmax(1) != 3).all()


# --- Whole runs


def results(path):
    return {name: (path / name).read_bytes() for name in RESULTS if (path / name).exists()}


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_keeps_its_representation_and_resumes_after_any_crash(
    name, ema, tmp_path, tiny_config, tiny_splits, crash_at_every_write
):
    config = tiny_config(method=name, decoupled__epochs=2, optimiser__ema=ema, optimiser__clip_norm=1.0)
    evaluation = run(tmp_path / "whole", config, tiny_splits)
    expected = results(tmp_path / "whole")
    assert set(expected) == set(RESULTS)
    first, last = (load_file(tmp_path / "whole" / part / "model.safetensors") for part in ("representation", ""))
    for key, value in first.items():
        if key.startswith("encoder."):
            assert torch.equal(value, last[key]), key
    model = Classifier.load(tmp_path / "whole")
    assert type(model.head) is (CosineHead if name == "ncm" else LinearHead)
    called = model.logits(tiny_splits.test.images).argmax(1)
    assert evaluation["top1"] == pytest.approx((called == tiny_splits.test.labels).double().mean().item())
    lines = [json.loads(line) for line in expected["metrics.jsonl"].decode().splitlines()]
    stages = [(line["stage"], line["epoch"]) for line in lines]
    assert stages == [("representation", 1), ("representation", 2)] + [
        ("classifier", epoch) for epoch in (1, 2) if name in STEPPED
    ]
    assert len(list((tmp_path / "whole" / "resume").glob("state-1-*"))) == 1
    run(tmp_path / "whole", config, tiny_splits, resume=True)
    assert results(tmp_path / "whole") == expected
    if ema is None or name not in ("crt", "ncm"):  # one that takes steps and one that does not: a second a crash
        return
    for path in crash_at_every_write(10, lambda path, resume: run(path, config, tiny_splits, resume=resume)):
        assert results(path) == expected, path.name


@pytest.mark.parametrize("step", [1, 4, 6])
def test_a_stopped_classifier_resumes_to_the_same_bytes(step, tmp_path, tiny_config, tiny_splits, monkeypatch):
    config = tiny_config(method="crt", decoupled__epochs=2, optimiser__ema=0.9)
    run(tmp_path / "whole", config, tiny_splits)
    batches = stop_at_step(monkeypatch, ClassifierRetraining, step)
    with pytest.raises(Interrupted, match="of stage 'classifier'"):
        run(tmp_path / "run", config, tiny_splits)
    run(tmp_path / "run", config, tiny_splits, resume=True)
    assert results(tmp_path / "run") == results(tmp_path / "whole")
    drawn = torch.bincount(torch.cat([batch.labels for batch in batches]), minlength=3)
    assert drawn.sum() == 64
    assert drawn.min() >= 64 / 3 - 8  # every class equally often, but for rounding and dropped steps


def test_means_asked_to_stop_are_kept_and_go_on(tmp_path, tiny_config, tiny_splits, monkeypatch):
    config = tiny_config(method="ncm")
    run(tmp_path / "whole", config, tiny_splits)
    real, calls = NearestClassMean.prepare, []

    def prepare(self, fetch, labels):
        calls.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        real(self, fetch, labels)

    monkeypatch.setattr(NearestClassMean, "prepare", prepare)
    with pytest.raises(Interrupted, match="'classifier'; its state is saved"):
        run(tmp_path / "run", config, tiny_splits)
    assert not (tmp_path / "run" / "model.json").exists()
    run(tmp_path / "run", config, tiny_splits, resume=True)
    assert calls == [1]  # what was fitted is in the state
    assert results(tmp_path / "run") == results(tmp_path / "whole")


def test_validation_selects_nothing_where_there_are_no_epochs(tmp_path, tiny_config, tiny_splits):
    splits = replace(tiny_splits, validation=tiny_splits.test)
    config = tiny_config(method="tau_norm", val_fraction=0.2, select="best")
    evaluation = run(tmp_path / "run", config, splits)
    assert evaluation["selection"] == "last"
    first = json.loads((tmp_path / "run" / "representation" / "evaluation.json").read_text())
    assert first["selection"] == "best"


def test_a_frozen_encoder_trains_in_bfloat16(tmp_path, tiny_config, tiny_splits):
    for name in NAMES:
        config = tiny_config(method=name, precision="bfloat16", decoupled__epochs=1, epochs=1)
        run(tmp_path / name, config, tiny_splits)
        tensors = load_file(tmp_path / name / "model.safetensors")
        assert tensors["head.weight"].dtype == torch.float32
        assert tensors["head.weight"].isfinite().all()


# --- Runs that are ready


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A run of cross entropy and one of logit adjustment, on digits."""
    folder = tmp_path_factory.mktemp("ready")
    for method in ("cross_entropy", "logit_adjustment"):
        longtail.train("digits-lt", method=method, epochs=1, out=str(folder / method), device="cpu", quiet=True)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_ready_run_is_the_representation(name, ready, tmp_path, capsys):
    options = {"method": name, "decoupled": {"run": str(ready / "cross_entropy"), "epochs": 1}, "device": "cpu"}
    result = longtail.train("digits-lt", out=str(tmp_path / "run"), **options)
    told = capsys.readouterr().out
    assert "representation  epoch" not in told
    own, given = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run", ready / "cross_entropy"))
    for key in given:
        if key.startswith("encoder."):
            assert torch.equal(own[key], given[key])
    again = longtail.train("digits-lt", out=str(tmp_path / "run"), resume=True, quiet=True)
    assert again.evaluation == result.evaluation
    assert (tmp_path / "run" / "report.html").exists()
    images = longtail.data.load_data("digits-lt").test.images[:50]
    answers = result.load().predict(images)
    assert torch.allclose(answers.sum(1), torch.ones(50))
    assert longtail.evaluate(tmp_path / "run", quiet=True) is not None


def test_runs_that_do_not_fit_are_refused(ready, tiny_config, tiny_splits, tmp_path):
    config = tiny_config(method="crt", decoupled__run=str(ready / "cross_entropy"))
    check = get_method("crt").check
    with pytest.raises(UserError, match="the representation's classes are not those"):
        check(config, tiny_splits.train)
    model = representation(config, tiny_splits)
    model.save(tmp_path / "own")
    config = replace_options(config, {"decoupled.run": str(tmp_path / "own")})
    check(config, tiny_splits.train)
    with pytest.raises(UserError, match=r"of a small_net, .* --backbone cifar_resnet32; use --backbone small_net"):
        check(replace_options(config, {"backbone": "cifar_resnet32"}), tiny_splits.train)
    with pytest.raises(UserError, match=r"--decoupled.run cannot be used with --folds"):
        check(replace_options(config, {"folds": 3}), tiny_splits.train)
    with pytest.raises(UserError, match="normalised by mean"):
        check(replace_options(config, {"source.mean": [0.1], "source.std": [0.25]}), tiny_splits.train)
    model.framing = Framing((4, 4), resize=4)
    model.save(tmp_path / "smaller")
    with pytest.raises(UserError, match="the representation was trained on 1-channel images"):
        check(replace_options(config, {"decoupled.run": str(tmp_path / "smaller")}), tiny_splits.train)
    with pytest.raises(UserError, match="nowhere"):
        check(replace_options(config, {"decoupled.run": str(tmp_path / "nowhere")}), tiny_splits.train)


@pytest.mark.parametrize("name", NAMES)
def test_a_cosine_head_cannot_be_rescaled(name, tiny_config, tiny_splits, tmp_path):
    config = tiny_config(method=name, decoupled__run=str(tmp_path / "cosine"))
    model = build("logit_adjustment", config, tiny_splits).classifier()
    model.save(tmp_path / "cosine")
    if name in ("crt", "ncm"):
        get_method(name).check(config, tiny_splits.train)
        build(name, config, tiny_splits, model)
        return
    with pytest.raises(UserError, match=f"{name} rescales .* cosine head; use a run of cross_entropy"):
        get_method(name).check(config, tiny_splits.train)
    with pytest.raises(UserError, match="cosine head"):
        build(name, config, tiny_splits, model)


def test_another_ready_run_is_taken_where_a_run_is_overwritten(ready, tmp_path):
    given = {"data": "digits-lt", "device": "cpu", "quiet": True, "epochs": 1}
    longtail.train(**given, method="cross_entropy", seed=5, out=str(tmp_path / "other"))
    given |= {"out": str(tmp_path / "ncm"), "overwrite": True}
    for taken in (ready / "cross_entropy", tmp_path / "other"):
        longtail.train(**given, method="ncm", decoupled={"run": str(taken)})
        kept, wanted = (
            load_file(place / "model.safetensors") for place in (tmp_path / "ncm" / "representation", taken)
        )
        assert all(torch.equal(value, wanted[name]) for name, value in kept.items())
    longtail.train(**given, method="cross_entropy")
    assert not (tmp_path / "ncm" / "representation").exists()


@pytest.mark.parametrize("name", ["crt", "ncm"])
def test_what_a_method_does_not_read_moves_none_of_its_stages(name, tmp_path, tiny_config, tiny_splits):
    unread = {"loss__mixup": 0.5, "loss__class_weights": "inverse", "loss__post_hoc_strength": 1.0}
    assert not any(get_method(name).reads(key.replace("__", ".")) for key in unread)
    models = []
    for changes in ({}, unread):
        run(tmp_path / str(len(changes)), tiny_config(method=name, **changes), tiny_splits)
        models.append((tmp_path / str(len(changes)) / "model.safetensors").read_bytes())
    assert models[0] == models[1]


def test_every_one_of_the_family_is_tested_here():
    assert {name for name, method in METHODS.items() if issubclass(method, Decoupled)} == set(NAMES)
