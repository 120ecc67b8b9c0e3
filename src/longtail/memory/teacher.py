"""Networks that make the keys: a copy that stays as it is, or one that follows the student slowly.

Suh & Seo 2023 use the frozen one: keys of rare classes stay long in their queue, where those of a moving
network go stale. The momentum one is MoCo's (He et al. 2020), kept to compare with.
"""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor, nn

from longtail.errors import UserError
from longtail.exchange import held


class _Teacher(nn.Module):
    """A private copy of an encoder and a head that no gradient trains and that never leaves eval mode."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.head = copy.deepcopy(head)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode whatever ``mode`` says: a parent's ``train()`` must not wake dropout."""
        return super().train(False)

    def features(self, images: Tensor) -> Tensor:
        """Return pooled, un-normalised features ``[B, D]`` of ``images [B, C, H, W]`` (normalised pixels)."""
        with torch.inference_mode():  # cheaper than no_grad, but what comes out may enter no graph; a copy may
            features: Tensor = self.encoder(images)
        return features.clone()

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]`` of ``images [B, C, H, W]``, no prior added."""
        return self.features_and_logits(images)[1]

    @torch.no_grad()
    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return :meth:`features` and :meth:`logits` from one pass through the encoder."""
        features = self.features(images)
        logits: Tensor = self.head(features)
        return features, logits


class FrozenTeacher(_Teacher):
    """A trained encoder and head, copied and kept as they are (Suh & Seo 2023).

    The copies stay in eval mode and need no gradient. What they return carries no gradient but, unlike
    a tensor made in inference mode, may enter another module's graph.

    Args:
        encoder: images ``[B, C, H, W]`` to features ``[B, D]``.
        head: features ``[B, D]`` to logits ``[B, num_classes]``.
    """


class MomentumTeacher(_Teacher):
    """An exponential moving average of a student's encoder and head (He et al. 2020).

    After n earlier updates the average keeps the share ``min(momentum, (1 + n) / (10 + n))`` of itself, so
    that the student's first, random weights are soon forgotten. The number of updates is a buffer.

    Args:
        encoder, head: the student's modules, copied as the first average; see :class:`FrozenTeacher`.
        momentum: share of itself that the average keeps at an update in the long run, 0 <= momentum < 1.

    Raises:
        UserError: ``momentum`` is out of range.
    """

    updates: Tensor

    def __init__(self, encoder: nn.Module, head: nn.Module, momentum: float = 0.999) -> None:
        super().__init__(encoder, head)
        if not 0 <= momentum < 1:
            raise UserError(f"momentum is {momentum}, but it must be at least 0 and less than 1.")
        self.momentum = momentum
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, encoder: nn.Module, head: nn.Module) -> None:
        """Move the average towards the student: call it once after each optimiser step.

        Parameters and floating buffers (BatchNorm statistics) are averaged, other buffers copied. Where the
        student's value is not finite, the average keeps its own (decided without waiting for the device).

        Args:
            encoder, head: the student's modules, of the same structure as those given at construction.

        Raises:
            ValueError: the modules' parameters or buffers have other names than the average's.
        """
        keep = ramped_decay(self.updates, self.momentum)
        for average, student in ((self.encoder, encoder), (self.head, head)):
            own, source = _tensors(average), _tensors(student)
            if own.keys() != source.keys():
                raise ValueError(
                    "the student's parameters and buffers differ from the teacher's: "
                    f"{sorted(own.keys() ^ source.keys())}"
                )
            for name, tensor in own.items():
                new = source[name].detach()
                if tensor.is_floating_point():
                    moved = tensor.lerp(new, (1 - keep).to(tensor))
                    new = torch.where(torch.isfinite(new), moved, tensor)
                tensor.copy_(new)
        self.updates += 1


def ramped_decay(updates: Tensor, decay: float) -> Tensor:
    """Return min(decay, (1 + n) / (10 + n)) for update number n (0-d): low at first, to forget the random start."""
    return ((updates + 1) / (updates + 10)).clamp(max=decay)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer that lies here by name, also buffers that ``state_dict()`` leaves out."""
    return {name: held(value) for name, value in (*module.named_parameters(), *module.named_buffers())}
