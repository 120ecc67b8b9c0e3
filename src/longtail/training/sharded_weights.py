"""Encoders whose weights are dealt to the processes that train together: torch's FSDP2 as a step and a state need it.

Weights, gradients and optimiser state lie in shards, and a piece of an encoder is put together only while it computes.
Imported only where it is asked for: torch takes seconds to import what is needed here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from longtail.exchange import held
from longtail.methods import Trainable
from longtail.ranks import Ranks
from longtail.training.weights import ENCODERS, dealt_weights, pieces_of


class ShardedWeights:
    """The encoders' weights are dealt to the processes; all else of a method is the same in each.

    A copy of the student's encoder stays on the host of every process: what is evaluated, saved and deployed.

    Args:
        method: on any device; its encoders are cut and moved to ``device`` piece by piece.
        ranks: who trains.
        device: where.
        bfloat16: put pieces together in bfloat16, half as much to send and to hold. (Under autocast alone, whose copies
            live until the backward pass, the encoder would be whole in every process after all.)
    """

    averages_gradients = True

    def __init__(self, method: Trainable, ranks: Ranks, device: torch.device, bfloat16: bool = False) -> None:
        self._method, self._ranks = method, ranks
        self._twin = copy.deepcopy(method.encoder).cpu()
        mesh = DeviceMesh.from_group(dist.group.WORLD, device.type)  # type: ignore[arg-type]
        for name, module in list(method.named_modules()):
            if name in ENCODERS:
                _shard(module, mesh, bfloat16)
        method.to(device)
        # An optimiser sees ordinary parameters that share memory with the shards.
        self._shards: list[tuple[nn.Parameter, nn.Parameter]] = [
            (p, nn.Parameter(p.to_local().detach(), requires_grad=p.requires_grad))
            for p in method.parameters()
            if isinstance(p, DTensor)
        ]
        self._here = {id(whole): shard for whole, shard in self._shards}

    def here(self, values: Tensor) -> Tensor:
        """Return this process's shard of ``values``, or ``values`` where each holds all of it."""
        return self._here.get(id(values), values)

    def trained(self) -> list[nn.Parameter]:
        """Return what has a gradient here: shards, whose gradient FSDP has averaged, and all else, averaged now."""
        shards = []
        for whole, shard in self._shards:
            if shard.data_ptr() != held(whole).data_ptr():
                raise RuntimeError("a shard has moved in memory; the optimiser would train a copy of it")
            if whole.grad is not None:
                shard.grad, whole.grad = held(whole.grad), None  # an optimiser forgets what it can see
                shards.append(shard)
        shared = [p for p in self._method.parameters() if p.grad is not None and not isinstance(p, DTensor)]
        gradients = [p.grad for p in shared if p.grad is not None]
        if gradients:
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            parts = torch.split(flat / self._ranks.world, [gradient.numel() for gradient in gradients])
            averages = [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]
            torch._foreach_copy_(gradients, averages)
        return [*shards, *shared]

    def norm(self, trained: Sequence[nn.Parameter]) -> Tensor:
        """Return the L2 norm of the whole gradient, of whose shards every process tells the sum of its own squares."""
        cut = {id(shard) for _, shard in self._shards}
        squares = [
            nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None and (id(p) in cut) is wanted]) ** 2
            for wanted in (True, False)
        ]
        of_shards = squares[0].to(trained[0].device) if trained else squares[0]
        dist.all_reduce(of_shards)
        return (of_shards + squares[1].to(of_shards.device)).sqrt()

    @contextmanager
    @torch.no_grad()
    def whole(self) -> Iterator[None]:
        """Let the method's encoder be the copy on the host, with the present weights. All processes enter together."""
        sharded = self._method.encoder
        state = {name: _whole(value, "cpu") for name, value in sharded.state_dict().items()}
        self._twin.load_state_dict(state)
        self._method.encoder = self._twin
        try:
            yield
        finally:
            self._method.encoder = sharded

    @torch.no_grad()
    def gathered(self, state: dict[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``state`` with whole tensors, on the host; in other processes than the first shards may remain."""
        found = {}
        for name, value in state.items():
            kind = like.get(name)
            if not isinstance(kind, DTensor) or (value.shape != held(kind).shape and value.shape != kind.shape):
                found[name] = value
                continue
            spread = value if isinstance(value, DTensor) else _as_shard(value, kind)
            whole = spread.full_tensor()
            found[name] = whole.cpu() if self._ranks.is_main else held(spread)
        return found

    @torch.no_grad()
    def dealt(self, state: dict[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``state`` with a shard for what is one in ``like``: a DTensor, as modules hold them."""
        return {
            name: _deal(value, kind)
            if isinstance(kind := like.get(name), DTensor) and value.shape == kind.shape
            else value
            for name, value in state.items()
        }


def _shard(encoder: nn.Module, mesh: DeviceMesh, bfloat16: bool) -> None:
    """Deal the weights of ``encoder`` to the processes of ``mesh``, piece by piece."""
    dealt = {id(p) for p in dealt_weights(encoder)}
    left_out = {p for p in encoder.parameters() if id(p) not in dealt}
    precision = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bfloat16 else MixedPrecisionPolicy()
    for module in (*pieces_of(encoder), encoder):
        # What is in no piece is let go of too, though it is needed again soon: of a teacher no backward pass would.
        piece = fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=precision, ignored_params=left_out)
        # The mean, taken as a sum and a division: not every backend knows how to average.
        piece.set_force_sum_reduction_for_comms(True)


def _whole(values: Tensor, device: str) -> Tensor:
    return (values.full_tensor() if isinstance(values, DTensor) else values).to(device)


def _as_shard(values: Tensor, like: DTensor) -> DTensor:
    return DTensor.from_local(
        values, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def _deal(values: Tensor, like: DTensor) -> DTensor:
    """Return what every process knows whole, cut as ``like`` is; nothing is sent."""
    return distribute_tensor(values.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
