"""Which precision trains faster here: found by timing, since a processor's name does not tell.

bfloat16 is about twice as fast where the hardware multiplies in it, and many times slower where it is emulated.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from longtail.models import build_encoder

MARGIN = 1.15
"""bfloat16 must be this many times faster to be worth its rounding."""
_TURNS, _BATCH = 3, 32


def faster_precision(seconds: Callable[[bool], float]) -> tuple[str, float]:
    """Return the precision to train in and how many times as fast as float32 bfloat16 is.

    Args:
        seconds: times one step, in bfloat16 if told so. Asked in turn; the first answers, which include what is done
            only once, do not count.
    """
    seconds(False)
    first = seconds(True)
    taken = [(seconds(False), seconds(True) if first < float("inf") else first) for _ in range(_TURNS)]
    gain = statistics.median(full for full, _ in taken) / statistics.median(half for _, half in taken)
    return ("bfloat16" if gain >= MARGIN else "float32"), gain


def time_encoder(
    backbone: str, channels: int, size: tuple[int, int], batch: int, device: torch.device
) -> Callable[[bool], float]:
    """Return what times forward and backward of an encoder on noise, as the training runs it (channels last).

    Args:
        backbone: encoder name.
        channels: of the images.
        size: height and width in pixels.
        batch: images a step; at most 32 are timed.
        device: where the training will run.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = build_encoder(backbone, channels, size).to(device).to(memory_format=torch.channels_last)
        images = torch.randn(min(batch, _BATCH), channels, *size).to(device, memory_format=torch.channels_last)

    def seconds(low: bool) -> float:
        encoder.zero_grad()
        began = time.perf_counter()
        try:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
                features = encoder(images)
            torch.autograd.backward(features.float().square().mean())
        except RuntimeError:  # an operation that this device has in float32 only
            if low:
                return float("inf")
            raise
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - began

    return seconds
