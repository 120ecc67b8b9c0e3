"""Several processes at one step: each encodes its rows, and what comes after the encoder sees the whole batch.

All that makes a method distributed is here, outside of it: hooks on its encoders gather what they return, batch
normalisation in the student is over all processes, and torch's DistributedDataParallel averages the gradient.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from longtail.data.keyed import derive_seed
from longtail.data.shares import even_sizes
from longtail.exchange import gather_rows, set_rows
from longtail.methods import Trainable
from longtail.models.joint_norm import join_batch_norm
from longtail.ranks import Ranks
from longtail.training.random_numbers import seed_torch
from longtail.training.weights import ENCODERS, Weights


def spread(method: Trainable, ranks: Ranks, device: torch.device, weights: Weights) -> Callable[..., dict[str, Tensor]]:
    """Prepare ``method`` for training by all of ``ranks`` and return what a step calls for its losses.

    Names and shapes of its state stay: a state is the same for any number of processes.

    Args:
        method: on its device, in training mode, as it is in every process.
        ranks: who trains.
        device: where.
        weights: of the method.
    """
    if ranks.alone:
        return method
    join_batch_norm(method.encoder)
    for name, module in method.named_modules():
        if name in ENCODERS:
            _gather_output(module, ranks, device)
    if weights.averages_gradients or not any(parameter.requires_grad for parameter in method.parameters()):
        return method  # sharded weights average their gradient themselves
    # Unused parameters are looked for at every step: some have no gradient (a view or a loss of weight 0), and buckets
    # that are never rearranged sum in the same order after a restart as before.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of an option that torch 2.11 does not know yet
        return DistributedDataParallel(method, broadcast_buffers=False, find_unused_parameters=True)


def _gather_output(encoder: nn.Module, ranks: Ranks, device: torch.device) -> None:
    watched = id(encoder)  # hooks go with copies of a module, and a copy is deployed: it is left alone
    kept: list[Callable[[], None]] = []

    def own_numbers(module: nn.Module, inputs: Any) -> None:
        """Let layers that draw (dropout) draw for this process's rows, not for those of the first."""
        if id(module) == watched and module.training:
            kept.append(_keep_generators(device))
            # Drawn from what all have in common, which tells steps and passes apart.
            common = int(torch.randint(2**62, ()))
            seed_torch(derive_seed(ranks.seed, "encoder", common), device)

    def gather(module: nn.Module, inputs: Any, output: Any) -> Any:
        if id(module) != watched:
            return output
        if kept:
            kept.pop()()
            torch.randint(2**62, ())  # a second pass draws others
        return tuple(map(gather_rows, output)) if isinstance(output, tuple) else gather_rows(output)

    encoder.register_forward_pre_hook(own_numbers)
    encoder.register_forward_hook(gather)


def _keep_generators(device: torch.device) -> Callable[[], None]:
    """Return a function that puts torch's generators back to where they are now."""
    host = torch.random.get_rng_state()
    module = None if device.type == "cpu" else torch.get_device_module(device)
    there = None if module is None else module.get_rng_state(device)

    def restore() -> None:
        torch.random.set_rng_state(host)
        if module is not None:
            module.set_rng_state(there, device)

    return restore


class SharedLoader:
    """A loader whose batches and fetched views are this process's share; it keeps the exchange told of the rows.

    Args:
        loader: makes this process's share of every batch; if its ``makes_labels`` is true, of the labels too, and what
            it fetches is then a batch.
        ranks: who trains.
        parts: micro-batches of a step.
    """

    def __init__(self, loader: Any, ranks: Ranks, parts: int = 1) -> None:
        self._loader, self._ranks, self._parts = loader, ranks, parts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def load(self, epoch: int, step: int) -> Any:
        """Return this process's share of a batch."""
        batch = self._loader.load(epoch, step)
        set_rows([self._loader.batch_size // (self._ranks.world * self._parts)] * self._ranks.world)
        return self._with_rows_of_all(batch, ("labels",))

    def fetch(self, view: str, ids: Tensor, rounds: Tensor) -> Any:
        """Return this process's slice of a view outside any epoch; what is encoded of it is whole again.

        Of fewer samples than processes, everyone makes all.
        """
        world, rank = self._ranks.world, self._ranks.rank
        sizes = even_sizes(len(ids), world)
        set_rows(sizes if sizes[-1] else None)
        if sizes[-1]:
            own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
            ids, rounds = ids[own], rounds[own]
        return self._with_rows_of_all(self._loader.fetch(view, ids, rounds), ("labels", "ids", "keys"))

    def _with_rows_of_all(self, batch: Any, names: Sequence[str]) -> Any:
        """Return ``batch``; where its labels are masks, which are made with the views, those of all processes."""
        if not getattr(self._loader, "makes_labels", False):
            return batch
        return dataclasses.replace(batch, **{name: gather_rows(getattr(batch, name)) for name in names})

    def close(self) -> None:
        """End the loader; from now on everyone works alone."""
        set_rows(None)
        self._loader.close()


def micro_batches(batch: Any, parts: int, ranks: int) -> list[Any]:
    """Return the ``parts`` micro-batches of a batch (a dataclass of ``views``, labels and ids), in order.

    Views hold this process's rows, all else those of the whole batch.
    """
    if parts == 1:
        return [batch]
    rest = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch) if f.name != "views"}

    def cut(values: Any, part: int) -> Any:
        return values.chunk(parts)[part] if isinstance(values, Tensor) else values

    made = []
    for part in range(parts):
        # Views that are one tensor stay one: methods look whether they are.
        known: dict[int, Tensor] = {}
        views = {n: known.setdefault(id(v), cut(v, part)) for n, v in batch.views.items()}
        made.append(type(batch)(views=views, **{name: cut(value, part) for name, value in rest.items()}))
    return made


def agreed(bad: Tensor, ranks: Ranks) -> Tensor:
    """Return whether the step is bad in any process (bool, 0-d, not read from a device)."""
    if ranks.alone:
        return bad
    number = bad.to(torch.int32)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return number.bool()
