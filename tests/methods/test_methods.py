"""Each method's step against a slow version of the paper's equations, and the contract with the loop."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from longtail.config import replace_options
from longtail.data import Framing
from longtail.data.loading import ResidentLoader
from longtail.data.views import build_view
from longtail.errors import UserError
from longtail.methods import METHODS, MethodContext, Stage, get_method
from longtail.methods.decoupled import Decoupled
from longtail.models import LinearHead
from longtail.reporting import report

STEPLESS = ("tau_norm", "ncm")
"""Methods in closed form, which take no step."""


def build(name, config, splits, previous=None):
    config = replace_options(config, {"method": name})
    stage = Stage("student", name, config.backbone, config.epochs)
    torch.manual_seed(0)
    context = MethodContext(config, stage, splits.train, splits.mean, splits.std, previous)
    return get_method(name).build(context)


def loader_for(method, splits, batch_size=8):
    recipes = method.views | method.fetched_views
    views = {name: build_view(recipe, splits.mean, splits.std) for name, recipe in recipes.items()}
    return ResidentLoader(splits.train, views, batch_size, seed=0, device=torch.device("cpu"))


def teacher_for(config, splits):
    return build("logit_adjustment", config, splits).classifier()


def previous_for(name, config, splits):
    """What a method's stage takes, of untrained networks."""
    if issubclass(get_method(name), Decoupled):
        return build("cross_entropy", config, splits).classifier()
    return teacher_for(config, splits) if name == "gml" else None


def primed_gml(config, splits):
    method = build("gml", config, splits, teacher_for(config, splits))
    loader = loader_for(method, splits)
    method.recompute(loader.fetch, loader.labels)
    method.prepare(loader.fetch, loader.labels)
    return method, loader


@pytest.mark.parametrize(("name", "strength"), [("cross_entropy", 0.0), ("logit_adjustment", 1.0)])
def test_single_view_methods_against_the_formula(name, strength, tiny_config, tiny_splits):
    method = build(name, tiny_config(), tiny_splits).eval()
    batch = loader_for(method, tiny_splits).load(0, 0)
    losses = method(batch, 0.0)
    assert list(losses) == ["classifier"]
    log_prior = torch.tensor([24.0, 9.0, 2.0]).div(35).log()
    logits = method.head(method.encoder(batch.views["classifier"])) + strength * log_prior
    expected = -logits.log_softmax(1)[torch.arange(8), batch.labels].mean()
    torch.testing.assert_close(losses["classifier"], expected)
    assert isinstance(method.head, LinearHead) == (name == "cross_entropy")


def slow_gml(queries, labels, keys, key_labels, temperature, prior, pooling="mean"):
    """L_GML in float64 by loops over samples, classes and keys."""
    total = 0.0
    for query, label in zip(queries.double(), labels.tolist(), strict=True):
        scores = []
        for c, p in enumerate(prior):
            own = [math.exp(float(query @ key.double()) / temperature) for key in keys[key_labels == c]]
            scores.append(p * sum(own) / (len(own) if pooling == "mean" else 1))
        total -= math.log(scores[label] / sum(scores))
    return total / len(labels)


def test_gml_step_against_the_formula(tiny_config, tiny_splits):
    config = tiny_config(loss__learn_temperature=False, loss__temperature=0.2, loss__classifier_weight=0.5)
    method, loader = primed_gml(config, tiny_splits)
    batch = loader.load(0, 0)
    method.update_memory(batch)
    losses = method(batch, 0.0)
    assert list(losses) == ["classifier", "gml", "distillation"]

    both = torch.cat([batch.views["classifier"], batch.views["query"]])
    features = method.encoder(both)  # in training mode again: the same batch statistics
    prior = torch.tensor([24.0, 9.0, 2.0]) / 35
    logits = method.head(features[:8])
    torch.testing.assert_close(losses["classifier"], 0.5 * F.cross_entropy(logits + prior.log(), batch.labels))
    expected = slow_gml(
        method.query_projection(features[8:]).detach(),
        batch.labels,
        method.key_projection(method.queue.features).detach(),
        method.queue.labels,
        0.2,
        prior.tolist(),
    )
    assert losses["gml"].item() == pytest.approx(expected, abs=1e-5)
    with torch.no_grad():
        taught = method.teacher.head(method.teacher.encoder(batch.views["classifier"]))
    p, q = (taught / 4).softmax(1), (logits / 4).softmax(1)
    torch.testing.assert_close(losses["distillation"], 16 * (p * (p / q).log()).sum(1).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("switch", [("queue__kind", "fifo"), ("loss__class_pooling", "sum"), ("queue__project", False)])
def test_switches_against_the_formula(switch, tiny_config, tiny_splits):
    config = tiny_config(loss__learn_temperature=False, loss__temperature=0.2, **dict([switch]))
    method, loader = primed_gml(config, tiny_splits)
    get_method("gml").check(config, tiny_splits.train)
    batch = loader.load(0, 0)
    method.update_memory(batch)
    found = method(batch, 0.0)["gml"]
    found.backward()
    features = method.encoder(torch.cat([batch.views["classifier"], batch.views["query"]]))[8:]
    keys, key_labels = method.queue.features[method.queue.filled], method.queue.labels[method.queue.filled]
    if switch[0] == "queue__project":
        assert not list(method.query_projection.parameters())
        queries, keys = F.normalize(features), F.normalize(keys)
    else:
        queries, keys = method.query_projection(features), method.key_projection(keys)
    prior = (torch.tensor([24.0, 9.0, 2.0]) / 35).tolist()
    expected = slow_gml(
        queries.detach(), batch.labels, keys.detach(), key_labels, 0.2, prior, config.loss.class_pooling
    )
    assert found.item() == pytest.approx(expected, abs=1e-5)
    assert all(p.grad is not None for p in method.encoder.parameters())
    if switch[0] == "queue__kind":
        assert len(key_labels) == config.queue.capacity
        newest = method.queue.ids[(method.queue.features == method.teacher.features(batch.views["key"])[7]).all(1)]
        assert newest.tolist() == [batch.ids[7]]


def test_without_a_projection_student_and_teacher_must_be_of_one_width(tiny_config, tiny_splits):
    config = tiny_config(queue__project=False, teacher__backbone="cifar_resnet20")
    with pytest.raises(UserError, match=r"project false .* small_net gives \d+ .* cifar_resnet20 64"):
        get_method("gml").check(config, tiny_splits.train)
    get_method("gml").check(tiny_config(queue__project=False, teacher__kind="momentum"), tiny_splits.train)
    with pytest.raises(UserError, match=r"teacher\.kind frozen, pretrained or momentum"):
        get_method("gml").check(tiny_config(teacher__kind="none"), tiny_splits.train)


def test_the_batch_is_in_the_queue_before_the_loss_with_its_own_labels_and_ids(tiny_config, tiny_splits):
    method, loader = primed_gml(tiny_config(), tiny_splits)
    batch = loader.load(3, 1)
    method.update_memory(batch)
    features = method.teacher.features(batch.views["key"])
    for feature, label, sample in zip(features, batch.labels, batch.ids, strict=True):
        slots = (method.queue.features == feature).all(1).nonzero().flatten()
        assert len(slots) == 1
        assert method.queue.labels[slots] == label
        assert method.queue.ids[slots] == sample
        assert tiny_splits.train.labels[sample] == label


def test_forward_leaves_memory_and_teacher_alone(tiny_config, tiny_splits):
    method, loader = primed_gml(tiny_config(), tiny_splits)
    batch = loader.load(0, 0)
    method.update_memory(batch)
    kept = {
        f"{part}.{k}": v.clone() for part in ("queue", "teacher") for k, v in getattr(method, part).state_dict().items()
    }
    sum(method(batch, 0.0).values()).backward()
    for name, value in kept.items():
        part, key = name.split(".", 1)
        assert torch.equal(getattr(method, part).state_dict()[key], value)
    assert all(p.grad is None for p in method.teacher.parameters())
    for part in (method.encoder, method.head, method.query_projection, method.key_projection):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


@pytest.mark.parametrize(
    ("option", "left_out", "part"),
    [("loss__distillation_weight", "distillation", "teacher.logits"), ("loss__contrast_weight", "gml", "queue")],
)
def test_a_term_of_weight_zero_is_not_computed(option, left_out, part, tiny_config, tiny_splits, monkeypatch):
    method, loader = primed_gml(tiny_config(**{option: 0.0}), tiny_splits)
    batch = loader.load(0, 0)
    if part == "teacher.logits":
        monkeypatch.setattr(type(method.teacher), "logits", lambda *_: pytest.fail("teacher was asked"))
    else:
        monkeypatch.setattr(type(method.key_projection), "forward", lambda *_: pytest.fail("queue was projected"))
        monkeypatch.setattr(type(method.teacher), "features", lambda *_: pytest.fail("teacher was asked"))
        monkeypatch.setattr(type(method.teacher), "logits", lambda *_: torch.zeros(8, 3))
        assert set(method.views) == {"classifier"}
    method.update_memory(batch)
    assert left_out not in method(batch, 0.0)


def test_with_a_cache_the_teacher_is_asked_once_for_all_keys(tiny_config, tiny_splits, monkeypatch):
    """Keys are features of one of 3 views that the teacher saw before the first step; then it sees no key view."""
    config = tiny_config(teacher__cache=3, loss__distillation_weight=0.0)
    method, loader = primed_gml(config, tiny_splits)
    assert set(method.views) == {"classifier", "query"}
    wanted = torch.stack(
        [method.teacher.features(loader.fetch("key", torch.arange(35), torch.full((35,), view))) for view in range(3)],
        dim=1,
    )
    torch.testing.assert_close(method.cache.features, wanted)
    assert torch.equal(method.queue.features, method.cache.view(*method.queue.prime_plan(loader.labels)))
    monkeypatch.setattr(type(method.teacher), "features", lambda *_: pytest.fail("teacher was asked"))
    method.on_epoch(0.5)
    batch = loader.load(1, 0)
    method.update_memory(batch)
    drawn = method.cache.draw(batch.ids)
    for feature, sample in zip(drawn, batch.ids.tolist(), strict=True):
        slots = (method.queue.features == feature).all(1)
        assert method.queue.ids[slots].tolist() == [sample]
    assert list(method(batch, 0.0)) == ["classifier", "gml"]
    with pytest.raises(UserError, match=r"teacher\.cache 1000000000 keeps .* GiB of memory are free"):
        get_method("gml").check(tiny_config(teacher__cache=10**9), tiny_splits.train)
    with pytest.raises(UserError, match=r"teacher\.cache"):
        get_method("gml").check(tiny_config(teacher__cache=2, teacher__kind="momentum"), tiny_splits.train)


def test_weight_decay_spares_the_temperature_only(tiny_config, tiny_splits):
    method, _ = primed_gml(tiny_config(), tiny_splits)
    trained, temperature = method.param_groups()
    assert temperature["weight_decay"] == 0.0
    assert [id(p) for p in temperature["params"]] == [id(method.contrast_loss.log_temperature)]
    every = {id(p) for p in method.parameters() if p.requires_grad}
    assert {id(p) for p in trained["params"]} | {id(temperature["params"][0])} == every
    fixed, _ = primed_gml(tiny_config(loss__learn_temperature=False), tiny_splits)
    assert len(fixed.param_groups()) == 1


def test_momentum_teacher_follows_the_student_and_needs_no_stage(tiny_config, tiny_splits):
    config = tiny_config(teacher__kind="momentum", teacher__momentum=0.5)
    assert [stage.name for stage in get_method("gml").stages(config, "gml")] == ["student"]
    method, loader = build("gml", config, tiny_splits), None
    loader = loader_for(method, tiny_splits)
    method.prepare(loader.fetch, loader.labels)
    weight = next(method.encoder.parameters())
    before = next(method.teacher.encoder.parameters()).clone()
    with torch.no_grad():
        weight.add_(1.0)
    method.update_memory(loader.load(0, 0))
    torch.testing.assert_close(next(method.teacher.encoder.parameters()), before + 0.9)  # decay starts at 1/10


def test_stages_of_the_paper(tiny_config):
    config = replace_options(tiny_config(), {"teacher.backbone": "cifar_resnet56", "teacher.epochs": 7})
    teacher, student = get_method("gml").stages(config, "gml")
    assert (teacher.method, teacher.backbone, teacher.epochs) == ("logit_adjustment", "cifar_resnet56", 7)
    assert (student.method, student.backbone, student.takes) == ("gml", "small_net", "teacher")


@pytest.mark.parametrize(("name", "strength"), [("cross_entropy", 0), ("logit_adjustment", 1), ("gml", 1)])
def test_implied_prior_of_what_is_deployed(name, strength, tiny_config, tiny_splits):
    previous = teacher_for(tiny_config(), tiny_splits) if name == "gml" else None
    deployed = build(name, tiny_config(), tiny_splits, previous).classifier()
    expected = torch.full((3,), 1 / 3) if strength else torch.tensor([24.0, 9.0, 2.0]) / 35
    torch.testing.assert_close(deployed.logit_prior, expected)


def test_a_class_without_images_has_no_prior_at_any_strength(tiny_config, tiny_splits):
    method = build("logit_adjustment", tiny_config(), tiny_splits)
    train = SimpleNamespace(
        class_counts=torch.tensor([24, 0, 2]), class_names=tuple("abc"), channels=1, framing=tiny_splits.train.framing
    )
    context = dataclasses.replace(method.context, train=train)
    found = context.build_classifier(method.encoder, method.head, prior_strength=1.5).logit_prior
    torch.testing.assert_close(found, torch.tensor([1 / 24**0.5, 0.0, 1 / 2**0.5]) / (1 / 24**0.5 + 1 / 2**0.5))


def test_half_a_prior_implies_the_root_of_it(tiny_config, tiny_splits):
    deployed = build("logit_adjustment", tiny_config(loss__prior_strength=0.5), tiny_splits).classifier()
    root = torch.tensor([24.0, 9.0, 2.0]).sqrt()
    torch.testing.assert_close(deployed.logit_prior, root / root.sum())


def test_a_teacher_that_does_not_fit_is_refused(tiny_config, tiny_splits):
    config = tiny_config()
    linear = build("cross_entropy", config, tiny_splits).classifier()
    with pytest.raises(UserError, match="linear head"):
        build("gml", config, tiny_splits, linear)
    build("gml", tiny_config(loss__distillation_weight=0.0), tiny_splits, linear)
    other = teacher_for(config, tiny_splits)
    other.class_names = ("a", "b", "c")
    with pytest.raises(UserError, match="classes"):
        build("gml", config, tiny_splits, other)
    smaller = teacher_for(config, tiny_splits)
    smaller.framing = Framing((4, 4), resize=4)
    with pytest.raises(UserError, match="channels"):
        build("gml", config, tiny_splits, smaller)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_keeps_the_contract(name, tiny_config, tiny_splits):
    """One state holds all that was learned: a method rebuilt from it gives the same losses and the same model."""
    config = tiny_config(method=name)
    first, second = (build(name, config, tiny_splits, previous_for(name, config, tiny_splits)) for _ in range(2))
    loader = loader_for(first, tiny_splits)
    first.prepare(loader.fetch, loader.labels)
    stepless = name in STEPLESS
    assert stepless == (get_method(name).stages(config, name)[-1].epochs == 0)
    optimiser = torch.optim.SGD(first.param_groups(), lr=0.1)
    for step in () if stepless else range(2):
        batch = loader.load(0, step)
        first.update_memory(batch)
        sum(first(batch, 0.5).values()).backward()
        optimiser.step()
        optimiser.zero_grad()
    second.load_state_dict(first.state_dict())
    batch = loader.load(1, 0)
    assert set(batch.views) >= set(first.views)
    if not stepless:
        for one, other in zip(first(batch, 0.5).values(), second(batch, 0.5).values(), strict=True):
            assert torch.equal(one, other)
    images = tiny_splits.test.images
    assert torch.equal(first.classifier().logits(images), second.classifier().logits(images))


def test_every_method_has_a_name_for_people():
    assert set(METHODS) == set(report.METHODS)
