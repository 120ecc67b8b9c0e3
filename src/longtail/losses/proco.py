"""Probabilistic contrastive learning: the contrast with infinitely many keys of each class, in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from longtail.losses.bessel import log_bessel
from longtail.losses.logit_adjusted import checked_counts, weighted_log_prior
from longtail.losses.pairs import check_classes, check_queries, check_temperature, mean_of, nothing, similarities


class ProCoLoss(nn.Module):
    """Contrast with the von Mises-Fisher distribution of each class instead of with samples of it.

    ``L = -log softmax_c(log s(z|c) + prior_strength * log p_c)[label]``, mean over the samples that count, with
    ``s(z|c) = E exp(z . v / temperature)`` over v ~ vMF(mean direction m_c, concentration k_c). In closed form
    ``s(z|c) = F(|k_c m_c + z / temperature|) / F(k_c)`` with ``F(k) = I_v(k) / k^v``, v = D / 2 - 1 and I_v a modified
    Bessel function. Du et al., "Probabilistic Contrastive Learning for Long-Tailed Visual Recognition", TPAMI 2024: the
    form that the paper trains with, in which the log stands outside of the expectation over positives (there L_in; F is
    its C_p up to constants that cancel). It is the contrast of GML (Suh & Seo, ICML 2023) with another density.

    As k_c grows s(z|c) becomes exp(cos / temperature), so the loss becomes logit-adjusted cross entropy on the cosines
    with the mean directions; at 0 no class differs from another. F is expanded in :mod:`longtail.losses.bessel`.

    Args:
        class_counts: ``[C]`` training samples of each class; kept as a buffer.
        temperature: of the kernel, > 0.
        prior_strength: scale of log p_c, 1 = the paper, 0 = no prior.

    Attributes:
        counted: samples that counted in the last call, int64 0-d: those of a class whose distribution is known.

    Raises:
        ValueError: counts that cannot be counts, temperature not above 0; in a call, shapes or dtypes that do not fit
            and (checked on the CPU only) a label out of range or of a class of count 0.

    Example:
        >>> loss = ProCoLoss([1, 1], temperature=0.5)
        >>> query, directions = torch.eye(3)[:1], torch.eye(3)[:2]
        >>> loss(query, torch.tensor([0]), directions, torch.full((2,), 1e5))  # near log(1 + exp(-2)) = 0.1269
        tensor(0.1269)
    """

    class_counts: Tensor

    def __init__(
        self, class_counts: Tensor | Sequence[int], temperature: float = 0.1, prior_strength: float = 1.0
    ) -> None:
        super().__init__()
        self.register_buffer("class_counts", checked_counts(class_counts))
        self.temperature, self.prior_strength = check_temperature(temperature), float(prior_strength)
        self.counted = torch.zeros((), dtype=torch.int64)

    def forward(
        self,
        queries: Tensor,
        labels: Tensor,
        directions: Tensor,
        concentrations: Tensor,
        known: Tensor | None = None,
    ) -> Tensor:
        """Return the scalar loss, in float32 at least, also under autocast. Time and memory are O(B (C + D)).

        Args:
            queries: ``[B, D]`` unit vectors, D at least 2.
            labels: int64 ``[B]``, 0..C-1.
            directions: ``[C, D]`` unit vectors, the mean direction of each class.
            concentrations: ``[C]``, 0 or above.
            known: bool ``[C]``, False for a class of which nothing is known: it drops out, and its samples do not
                count. None knows all.
        """
        self._check(queries, labels, directions, concentrations, known)
        densities = log_density(queries, directions, concentrations, self.temperature)
        logits = densities + weighted_log_prior(self.class_counts, self.prior_strength, densities.dtype)
        if known is None:
            known = torch.ones_like(self.class_counts, dtype=torch.bool)
        logits = logits.clamp(min=nothing(logits)).masked_fill(~known, nothing(logits))
        counts = known[labels]
        self.counted = counts.sum()
        return mean_of(logits.logsumexp(1) - logits.gather(1, labels[:, None]).squeeze(1), counts)

    def _check(
        self, queries: Tensor, labels: Tensor, directions: Tensor, concentrations: Tensor, known: Tensor | None
    ) -> None:
        check_queries(queries, labels)
        check_classes(labels, self.class_counts)
        classes, width = self.class_counts.shape[0], queries.shape[1]
        if width < 2 or list(directions.shape) != [classes, width]:
            raise ValueError(
                f"queries and directions must be [B, D] and [{classes}, D] with D >= 2, got {list(queries.shape)} and "
                f"{list(directions.shape)}."
            )
        if list(concentrations.shape) != [classes]:
            raise ValueError(f"concentrations must be [{classes}], got {list(concentrations.shape)}.")
        if known is not None and (list(known.shape) != [classes] or known.dtype != torch.bool):
            raise ValueError(f"known must be bool [{classes}], got {known.dtype} {list(known.shape)}.")

    def extra_repr(self) -> str:
        """Return what ``print`` shows of the loss."""
        return (
            f"num_classes={self.class_counts.shape[0]}, temperature={self.temperature}, "
            f"prior_strength={self.prior_strength}"
        )


def log_density(queries: Tensor, directions: Tensor, concentrations: Tensor, temperature: float) -> Tensor:
    """Return ``log E exp(z . v / temperature)`` over v of each class's vMF distribution, ``[B, C]``.

    Args:
        queries: z, ``[B, D]`` unit vectors.
        directions: ``[C, D]`` unit vectors.
        concentrations: ``[C]``, 0 or above.
        temperature: above 0.
    """
    cosines = similarities(queries, directions, 1.0)
    k, sharpness, order = concentrations.to(cosines.dtype), 1 / temperature, queries.shape[1] / 2 - 1
    # |k m + z / t| as the root of two terms that are not negative: nothing cancels where z lies opposite m.
    squared = (k - sharpness).square() + 2 * sharpness * k * (1 + cosines).clamp(min=0)
    shifted = squared.clamp(min=torch.finfo(squared.dtype).tiny).sqrt()
    # Its excess over k, which at k = 1e5 the difference of the two would give to two digits in float32.
    excess = (2 * sharpness * k * cosines + sharpness**2) / (shifted + k)
    return excess + log_bessel(order, shifted) - log_bessel(order, k)
