"""What steps leave behind, kept on the device: sums of an epoch's figures, and what was wrong with a bad step.

Nothing here reads a value back unless it is asked to, so that a step never makes the host wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from longtail.data.augment_tone import widest_float

LARGEST_GRADIENT = 1e15
"""A gradient norm above this counts as overflow: squared (AdamW) or times a learning rate it would leave float32."""

_STATISTICS, _GRADIENT = "BatchNorm statistics", "gradient"


class EpochSums:
    """Running sums of an epoch's losses and readings over the steps that counted, in float64 where there is such."""

    def __init__(self, names: tuple[str, ...] = (), sums: Tensor | None = None, steps: Tensor | None = None) -> None:
        self.names, self._sums, self._steps = names, sums, steps

    def add(self, figures: Mapping[str, Tensor], bad: Tensor) -> None:
        """Add one step's figures (0-d tensors), unless ``bad`` (bool, 0-d); every step must bring the same ones."""
        values = torch.stack([value.detach().to(widest_float(value.device)) for value in figures.values()])
        if self._sums is None or self._steps is None:
            self.names = tuple(figures)
            self._sums, self._steps = torch.zeros_like(values), bad.new_zeros((), dtype=torch.int64)
        elif tuple(figures) != self.names:
            raise ValueError(f"a step brought the figures {list(figures)}, those before it {list(self.names)}")
        self._sums += torch.where(bad, 0.0, values)
        self._steps += ~bad

    def clear(self) -> None:
        """Start anew, in the same tensors: a captured step goes on adding to them."""
        if self._sums is not None and self._steps is not None:
            self._sums.zero_()
            self._steps.zero_()

    @property
    def steps(self) -> int:
        """Steps that counted."""
        return 0 if self._steps is None else int(self._steps)

    def so_far(self) -> tuple[int, dict[str, float]]:
        """Return the steps that counted and the means over them; figures that are not defined are left out."""
        if self._sums is None:
            return 0, {}
        steps = self.steps
        means = {name: value / max(steps, 1) for name, value in zip(self.names, self._sums.tolist(), strict=True)}
        return steps, {name: value for name, value in means.items() if steps and math.isfinite(value)}

    def tensors(self) -> dict[str, Tensor]:
        """Return the sums by name, for a checkpoint."""
        return {} if self._sums is None else dict(zip(self.names, self._sums.unbind(), strict=True))

    @classmethod
    def restored(cls, names: list[str], tensors: Mapping[str, Tensor], steps: int, device: torch.device) -> EpochSums:
        """Return what :meth:`tensors` gave, in the order of ``names``."""
        if not names:
            return cls()
        sums = torch.stack([tensors[name] for name in names]).to(device)
        return cls(tuple(names), sums, torch.tensor(steps, device=device))


@dataclass(frozen=True)
class BadSteps:
    """Steps that were not finite since the last look.

    Attributes:
        count: how many.
        in_row: the longest row of them, one that began before the last look included.
        last: number of the last of them, 0-based.
        why: what was not finite in it.
    """

    count: int
    in_row: int
    last: int
    why: str


class StepGuard:
    """Decides on the device whether a step may change the model, and remembers what it refused.

    Args:
        step: number of the first step, 0-based.
        device: where the training runs.

    Attributes:
        in_row: steps refused in a row, up to the last look.
    """

    def __init__(self, step: int, device: torch.device) -> None:
        self._names: tuple[str, ...] = ()
        self._last_checks: Tensor | None = None
        self.in_row = 0
        # Number of the present step, refused since the last look, in a row up to now, longest row, last refused.
        self._numbers = torch.tensor([step - 1, 0, 0, 0, -1], device=device)

    def judge(
        self,
        losses: Mapping[str, Tensor],
        statistics: Tensor,
        gradient: Tensor,
        agree: Callable[[Tensor], Tensor] = lambda bad: bad,
    ) -> Tensor:
        """Return whether the step is bad (bool, 0-d).

        Batch statistics are looked at too: a variance can overflow while the normalised features, and so the losses,
        stay finite.

        Args:
            losses: 0-d tensors by name.
            statistics: L2 norm of the BatchNorm statistics, 0-d.
            gradient: L2 norm of all gradients, 0-d.
            agree: makes what this process found what all of them found.
        """
        parts = {**losses, _STATISTICS: statistics, _GRADIENT: gradient}
        checks = torch.stack([value.detach().float() for value in parts.values()])
        # Not `> LARGEST_GRADIENT`, which a NaN is not.
        bad = agree(~(torch.isfinite(checks).all() & (gradient <= LARGEST_GRADIENT)))
        if self._last_checks is None:
            self._names, self._last_checks = tuple(parts), torch.zeros_like(checks)
        self._last_checks.copy_(torch.where(bad, checks, self._last_checks))
        number, count, in_row, longest, last = self._numbers.unbind()
        number = number + 1
        in_row = torch.where(bad, in_row + 1, 0)
        self._numbers.copy_(
            torch.stack([number, count + bad, in_row, torch.maximum(longest, in_row), torch.where(bad, number, last)])
        )
        return bad

    def look(self) -> BadSteps | None:
        """Read what was refused since the last look, or None; this waits for the device."""
        _, count, self.in_row, longest, last = self._numbers.tolist()
        if not count:
            return None
        self._numbers[1] = 0
        self._numbers[3] = self.in_row
        return BadSteps(count, longest, last, self._why())

    def _why(self) -> str:
        assert self._last_checks is not None
        values = dict(zip(self._names, self._last_checks.tolist(), strict=True))
        gradient, statistics = values.pop(_GRADIENT), values.pop(_STATISTICS)
        for name, value in values.items():
            if not math.isfinite(value):
                return f"loss {name!r} is {value}"
        if not math.isfinite(statistics):
            return "a BatchNorm statistic is not finite"
        return f"the gradient's norm is {gradient:.3g}"
