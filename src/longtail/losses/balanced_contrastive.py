"""Balanced contrastive learning: every class weighs the same in a batch, and none is missing from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from longtail.losses.logit_adjusted import checked_counts
from longtail.losses.pairs import (
    check_classes,
    check_keys_of,
    check_queries,
    check_temperature,
    itself,
    nothing,
    similarities,
)


class BalancedContrastiveLoss(nn.Module):
    """Supervised contrast with class-averaging and class-complement.

    ``L = -mean over p in P of log( exp(z_i . z_p / t) / sum over classes c of the mean over k in B_c of
    exp(z_i . z_k / t) )``, mean over the queries. B_c holds the keys of class c in the batch and the prototype of c,
    P = B_y, both without the query itself, and t is the temperature. The mean over B_c (class-averaging) keeps frequent
    classes from filling the denominator; the prototypes (class-complement) bring every class into every batch. Zhu et
    al., "Balanced Contrastive Learning for Long-Tailed Visual Recognition", CVPR 2022, L_BCL; as in its release, the
    query is left out of the size of its class too. With nothing but prototypes it is cross entropy on their cosines.

    A class of count 0 takes no part: it has no image to learn a prototype from.

    Args:
        class_counts: ``[C]`` training samples of each class; kept as a buffer.
        temperature: of the similarities, > 0.

    Raises:
        ValueError: counts that cannot be counts, temperature not above 0; in a call, shapes or dtypes that do not fit
            and (checked on the CPU only) a label out of range or of a class of count 0.

    Example:
        >>> loss = BalancedContrastiveLoss([3, 1], temperature=0.5)
        >>> loss(torch.eye(2)[:1], torch.tensor([0]), prototypes=torch.eye(2))  # log(1 + exp(-2))
        tensor(0.1269)
    """

    class_counts: Tensor

    def __init__(self, class_counts: Tensor | Sequence[int], temperature: float = 0.1) -> None:
        super().__init__()
        self.register_buffer("class_counts", checked_counts(class_counts))
        self.temperature = check_temperature(temperature)

    def forward(
        self,
        queries: Tensor,
        labels: Tensor,
        prototypes: Tensor,
        keys: Tensor | None = None,
        key_labels: Tensor | None = None,
    ) -> Tensor:
        """Return the scalar loss, in float32 at least, also under autocast. Memory is O(B (K + C)).

        Args:
            queries: ``[B, D]`` unit vectors.
            labels: int64 ``[B]``, 0..C-1.
            prototypes: ``[C, D]`` unit vectors, one a class.
            keys: ``[K, D]`` unit vectors; None = the queries, each without itself.
            key_labels: int64 ``[K]``, given with the keys.
        """
        self._check(queries, labels, prototypes, keys, key_labels)
        to_keys = similarities(queries, queries if keys is None else keys, self.temperature)
        to_prototypes = similarities(queries, prototypes, self.temperature)
        of_key = labels if key_labels is None else key_labels
        ones = torch.ones_like(of_key, dtype=to_keys.dtype)
        sizes = to_keys.new_ones(len(prototypes)).index_add(0, of_key, ones)  # with the prototype
        positive = labels[:, None] == of_key
        of_class = labels[:, None] == torch.arange(len(prototypes), device=labels.device)
        if keys is None:
            own = itself(to_keys)
            to_keys, taken = to_keys.masked_fill(own, nothing(to_keys)), 1.0
            weights = sizes[of_key] - positive.to(sizes.dtype), sizes - of_class.to(sizes.dtype)
            positive = positive & ~own
        else:
            taken, weights = 0.0, (sizes[of_key], sizes)
        matched = to_keys.masked_fill(~positive, 0.0).sum(1) + to_prototypes.masked_fill(~of_class, 0.0).sum(1)
        absent = (self.class_counts == 0)[None]
        averaged = to_keys - weights[0].log(), (to_prototypes - weights[1].log()).masked_fill(absent, nothing(to_keys))
        return (torch.cat(averaged, 1).logsumexp(1) - matched / (sizes[labels] - taken)).mean()

    def _check(
        self, queries: Tensor, labels: Tensor, prototypes: Tensor, keys: Tensor | None, key_labels: Tensor | None
    ) -> None:
        check_queries(queries, labels)
        check_classes(labels, self.class_counts)
        wanted = [self.class_counts.shape[0], queries.shape[1]]
        if list(prototypes.shape) != wanted:
            raise ValueError(f"prototypes must be {wanted}, one for each class, got {list(prototypes.shape)}.")
        if (keys is None) != (key_labels is None):
            raise ValueError("keys and key_labels must be given together.")
        if keys is not None and key_labels is not None:
            check_keys_of(queries, keys, key_labels)
            check_classes(key_labels, self.class_counts)

    def extra_repr(self) -> str:
        """Return what ``print`` shows of the loss."""
        return f"num_classes={self.class_counts.shape[0]}, temperature={self.temperature}"
