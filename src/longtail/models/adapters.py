"""What is put beside the blocks of a transformer while its own weights stay: adapters and prompts.

The blocks are found by structure, not by type: every member of a list called ``blocks`` (timm) or ``resblocks``
(open_clip) that has a linear ``mlp``. So the same code serves ViTs of both, and Swin or ConvNeXt for adapters.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LISTS = ("blocks", "resblocks")
_ADAPTER_SCALE = 0.1


def transformer_blocks(encoder: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return where each block of a transformer stands: the list that holds it and its name there, the lowest first.

    Empty for encoders without such blocks.
    """
    found: list[tuple[nn.Module, str]] = []
    for name, module in encoder.named_modules():
        if name.rpartition(".")[2] in _LISTS and isinstance(module, nn.ModuleList | nn.Sequential):
            children = list(module.named_children())
            if all(_mlp_width(child) for _, child in children):
                found += [(module, key) for key, _ in children]
    return found


def _mlp_width(block: nn.Module) -> int:
    """Return the width of the tokens that a block's MLP takes; 0 if it has none of linear maps."""
    mlp = getattr(block, "mlp", None)
    linear = (part for part in mlp.modules() if isinstance(part, nn.Linear)) if isinstance(mlp, nn.Module) else iter(())
    first = next(linear, None)
    return 0 if first is None else first.in_features


class AdaptedMlp(nn.Module):
    """An MLP with a bottleneck beside it: mlp(x) + s * up(relu(down(x))), Chen et al. 2022, Eq. 2 and 3.

    ``x`` is the block's normalised token, as in the paper. ``s`` starts at 0.1 and is learned, as in LIFT. The first
    projection starts Kaiming-uniform, the second at zero: so the module starts as the MLP alone.

    Args:
        mlp: of a transformer block, kept as it is.
        dim: width D of the tokens.
        rank: width of the bottleneck.

    Shape:
        ``[..., D] -> [..., D]``.
    """

    def __init__(self, mlp: nn.Module, dim: int, rank: int) -> None:
        super().__init__()
        self.mlp = mlp
        self.down = nn.Linear(dim, rank)
        self.up = nn.Linear(rank, dim)
        self.scale = nn.Parameter(torch.full((), _ADAPTER_SCALE))
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for start in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(start)

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the MLP's output ``[..., D]`` with the adapter's added; some MLPs (PVT's) also take a grid's size."""
        out: Tensor = self.mlp(tokens, *args, **kwargs) + self.scale * self.up(F.relu(self.down(tokens)))
        return out


class PromptedBlock(nn.Module):
    """A transformer block that sees learned tokens behind those of the image: VPT-deep, Jia et al. 2022, Eq. 6.

    What the block makes of its prompts is dropped: the next one has its own. The place of the prompts among the tokens
    does not matter to a block whose attention knows no positions, and only such blocks fit.

    Args:
        block: kept as it is.
        dim: width D of the tokens.
        prompts: number P of tokens.
        fan_in: pixels times channels of a patch; prompts start uniform in +-sqrt(6 / (fan_in + D)), as theirs.

    Shape:
        ``[B, N, D] -> [B, N, D]``.
    """

    def __init__(self, block: nn.Module, dim: int, prompts: int, fan_in: int) -> None:
        super().__init__()
        self.block = block
        bound = math.sqrt(6 / (fan_in + dim))
        self.prompts = nn.Parameter(torch.empty(prompts, dim).uniform_(-bound, bound))

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the block's output for the image's own tokens."""
        prompts = self.prompts.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        seen: Tensor = self.block(torch.cat([tokens, prompts], dim=1), *args, **kwargs)
        return seen.narrow(1, 0, tokens.shape[1])


def add_adapters(encoder: nn.Module, rank: int) -> list[nn.Parameter]:
    """Put an adapter into every block of ``encoder``, in place, and return their parameters; none without blocks."""
    new: list[nn.Parameter] = []
    for where, key in transformer_blocks(encoder):
        block = where.get_submodule(key)
        adapted = AdaptedMlp(block.get_submodule("mlp"), _mlp_width(block), rank)
        block.mlp = adapted
        new += [*adapted.down.parameters(), *adapted.up.parameters(), adapted.scale]
    return new


def add_prompts(encoder: nn.Module, prompts: int) -> list[nn.Parameter]:
    """Put prompts before every block of ``encoder``, in place, and return them; none without blocks."""
    patches = next((part for part in encoder.modules() if isinstance(part, nn.Conv2d)), None)
    new: list[nn.Parameter] = []
    for where, key in transformer_blocks(encoder):
        block = where.get_submodule(key)
        dim = _mlp_width(block)
        prompted = PromptedBlock(block, dim, prompts, dim if patches is None else patches.weight[0].numel())
        setattr(where, key, prompted)
        new.append(prompted.prompts)
    return new
