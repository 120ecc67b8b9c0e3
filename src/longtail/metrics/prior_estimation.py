"""How frequent is each class among new images? Estimated from a classifier's answers on them, without labels.

Saerens, Latinne and Decaestecker, "Adjusting the Outputs of a Classifier to New a Priori Probabilities: A Simple
Procedure", Neural Computation 14(1), 2002, Eqs. 2.9 and 2.10.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from longtail.metrics.inputs import checked_class_vector, checked_indices, row_blocks, zeros_as_rarest

TOLERANCE = 1e-6
MAX_ITERATIONS = 2000


@dataclass(frozen=True)
class PriorEstimate:
    """A class prior, and how it was reached.

    Attributes:
        prior: float64 ``[C]``, sums to 1.
        log_likelihoods: mean log-likelihood ratio an image (nats) before each update; it never falls.
        gap: the mean log-likelihood at ``prior`` is at most this far from its maximum.
        settled: whether that is within the tolerance; if not, the number of updates was used up.
    """

    prior: Tensor
    log_likelihoods: list[float]
    gap: float
    settled: bool


def chance_error(prior: Tensor, images: int) -> float:
    """Return how far a class prior estimated from so many images is off by chance, at the least.

    That is the expected half sum of |estimated - true| (total variation) where each image tells its class for certain:
    the estimate is then the shares of a multinomial draw, whose error in a class of share q is nearly normal with the
    standard error sqrt(q (1 - q) / images), and sqrt(2 / pi) of that in the mean. Images that leave the class open
    tell less, and probabilities that are not calibrated add an error of their own that no number of images removes.

    As the true prior is not known, each class is given half an image beside those of the estimate (Krichevsky and
    Trofimov 1981): of a class that the estimate rules out, a few images cannot know that it never occurs.

    Args:
        prior: ``[C]``, as estimated, sum 1.
        images: from how many, at least 1.
    """
    prior = checked_class_vector(prior, prior.numel(), "prior")
    share = (images * prior + 0.5) / (images + 0.5 * len(prior))
    deviation = (share * (1 - share) / images).sqrt()
    return math.sqrt(2 / math.pi) / 2 * math.fsum(deviation.tolist())


def estimate_prior(
    logits: Tensor,
    base_prior: Tensor,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
    weights: Tensor | None = None,
) -> PriorEstimate:
    """Return the class prior under which images with these logits are most likely (EM).

    The softmax of the logits is taken for p(class | image) where the classes have ``base_prior``. Then the likelihood
    of a prior q is, but for a constant, the product over images of sum_c q_c softmax_c / base_c. Its logarithm is
    concave in q, so EM climbs to the maximum; of several priors that share it, the one reached hangs on the start,
    which is ``base_prior`` (with :func:`~longtail.metrics.inputs.zeros_as_rarest`). The figures are only as good as the
    probabilities are calibrated. Memory: 8 bytes x N x C.

    Args:
        logits: ``[N, C]``, finite, N > 0; divided by the calibration temperature if there is one.
        base_prior: ``[C]``, not negative.
        tolerance: stop when the mean log-likelihood is certainly this close to its maximum, in nats an image.
        max_iterations: stop after this many updates in any case.
        weights: ``[N]``, positive; how many images each stands for, up to a factor. None = all the same.

    Raises:
        ValueError: shapes or values that do not fit.
    """
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"logits must have the shape [N, C] with N > 0 and C > 0, got {list(logits.shape)}.")
    if not tolerance > 0 or max_iterations < 1:
        raise ValueError("tolerance must be positive and max_iterations at least 1.")
    base = zeros_as_rarest(checked_class_vector(base_prior, logits.shape[1], "base_prior"), "base_prior")
    base /= base.sum()
    # One over the row's largest entry is a constant of the likelihood, kept aside in `scale`.
    each = torch.ones(len(logits), dtype=torch.float64) if weights is None else weights.cpu().double()
    if each.shape != (len(logits),) or not bool((each > 0).all()):
        raise ValueError(f"weights must be positive, one for each of {len(logits)} images.")
    each = each / each.mean()
    ratios, scale = [], 0.0
    for rows, block in row_blocks(logits):
        shifted = block.log_softmax(1) - base.log()
        top = shifted.amax(1, keepdim=True)
        ratios.append(((shifted - top).exp(), each[rows]))
        scale += float(top.squeeze(1) @ each[rows])
    prior = base.clone()
    history: list[float] = []
    while True:
        update = torch.zeros_like(prior)
        likelihood = scale
        for ratio, weight in ratios:
            mixed = ratio @ prior
            likelihood += float(mixed.log() @ weight)
            update += ratio.T @ (weight / mixed)
        update /= len(logits)
        history.append(likelihood / len(logits))
        # The likelihood is concave and its gradient is `update`: no prior is better by more than this.
        gap = max(0.0, float(update.max()) - 1)
        if gap <= tolerance or len(history) > max_iterations:
            return PriorEstimate(prior, history, gap, gap <= tolerance)
        prior = prior * update
        prior /= math.fsum(prior.tolist())


def estimate_error(logits: Tensor, labels: Tensor, base_prior: Tensor) -> float:
    """Return how far :func:`estimate_prior` is off on images whose classes are known: half sum of |estimated - true|.

    The worse of two cases: the images as they are, and weighted so that all their classes are equally frequent, where
    what a model does not know of rare classes counts.

    Args:
        logits: ``[N, C]``, as for :func:`estimate_prior`.
        labels: ``[N]``.
        base_prior: ``[C]``.
    """
    classes = logits.shape[1]
    labels = checked_indices(labels, classes)
    share = torch.bincount(labels, minlength=classes).double() / len(labels)
    even = (share > 0).double() / (share > 0).sum()
    off = []
    for true, weights in ((share, None), (even, (even / share.clamp_min(1 / len(labels)))[labels])):
        found = estimate_prior(logits, base_prior, weights=weights).prior
        off.append(float((found - true).abs().sum()) / 2)
    return max(off)
