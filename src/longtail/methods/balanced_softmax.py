"""Balanced softmax: Ren et al., "Balanced meta-softmax for long-tailed visual recognition", NeurIPS 2020."""

from __future__ import annotations

from typing import ClassVar, Self

from longtail.methods.base import MethodContext
from longtail.methods.logit_adjustment import REWEIGHTING, LogitAdjustment


class BalancedSoftmax(LogitAdjustment):
    """-log( n_y e^(f_y) / sum_c n_c e^(f_c) ) on a linear head: logit adjustment with strength 1 (their Theorem 1)."""

    head_kind: ClassVar[str] = "linear"
    own_options: ClassVar[tuple[str, ...]] = ("views.classifier", *REWEIGHTING)

    @classmethod
    def build(cls, context: MethodContext) -> Self:
        """Build with the whole prior, whatever the options say."""
        return cls(context, 1.0)
