"""How many bits the model's features tell about the label: a lower bound on mutual information.

Suh & Seo, "Long-Tailed Recognition by Mutual Information Maximization between Latent Features and
Ground-Truth Labels", ICML 2023: I(Z; Y) >= H(Y) - L, with L the cross entropy of any model of q(y|z).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longtail.metrics.inputs import checked_class_vector, checked_indices, checked_logits, exact_mean, row_blocks


def label_entropy_bits(labels: Tensor, num_classes: int) -> float:
    """Return H(Y) in bits of the label distribution of labels [N]."""
    counts = torch.bincount(checked_indices(labels, num_classes))
    shares = counts[counts > 0].double() / len(labels)
    return 0.0 - math.fsum((shares * shares.log2()).tolist())


class LabelLikelihood:
    """Log-likelihood of each image's label, with the class prior that logits imply replaced by that of the labels.

    That is log softmax(logits - log logit_prior + log p_labels)[label]; a class that does not occur drops out.

    Args:
        labels: int64 [N], of all images.
        prior: float64 [C], class prior that softmax(logits) implies, any scale.

    Raises:
        ValueError: a class that occurs in `labels` has the prior 0.
    """

    def __init__(self, labels: Tensor, prior: Tensor) -> None:
        counts = torch.bincount(labels, minlength=len(prior))
        present = counts.nonzero().squeeze(1)
        if bool((prior[present] == 0).any()):
            missing = int(present[prior[present] == 0][0])
            raise ValueError(f"logit_prior is 0 for class {missing}, which occurs in the labels.")
        self._present = None if len(present) == len(prior) else present
        self._shift = counts[present].double().div(len(labels)).log() - prior[present].log()
        self._position = torch.zeros(len(prior), dtype=torch.int64)
        self._position[present] = torch.arange(len(present))

    def __call__(self, block: Tensor, labels: Tensor) -> Tensor:
        """Return float64 [rows] in nats for a block of logits, float64 [rows, C], and its images' labels [rows]."""
        shifted = (block if self._present is None else block[:, self._present]) + self._shift
        return shifted.gather(1, self._position[labels, None]).squeeze(1) - shifted.logsumexp(dim=1)


def information_bits(log_likelihood: Tensor, labels: Tensor, num_classes: int) -> float:
    """Return H(Y) - L in bits from the log-likelihoods [N] of labels [N], in nats."""
    return label_entropy_bits(labels, num_classes) + exact_mean(log_likelihood) / math.log(2)


def mutual_information_bits(logits: Tensor, labels: Tensor, logit_prior: Tensor) -> float:
    """Return the lower bound H(Y) - L on I(Z; Y), in bits, with H and L both under the labels given.

    The class prior that the logits imply is replaced by that of `labels`:
    L is the mean of -log softmax(logits - log logit_prior + log p_labels)[label], and a class that does not
    occur in `labels` drops out. The figure is never clipped: below 0 the model misleads more than it tells.
    The images must not have been used to build the model, or the figure is no bound.

    Args:
        logits: [N, C], finite.
        labels: [N] class indices.
        logit_prior: [C] class prior that softmax(logits) implies (the training prior for plain cross entropy,
            uniform for logit adjustment); positive for every class that occurs, any scale.

    Raises:
        ValueError: for bad input, or a class that occurs in `labels` and has `logit_prior` 0.
    """
    labels = checked_logits(logits, labels)
    num_classes = logits.shape[1]
    prior = checked_class_vector(logit_prior, num_classes, "logit_prior")
    likelihood = LabelLikelihood(labels, prior)
    found = torch.cat([likelihood(block, labels[rows]) for rows, block in row_blocks(logits)])
    return information_bits(found, labels, num_classes)
