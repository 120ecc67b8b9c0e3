"""Two and four processes compute what one computes: losses, gradients, memory and statistics after 20 steps."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.tensor import DTensor

from doubled import Doubled
from longtail.data.shares import Share
from longtail.methods import MethodContext, get_method
from longtail.ranks import Ranks
from longtail.training.guard import StopRequest
from longtail.training.loaders import build_loader
from longtail.training.loop import StageRun
from longtail.training.progress import ProgressReporter
from longtail.training.stage_job import StageJob
from longtail.training.stages import plan_stages
from processes import in_processes

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def full(value, like=None):
    """Return the array of a tensor, put together if it, or what it belongs to, is in shards."""
    if isinstance(like, DTensor):
        shape, stride = like.shape, like.stride()
        value = DTensor.from_local(value, like.device_mesh, like.placements, shape=shape, stride=stride)
    return (value.full_tensor() if isinstance(value, DTensor) else value).numpy()


def train(ranks, config, splits, number=0):
    """Train 20 steps of one stage in float64 and return all that it left: state, gradients, sums of the last epoch."""
    stage = plan_stages(config)[number]
    context = MethodContext(config, stage, splits.train, splits.mean, splits.std)
    share = Share(ranks.rank, ranks.world, config.optimiser.accumulate)
    records = []
    job = StageJob(
        config=config,
        stage=stage,
        build_method=lambda: get_method(stage.method).build(context).double(),
        build_loader=lambda method, seed: Doubled(build_loader(method, seed, context, CPU, share)),
        number=0,
        device=CPU,
        checkpoints=SimpleNamespace(folder=Path("nowhere"), save=lambda *state: None),
        log=SimpleNamespace(length=0, write=records.append),
        progress=ProgressReporter(quiet=True),
        stop=StopRequest(),
        look=lambda classifier: {},
        validate=None,
        identity={},
        ranks=ranks,
    )
    with torch.random.fork_rng(devices=[]):
        run = StageRun(job)
        run.run()
    kept = {name: full(value) for name, value in run.method.state_dict().items()}
    shards = {name: (p, run.weights.here(p).grad) for name, p in run.method.named_parameters()}
    kept |= {f"grad {name}": full(grad, like=p) for name, (p, grad) in shards.items() if grad is not None}
    if run.average is not None:
        values, like = run.average.state_dict(), run.average.averaged
        kept |= {f"average {name}": full(value, like=like.get(name)) for name, value in values.items()}
    figures = {f"{k} {i}": v for i, r in enumerate(records) for k, v in r.items() if isinstance(v, float)}
    return kept | {name: torch.tensor(value).double().numpy() for name, value in figures.items()}


def differences(world, config, splits):
    """Return the largest difference of every tensor from what one process leaves, over all processes."""
    alone = train(Ranks(), config, splits)
    found = {}
    for kind, value in in_processes(world, train, config, splits):
        assert kind == "done", (kind, value)
        assert value.keys() == alone.keys()
        for name, one in alone.items():
            assert (one.shape, one.dtype) == (value[name].shape, value[name].dtype)
            gap = abs(one.astype("float64") - value[name].astype("float64")).max() if one.size else 0.0
            found[name] = max(found.get(name, 0.0), float(gap))
    return found


def options(method, **more):
    return {"method": method, "backbone": "small_net", "batch_size": 8, "epochs": 5} | more


CASES = {
    "gml": options("gml", teacher__kind="momentum", loss__learn_temperature=True, optimiser__ema=0.9),
    "gml, clipped, sharp": options(
        "gml", teacher__kind="momentum", optimiser__clip_norm=0.1, optimiser__sharpness=0.05
    ),
    "gml, accumulated": options("gml", teacher__kind="momentum", optimiser__accumulate=2),
    "gml, sharded": options(
        "gml",
        teacher__kind="momentum",
        optimiser__shard=True,
        optimiser__ema=0.9,
        optimiser__clip_norm=0.1,
        optimiser__sharpness=0.05,
        optimiser__accumulate=2,
    ),
    "gml, sharded, adamw": options("gml", teacher__kind="momentum", optimiser__shard=True, optimiser__name="adamw"),
    "paco": options("paco"),
    "bcl": options("bcl"),
    "proco": options("proco"),
    "supcon": options("supcon"),
    "infonce": options("infonce"),
    "balanced_softmax": options("balanced_softmax", sampler="square_root"),
    "mixup": options("cross_entropy", loss__mixup=0.4),
}


def parameters():
    """The method that the project is for at every test run, the others in `make check`."""
    for world in (2, 4):
        for case in CASES:
            slow = [] if (case, world) == ("gml, accumulated", 2) else [pytest.mark.check]
            yield pytest.param(case, world, marks=slow)


@pytest.mark.parametrize(("case", "world"), parameters())
def test_processes_leave_what_one_leaves(case, world, tiny_config, tiny_splits):
    found = differences(world, tiny_config(**CASES[case]), tiny_splits)
    assert any(name.startswith("grad encoder") for name in found)
    worst = max(found, key=found.get)
    assert found[worst] < 1e-9, (worst, found[worst])
