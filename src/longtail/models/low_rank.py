"""LoRA: low-rank updates beside frozen weights (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2022).

Linear maps and convolutions are wrapped by peft. The packed attention of torch (``nn.MultiheadAttention``, in
open_clip's towers) reads its weights without calling a layer; peft adds the update to the weights before each pass and
takes it off again, which moves them by rounding, so there the update is a parametrisation of the weight instead.

peft is imported late: it takes seconds, and no other run needs it.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from longtail.errors import UserError
from longtail.models.adapters import transformer_blocks


class LowRankSum(nn.Module):
    """The parametrisation ``W + B A`` of a matrix ``W [out, in]``: A ``[r, in]`` starts Kaiming-uniform, B at zero."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(rank, weight.shape[1]))
        self.lora_B = nn.Parameter(torch.zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the updated weight ``[out, in]``."""
        return weight + self.lora_B @ self.lora_A


def add_low_rank(encoder: nn.Module, rank: int) -> list[nn.Parameter]:
    """Put a low-rank update of scale 1 beside the maps of ``encoder``, in place, and return its parameters.

    Of a transformer these are all linear maps of the blocks (attention and MLP), of other encoders every ungrouped
    convolution. The updates start at zero.

    Raises:
        UserError: peft is not installed.
    """
    before = {id(parameter) for parameter in encoder.parameters()}
    blocks = [where.get_submodule(key) for where, key in transformer_blocks(encoder)]
    packed = [part for block in blocks for part in block.modules() if isinstance(part, nn.MultiheadAttention)]
    out_projections = {id(attention.out_proj) for attention in packed}
    within = {id(part) for block in blocks for part in block.modules()} - out_projections
    targets = [
        name
        for name, part in encoder.named_modules()
        if (isinstance(part, nn.Linear) and id(part) in within)
        or (not blocks and isinstance(part, nn.Conv2d) and part.groups == 1)
    ]
    if targets:
        _inject(encoder, targets, rank)
    for attention in packed:
        for module, name in ((attention, "in_proj_weight"), (attention.out_proj, "weight")):
            weight = getattr(module, name)
            if weight is not None:  # absent where queries, keys and values have weights of their own
                parametrize.register_parametrization(module, name, LowRankSum(weight, rank))
    return [parameter for parameter in encoder.parameters() if id(parameter) not in before]


def merged_low_rank(encoder: nn.Module) -> nn.Module:
    """Return a copy of ``encoder`` with every update added to the weight it belongs to: a plain encoder again."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    encoder = copy.deepcopy(encoder)
    with torch.no_grad():
        for name, layer in [(n, m) for n, m in encoder.named_modules() if isinstance(m, BaseTunerLayer)]:
            layer.merge()
            encoder.set_submodule(name, layer.get_base_layer())
        for module, name in list(_parametrised(encoder)):
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    encoder.__dict__.pop("peft_config", None)
    return encoder


def _parametrised(encoder: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for module in encoder.modules():
        if not parametrize.is_parametrized(module):
            continue
        for name, chain in module.parametrizations.items():  # type: ignore[union-attr,operator]
            if any(isinstance(step, LowRankSum) for step in chain):
                yield module, name


def _inject(encoder: nn.Module, targets: list[str], rank: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError:
        raise UserError(
            "--tune.kind lora needs the package peft; install it with pip install 'longtail[clip]'."
        ) from None
    # One expression that names each target whole: a list would also match the ends of other names.
    names = "|".join(re.escape(name) for name in targets)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), encoder)
