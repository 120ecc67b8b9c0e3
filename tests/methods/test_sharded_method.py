"""GML with its queue in shares of 2 and 4 processes against one process: three steps under DistributedDataParallel."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import sharded_ranks
from bars import bars
from longtail.config import replace_options
from longtail.data.loading import Batch
from longtail.errors import UserError
from longtail.memory import ClassQueue, ShardedClassQueue, own_share, whole_state
from longtail.methods import MethodContext, Stage, get_method
from longtail.methods.contrast_queue import build_fresh_keys
from longtail.options import make_config
from longtail.training.defaults import resolve

GIVEN = {
    "data": "bars",
    "method": "gml",
    "epochs": 2,
    "batch_size": 8,
    "device": "cpu",
    "queue.capacity": 24,
    "teacher.kind": "momentum",
    "loss.distillation_weight": 0.0,
}


def build(splits, config):
    torch.manual_seed(0)
    stage = Stage("student", "gml", config.backbone, config.epochs)
    method = get_method("gml").build(MethodContext(config, stage, splits.train, splits.mean, splits.std))
    return method.double()


def config_of(splits, **changes):
    options = GIVEN | {key.replace("__", "."): value for key, value in changes.items()}
    return replace_options(resolve(make_config(options), splits)[0], {"out": "unused"})


def ahead():
    splits = bars([24, 9, 2], [10, 10, 10], channels=1, side=8, views="tiny")
    build(splits, config_of(splits))


def fetch(view, ids, rounds):
    """A view that follows from the sample and the round alone."""
    return torch.stack(
        [
            torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(100 * int(i) + int(r)), dtype=torch.float64)
            for i, r in zip(ids, rounds, strict=True)
        ]
    )


def batch_of(step, labels):
    ids = torch.randperm(len(labels), generator=torch.Generator().manual_seed(step))[:8]
    views = {
        view: fetch(view, ids, ids * 0 + 10 + 3 * step + n) for n, view in enumerate(("classifier", "query", "key"))
    }
    return Batch(views, labels[ids], ids)


def trained(method, labels, wrapped):
    """Losses and readings of three steps, the first of which fills the queue."""
    found = []
    method.prepare(fetch, labels)
    method.train()
    optimiser = torch.optim.SGD(method.param_groups(), lr=0.1)
    for step in range(3):
        batch = batch_of(step, labels)
        method.update_memory(batch)
        losses = wrapped(batch, 0.0)
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
        found += [*losses.values(), *method.readings().values(), *(method.contrast_loss.counted.double()[None])]
    return torch.stack([value.detach() for value in found])


def work(rank):
    """What each of 4 processes does; returns the largest difference of losses and of states, by number of processes."""
    splits = bars([24, 9, 2], [10, 10, 10], channels=1, side=8, views="tiny")
    labels = torch.as_tensor(splits.train.labels)
    alone = build(splits, config_of(splits))
    expected = trained(alone, labels, alone)
    whole = alone.state_dict()
    found = {}
    for world in (2, 4):
        group = dist.new_group(range(world))
        if rank >= world:
            continue
        before = dist.group.WORLD
        torch.distributed.distributed_c10d._update_default_pg(group)  # a job of fewer processes
        method = build(splits, config_of(splits, queue__sharded=True))
        assert isinstance(method.queue, ShardedClassQueue)
        wrapped = DistributedDataParallel(method, broadcast_buffers=False)
        losses = trained(method, labels, wrapped)
        state = whole_state(method)
        if rank == 0:
            worst = max(float((state[name].double() - value.double()).abs().max()) for name, value in whole.items())
            found[world] = [float((losses - expected).abs().max()), worst, sorted(state) == sorted(whole)]
            found["moved"] = float((expected[-1] - expected[0]).abs())
            read = build(splits, config_of(splits, queue__sharded=True))
            read.load_state_dict(own_share(read, state))
            found[f"read {world}"] = torch.equal(read.queue.features, method.queue.features)
        torch.distributed.distributed_c10d._update_default_pg(before)
    return found


def test_steps_are_those_of_one_process(tmp_path):
    found = sharded_ranks.run(Path(__file__), "work", tmp_path)
    for world in ("2", "4"):
        losses, states, names = found[world]
        assert losses < 1e-9, found
        assert states < 1e-9, found
        assert names
        assert found[f"read {world}"]
    assert found["moved"] > 1e-3


def test_in_one_process_sharded_changes_nothing(tiny_splits):
    methods = [build(tiny_splits, config_of(tiny_splits, queue__sharded=sharded)) for sharded in (False, True)]
    assert type(methods[1].queue) is ClassQueue
    labels = torch.as_tensor(tiny_splits.train.labels)
    losses = [trained(method, labels, method) for method in methods]
    assert torch.equal(*losses)
    a, b = (method.state_dict() for method in methods)
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_fresh_keys_of_the_method(tiny_splits):
    labels = torch.as_tensor(tiny_splits.train.labels)
    whole, part = (build(tiny_splits, config_of(tiny_splits, queue__fresh_share=share)) for share in (1.0, 0.4))
    assert whole.fresh_keys is None
    assert part.fresh_keys.fresh == 10
    rows = []
    part.key_projection.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    losses = trained(part, labels, part)
    assert rows == [24, 10, 10, 10]
    assert torch.isfinite(losses).all()
    batch = batch_of(9, labels)
    part.update_memory(batch)
    written = torch.isin(part.queue.ids, batch.ids).nonzero().squeeze(1)
    assert set(part.fresh_keys.chosen.tolist()) & set(written.tolist())
    assert part(batch, 0.0)["gml"].item() == pytest.approx(part(batch, 0.0)["gml"].item(), abs=1e-12)
    # a batch of so many slots needs all of them
    assert build_fresh_keys(config_of(tiny_splits, queue__fresh_share=0.1, batch_size=24), part.queue) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"queue__sharded": True, "queue__kind": "fifo"}, ["--queue.sharded", "fifo"]),
        ({"queue__fresh_share": 0.5, "queue__kind": "fifo"}, ["--queue.fresh_share 0.5", "fifo"]),
        ({"queue__fresh_share": 0.5, "queue__project": False}, ["--queue.fresh_share 0.5", "--queue.project"]),
        ({"queue__fresh_share": 0.5, "queue__sharded": True}, ["--queue.fresh_share 0.5", "--queue.sharded"]),
    ],
)
def test_options_that_exclude_each_other(changes, words, tiny_splits):
    with pytest.raises(UserError) as refused:
        get_method("gml").check(config_of(tiny_splits, **changes), tiny_splits.train)
    assert all(word in str(refused.value) for word in words)


@pytest.mark.parametrize("share", [0.0, 1.5, -1.0, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(UserError, match=r"--queue\.fresh_share"):
        make_config(GIVEN | {"queue.fresh_share": share})
