"""Which epoch's weights a stage keeps: the last, or the one with the best figure on the validation images."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from longtail.training.checkpoint import load_module, part, prefixed

_PREFIX = "best"


class BestEpoch:
    """Keeps the classifier of the best epoch so far, and lies in the stage's state: both are of the same step.

    Of equal figures the latest epoch wins: few images give equal figures often, and the learning rate falls.

    Args:
        figure: of ``metrics.jsonl``, what the epoch is chosen by, such as ``val_balanced_accuracy``, where a rare class
            weighs as much as a frequent one.
    """

    def __init__(self, figure: str) -> None:
        self.figure = figure
        self.classifier: nn.Module | None = None
        self.epoch, self.value, self.seen = 0, 0.0, 0

    def see(self, epoch: int, figures: dict[str, float], classifier: nn.Module) -> None:
        """Take an epoch into account; ``classifier`` is kept as it is, so it must be a copy."""
        self.seen += 1
        if self.classifier is None or figures[self.figure] >= self.value:
            self.classifier, self.epoch, self.value = classifier, epoch, figures[self.figure]

    @property
    def record(self) -> dict[str, Any]:
        """What ``evaluation.json`` says: ``epoch``, ``of`` how many that were looked at, ``figure`` and ``value``."""
        return {"epoch": self.epoch, "of": self.seen, "figure": self.figure, "value": self.value}

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights for the stage's state."""
        return {} if self.classifier is None else prefixed(_PREFIX, self.classifier.state_dict())

    def restore(self, tensors: dict[str, Tensor], record: dict[str, Any], like: nn.Module, what: str) -> None:
        """Put back what ``tensors`` and ``record`` held; ``like`` is a classifier of the same form, to be filled.

        Raises:
            UserError: the tensors do not fit; ``what`` says where they come from.
        """
        self.epoch, self.value, self.seen = int(record["epoch"]), float(record["value"]), int(record["of"])
        if self.seen:
            load_module(like, part(tensors, _PREFIX), what)
            self.classifier = like
