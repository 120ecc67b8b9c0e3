"""A step recorded once and replayed: on CUDA one graph instead of thousands of kernels launched one by one.

A ResNet-32 step is a great many small kernels, which a host otherwise launches one by one. A captured step reads
its batch from fixed tensors, so that the shapes must stay the same and the step must not read from the device, which
:class:`longtail.training.step.TrainingStep` does not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from longtail.data.loading import Batch

Step = Callable[[Batch, float], None]

WARM_UP = 3
"""Steps taken as usual before the recording: they fill the optimiser's state and let libraries choose their kernels."""


class Recorder(Protocol):
    """Runs work before the recording, and turns a function without arguments into a replay of it."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run ``work`` once."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return what replays ``work``; recording it does not run it."""


class CudaRecorder:
    """Records a CUDA graph on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run ``work`` on the stream of the recording, so that what autograd remembers of streams fits it."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return the replay of a graph of ``work``."""
        graph = torch.cuda.CUDAGraph()
        # What other threads do meanwhile (a loader pins memory) is none of the recording's business.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


def can_capture(device: torch.device) -> bool:
    """Return whether steps on this device can be recorded."""
    return device.type == "cuda"


class CapturedStep:
    """A step that is recorded after a few calls and replayed from then on.

    Args:
        step: what a step does. It must not depend on ``progress`` and is given NaN, so that one that does is refused
            from its first step instead of staying where it was recorded.
        recorder: how the device records.
        say: told once, in a sentence, if the step cannot be recorded; it then goes on as it is.
    """

    def __init__(self, step: Step, recorder: Recorder, say: Callable[[str], None]) -> None:
        self._step, self._recorder, self._say = step, recorder, say
        self._seen = 0
        self._batch: Batch | None = None
        self._replay: Callable[[], None] | None = None
        self._gave_up = False

    def __call__(self, batch: Batch, progress: float) -> None:
        """Take the step on ``batch``."""
        if self._gave_up:
            self._step(batch, progress)
            return
        if self._seen < WARM_UP:
            self._seen += 1
            self._recorder.warm_up(lambda: self._step(batch, math.nan))
            return
        if self._replay is None:
            self._batch = fixed = _map(lambda tensor: tensor.clone(), batch)
            try:
                self._replay = self._recorder.record(lambda: self._step(fixed, math.nan))
            except RuntimeError as error:
                self._gave_up, self._batch = True, None
                reason = str(error).splitlines()[0].rstrip(".")
                self._say(f"the step could not be captured ({reason}); it runs uncaptured, which is slower.")
                self._step(batch, progress)
                return
        assert self._batch is not None
        for kept, new in zip(_tensors(self._batch), _tensors(batch), strict=True):
            if kept.shape != new.shape:
                raise ValueError(f"a captured step takes batches of one shape: {list(kept.shape)}, {list(new.shape)}")
            kept.copy_(new)
        self._replay()


def _tensors(batch: Batch) -> list[Tensor]:
    rest = (getattr(batch, field.name) for field in dataclasses.fields(batch) if field.name != "views")
    return [*batch.views.values(), *(value for value in rest if isinstance(value, Tensor))]


def _map(change: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    rest = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch) if field.name != "views"}
    changed = {name: change(value) if isinstance(value, Tensor) else value for name, value in rest.items()}
    return Batch(views={name: change(view) for name, view in batch.views.items()}, **changed)
