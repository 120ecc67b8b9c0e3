"""Gaussian mixture likelihood: a logit-adjusted cross entropy over the class densities of contrast keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.losses.autocast import without_autocast
from longtail.losses.chunks import in_chunks
from longtail.losses.class_density import check_keys
from longtail.losses.label_odds import LabelClass, key_bias, label_log_odds
from longtail.losses.label_odds_fused import Kernel, fused_label_log_odds, use_fused
from longtail.losses.logit_adjusted import check_labels, checked_counts, weighted_log_prior


class GMLLoss(nn.Module):
    """Contrastive loss that maximises the mutual information between features and labels.

    ``L = -log softmax_c(log s(z|c) + prior_strength * log p_c)[label]``, mean over the samples that count,
    with ``s(z|c) = mean over the keys z' of class c of exp(z . z' / temperature)`` and p_c the share of
    class c in the training set. Suh & Seo, "Long-Tailed Recognition by Mutual Information Maximization
    between Latent Features and Ground-Truth Labels", ICML 2023 (L_GML). prior_strength 0 gives supervised
    contrastive learning (Khosla et al., NeurIPS 2020, Eq. 3) averaged over classes; one key a class gives
    the logit-adjusted cosine classifier.

    A sample's own keys are those with ``key_ids == query_id``, all of them in the sample's own class. The
    loss keeps them unless ``exclude_own_key``. The temperature must not see them, or it falls far too low:
    it learns from a second copy with the features detached and the own keys left out (without ids: with all
    keys), which adds its gradient to the loss but not its value. In the first copy the temperature is a
    constant.

    A class without a key that counts, or of count 0 under a prior, drops out of that query's sum. If it is
    the target, the sample does not count; if none counts, the loss and all its gradients are 0.

    Args:
        class_counts: ``[C]`` training samples of each class; kept as a buffer.
        temperature: of the kernel, > 0; the first value if it is learned.
        learn_temperature: make ``log_temperature`` a parameter instead of a buffer.
        prior_strength: scale of log p_c, 1 = the paper, 0 = no prior.
        exclude_own_key: leave own keys out of the loss itself too; needs ids in every call.
        class_pooling: ``"mean"`` over the keys of a class (the paper) or their ``"sum"``, which counts a class as often
            as it has keys. Where keys are as frequent as training samples, sum without prior is mean with prior.
        max_similarities: how many of the B x K similarities are held at once, 4 bytes each in float32 and about four
            times that with what is made of them. Queries are then taken in parts of ``max_similarities // K`` (at
            least one), with the same value and gradients up to rounding. None holds them all.
        kernel: ``"plain"`` tensor operations; ``"fused"`` Triton kernels on CUDA that never write the B x K
            similarities (plain where they cannot: float64, D over 1024, a mask ``[B, K]``, no Triton; D over 256 needs
            the shared memory of an H100). ``"auto"`` takes the fused ones on CUDA from 64 million similarities on, up
            to D 128: cautious guesses, for neither way has been timed on a GPU yet. In half precision the fused
            gradients are rounded to it before they are summed, in float32.

    Attributes:
        counted: samples that counted in the last call, int64 0-d.
        information: I(features; label) in bits that the last call's batch shows, 0-d without gradient:
            (H(p) - L) / ln 2 with own keys left out, a lower bound on average that may be negative.
            NaN without ids, or where no sample has a key of its class besides its own.

    Raises:
        ValueError: counts not one-dimensional, negative or all zero; temperature not above 0; max_similarities
            below 1; a kernel unknown; in a call, shapes or dtypes that do not fit, one kind of ids without the other,
            and (on the CPU) a label out of range or a longest_class shorter than a label's class.

    Example:
        >>> loss = GMLLoss(torch.tensor([3, 1]), temperature=0.5)
        >>> queries = torch.tensor([[1.0, 0.0]])
        >>> keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> loss(queries, torch.tensor([0]), keys, offsets=torch.tensor([0, 1, 3]))  # log(1 + exp(-2) / 3)
        tensor(0.0441)
        >>> loss.counted
        tensor(1)
    """

    class_counts: Tensor
    log_temperature: Tensor

    def __init__(
        self,
        class_counts: Tensor | Sequence[int],
        temperature: float = 0.1,
        learn_temperature: bool = False,
        prior_strength: float = 1.0,
        exclude_own_key: bool = False,
        max_similarities: int | None = None,
        kernel: Kernel = "auto",
        class_pooling: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be above 0 and finite, got {temperature}.")
        if max_similarities is not None and max_similarities < 1:
            raise ValueError(f"max_similarities must be at least 1, got {max_similarities}.")
        if kernel not in ("auto", "plain", "fused"):
            raise ValueError(f'kernel must be "auto", "plain" or "fused", got {kernel!r}.')
        if class_pooling not in ("mean", "sum"):
            raise ValueError(f'class_pooling must be "mean" or "sum", got {class_pooling!r}.')
        self.register_buffer("class_counts", checked_counts(class_counts))
        log_temperature = torch.tensor(math.log(temperature), dtype=torch.get_default_dtype())
        if learn_temperature:
            self.log_temperature = nn.Parameter(log_temperature)
        else:
            self.register_buffer("log_temperature", log_temperature)
        # What rounding the log to its dtype dropped: nothing in float32, but float64 inputs would see it.
        self._log_residual = math.log(temperature) - log_temperature.item()
        self.learn_temperature = learn_temperature
        self.prior_strength = float(prior_strength)
        self.exclude_own_key = exclude_own_key
        self.max_similarities = max_similarities
        self.kernel = kernel
        self.class_pooling = class_pooling
        self.counted = torch.zeros((), dtype=torch.int64)
        self.information = torch.full((), torch.nan)

    @property
    def temperature(self) -> Tensor:
        """The kernel's temperature, 0-d."""
        return (self.log_temperature + self._log_residual).exp()

    def forward(
        self,
        queries: Tensor,
        labels: Tensor,
        keys: Tensor,
        offsets: Tensor,
        query_ids: Tensor | None = None,
        key_ids: Tensor | None = None,
        key_mask: Tensor | None = None,
        longest_class: int | None = None,
    ) -> Tensor:
        """Return the scalar loss, in float32 at least, also under autocast.

        Args:
            queries: ``[B, D]`` unit vectors.
            labels: int64 ``[B]``, 0..C-1.
            keys: ``[K, D]`` unit vectors, class by class.
            offsets: int64 ``[C + 1]``: class c holds keys ``offsets[c]:offsets[c + 1]``.
            query_ids: ``[B]`` sample of each query; -1 matches no key.
            key_ids: ``[K]`` sample of each key; -1 matches no query.
            key_mask: bool ``[K]`` or ``[B, K]``, True where a key counts.
            longest_class: the number of keys of the longest class, or more. None reads it back from the device; given,
                nothing is read back, and a step can be captured as one graph.
        """
        self._check(queries, labels, keys, offsets, query_ids, key_ids, key_mask)
        dtype = torch.promote_types(torch.promote_types(queries.dtype, keys.dtype), torch.float32)
        log_prior = weighted_log_prior(self.class_counts, self.prior_strength, dtype)
        rows = max(1, self.max_similarities // max(1, len(keys))) if self.max_similarities else len(queries)
        mean = self.class_pooling == "mean"
        fused = use_fused(self.kernel, queries, keys, key_mask)
        log_odds = fused_label_log_odds if fused else self._label_log_odds
        if fused and longest_class is None:
            longest_class = len(keys)  # the kernels need none, so nothing is read back
        label_class = LabelClass.find(labels, offsets, longest_class)._replace(
            query_ids=query_ids, key_ids=key_ids, exclude_own_key=self.exclude_own_key, mean=mean
        )
        needs_term = self.learn_temperature or query_ids is not None

        def sums(queries: Tensor, keys: Tensor, log_temperature: Tensor, part: slice) -> tuple[Tensor, ...]:
            """Return loss, the temperature's copy of it, and how many samples counted in each, of some queries."""
            mask = key_mask[part] if key_mask is not None and key_mask.ndim == 2 else key_mask
            bias = key_bias(log_prior, offsets, len(keys), mask, mean)
            # log p_y s(z|y) - log sum over c != y of p_c s(z|c), of which the loss is -log sigmoid.
            odds, odds_without_own = log_odds(queries, keys, log_temperature, bias, label_class.rows(part))
            loss, counted = _summed(odds)
            term, term_counted = _summed(odds_without_own) if needs_term else (loss.detach(), counted)
            return loss, term, counted, term_counted

        with without_autocast(queries):
            log_temperature = self.log_temperature.to(dtype) + self._log_residual
            if fused or rows >= len(queries):
                found = sums(queries, keys, log_temperature, slice(None))
            else:
                found = in_chunks(sums, rows, queries.to(dtype), keys.to(dtype), log_temperature)
            loss, term, self.counted, term_counted = found
            loss, term = loss / self.counted.clamp(min=1), term / term_counted.clamp(min=1)
            value = term.detach()
            self.information = torch.full_like(value, torch.nan)
            if query_ids is not None:
                self.information = self._bits(value, term_counted)
            return loss + (term - value)

    def _label_log_odds(
        self, queries: Tensor, keys: Tensor, log_temperature: Tensor, bias: Tensor, label_class: LabelClass
    ) -> tuple[Tensor, Tensor]:
        """Return the log odds ``[B]`` with and without own keys (see :func:`label_log_odds`)."""
        return label_log_odds(queries, keys, log_temperature, bias, label_class)

    def _bits(self, cross_entropy: Tensor, counted: Tensor) -> Tensor:
        """Return the bound (H(p) - cross entropy) in bits, NaN where no sample counted."""
        log_prior = weighted_log_prior(self.class_counts, 1.0, cross_entropy.dtype)
        entropy = -torch.where(log_prior > -torch.inf, log_prior.exp() * log_prior, 0.0).sum()
        bits = (entropy - cross_entropy) / math.log(2)
        return torch.where(counted > 0, bits, torch.nan)

    def _check(
        self,
        queries: Tensor,
        labels: Tensor,
        keys: Tensor,
        offsets: Tensor,
        query_ids: Tensor | None,
        key_ids: Tensor | None,
        key_mask: Tensor | None,
    ) -> None:
        classes = self.class_counts.shape[0]
        if queries.ndim != 2 or keys.ndim != 2 or queries.shape[1] != keys.shape[1]:
            raise ValueError(
                f"queries and keys must be [B, D] and [K, D], got {list(queries.shape)}, {list(keys.shape)}."
            )
        check_labels(labels, queries.shape[0], classes)
        if offsets.shape != (classes + 1,):
            raise ValueError(f"offsets must be [{classes + 1}] for {classes} classes, got {list(offsets.shape)}.")
        check_keys(len(queries), len(keys), offsets, key_mask)
        if (query_ids is None) != (key_ids is None):
            raise ValueError("query_ids and key_ids must be given together.")
        if query_ids is None and self.exclude_own_key:
            raise ValueError("exclude_own_key needs query_ids and key_ids.")
        for name, ids, size in (("query_ids", query_ids, len(queries)), ("key_ids", key_ids, len(keys))):
            if ids is not None and (ids.shape != (size,) or ids.is_floating_point()):
                raise ValueError(f"{name} must be integers [{size}], got {ids.dtype} {list(ids.shape)}.")

    def extra_repr(self) -> str:
        """Return what ``print`` shows of the loss."""
        return (
            f"num_classes={self.class_counts.shape[0]}, temperature={self.temperature.item():.4g}, "
            f"learn_temperature={self.learn_temperature}, prior_strength={self.prior_strength}, "
            f"exclude_own_key={self.exclude_own_key}, class_pooling={self.class_pooling!r}"
        )


def _summed(log_odds: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of -log sigmoid over the samples whose label's class is there, and their number."""
    missing = log_odds == -torch.inf
    losses = -F.logsigmoid(log_odds.masked_fill(missing, 0.0)).masked_fill(missing, 0.0)
    return losses.sum(), (~missing).sum()
