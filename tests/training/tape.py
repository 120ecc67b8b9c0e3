"""A recorder as a device's: it keeps the operations, and a replay does those alone, into the same tensors."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class _Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


def _tensors(tree):
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


class TapeRecorder:
    """Records on the CPU. Python that ran while recording does not run again: what it decided is baked in.

    ``state()`` gives the tensors that a step changes: recording runs the step, which a device does not, so they are
    put back after it.
    """

    def __init__(self, state):
        self._state = state

    def warm_up(self, work):
        work()

    def record(self, work):
        tensors = self._state()
        before = [tensor.detach().clone() for tensor in tensors]
        with _Tape() as tape:
            work()
        with torch.no_grad():
            for tensor, kept in zip(tensors, before, strict=True):
                tensor.detach().copy_(kept)

        @torch.inference_mode()  # some of the tensors were made in it
        def replay():
            for func, args, kwargs, out in tape.calls:
                given = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
                for kept, new in zip(_tensors(out), _tensors(func(*args, **kwargs)), strict=True):
                    if kept.untyped_storage().data_ptr() not in given:  # a result of its own, neither view nor in place
                        kept.detach().copy_(new)

        return replay
