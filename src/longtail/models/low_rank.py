"""LoRA: low-rank updates beside frozen weights (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2022).

Linear maps and convolutions are wrapped by peft. The packed attention of torch (``nn.MultiheadAttention``, in
open_clip's towers) reads its weights without calling a layer; peft adds the update to the weights before each pass and
takes it off again, which moves them by rounding, so there attention is called with updated weights instead. Some of
timm's attention calls its linear maps, some reads their weights (Swin V2, BEiT, EVA): a wrapped map serves both.

peft is imported late: it takes seconds, and no other run needs it.
"""

from __future__ import annotations

import copy
import math
import re
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from longtail.errors import UserError
from longtail.models.adapters import transformer_blocks


class _LowRank(nn.Module):
    """The product ``B A`` as an update of a matrix ``[out, in]``: A ``[r, in]`` starts Kaiming-uniform, B at zero."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(rank, weight.shape[1]))
        self.lora_B = nn.Parameter(torch.zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the updated weight ``[out, in]``."""
        return weight + self.lora_B @ self.lora_A


class LowRankAttention(nn.Module):
    """Torch's packed attention with a low-rank update of its two weights, to be called as the attention is.

    Args:
        attention: one width for queries, keys and values; kept as it is.
        rank: of each update.
    """

    def __init__(self, attention: nn.MultiheadAttention, rank: int) -> None:
        super().__init__()
        self.base_layer = attention
        self.in_proj = _LowRank(attention.in_proj_weight, rank)
        self.out_proj = _LowRank(attention.out_proj.weight, rank)

    def updated(self) -> dict[str, Tensor]:
        """Return the updated weights, by their names in the attention."""
        base = self.base_layer
        return {
            "in_proj_weight": self.in_proj(base.in_proj_weight),
            "out_proj.weight": self.out_proj(base.out_proj.weight),
        }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the attention gives with the updated weights."""
        return torch.func.functional_call(self.base_layer, self.updated(), args, kwargs)

    def merged(self) -> nn.MultiheadAttention:
        """Return the attention, its weights updated for good."""
        self.base_layer.load_state_dict({**self.base_layer.state_dict(), **self.updated()})
        return self.base_layer


def add_low_rank(encoder: nn.Module, rank: int) -> list[nn.Parameter]:
    """Put a low-rank update of scale 1 beside the maps of ``encoder``, in place, and return its parameters.

    Of a transformer these are all linear maps of the blocks (attention and MLP), of other encoders every ungrouped
    convolution. The updates start at zero.

    Raises:
        UserError: peft is not installed.
    """
    before = {id(parameter) for parameter in encoder.parameters()}
    blocks = [where.get_submodule(key) for where, key in transformer_blocks(encoder)]
    packed = {
        name: part
        for name, part in encoder.named_modules()
        # Without a packed weight (keys or values of another width), their MLPs alone are updated.
        if isinstance(part, nn.MultiheadAttention) and part.in_proj_weight is not None
    }
    inside = {id(part) for block in blocks for part in block.modules()}
    # Never called: the attention reads its weights.
    out_projections = {id(part.out_proj) for part in encoder.modules() if isinstance(part, nn.MultiheadAttention)}
    targets = [
        name
        for name, part in encoder.named_modules()
        if (isinstance(part, nn.Linear) and id(part) in inside - out_projections)
        or (not blocks and isinstance(part, nn.Conv2d) and part.groups == 1)
    ]
    if targets:
        _inject(encoder, targets, rank)
    for name, attention in packed.items():
        if id(attention) in inside:
            encoder.set_submodule(name, LowRankAttention(attention, rank))
    return [parameter for parameter in encoder.parameters() if id(parameter) not in before]


def merged_low_rank(encoder: nn.Module) -> nn.Module:
    """Return a copy of ``encoder`` with every update added to the weight it belongs to: a plain encoder again."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    encoder = copy.deepcopy(encoder)
    with torch.no_grad():
        for name, layer in list(encoder.named_modules()):
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
                encoder.set_submodule(name, layer.get_base_layer())
            elif isinstance(layer, LowRankAttention):
                encoder.set_submodule(name, layer.merged())
    encoder.__dict__.pop("peft_config", None)
    return encoder


def _inject(encoder: nn.Module, targets: list[str], rank: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError:
        raise UserError(
            "--tune.kind lora needs the package peft; install it with pip install 'longtail[clip]'."
        ) from None
    # One expression that names each target whole: a list would also match the ends of other names.
    names = "|".join(re.escape(name) for name in targets)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=names)
    config._register_custom_module({nn.Linear: _readable_linear()})
    inject_adapter_in_model(config, encoder)


@cache
def _readable_linear() -> type[nn.Module]:
    """Return peft's linear map, made to show its updated weight to whoever reads it instead of calling the map.

    peft shows the weight without the update, which then has no effect and no gradient.
    """
    from peft.tuners.lora import Linear

    class ReadableLinear(Linear):  # type: ignore[misc]  # peft has no types
        @property
        def weight(self) -> Tensor:
            weight: Tensor = self.get_base_layer().weight
            if self.merged:
                return weight
            # peft also reads it while it builds the map, when there is no update yet.
            for update in self.active_adapters:
                if update in self.lora_A:
                    weight = weight + self.get_delta_weight(update)
            return weight

    return ReadableLinear
