"""A step's arithmetic against a plain loop, what it refuses, that it never reads from the device, and its replay."""

import copy
import math
from contextlib import nullcontext

import pytest
import torch
from tape import TapeRecorder
from torch import nn

from longtail.config import replace_options
from longtail.data.loading import Batch, ResidentLoader
from longtail.data.views import build_view
from longtail.methods import METHODS, MethodContext, Stage, get_method, logit_adjustment
from longtail.methods.decoupled import Decoupled
from longtail.training.capture import WARM_UP, CapturedStep
from longtail.training.ema import MovingAverage
from longtail.training.guard import NormStatistics
from longtail.training.optimisers import build_optimiser, set_rate
from longtail.training.step import TrainingStep
from longtail.training.step_record import EpochSums, StepGuard

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")
STEPPED = sorted(METHODS.keys() - {"tau_norm", "ncm"})  # these two are closed forms


def build(name, config, splits):
    """A method of untrained networks with a full queue, and its loader."""
    config = replace_options(config, {"method": name})
    torch.manual_seed(0)

    def make(name, previous=None):
        stage = Stage("student", name, config.backbone, config.epochs)
        return get_method(name).build(MethodContext(config, stage, splits.train, splits.mean, splits.std, previous))

    before = "cross_entropy" if issubclass(get_method(name), Decoupled) else "logit_adjustment"
    method = make(name, make(before).classifier()).to(memory_format=torch.channels_last)
    recipes = method.views | method.fetched_views
    views = {view: build_view(recipe, splits.mean, splits.std) for view, recipe in recipes.items()}
    loader = ResidentLoader(splits.train, views, config.batch_size, 0, CPU)
    method.recompute(loader.fetch, loader.labels)
    method.prepare(loader.fetch, loader.labels)
    return method.train(), loader, config


def step_of(method, config, average=None, **how):
    optimiser = build_optimiser(method.param_groups(), config.optimiser, CPU)
    set_rate(optimiser, 0.1)
    return TrainingStep(method, optimiser, average, CPU, **how)


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_steps_equal_a_plain_loop(name, clip_norm, tiny_config, tiny_splits):
    """The same networks trained by torch's unfused SGD, with gradients added up and clipped by hand."""
    method, loader, config = build(name, tiny_config(method=name), tiny_splits)
    plain = copy.deepcopy(method)
    step = step_of(method, config, clip_norm=clip_norm)
    reference = torch.optim.SGD(plain.param_groups(), lr=0.1, momentum=0.9, weight_decay=5e-4, foreach=False)
    for number in range(4):
        batch = loader.load(0, number)
        step(batch, 0.0)
        plain.update_memory(batch)
        reference.zero_grad()
        sum(plain(batch, 0.0).values()).backward()
        gradients = [p.grad for p in plain.parameters() if p.grad is not None]
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        if clip_norm is not None and norm > clip_norm:
            for gradient in gradients:
                gradient.mul_(clip_norm / norm)
        reference.step()
    for (label, value), other in zip(method.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5, msg=lambda text, label=label: f"{label}: {text}")
    assert step.guard.look() is None


@pytest.mark.parametrize("name", ["cross_entropy", "gml"])
def test_sharpness_aware_steps_equal_a_plain_loop(name, tiny_config, tiny_splits):
    """The gradient is that at the weights moved by the radius; statistics and log are those of the first pass."""
    method, loader, config = build(name, tiny_config(), tiny_splits)
    plain = copy.deepcopy(method)
    step = step_of(method, config, sharpness=0.3)
    reference = torch.optim.SGD(plain.param_groups(), lr=0.1, momentum=0.9, weight_decay=5e-4, foreach=False)
    logged = 0.0
    for number in range(3):
        batch = loader.load(0, number)
        step(batch, 0.0)
        plain.update_memory(batch)
        reference.zero_grad()
        first = plain(batch, 0.0)
        logged += float(first["classifier"].detach())
        sum(first.values()).backward()
        statistics = {n: b.clone() for n, b in plain.named_buffers()}
        trained = [p for p in plain.parameters() if p.grad is not None]
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in trained))
        weights = [p.detach().clone() for p in trained]
        with torch.no_grad():
            for p in trained:
                p.add_(p.grad, alpha=0.3 / norm)
        reference.zero_grad()
        sum(plain(batch, 0.0).values()).backward()
        with torch.no_grad():
            for p, weight in zip(trained, weights, strict=True):
                p.copy_(weight)
            for n, b in plain.named_buffers():
                b.copy_(statistics[n])
        reference.step()
    for (label, value), other in zip(method.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5, msg=lambda text, label=label: f"{label}: {text}")
    assert step.sums.so_far()[1]["classifier"] == pytest.approx(logged / 3, rel=1e-5)


def test_both_passes_of_a_sharpness_aware_step_draw_the_same(tiny_config, tiny_splits, monkeypatch):
    method, loader, config = build("cross_entropy", tiny_config(loss__mixup=1.0), tiny_splits)
    step, shares = step_of(method, config, sharpness=0.3), []
    real = logit_adjustment.mixup
    monkeypatch.setattr(logit_adjustment, "mixup", lambda *given: shares.append(real(*given)) or shares[-1])
    for number in range(3):
        torch.manual_seed(number)
        step(loader.load(0, number), 0.0)
    found = [float(mixed.share) for mixed in shares]
    assert found[::2] == found[1::2]
    assert len(set(found)) == 3


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("when", [0, 2])
def test_a_refused_step_leaves_weights_statistics_and_averages(optimiser, when, tiny_config, tiny_splits):
    """Steps with a bad one among them end where the good ones alone end; the first may be the bad one."""
    method, loader, config = build("logit_adjustment", tiny_config(optimiser__name=optimiser), tiny_splits)
    twin = copy.deepcopy(method)
    ends = []
    for trained, bad in ((method, when), (twin, None)):
        average = MovingAverage(nn.ModuleList([trained.encoder, trained.head]), 0.9)
        step = step_of(trained, config, average)
        set_rate(step.optimiser, 1e-3)
        good = [loader.load(0, number) for number in range(3)]
        for number in range(3):
            if number == bad:
                broken = loader.load(1, 0)
                broken.views["classifier"][0, 0, 0, 0] = float("nan")
                step(broken, 0.0)
            step(good[number], 0.0)
        refused = step.guard.look()
        if bad is None:
            assert refused is None
        else:
            assert (refused.count, refused.in_row, refused.last) == (1, 1, when)
            assert refused.why == "loss 'classifier' is nan"
        assert step.guard.look() is None  # told once
        assert step.sums.steps == 3
        ends.append({**trained.state_dict(), **{f"average.{k}": v for k, v in average.state_dict().items()}})
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_guard_counts_rows_and_says_why():
    guard, one = StepGuard(10, CPU), torch.ones(())

    def judge(loss=1.0, statistics=1.0, gradient=1.0):
        return bool(guard.judge({"gml": one * loss}, one * statistics, one * gradient))

    assert not judge()
    assert judge(loss=math.inf)
    assert judge(statistics=math.nan)
    assert not judge()
    assert judge(gradient=1e20)
    found = guard.look()
    assert (found.count, found.in_row, found.last) == (3, 2, 14)
    assert found.why == "the gradient's norm is 1e+20"
    assert guard.in_row == 1
    assert judge(statistics=math.inf)
    assert (guard.look().in_row, guard.in_row) == (2, 2)  # the row began before the last look
    assert not judge()
    assert guard.look() is None
    assert guard.in_row == 0


def test_sums_are_means_over_the_steps_that_counted():
    sums = EpochSums()
    assert sums.so_far() == (0, {})
    for value, bad in ((1.0, False), (100.0, True), (4.0, False)):
        sums.add({"loss": torch.tensor(value), "bits": torch.tensor(math.nan)}, torch.tensor(bad))
    assert sums.so_far() == (2, {"loss": 2.5})
    again = EpochSums.restored(["loss", "bits"], sums.tensors(), sums.steps, CPU)
    assert again.so_far() == (2, {"loss": 2.5})
    sums.clear()
    assert sums.so_far() == (0, {})
    with pytest.raises(ValueError, match="figures"):
        sums.add({"loss": torch.tensor(0.0)}, torch.tensor(False))


class Idle(torch.optim.SGD):
    """Torch's fused step has no form for tensors without values; that it reads nothing is torch's own promise."""

    def step(self):
        assert self.found_inf.device.type == "meta"


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("changes", [{}, {"optimiser__ema": 0.9}, {"teacher__kind": "momentum"}, {"teacher__cache": 2}])
def test_a_step_never_reads_from_its_device(name, changes, tiny_config, tiny_splits, monkeypatch):
    """Tensors without values stand for a device: reading one raises, here where there is no accelerator."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # unknown for such tensors
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    method, loader, config = build(name, tiny_config(method=name, **changes), tiny_splits)
    batch = loader.load(0, 0)
    if name == "cross_entropy":  # an encoder without BatchNorm: its statistics are none, on whatever device
        method.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 128))
    method = method.to("meta")
    views = {view: pixels.to("meta") for view, pixels in batch.views.items()}
    optimiser = Idle(method.param_groups(), lr=0.1)
    deployed = nn.ModuleList([method.encoder, method.head])
    average = MovingAverage(deployed, 0.9) if config.optimiser.ema else None
    step = TrainingStep(method, optimiser, average, torch.device("meta"), clip_norm=1.0)
    for _ in range(2):
        step(Batch(views, batch.labels.to("meta"), batch.ids.to("meta")), 0.0)
    with pytest.raises(Exception, match="meta"):
        step.guard.look()


class Again:
    """Stands for a device's recorder: a replay runs the work again, on the tensors it was recorded with."""

    def __init__(self):
        self.warm, self.recorded = 0, 0

    def warm_up(self, work):
        self.warm += 1
        work()

    def record(self, work):
        self.recorded += 1
        return work


def test_a_captured_step_trains_as_the_step_itself(tiny_config, tiny_splits):
    method, loader, config = build("gml", tiny_config(), tiny_splits)
    twin = copy.deepcopy(method)
    recorder = Again()
    plain, captured = step_of(method, config), CapturedStep(step_of(twin, config), recorder, pytest.fail)
    for number in range(WARM_UP + 3):
        batch = loader.load(*divmod(number, loader.steps_per_epoch))
        plain(batch, 0.0)
        captured(batch, 0.0)
    assert (recorder.warm, recorder.recorded) == (WARM_UP, 1)
    for (name, value), other in zip(method.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    assert captured._replay is not None
    with pytest.raises(ValueError, match="one shape"):
        captured(Batch({k: v[:4] for k, v in batch.views.items()}, batch.labels[:4], batch.ids[:4]), 0.0)


def test_a_step_that_cannot_be_captured_goes_on_and_says_so(tiny_config, tiny_splits):
    class Refuses(Again):
        def record(self, work):
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    method, loader, config = build("logit_adjustment", tiny_config(), tiny_splits)
    said = []
    step = step_of(method, config)
    captured = CapturedStep(step, Refuses(), said.append)
    for number in range(WARM_UP + 2):
        captured(loader.load(*divmod(number, loader.steps_per_epoch)), 0.0)
    assert step.sums.steps == WARM_UP + 2
    assert said == [
        "the step could not be captured (operation not permitted when stream is capturing); "
        "it runs uncaptured, which is slower."
    ]


@pytest.mark.parametrize("name", STEPPED)
def test_a_step_depends_on_progress_only_if_the_method_says_so(name, tiny_config, tiny_splits):
    """A captured step is given NaN for it; a method that does not say so must not mind."""
    method, loader, _ = build(name, tiny_config(method=name), tiny_splits)
    if method.uses_progress:
        pytest.skip("it says that it does, and is never captured")
    batch = loader.load(0, 0)
    losses = [copy.deepcopy(method)(batch, progress) for progress in (0.1, math.nan)]
    for one, other in zip(losses[0].values(), losses[1].values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimiser__name": "adamw"},
        {"teacher__cache": 3},
        {"method": "ldam_drw", "loss__deferred_from": 0.5},  # weights that begin after the recording
        {"method": "crt"},
    ],
)
def test_a_replay_of_the_operations_alone_trains_as_the_step_itself(changes, tiny_config, tiny_splits, monkeypatch):
    """What a captured step must read anew lies in tensors: batch, rate, epoch, sums, averages, refusals."""
    monkeypatch.setattr(NormStatistics, "restore", NormStatistics.put_back)  # as on a device
    config = tiny_config(**changes)
    method, loader, config = build(config.method, config, tiny_splits)
    twin = copy.deepcopy(method)
    ends = []
    for trained, recorded in ((method, False), (twin, True)):
        average = MovingAverage(nn.ModuleList([trained.encoder, trained.head]), 0.9)
        step = step_of(trained, config, average, clip_norm=1.0)
        for group in step.optimiser.param_groups:
            group["lr"] = torch.zeros(())  # as on a device

        def state(step=step, trained=trained, average=average):
            kept = [value for values in step.optimiser.state.values() for value in values.values()]
            guard = [step.guard._numbers, step.guard._last_checks, step.sums._sums, step.sums._steps]
            return [*trained.parameters(), *trained.buffers(), *average.buffers(), *kept, *guard]

        take = CapturedStep(step, TapeRecorder(state), pytest.fail) if recorded else step
        means = []
        for number in range(WARM_UP + 7):
            epoch, within = divmod(number, loader.steps_per_epoch)
            if within == 0:
                trained.on_epoch(epoch / config.epochs)
                means.append(step.sums.so_far())
                step.sums.clear()
            set_rate(step.optimiser, 0.1 / (1 + number))
            batch = loader.load(epoch, within)
            if number == WARM_UP + 3:
                batch.views["classifier"] = torch.full_like(batch.views["classifier"], math.nan)
            take(batch, 0.0)
        refused = step.guard.look()
        name = {"gml": "classifier", "ldam_drw": "ldam", "crt": "rebalanced"}[config.method]
        assert (refused.count, refused.last, refused.why) == (1, WARM_UP + 3, f"loss {name!r} is nan")
        ends.append(({**trained.state_dict(), **average.state_dict()}, means))
    assert ends[0][1] == ends[1][1]
    for name, value in ends[0][0].items():
        assert torch.equal(value, ends[1][0][name]), name
