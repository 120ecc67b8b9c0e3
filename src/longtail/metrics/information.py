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
    counts = torch.bincount(labels, minlength=num_classes)
    present = counts.nonzero().flatten()
    if bool((prior[present] == 0).any()):
        missing = int(present[prior[present] == 0][0])
        raise ValueError(f"logit_prior is 0 for class {missing}, which occurs in the labels.")
    shift = counts[present].double().div(len(labels)).log() - prior[present].log()
    position = torch.zeros(num_classes, dtype=torch.long)
    position[present] = torch.arange(len(present))
    log_likelihood = torch.empty(len(labels), dtype=torch.float64)
    for rows, block in row_blocks(logits):
        log_posterior = (block[:, present] + shift).log_softmax(dim=1)
        log_likelihood[rows] = log_posterior.gather(1, position[labels[rows], None]).squeeze(1)
    return label_entropy_bits(labels, num_classes) + exact_mean(log_likelihood) / math.log(2)
