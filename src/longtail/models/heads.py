"""What sits on an encoder's features: classifiers (cosine, linear) and the contrastive projection."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.errors import unknown_name
from longtail.losses.autocast import without_autocast

_SMALLEST_NORM = 1e-12
_HEADS = ("cosine", "linear")


def unit_vectors(vectors: Tensor) -> Tensor:
    """Scale each row of ``[..., D]`` to length 1, in float32 at least.

    A row shorter than 1e-12 has no direction: it is returned as it is. So a zero vector stays zero with a
    gradient of ordinary size, where dividing by a tiny constant would make it 1e12 times larger.
    """
    vectors = vectors.to(_wide(vectors))
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(norm > _SMALLEST_NORM, norm, 1.0)


class CosineHead(nn.Module):
    """A classifier on the unit sphere: logits = scale * cos(feature, class weight).

    Both sides are normalised and multiplied in float32 at least, also under autocast: at scale 30 a half
    precision product would move a logit by about 0.1. Class weights start as random directions of length 1,
    so that a learning rate means the same at every feature width.

    Args:
        dim: feature width D.
        num_classes: C.
        scale: factor on the cosine (30 in the published GML runs).

    Shape:
        ``[B, D] -> [B, C]``, values in -scale..scale.
    """

    def __init__(self, dim: int, num_classes: int, scale: float = 30.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(unit_vectors(torch.randn(num_classes, dim)))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``[B, C]`` of features ``[B, D]``."""
        with without_autocast(features):
            directions = unit_vectors(features)
            return self.scale * F.linear(directions, unit_vectors(self.weight.to(directions.dtype)))

    def extra_repr(self) -> str:
        """Show sizes and scale when printed."""
        return f"dim={self.weight.shape[1]}, num_classes={self.weight.shape[0]}, scale={self.scale}"


class LinearHead(nn.Linear):
    """The ordinary classifier ``[B, D] -> [B, C]``: a linear map with bias.

    Args:
        dim: feature width D.
        num_classes: C.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__(dim, num_classes)


class ProjectionHead(nn.Module):
    """Linear, BatchNorm, ReLU, Linear, then L2 normalisation: features to contrastive unit vectors.

    In training mode the BatchNorm needs two rows or more.

    Args:
        dim: feature width D.
        out_dim: width P of the result.
        hidden_dim: width between the two maps; D unless given.

    Shape:
        ``[B, D] -> [B, P]``, rows of length 1, float32 also under autocast.
    """

    def __init__(self, dim: int, out_dim: int, hidden_dim: int | None = None) -> None:
        super().__init__()
        hidden = dim if hidden_dim is None else hidden_dim
        self.layers = nn.Sequential(
            # The BatchNorm subtracts whatever bias the first map would add.
            nn.Linear(dim, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, out_dim),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return unit vectors ``[B, P]`` of features ``[B, D]``."""
        return unit_vectors(self.layers(features))


class UnitVectors(nn.Module):
    """L2 normalisation alone, where features are compared without a projection: ``[B, D] -> [B, D]``."""

    def forward(self, features: Tensor) -> Tensor:
        """Return the rows of features ``[B, D]`` at length 1 (see :func:`unit_vectors`)."""
        return unit_vectors(features)


def build_head(name: str, dim: int, num_classes: int, scale: float = 30.0) -> nn.Module:
    """Return a new classification head: ``"cosine"`` (which alone uses ``scale``) or ``"linear"``.

    Raises:
        UserError: the name is neither.
    """
    if name == "cosine":
        return CosineHead(dim, num_classes, scale)
    if name == "linear":
        return LinearHead(dim, num_classes)
    raise unknown_name("head", name, _HEADS)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
