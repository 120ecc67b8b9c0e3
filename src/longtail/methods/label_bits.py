"""What the log says of a classifier's loss: its name, and the bits of label information that it stands for."""

from __future__ import annotations

import math

from torch import Tensor

from longtail.methods.base import MethodContext
from longtail.metrics import label_entropy_bits


class LabelBits:
    """Label information H(Y) - L on the training batch, in bits; optimistic, because the batch is trained on.

    It says something only where H and L are taken over the training images as they are: with another sampler, weighted
    classes or blended images there are no bits, and the log has another name for the loss.

    Args:
        context: of the method.
        plain: whether L is the cross entropy of the images' own labels, all weighing alike.

    Attributes:
        loss_name: of L in the log, ``classifier`` or ``rebalanced``.
    """

    def __init__(self, context: MethodContext, plain: bool = True) -> None:
        self._informs = plain and context.sampler == "instance"
        self.loss_name = "classifier" if self._informs else "rebalanced"
        self._entropy = label_entropy_bits(context.train.labels, context.train.num_classes)
        self._bits: Tensor | None = None

    def see(self, loss: Tensor) -> None:
        """Take in the loss of a step, in nats, 0-d."""
        if self._informs:
            self._bits = self._entropy - loss.detach() / math.log(2)

    def readings(self) -> dict[str, Tensor]:
        """Return the bits of the last step, by that name, if there are any."""
        return {} if self._bits is None else {"bits": self._bits}
