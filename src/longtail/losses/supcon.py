"""Supervised contrast, with the log on either side of the mean over the positives."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from longtail.losses.pairs import (
    check_keys_of,
    check_queries,
    check_temperature,
    itself,
    mean_of,
    nothing,
    similarities,
)


class SupConLoss(nn.Module):
    """Supervised contrastive loss of Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020.

    With P(i) the keys of the label of query i and A(i) all keys, both without the query itself, and
    ``q(p) = exp(z_i . z_p / temperature) / sum over a in A(i) of exp(z_i . z_a / temperature)``, the loss of a query is

    - log ``"inside"`` the mean: ``-mean over p of log q(p)``, Eq. 2 of the paper, there called L_out because the *sum*
      stands outside of the log. The paper's choice, and what most code computes;
    - log ``"outside"`` the mean: ``-log(mean over p of q(p))``, Eq. 3, there called L_in. Where keys and queries are
      apart and all classes have n keys, it is ``GMLLoss`` without a prior (Suh & Seo, ICML 2023) plus log n.

    The mean is over the queries that have a positive: a class alone in the batch does not count.

    Args:
        temperature: of the similarities, > 0.
        log: where the log stands.

    Attributes:
        counted: queries that counted in the last call, int64 0-d.

    Raises:
        ValueError: temperature not above 0, log neither of the two; in a call, shapes or dtypes that do not fit.

    Example:
        >>> loss = SupConLoss(temperature=0.5)
        >>> loss(torch.eye(2)[[0, 0, 1]], torch.tensor([0, 0, 1]))  # log(1 + exp(-2)); the third has no positive
        tensor(0.1269)
        >>> loss.counted
        tensor(2)
    """

    def __init__(self, temperature: float = 0.1, log: Literal["inside", "outside"] = "inside") -> None:
        super().__init__()
        if log not in ("inside", "outside"):
            raise ValueError(f'log must be "inside" or "outside" the mean over positives, got {log!r}.')
        self.temperature = check_temperature(temperature)
        self.log = log
        self.counted = torch.zeros((), dtype=torch.int64)

    def forward(
        self, queries: Tensor, labels: Tensor, keys: Tensor | None = None, key_labels: Tensor | None = None
    ) -> Tensor:
        """Return the scalar loss, in float32 at least, also under autocast.

        Args:
            queries: ``[B, D]`` unit vectors.
            labels: int64 ``[B]``.
            keys: ``[K, D]`` unit vectors; None = the queries, each without itself.
            key_labels: int64 ``[K]``, given with the keys.
        """
        check_queries(queries, labels)
        if (keys is None) != (key_labels is None):
            raise ValueError("keys and key_labels must be given together.")
        if keys is not None and key_labels is not None:
            check_keys_of(queries, keys, key_labels)
        logits = similarities(queries, queries if keys is None else keys, self.temperature)
        positive = labels[:, None] == (labels if key_labels is None else key_labels)
        if keys is None:
            own = itself(logits)
            logits, positive = logits.masked_fill(own, nothing(logits)), positive & ~own
        number = positive.sum(1)
        counts = number > 0
        self.counted = counts.sum()
        least = number.clamp(min=1)
        if self.log == "inside":
            matched = logits.masked_fill(~positive, 0.0).sum(1) / least
        else:
            matched = logits.masked_fill(~positive, nothing(logits)).logsumexp(1) - least.to(logits.dtype).log()
        return mean_of(logits.logsumexp(1) - matched, counts)

    def extra_repr(self) -> str:
        """Return what ``print`` shows of the loss."""
        return f"temperature={self.temperature}, log={self.log!r}"
