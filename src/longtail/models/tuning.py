"""How much of a pretrained encoder is trained: all of it, nothing, or a small part in one of five published ways."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn

from longtail.errors import UserError, unknown_name
from longtail.models.adapters import add_adapters, add_prompts, transformer_blocks
from longtail.models.encoders import build_encoder, feature_dim
from longtail.models.feature_encoders import FEATURE_ENCODERS
from longtail.models.low_rank import add_low_rank, merged_low_rank
from longtail.option_groups import TuneOptions

_LORA_RANK = 8
_WITHOUT_BLOCKS = "frozen, lora, bias, norm or full"
_DEPLOYED_WITH = {"adapter": "rank", "prompt": "prompts"}
"""Kinds that stay in the deployed encoder, and the option that says how large they are."""
_LARGEST = 65536
"""Rank or prompts that a description may ask for; more would only fill the memory."""


class TunedEncoder(nn.Module):
    """An encoder of which only a part is trained; :func:`apply_tuning` makes it.

    The encoder inside stays in eval mode whatever ``train`` says: no dropout, and batch normalisation uses and keeps
    the statistics that it came with, also where its scales and shifts are trained.

    Args:
        encoder: with whatever is trained in place; ``requires_grad`` tells it.
        options: what was applied to it.

    Attributes:
        feature_dim: as of the encoder.

    Shape:
        ``[B, C, H, W] -> [B, feature_dim]``.
    """

    def __init__(self, encoder: nn.Module, options: TuneOptions) -> None:
        super().__init__()
        self.encoder = encoder
        self.options = options
        self.feature_dim: int = feature_dim(encoder)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Leave the encoder inside in eval mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``[B, feature_dim]`` of normalised images ``[B, C, H, W]``."""
        features: Tensor = self.encoder(images)
        return features


def apply_tuning(encoder: nn.Module, options: TuneOptions, name: str) -> nn.Module:
    """Make ``encoder``, whose weights are loaded, one of which only what ``options`` say is trained.

    New weights are drawn from torch's global generator. Adapters and LoRA start at zero: the features are the same as
    before.

    Args:
        encoder: changed in place, so that it must not be used on its own any more.
        options: ``kind`` and what belongs to it; a ``rank`` of None is 8 for lora and 1 for adapter.
        name: of the encoder, for errors.

    Returns:
        ``encoder`` itself for kind ``full``, otherwise a :class:`TunedEncoder` around it.

    Raises:
        UserError: the kind does not fit the encoder, or lora lacks the package peft.
    """
    if options.kind == "full":
        return encoder
    encoder.requires_grad_(False)
    trained: list[nn.Parameter] = []
    if options.kind == "lora":
        trained = add_low_rank(encoder, options.rank or _LORA_RANK)
    elif options.kind == "adapter":
        trained = add_adapters(encoder, options.rank or 1)
    elif options.kind == "prompt":
        trained = add_prompts(encoder, options.prompts)
    elif options.kind == "bias":
        trained = [p for key, p in encoder.named_parameters() if key.rpartition(".")[2].endswith("bias")]
    elif options.kind == "norm":
        trained = list(_norm_parameters(encoder))
    elif options.kind != "frozen":
        raise unknown_name("kind of tuning", options.kind, ("full", "frozen", "lora", *_DEPLOYED_WITH, "bias", "norm"))
    if not trained and options.kind in _DEPLOYED_WITH:
        raise UserError(
            f"--tune.kind {options.kind} needs a transformer, but encoder {name} has no blocks with an MLP of linear "
            f"maps; use {_WITHOUT_BLOCKS}."
        )
    if not trained and options.kind != "frozen":
        raise UserError(f"--tune.kind {options.kind} finds nothing to train in encoder {name}; use frozen or full.")
    for parameter in trained:
        parameter.requires_grad_(True)
    return TunedEncoder(encoder, options)


def merge_tuning(encoder: nn.Module) -> nn.Module:
    """Return the encoder to deploy: the plain one wherever there is one.

    Low-rank updates are added to the weights of a copy. Frozen, bias and norm need no copy: the plain encoder shares
    the tensors. Adapters and prompts cannot be merged, and stay.
    """
    if not isinstance(encoder, TunedEncoder) or encoder.options.kind in _DEPLOYED_WITH:
        return encoder
    return merged_low_rank(encoder.encoder) if encoder.options.kind == "lora" else encoder.encoder


def tuning_spec(encoder: nn.Module) -> dict[str, Any] | None:
    """Return what a classifier's description must say of its encoder, such as ``{"kind": "adapter", "rank": 4}``.

    None for plain encoders, as ``merge_tuning`` makes them of all other kinds.
    """
    if not isinstance(encoder, TunedEncoder):
        return None
    size = _DEPLOYED_WITH[encoder.options.kind]
    return {"kind": encoder.options.kind, size: getattr(encoder.options, size)}


def tuning_of_spec(record: Any) -> TuneOptions:
    """Return the options of what ``tuning_spec`` gave, which may come out of anyone's file.

    Raises:
        UserError: it is of another kind, or its size is no whole number from 1 to 65536.
    """
    kind: Any = record.get("kind") if isinstance(record, dict) else None
    size = _DEPLOYED_WITH.get(kind) if isinstance(kind, str) else None
    if size is None or not record.keys() <= {"kind", size}:
        raise UserError(
            f'its tuning is {str(record)[:100]!a}, but what stays in an encoder is {{"kind": "adapter", "rank": 4}} or '
            '{"kind": "prompt", "prompts": 10}; save it again.'
        )
    value = record.get(size)
    if (kind, value) == ("adapter", None):  # its default
        return TuneOptions(kind=kind)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST:
        raise UserError(
            f"its tuning has {size} {str(value)[:100]!a}, which must be a whole number from 1 to {_LARGEST}; save it "
            "again."
        )
    sized: dict[str, Any] = {size: value}
    return TuneOptions(kind=kind, **sized)


def default_rank(kind: str, encoder: nn.Module, num_classes: int) -> int | None:
    """Return the rank of ``lora`` or ``adapter`` that is used if none is given; None for other kinds.

    An adapter of width r has about 2 r D weights a block, a linear classifier C D: 2^floor(log2(C / (2 L))) is the
    largest power of two at which the L adapters have no more than the classifier (LIFT, Shi et al., ICML 2024), and 1
    at least.
    """
    if kind == "lora":
        return _LORA_RANK
    blocks = len(transformer_blocks(encoder))
    if kind != "adapter" or not blocks:
        return None
    # floor(log2) of a quotient of whole numbers, without rounding.
    return int(2 ** max((num_classes // (2 * blocks)).bit_length() - 1, 0))


def check_tuning(options: TuneOptions, name: str, in_channels: int, image_size: tuple[int, int]) -> None:
    """Raise :class:`UserError` unless such tuning fits the encoder called ``name``, found out without values."""
    with torch.device("meta"), torch.no_grad():
        encoder = apply_tuning(build_encoder(name, in_channels, image_size), options, name)
        if options.kind == "full":
            return
        encoder.to("meta")  # some embeddings are computed with numpy, whatever the device
        pixels = () if name in FEATURE_ENCODERS else image_size
        try:
            encoder(torch.empty(2, in_channels, *pixels))
        except Exception as error:  # of whatever kind a block raises that takes no further tokens, say
            if options.kind == "prompt":
                why = f"whose blocks take no further tokens; use adapter or {_WITHOUT_BLOCKS}"
            else:
                why = "which cannot be run with it; use another kind, frozen or full"
            raise UserError(f"--tune.kind {options.kind} does not fit encoder {name}, {why}.") from error


def _norm_parameters(encoder: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the vectors that belong to normalisation layers: of torch, or called so (timm has its own)."""
    for module in encoder.modules():
        if "norm" in type(module).__name__.lower():
            yield from (parameter for parameter in module.parameters(recurse=False) if parameter.ndim == 1)
