"""Knowledge distillation between two sets of class logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DistillationLoss(nn.Module):
    """Divergence of the student's softened prediction from the teacher's.

    ``temperature**2 * KL(softmax(teacher / temperature) || softmax(student / temperature))``, mean over the
    batch, in nats. The square keeps the size of the gradient when the temperature changes. No gradient
    reaches the teacher. Hinton et al., "Distilling the knowledge in a neural network", 2015, section 2; Suh
    & Seo (ICML 2023) add it on CIFAR with temperature 4.

    Args:
        temperature: divides both logits, > 0.

    Raises:
        ValueError: temperature not above 0; in a call, shapes that differ or are not ``[B, C]``.

    Example:
        >>> loss = DistillationLoss(temperature=1.0)
        >>> loss(torch.zeros(1, 2), torch.tensor([[100.0, 0.0]]))  # log 2: a sure teacher, an unsure student
        tensor(0.6931)
    """

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be above 0 and finite, got {temperature}.")
        self.temperature = float(temperature)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the scalar loss of two ``[B, C]`` logits, in float32 at least."""
        if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
            raise ValueError(
                f"student and teacher logits must both be [B, C], got {list(student_logits.shape)} "
                f"and {list(teacher_logits.shape)}."
            )
        dtype = torch.promote_types(student_logits.dtype, torch.float32)
        student = F.log_softmax(student_logits.to(dtype) / self.temperature, dim=1)
        teacher = F.log_softmax(teacher_logits.detach().to(dtype) / self.temperature, dim=1)
        divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return divergence * self.temperature**2

    def extra_repr(self) -> str:
        """Return what ``print`` shows of the loss."""
        return f"temperature={self.temperature}"
