"""InfoNCE between two views of the same images: the contrast that no label enters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.losses.pairs import check_temperature, itself, nothing, similarities


class InfoNCELoss(nn.Module):
    """Normalised temperature-scaled cross entropy (NT-Xent) over two views of each image.

    ``L = -log( exp(z_i . z_j / temperature) / sum over k != i of exp(z_i . z_k / temperature) )``, with z_j the other
    view of the image of z_i and k running over all other 2B - 1 views; mean over both views of all images. Chen et al.,
    "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020 (SimCLR), Eq. 1. It is supervised
    contrast in which every image is a class of its own. log(2B - 1) - L bounds the information between the two views
    from below (van den Oord et al. 2018): the second variable is the input, so that class imbalance never enters.

    Args:
        temperature: of the similarities, > 0.

    Raises:
        ValueError: temperature not above 0; in a call, views that are not both ``[B, D]``.

    Example:
        >>> loss = InfoNCELoss(temperature=0.5)
        >>> views = torch.eye(2)
        >>> loss(views, views)  # log(1 + 2 exp(-2)): one view like it, two at right angles
        tensor(0.2395)
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the scalar loss of unit vectors ``first [B, D]`` and ``second [B, D]``, in float32 at least.

        Row i of both belongs to image i.
        """
        if first.ndim != 2 or first.shape != second.shape:
            raise ValueError(f"both views must be [B, D], got {list(first.shape)} and {list(second.shape)}.")
        views = torch.cat([first, second])
        logits = similarities(views, views, self.temperature)
        logits = logits.masked_fill(itself(logits), nothing(logits))
        other = torch.arange(len(views), device=views.device).roll(len(first))
        return F.cross_entropy(logits, other)

    def extra_repr(self) -> str:
        """Return what ``print`` shows of the loss."""
        return f"temperature={self.temperature}"
