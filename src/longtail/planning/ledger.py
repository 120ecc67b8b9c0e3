"""What a step would do, written down while it runs on the meta device: operations, bytes moved, memory alive.

Nothing is computed there and nothing is allocated, so the step of any network at any batch takes a second to count.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry

_aten = torch.ops.aten
_CONVOLUTION = _aten.convolution.default
_CONVOLUTION_BACKWARD = _aten.convolution_backward.default
# They read their input once for the statistics and once more to use them.
_READ_TWICE = ("native_batch_norm", "native_batch_norm_backward", "native_layer_norm", "_softmax", "_log_softmax")


@dataclass(frozen=True)
class Operation:
    """One operation of a step.

    Attributes:
        part: of the step.
        kind: ``product``, ``convolution``, ``grouped`` or ``depthwise`` (convolutions whose channels are split), or
            ``memory`` for all that only moves numbers.
        flops: multiplications and additions.
        read_and_written: bytes.
        half: whether its numbers have 16 bits.
    """

    part: str
    kind: str
    flops: int
    read_and_written: int
    half: bool


class StepLedger(TorchDispatchMode):
    """Writes down every operation that is called inside of it, and how much memory is alive.

    Operations are named after the part of the step that :meth:`watch` says they belong to. In the backward pass the
    gradient of a module's result is what its own backward pass begins with.

    Attributes:
        operations: in their order.
        alive: bytes that were made in it and are still held.
        peak: most bytes ever alive.
        part: of the operations that come now.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []
        self.alive = self.peak = 0
        self.part = "rest"
        self._held: dict[int, weakref.ref[Any]] = {}
        self._known: set[int] = set()

    def know(self, module: nn.Module) -> None:
        """Leave out the memory that the parameters and buffers of ``module`` take."""
        for value in (*module.parameters(), *module.buffers()):
            self._known.add(_key(value))

    def watch(self, module: nn.Module, part: str) -> None:
        """Name what ``module`` does ``part``, forward and backward; what comes after it is the rest again."""

        def enter(*_: Any) -> None:
            self.part = part

        def leave(_: nn.Module, __: Any, result: Any) -> None:
            self.part = "rest"
            if isinstance(result, Tensor) and result.requires_grad:
                result.register_hook(enter)  # type: ignore[no-untyped-call]

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func`` and write it down."""
        kwargs = kwargs or {}
        # In inference mode operations made of others arrive whole: what they are made of is counted.
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        result = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for tensor in made:
            self._hold(tensor)
        name = func._schema.name.removeprefix("aten::")
        if not func.is_view and not name.startswith(("empty", "new_empty", "detach", "_unsafe_view")):
            self._write(func, name, args, kwargs, result, made)
        return result

    def _write(self, func: Any, name: str, args: Any, kwargs: Any, result: Any, made: list[Tensor]) -> None:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        moved = sum(_bytes(x) for x in given) * (2 if name in _READ_TWICE else 1) + sum(_bytes(x) for x in made)
        kind, flops = "memory", 0
        if func in (_CONVOLUTION, _CONVOLUTION_BACKWARD):
            kind, flops = _convolution(func, args, result)
        elif func._overloadpacket in flop_registry:
            kind, flops = "product", int(flop_registry[func._overloadpacket](*args, **kwargs, out_val=result))
        half = any(x.dtype in (torch.bfloat16, torch.float16) for x in made)
        self.operations.append(Operation(self.part, kind, flops, moved, half))

    def _hold(self, tensor: Tensor) -> None:
        key = _key(tensor)
        if key in self._held or key in self._known:
            return
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        self.alive += size
        self.peak = max(self.peak, self.alive)

        def gone(_: Any) -> None:
            self.alive -= size
            del self._held[key]

        self._held[key] = weakref.ref(storage, gone)


@contextmanager
def counted_step(*modules: nn.Module) -> Iterator[StepLedger]:
    """Write down what happens in the block; the memory of ``modules`` themselves is left out."""
    ledger = StepLedger()
    for module in modules:
        ledger.know(module)
    with ledger:
        yield ledger


def _convolution(func: Any, args: Any, result: Any) -> tuple[str, int]:
    """Return kind and operations of a convolution, of its backward pass by which gradients are asked for."""
    backward = func is _CONVOLUTION_BACKWARD
    x, weight = (args[1], args[2]) if backward else (args[0], args[1])
    out = args[0] if backward else result
    groups, transposed = (args[9], args[7]) if backward else (args[8], args[6])
    one = int(conv_flop_count(list(x.shape), list(weight.shape), list(out.shape), transposed=transposed))
    times = sum(args[10][:2]) if backward else 1
    channels = x.shape[1]
    kind = "convolution" if groups == 1 else "depthwise" if groups == channels else "grouped"
    return kind, times * one


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes(tensor: Tensor) -> int:
    """Return the bytes that reading or writing all of a tensor moves; what is expanded lies there once."""
    return min(tensor.numel() * tensor.element_size(), int(tensor.untyped_storage().nbytes()))
