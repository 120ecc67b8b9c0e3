"""Parametric contrastive learning: contrast samples and learnable class centres in one softmax."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from longtail.losses.logit_adjusted import checked_counts, weighted_log_prior
from longtail.losses.pairs import (
    check_classes,
    check_keys_of,
    check_queries,
    check_temperature,
    itself,
    nothing,
    similarities,
)


class PaCoLoss(nn.Module):
    """Cross entropy of a sample over class centres and contrast samples together.

    ``L = -sum over positives of w log( exp(l) / (sum over centres + sum over samples of exp(l)) ) / (1 + alpha |P|)``,
    mean over the batch. The positives are the centre of the label, with w = 1, and the contrast samples P of the label,
    each with w = alpha; l is a centre's logit plus ``prior_strength * log p_c``, or a sample's similarity over the
    temperature. Contrast samples are the keys and the other queries of the batch. Cui et al., "Parametric Contrastive
    Learning", ICCV 2021, its PaCo loss, with the centres rebalanced by the prior as its Section 3.3 does for long tails
    and the weights of a sample scaled to sum to 1, as its release does. Without keys, alone in its batch, a sample has
    the logit-adjusted cross entropy on the centres, whatever alpha is; with alpha 0 contrast samples only push.

    A class of count 0 drops out of every sum under a prior.

    Args:
        class_counts: ``[C]`` training samples of each class; kept as a buffer.
        alpha: weight of a contrast sample of the label, 0 or above.
        temperature: of the similarities, > 0; centre logits are taken as they are.
        prior_strength: scale of log p_c on the centres, 1 = the paper, 0 = no prior.

    Raises:
        ValueError: counts that cannot be counts, temperature not above 0, alpha negative; in a call, shapes or dtypes
            that do not fit and (checked on the CPU only) a label out of range or of a class of count 0.

    Example:
        >>> loss = PaCoLoss([1, 1], alpha=1.0, temperature=1.0)
        >>> query, label = torch.eye(2)[:1], torch.tensor([0])
        >>> loss(torch.zeros(1, 2), query, label, query, label)  # log(1 + e) - (log 0.5 + 1) / 2
        tensor(1.1598)
    """

    class_counts: Tensor

    def __init__(
        self,
        class_counts: Tensor | Sequence[int],
        alpha: float = 0.05,
        temperature: float = 0.1,
        prior_strength: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= alpha < float("inf"):
            raise ValueError(f"alpha must be 0 or above and finite, got {alpha}.")
        self.register_buffer("class_counts", checked_counts(class_counts))
        self.alpha, self.temperature = float(alpha), check_temperature(temperature)
        self.prior_strength = float(prior_strength)

    def forward(
        self,
        centre_logits: Tensor,
        queries: Tensor,
        labels: Tensor,
        keys: Tensor,
        key_labels: Tensor,
        key_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the scalar loss, in float32 at least, also under autocast. Memory is O(B (B + K + C)).

        Args:
            centre_logits: ``[B, C]``, each query's logits under the class centres, no prior added.
            queries: ``[B, D]`` unit vectors.
            labels: int64 ``[B]``, 0..C-1.
            keys: ``[K, D]`` unit vectors; K may be 0.
            key_labels: int64 ``[K]``.
            key_mask: bool ``[K]``, True where a key counts; None counts every key.
        """
        self._check(centre_logits, queries, labels, keys, key_labels, key_mask)
        logits = similarities(queries, torch.cat([queries, keys.to(queries.dtype)]), self.temperature)
        least = nothing(logits)
        absent = itself(logits)
        if key_mask is not None:
            absent = absent | torch.cat([key_mask.new_zeros(len(queries)), ~key_mask])
        positive = (labels[:, None] == torch.cat([labels, key_labels])) & ~absent
        prior = weighted_log_prior(self.class_counts, self.prior_strength, logits.dtype).clamp(min=least / 2)
        centres = centre_logits.to(logits.dtype) + prior
        every = torch.cat([centres, logits.masked_fill(absent, least)], 1).logsumexp(1)
        at_centre = centres.gather(1, labels[:, None]).squeeze(1)
        at_samples = logits.masked_fill(~positive, 0.0).sum(1)
        total = 1 + self.alpha * positive.sum(1).to(logits.dtype)
        return (every - (at_centre + self.alpha * at_samples) / total).mean()

    def _check(
        self,
        centre_logits: Tensor,
        queries: Tensor,
        labels: Tensor,
        keys: Tensor,
        key_labels: Tensor,
        key_mask: Tensor | None,
    ) -> None:
        check_queries(queries, labels)
        check_keys_of(queries, keys, key_labels)
        wanted = [len(queries), self.class_counts.shape[0]]
        if list(centre_logits.shape) != wanted:
            raise ValueError(f"centre_logits must be {wanted} as queries and classes, got {list(centre_logits.shape)}.")
        check_classes(labels, self.class_counts)
        if key_mask is not None and (key_mask.shape != key_labels.shape or key_mask.dtype != torch.bool):
            raise ValueError(f"key_mask must be bool [{len(keys)}], got {key_mask.dtype} {list(key_mask.shape)}.")

    def extra_repr(self) -> str:
        """Return what ``print`` shows of the loss."""
        return (
            f"num_classes={self.class_counts.shape[0]}, alpha={self.alpha}, temperature={self.temperature}, "
            f"prior_strength={self.prior_strength}"
        )
