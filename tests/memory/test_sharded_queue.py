"""Queue, projection and loss in shares of 2 and 4 processes against the whole in one, and a dense formula; float64."""

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import sharded_ranks
from longtail.errors import UserError
from longtail.losses import GMLLoss, ShardedGMLLoss
from longtail.memory import ClassQueue, ShardedClassQueue, own_share, project_share, whole_state
from longtail.models import ProjectionHead, UnitVectors

BATCH, DIM, WIDTH = 9, 5, 4
# One class without images (its slot stays empty), one that holds most slots; fewer classes than processes.
PROFILES = {"seven classes": ([30, 11, 6, 4, 0, 2, 1], 23), "three classes": ([5, 3, 2], 9)}
CASES = {
    "paper": {"learn_temperature": True},
    "own keys out": {"learn_temperature": True, "exclude_own_key": True},
    "no ids": {"learn_temperature": True},
    "no prior": {"learn_temperature": True, "prior_strength": 0.0},
    "sum": {"learn_temperature": True, "class_pooling": "sum"},
    "cold": {"learn_temperature": True, "temperature": 0.002},
    "constant": {"temperature": 0.3},
}


def batches(counts, number):
    generator = torch.Generator().manual_seed(number)
    present = torch.tensor(counts).nonzero().squeeze(1)
    labels = present[torch.randint(0, len(present), (BATCH,), generator=generator)]
    features = torch.randn(BATCH, DIM, generator=generator, dtype=torch.float64)
    return features, labels, torch.randint(0, 3, (BATCH,), generator=generator) + 100 * labels


def filled_queues(counts, capacity, group):
    queues = ClassQueue(counts, capacity, DIM).double(), ShardedClassQueue(counts, capacity, DIM, group=group).double()
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    table = torch.randn(len(labels), DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for queue in queues:
        queue.prime(labels, lambda indices, rounds: table[indices] + rounds[:, None])
    return queues


def share_of(queue, whole):
    """What of a whole queue lies in a share."""
    first, last = (int(whole.offsets[edge]) for edge in queue.edges[queue.rank : queue.rank + 2])
    return {name: getattr(whole, name)[first:last] for name in ("features", "ids", "filled", "labels")}


def equal_share(queue, whole):
    same = all(torch.equal(getattr(queue, name), value) for name, value in share_of(queue, whole).items())
    classes = slice(*queue.edges[queue.rank : queue.rank + 2])
    return same and torch.equal(queue.pointers[classes], whole.pointers[classes])


def gap(a, b):
    """Largest difference, infinite if only one of the two is a number."""
    same = torch.nan_to_num(a, nan=1e9) - torch.nan_to_num(b, nan=1e9)
    return float(same.abs().max()) if same.numel() else 0.0


def compared(case, counts, queues, world, group):
    """Largest differences between the whole in one process and the shares, after one forward and backward."""
    whole, shard = queues
    torch.manual_seed(0)
    projections = [ProjectionHead(DIM, WIDTH).double()]
    with torch.no_grad():
        projections[0].layers[1].weight.add_(torch.linspace(-0.5, 0.5, DIM))
    projections.append(copy.deepcopy(projections[0]))
    options = dict(CASES[case])
    losses = GMLLoss(counts, **options).double(), ShardedGMLLoss(counts, group=group, **options).double()
    raw, labels, ids = batches(counts, 77)
    inputs = [raw.clone().requires_grad_() for _ in losses]
    stored = [queue.features.clone().requires_grad_() for queue in queues]
    values = []
    for loss, projection, x, held, queue in zip(losses, projections, inputs, stored, queues, strict=True):
        keys = projection(held) if queue is whole else project_share(projection, held, whole.capacity, group)
        content = queue.content()
        given = {} if case == "no ids" else {"query_ids": ids, "key_ids": content.ids}
        value = loss(UnitVectors()(x[:, :WIDTH]), labels, keys, content.offsets, key_mask=content.filled, **given)
        value.backward()
        values.append(value.detach())
    pairs = {"value": values, "counted": [loss.counted.double() for loss in losses]}
    pairs["information"] = [loss.information.double() for loss in losses]
    first, last = shard.slot_edges[shard.rank : shard.rank + 2]
    pairs["features"] = [stored[0].grad[first:last], stored[1].grad / world]
    means = {}
    for name, parameter in projections[1].named_parameters():
        means[name] = [projections[0].get_parameter(name).grad, parameter.grad.clone()]
    means["queries"] = [inputs[0].grad, inputs[1].grad.clone()]
    if losses[0].learn_temperature:
        means["temperature"] = [loss.log_temperature.grad.clone() for loss in losses]
    for _, mine in means.values():
        dist.all_reduce(mine, group=group)  # what DistributedDataParallel does to a gradient
        mine /= world
    for name, buffer in projections[1].named_buffers():
        pairs[name] = [projections[0].get_buffer(name).double(), buffer.double()]
    worst = {name: gap(*pair) for name, pair in (pairs | means).items()}
    sizes = {name: float(pair[0].abs().max()) for name, pair in means.items()}
    return worst, sizes


def work(rank):
    """What each of 4 processes does; the largest differences of every case, and what else was found."""
    found, queues_equal, states = {}, {}, {}
    groups = {world: dist.new_group(range(world)) for world in (2, 4)}
    for world, group in groups.items():
        if rank >= world:
            continue
        for profile, (counts, capacity) in PROFILES.items():
            queues = filled_queues(counts, capacity, group)
            whole, shard = queues
            name = f"{world}, {profile}"
            queues_equal[name] = [equal_share(shard, whole)]
            for number in range(20):
                features, labels, ids = batches(counts, number)
                features[number % BATCH, 0] = torch.nan
                if number == 3:  # nothing for most processes
                    labels = torch.zeros_like(labels)
                for queue in queues:
                    queue.enqueue(features, labels, ids)
                queues_equal[name].append(equal_share(shard, whole))
            for case in CASES:
                found[f"{name}, {case}"] = compared(case, counts, queues, world, group)
            holder = torch.nn.ModuleDict({"queue": shard, "other": torch.nn.Linear(2, 2)})
            states[name] = (whole_state(holder), {f"queue.{k}": v for k, v in whole.state_dict().items()}, shard)
    gathered = [None] * sharded_ranks.WORLD
    own = {name: pair[0] for name, pair in found.items()}
    dist.all_gather_object(gathered, (own, {name: all(x) for name, x in queues_equal.items()}))
    return {
        "worst": {name: {k: max(g[0].get(name, {}).get(k, 0.0) for g in gathered) for k in own[name]} for name in own},
        "sizes": {name: pair[1] for name, pair in found.items()},
        "queues": {name: all(g[1].get(name, True) for g in gathered) for name in queues_equal},
        "resumed": resumed(rank, states, groups),
    }


def resumed(rank, states, groups):
    """Write in 2 processes, read in 1 and in 4, go on; whether all is as if nothing had happened."""
    found = {}
    for profile, (counts, capacity) in PROFILES.items():
        box = [None]
        if rank == 0:
            state, whole, _ = states[f"2, {profile}"]
            found[f"names, {profile}"] = sorted(state) == sorted([*whole, "other.bias", "other.weight"])
            found[f"bytes, {profile}"] = all(torch.equal(state[name], whole[name]) for name in whole)
            box = [state]
        dist.broadcast_object_list(box)
        one = torch.nn.ModuleDict({"queue": ClassQueue(counts, capacity, DIM).double(), "other": torch.nn.Linear(2, 2)})
        one.load_state_dict(own_share(one, box[0]))
        four = torch.nn.ModuleDict(
            {
                "queue": ShardedClassQueue(counts, capacity, DIM, group=groups[4]).double(),
                "other": torch.nn.Linear(2, 2),
            }
        )
        four.load_state_dict(own_share(four, box[0]))
        for number in (30, 31):
            for module in (one, four):
                module["queue"].enqueue(*batches(counts, number))
        same = torch.tensor(float(equal_share(four["queue"], one["queue"])))
        dist.all_reduce(same, dist.ReduceOp.MIN)
        found[f"2 to 1 to 4, {profile}"] = bool(same)
        again = whole_state(four)
        if rank == 0:
            written = one.state_dict() | {name: again[name] for name in ("other.bias", "other.weight")}
            found[f"4, {profile}"] = all(torch.equal(again[name], written[name]) for name in written)
        other = torch.nn.ModuleDict({"queue": ShardedClassQueue(counts, capacity + 1, DIM, group=groups[4])})
        try:
            own_share(other, box[0])
            found[f"refused, {profile}"] = False
        except UserError as error:
            found[f"refused, {profile}"] = str(error).startswith("queue.lengths: the saved queue has another layout")
    return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    return sharded_ranks.run(Path(__file__), "work", tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world", [2, 4])
def test_value_and_gradients_are_those_of_one_process(ran, world, case):
    for profile in PROFILES:
        name = f"{world}, {profile}, {case}"
        worst, sizes = ran["worst"][name], ran["sizes"][name]
        assert min(sizes.values()) > 1e-6, (name, sizes)  # there is something to be wrong about
        assert max(worst.values()) < 1e-9, (name, worst)


def test_queues_hold_the_same_after_20_steps(ran):
    assert len(ran["queues"]) == 4
    assert all(ran["queues"].values()), ran["queues"]


def test_checkpoints_are_the_same_for_any_number_of_processes(ran):
    assert len(ran["resumed"]) == 10
    assert all(ran["resumed"].values()), ran["resumed"]


def test_one_process_alone_agrees_with_the_dense_formula(tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        counts, capacity = [6, 3, 1], 8
        queue = ShardedClassQueue(counts, capacity, DIM)
        assert (queue.edges, queue.shares) == ([0, 3], [8])
        generator = torch.Generator().manual_seed(5)
        queries, keys = (torch.randn(n, DIM, generator=generator, dtype=torch.float64) for n in (4, capacity))
        queries = UnitVectors()(queries).requires_grad_()
        keys, labels = UnitVectors()(keys), torch.tensor([0, 2, 1, 0])
        loss = ShardedGMLLoss(counts, temperature=0.2)
        value = loss(queries, labels, keys, queue.offsets)
        scores = []
        for c in range(3):
            own = keys[queue.offsets[c] : queue.offsets[c + 1]]
            scores.append((queries @ own.T / 0.2).exp().mean(1).log() + math.log(counts[c] / 10))
        dense = torch.nn.functional.cross_entropy(torch.stack(scores, 1), labels)
        torch.testing.assert_close(value, dense, rtol=1e-12, atol=1e-12)
        (ours,), (theirs,) = torch.autograd.grad(value, queries), torch.autograd.grad(dense, queries)
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
        with pytest.raises(ValueError, match="kernel"):
            ShardedGMLLoss(counts, kernel="fused")
        with pytest.raises(ValueError, match="BatchNorm"):
            project_share(torch.nn.BatchNorm1d(3), keys, 8)
    finally:
        dist.destroy_process_group()
