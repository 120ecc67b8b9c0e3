"""The weights that a step trains, as this process holds them: whole, or of the encoders its own shard.

An optimiser, a moving average and clipping work on what lies here, shard or not; what is written and deployed is whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from longtail.exchange import held
from longtail.methods import Trainable

ENCODERS = ("encoder", "teacher.encoder")
"""Modules of a method that each process runs on its own rows, where it has them."""
_PIECES = 8
"""How many pieces an encoder is cut into at least, where its layers allow it: one is whole at a time."""


class Weights(Protocol):
    """What the loop asks of the weights of a method.

    Attributes:
        averages_gradients: whether :meth:`trained` does so over the processes, so that nothing else must.
    """

    averages_gradients: bool

    def here(self, values: Tensor) -> Tensor:
        """Return what of a parameter or buffer lies in this process, sharing its memory."""

    def trained(self) -> list[nn.Parameter]:
        """Return, after the backward pass, what has a gradient here, the gradient being that of all processes."""

    def norm(self, trained: Sequence[nn.Parameter]) -> Tensor:
        """Return the L2 norm (0-d) of the whole gradient; ``trained`` is what :meth:`trained` returned."""

    def whole(self) -> Any:
        """Return a context in which the method's encoder is whole, to be copied or deployed."""

    def gathered(self, state: dict[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``state``, in which shards have become whole tensors on the host, in the first process.

        Every process calls it at the same time. What lies here of ``like[name]`` is cut as ``like[name]`` is.
        """

    def dealt(self, state: dict[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``state``, of :meth:`gathered`, with this process's part of what is cut in ``like``."""


class WholeWeights:
    """Every process holds all weights.

    Args:
        method: what is trained.
    """

    averages_gradients = False

    def __init__(self, method: Trainable) -> None:
        self._method = method

    def here(self, values: Tensor) -> Tensor:
        """Return ``values``."""
        return values

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters that have a gradient."""
        return [p for p in self._method.parameters() if p.grad is not None]

    def norm(self, trained: Sequence[nn.Parameter]) -> Tensor:
        """Return the L2 norm of the gradient."""
        return nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Change nothing."""
        yield

    def gathered(self, state: dict[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``state``."""
        return state

    def dealt(self, state: dict[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``state``."""
        return state


def all_held(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return of each tensor what lies in this process."""
    return {name: held(value) for name, value in state.items()}


def pieces_of(encoder: nn.Module) -> list[nn.Module]:
    """Return modules of ``encoder``, none inside another, of an eighth of its weights at most each, or of one layer.

    What is in none of them is little. A container may be walked through rather than called, so that it is no piece, and
    a module with weights of its own may use those of its children without calling them, so that it is taken apart only
    if it is most of the encoder.
    """
    total = sum(p.numel() for p in encoder.parameters())
    found: list[nn.Module] = []

    def collect(module: nn.Module) -> None:
        for child in module.children():
            size = sum(p.numel() for p in child.parameters())
            container = isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict)
            own = next(child.parameters(recurse=False), None) is not None
            one = next(child.children(), None) is None or (own and 2 * size <= total)
            if size and not container and (one or size * _PIECES <= total):
                found.append(child)
            elif size:
                collect(child)

    collect(encoder)
    return found


def dealt_weights(encoder: nn.Module) -> list[nn.Parameter]:
    """Return what of ``encoder`` is dealt to the processes: all but numbers without a dimension, which cannot be cut,
    and batch normalisation, whose weights must be as precise as its statistics; they are few.
    """
    norms = [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    whole = {id(p) for norm in norms for p in norm.parameters()}
    return [p for p in encoder.parameters() if p.ndim and id(p) not in whole]
