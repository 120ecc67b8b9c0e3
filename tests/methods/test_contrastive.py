"""Steps of the contrastive methods against slow versions, their stages, what they keep and what they leave behind."""

import copy
import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from longtail.config import replace_options
from longtail.data.loading import Batch, ResidentLoader
from longtail.data.views import build_view
from longtail.errors import UserError
from longtail.losses import PaCoLoss
from longtail.losses.bessel import log_bessel
from longtail.methods import MethodContext, Stage, get_method
from longtail.models import CosineHead, LinearHead

PRIOR = torch.tensor([24.0, 9.0, 2.0]) / 35
pytestmark = pytest.mark.usefixtures("one_thread")


def build(name, config, splits, previous=None, stage=None):
    stage = stage or Stage("student", name, config.backbone, config.epochs)
    torch.manual_seed(0)
    return get_method(name).build(MethodContext(config, stage, splits.train, splits.mean, splits.std, previous))


def ready(name, config, splits, previous=None, stage=None):
    """A method with its memory filled, and its loader."""
    method = build(name, config, splits, previous, stage)
    views = {view: build_view(recipe, splits.mean, splits.std) for view, recipe in method.views.items()}
    loader = ResidentLoader(splits.train, views, 8, seed=0, device=torch.device("cpu"))
    method.prepare(loader.fetch, loader.labels)
    return method.train(), loader


def taught_bcl(config, splits):
    teacher = build("logit_adjustment", config, splits).classifier()
    return ready("bcl", replace_options(config, {"teacher.kind": "frozen"}), splits, teacher)


def probe(name, config, splits):
    representation = build(name, config, splits).classifier()
    return ready(name, config, splits, representation, get_method(name).stages(config, name)[-1])


def slow_pairs(queries, labels, others, log, temperature, alone=True):
    """Supervised contrast in float64; others: (vector, label, row of the query that it is, or None)."""
    losses = []
    for i, (query, label) in enumerate(zip(queries.double(), labels, strict=True)):
        weights = [(math.exp(float(query @ v.double()) / temperature), c) for v, c, own in others if own != i]
        q = [w / sum(x for x, _ in weights) for w, c in weights if c == label]
        if q:
            losses.append(sum(-math.log(p) for p in q) / len(q) if log == "inside" else -math.log(sum(q) / len(q)))
    return sum(losses) / len(losses)


def projected(method, batch, names):
    """Features of the views in one pass, in training mode again: the same batch statistics."""
    return method.encoder(torch.cat([batch.views[name] for name in names]))


@pytest.mark.parametrize(
    ("name", "changes"), [("infonce", {}), ("supcon", {}), ("supcon", {"loss__supcon_log": "outside"})]
)
def test_representations_against_the_formula(name, changes, tiny_config, tiny_splits):
    config = tiny_config(method=name, loss__temperature=0.3, **changes)
    method, loader = ready(name, config, tiny_splits)
    batch = loader.load(0, 0)
    assert set(batch.views) == {"query", "key"}
    losses = method(batch, 0.0)
    assert list(losses) == [name]
    vectors = method.projection(projected(method, batch, ("query", "key"))).detach()
    labels = (torch.arange(8) if name == "infonce" else batch.labels).repeat(2).tolist()
    others = [(v, c, i) for i, (v, c) in enumerate(zip(vectors, labels, strict=True))]
    expected = slow_pairs(vectors, labels, others, config.loss.supcon_log, 0.3)
    assert losses[name].item() == pytest.approx(expected, abs=1e-5)
    losses[name].backward()
    assert all(p.grad is not None for p in method.encoder.parameters())
    assert all(p.grad is None for p in method.head.parameters())


@pytest.mark.parametrize("name", ["infonce", "supcon"])
def test_a_representation_and_a_classifier_are_two_stages(name, tiny_config):
    config = tiny_config(method=name, epochs=40)
    first, second = get_method(name).stages(config, name)
    assert (first.name, first.takes, first.epochs, first.sampler) == ("representation", None, 40, "instance")
    assert (second.name, second.takes, second.ready) == ("classifier", "representation", None)
    assert (second.method, second.epochs) == (name, config.decoupled.epochs)
    (only,) = get_method(name).stages(replace_options(config, {"decoupled.run": "runs/x"}), name)
    assert (only.name, only.takes, only.ready) == ("classifier", "representation", "runs/x")


@pytest.mark.parametrize(("name", "head", "strength"), [("infonce", CosineHead, 1.0), ("supcon", LinearHead, 0.0)])
def test_the_classifier_trains_its_head_on_an_encoder_that_stays(name, head, strength, tiny_config, tiny_splits):
    method, loader = probe(name, tiny_config(method=name), tiny_splits)
    assert method.classifies
    assert isinstance(method.head, head)
    assert not method.encoder.training
    batch = loader.load(0, 0)
    before = copy.deepcopy(method.encoder.state_dict())
    losses = method(batch, 0.0)
    logits = method.head(method.encoder(batch.views["classifier"])) + strength * PRIOR.log()
    torch.testing.assert_close(losses["classifier"], F.cross_entropy(logits, batch.labels))
    optimiser = torch.optim.SGD(method.param_groups(), lr=0.1)
    losses["classifier"].backward()
    optimiser.step()
    for key, value in method.encoder.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert {id(p) for group in method.param_groups() for p in group["params"]} == {
        id(p) for p in method.head.parameters()
    }
    implied = torch.full((3,), 1 / 3) if strength else PRIOR
    torch.testing.assert_close(method.classifier().logit_prior, implied)
    with pytest.raises(ValueError, match="an earlier stage"):
        build(name, tiny_config(method=name), tiny_splits, stage=get_method(name).stages(tiny_config(), name)[-1])


@pytest.mark.parametrize("log", ["inside", "outside"])
def test_supcon_beside_logit_adjustment_against_the_formula(log, tiny_config, tiny_splits):
    config = tiny_config(method="supcon_la", loss__temperature=0.3, loss__supcon_log=log, loss__contrast_weight=0.5)
    method, loader = ready("supcon_la", config, tiny_splits)
    batch = loader.load(0, 0)
    losses = method(batch, 0.0)
    assert list(losses) == ["classifier", "supcon"]
    features = projected(method, batch, ("classifier", "query", "key"))
    logits = method.head(features[:8]) + PRIOR.log()
    torch.testing.assert_close(losses["classifier"], F.cross_entropy(logits, batch.labels))
    vectors, labels = method.projection(features[8:]).detach(), batch.labels.repeat(2).tolist()
    others = [(v, c, i) for i, (v, c) in enumerate(zip(vectors, labels, strict=True))]
    assert losses["supcon"].item() == pytest.approx(0.5 * slow_pairs(vectors, labels, others, log, 0.3), abs=1e-5)
    entropy = -(PRIOR * PRIOR.log2()).sum()
    torch.testing.assert_close(method.readings()["bits"], entropy - losses["classifier"].detach() / math.log(2))


def slow_bcl(queries, labels, prototypes, keys, key_labels, temperature, own):
    total = 0.0
    for i, (query, label) in enumerate(zip(queries.double(), labels, strict=True)):
        weights = {}
        for c, prototype in enumerate(prototypes.double()):
            inside = [k for j, k in enumerate(keys.double()) if key_labels[j] == c and not (own and i == j)]
            weights[c] = [math.exp(float(query @ v) / temperature) for v in [*inside, prototype]]
        every = sum(sum(w) / len(w) for w in weights.values())
        total -= sum(math.log(w / every) for w in weights[label]) / len(weights[label])
    return total / len(queries)


@pytest.mark.parametrize("kind", ["none", "frozen"])
def test_bcl_against_the_formula(kind, tiny_config, tiny_splits):
    config = tiny_config(method="bcl", loss__temperature=0.3)
    method, loader = taught_bcl(config, tiny_splits) if kind == "frozen" else ready("bcl", config, tiny_splits)
    batch = loader.load(0, 0)
    assert set(batch.views) == {"classifier", "query", "key"}
    losses = method(batch, 0.0)
    student = ("classifier", "query") if kind == "frozen" else ("classifier", "query", "key")
    features = projected(method, batch, student)
    logits = method.head(features[:8]) + PRIOR.log()
    torch.testing.assert_close(losses["classifier"], F.cross_entropy(logits, batch.labels))
    queries = method.projection(features[8:]).detach()
    prototypes = method.prototype_projection(method.head.weight).detach()
    labels = batch.labels.tolist()
    if kind == "frozen":
        keys = method.key_projection(method.teacher.features(batch.views["key"])).detach()
        expected = slow_bcl(queries, labels, prototypes, keys, labels, 0.3, own=False)
    else:
        expected = slow_bcl(queries, labels * 2, prototypes, queries, labels * 2, 0.3, own=True)
    assert losses["bcl"].item() == pytest.approx(0.35 * expected, abs=1e-5)  # the weight as released
    sum(losses.values()).backward()
    trained = [method.encoder, method.head, method.projection, method.prototype_projection]
    for part in [*trained, *([method.key_projection] if kind == "frozen" else [])]:
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    if kind == "frozen":
        assert all(p.grad is None for p in method.teacher.parameters())


def test_bcl_with_a_teacher_has_the_stages_of_gml(tiny_config):
    config = tiny_config(method="bcl")
    assert [stage.name for stage in get_method("bcl").stages(config, "bcl")] == ["train"]
    teacher, student = get_method("bcl").stages(replace_options(config, {"teacher.kind": "frozen"}), "bcl")
    assert (teacher.name, teacher.method) == ("teacher", "logit_adjustment")
    assert (student.name, student.method, student.takes) == ("student", "bcl", "teacher")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bcl", {"teacher.kind": "momentum"}, "bcl has no queue"),
        ("bcl", {"teacher.run": "runs/x"}, "give --teacher.kind frozen"),
        ("bcl", {"teacher.run": "runs/x", "teacher.kind": "frozen", "folds": 3}, "--folds"),
        ("paco", {"teacher.kind": "frozen"}, "momentum encoder"),
        ("paco", {"queue.capacity": 10**6}, "over 1000 slots"),
        ("infonce", {"decoupled.run": "runs/x", "folds": 3}, "--folds"),
    ],
)
def test_options_that_do_not_fit_are_refused(name, changes, message, tiny_config, tiny_splits):
    config = replace_options(tiny_config(method=name), changes)
    with pytest.raises(UserError, match=message):
        get_method(name).check(config, tiny_splits.train)


def test_a_ready_representation_must_fit(tmp_path, tiny_config, tiny_splits):
    config = tiny_config(method="supcon")
    build("supcon", config, tiny_splits).classifier().save(tmp_path / "run")
    config = replace_options(config, {"decoupled.run": str(tmp_path / "run")})
    get_method("supcon").check(config, tiny_splits.train)
    with pytest.raises(UserError, match="use --backbone small_net"):
        get_method("supcon").check(replace_options(config, {"backbone": "cifar_resnet20"}), tiny_splits.train)
    other = replace_options(config, {"source.mean": [0.9], "source.std": [0.25]})
    with pytest.raises(UserError, match="normalised by mean"):
        get_method("supcon").check(other, tiny_splits.train)


def test_paco_against_the_formula(tiny_config, tiny_splits):
    config = tiny_config(method="paco", loss__temperature=0.3, loss__paco_alpha=0.5, queue__capacity=20)
    method, loader = ready("paco", config, tiny_splits)
    batch = loader.load(0, 0)
    method.update_memory(batch)
    loss = method(batch, 0.0)["paco"]
    features = method.encoder(batch.views["query"])
    queries, total = method.projection(features).detach().double(), 0.0
    logits = (method.head(features) + PRIOR.log()).detach().double()
    keys = list(zip(method.queue.features.double(), method.queue.labels.tolist(), strict=True))
    for i, label in enumerate(batch.labels.tolist()):
        others = [(queries[k], int(batch.labels[k])) for k in range(8) if k != i] + keys
        samples = [(math.exp(float(queries[i] @ v) / 0.3), c) for v, c in others]
        every = sum(math.exp(x) for x in logits[i].tolist()) + sum(w for w, _ in samples)
        mine = [math.log(w / every) for w, c in samples if c == label]
        total -= (float(logits[i, label]) - math.log(every) + 0.5 * sum(mine)) / (1 + 0.5 * len(mine))
    assert loss.item() == pytest.approx(total / 8, abs=1e-5)
    loss.backward()
    for part in (method.encoder, method.head, method.projection):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    assert all(p.grad is None for p in method.teacher.parameters())


def test_paco_queues_keys_of_the_momentum_encoder_with_their_labels(tiny_config, tiny_splits):
    config = tiny_config(method="paco", queue__capacity=20, teacher__momentum=0.5)
    method, loader = ready("paco", config, tiny_splits)
    assert method.queue.filled.all()
    assert set(method.queue.labels.tolist()) == {0, 1, 2} or method.queue.labels.bincount().argmax() == 0
    before = next(method.teacher.encoder.parameters()).clone()
    with torch.no_grad():
        next(method.encoder.parameters()).add_(1.0)
    batch = loader.load(0, 0)
    method.update_memory(batch)
    torch.testing.assert_close(next(method.teacher.encoder.parameters()), before + 0.9)  # decay starts at 1/10
    keys = method.teacher.head(method.teacher.encoder(batch.views["key"]))
    torch.testing.assert_close(method.queue.features[:8], keys)
    assert torch.equal(method.queue.labels[:8], batch.labels)


def test_proco_against_the_formula(tiny_config, tiny_splits):
    config = tiny_config(method="proco", loss__temperature=0.3)
    method, loader = ready("proco", config, tiny_splits)
    assert method.estimate.known.all()  # primed: no class is unknown in the first epoch
    batch = loader.load(0, 0)
    losses = method(batch, 0.0)
    features = projected(method, batch, ("classifier", "query", "key"))
    queries = method.projection(features[8:]).detach().double()
    means, total = method.estimate.means.double(), 0.0
    order, width = queries.shape[1] / 2 - 1, queries.shape[1]
    for query, label in zip(queries, batch.labels.repeat(2).tolist(), strict=True):
        scores = []
        for p, mean in zip(PRIOR.tolist(), means, strict=True):
            r = mean.norm()
            k = min(float(r * (width - r * r) / (1 - r * r)), 1e5)
            shifted = (k * mean / r + query / 0.3).norm()
            log_ratio = log_bessel(order, shifted) + shifted - log_bessel(order, shifted.new_tensor(k)) - k
            scores.append(math.log(p) + float(log_ratio))
        total -= scores[label] - math.log(sum(math.exp(score) for score in scores))
    assert losses["proco"].item() == pytest.approx(total / 16, rel=1e-4)
    k = method.estimate.parameters_of_classes()[1]
    torch.testing.assert_close(method.readings()["concentration"], k.prod() ** (1 / 3), rtol=1e-3, atol=0)
    assert set(method.readings()) == {"bits", "concentration"}


def test_proco_gathers_what_the_student_sees_and_leaves_its_statistics(tiny_config, tiny_splits):
    method, loader = ready("proco", tiny_config(method="proco"), tiny_splits)
    method.on_epoch(0.0)
    batch = loader.load(0, 0)
    before = {k: v.clone() for k, v in method.state_dict().items() if not k.startswith("estimate.")}
    method.update_memory(batch)
    for key, value in before.items():
        assert torch.equal(value, method.state_dict()[key]), key
    seen = method.projection(method.encoder(batch.views["query"])).detach()
    for c in range(3):
        torch.testing.assert_close(method.estimate.sums[c], seen[batch.labels == c].sum(0))
    kept = method.estimate.means.clone()
    method.on_epoch(0.5)
    present = torch.bincount(batch.labels, minlength=3) > 0
    assert torch.equal((method.estimate.means != kept).any(1), present)


@pytest.mark.parametrize("name", ["infonce", "supcon", "supcon_la", "bcl", "paco", "proco"])
def test_forward_leaves_the_memory_alone(name, tiny_config, tiny_splits):
    method, loader = ready(name, tiny_config(method=name), tiny_splits)
    batch = loader.load(0, 0)
    method.update_memory(batch)
    parts = [
        part for part in ("queue", "teacher", "estimate") if isinstance(getattr(method, part, None), torch.nn.Module)
    ]
    kept = {(part, k): v.clone() for part in parts for k, v in getattr(method, part).state_dict().items()}
    sum(method(batch, 0.0).values()).backward()
    for (part, key), value in kept.items():
        assert torch.equal(getattr(method, part).state_dict()[key], value), (part, key)
    assert all(f"{part}." in " ".join(method.state_dict()) for part in parts)


@pytest.mark.parametrize("name", ["supcon_la", "bcl", "proco"])
def test_a_contrast_of_weight_zero_costs_no_view(name, tiny_config, tiny_splits):
    method, loader = ready(name, tiny_config(method=name, loss__contrast_weight=0.0), tiny_splits)
    assert set(method.views) == {"classifier"}
    batch = loader.load(0, 0)
    method.update_memory(batch)
    assert list(method(batch, 0.0)) == ["classifier"]


@pytest.mark.parametrize(("name", "strength"), [("supcon_la", 1), ("bcl", 1), ("paco", 1), ("proco", 1)])
def test_what_is_deployed_is_an_ordinary_classifier(name, strength, tmp_path, tiny_config, tiny_splits):
    method, _ = ready(name, tiny_config(method=name), tiny_splits)
    deployed = method.classifier()
    implied = torch.full((3,), 1 / 3)
    if name == "paco":
        positives = (method.queue.capacity + 7) * torch.tensor([24.0, 9.0, 2.0]) / 35
        implied = 1 / (1 + 0.05 * positives)
    torch.testing.assert_close(deployed.logit_prior, implied / implied.sum())
    parts = {key.split(".")[0] for key in deployed.state_dict()}
    assert parts <= {"encoder", "head", "mean", "std", "class_counts", "logit_prior"}


@pytest.mark.parametrize("make", [taught_bcl, probe], ids=["bcl with a teacher", "classifier on a representation"])
def test_a_step_never_reads_from_its_device(make, tiny_config, tiny_splits, monkeypatch):
    """The forms that ``tests/training/test_step.py``, which runs every registered name, does not build."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # unknown for such tensors
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    if make is probe:
        method, loader = probe("infonce", tiny_config(method="infonce"), tiny_splits)
    else:
        method, loader = taught_bcl(tiny_config(method="bcl"), tiny_splits)
    batch, method = loader.load(0, 0), method.to("meta")
    batch = Batch({k: v.to("meta") for k, v in batch.views.items()}, batch.labels.to("meta"), batch.ids.to("meta"))
    method.update_memory(batch)
    sum(method(batch, 0.0).values()).backward()


@pytest.mark.parametrize("name", ["infonce", "supcon", "supcon_la", "bcl", "paco", "proco"])
def test_a_step_in_bfloat16_at_a_low_temperature(name, tiny_config, tiny_splits):
    method, loader = ready(name, tiny_config(method=name, loss__temperature=0.005), tiny_splits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        batch = loader.load(0, 0)
        method.update_memory(batch)
        losses = method(batch, 0.0)
    assert all(value.dtype == torch.float32 and bool(value.isfinite()) for value in losses.values())
    sum(losses.values()).backward()
    assert all(bool(p.grad.isfinite().all()) for p in method.parameters() if p.grad is not None)


def test_the_prior_that_pacos_centres_imply():
    """Of features that say nothing, the best centres have the softmax that the deployed model's prior says."""
    counts, capacity, alpha = torch.tensor([90.0, 10.0]), 400, 0.05
    loss = PaCoLoss(counts.long(), alpha=alpha, temperature=0.2)
    keys = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    labels = torch.arange(2).repeat_interleave(counts.long())
    key_labels = torch.arange(2).repeat_interleave(torch.tensor([360, 40]))
    centres = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([centres], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        value = loss(centres.expand(100, 2), keys.expand(100, 2), labels, keys.expand(400, 2), key_labels)
        value.backward()
        return value

    optimiser.step(closure)
    # The deployed prior takes the mean over batches, (B - 1 + capacity) times the class's share; this batch is at hand.
    implied = 1 / (1 + alpha * (counts - 1 + capacity * counts / 100))
    torch.testing.assert_close(centres.detach().softmax(0).float(), implied / implied.sum(), atol=2e-4, rtol=0)
