"""How fast this machine is: products, convolutions and copies, timed for some seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from longtail.data.check_cache import default_cache
from longtail.data.loading import free_memory
from longtail.data.memory import available_bytes
from longtail.errors import UserError
from longtail.files import read_json, write_json
from longtail.planning.hardware import KINDS, Rates

_FILE = "plan-rates.json"
_SECONDS_EACH = 0.6
_COPIED = 2**26
_PRODUCTS = ((4096, 2048, 1024), (128, 1024, 16384), (2048, 512, 2048))
# Side, channels in, channels out, kernel, stride, groups: shapes of ResNets, ResNeXts and MobileNets.
_CONVOLUTIONS: dict[str, tuple[tuple[int, int, int, int, int, int], ...]] = {
    "convolution": ((56, 64, 64, 3, 1, 1), (28, 128, 128, 3, 1, 1), (14, 256, 1024, 1, 1, 1), (32, 16, 16, 3, 1, 1)),
    "grouped": ((56, 128, 128, 3, 1, 32), (14, 512, 512, 3, 1, 32)),
    "depthwise": ((56, 72, 72, 3, 1, 72), (14, 480, 480, 3, 1, 480)),
}


def calibrate(device: torch.device) -> dict[str, Any]:
    """Time a few products, convolutions (forward and backward) and copies on ``device``.

    Args:
        device: what is measured.

    Returns:
        ``flops`` and ``half_flops`` (FLOP/s by kind of operation), ``bandwidth`` (bytes/s read and written),
        ``operation_seconds``, and what was measured.
    """
    flops = {kind: _rate(kind, device, torch.float32) for kind in KINDS}
    half = {kind: _rate(kind, device, torch.bfloat16) for kind in KINDS}
    source = torch.zeros(_COPIED // 4, device=device)
    target = torch.empty_like(source)
    copying = _median(lambda: target.copy_(source), device)
    one = torch.zeros(16, device=device)
    adding = _median(lambda: [one.add(1.0) for _ in range(100)], device) / 100
    return {
        "device": device.type,
        "memory": available_bytes() if device.type == "cpu" else free_memory(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "flops": flops,
        "half_flops": half,
        "bandwidth": 2 * _COPIED / copying,
        "operation_seconds": adding,
    }


def write_calibration(figures: dict[str, Any]) -> Path:
    """Keep what :func:`calibrate` found, and return the file."""
    folder = default_cache()
    if folder is None:
        raise UserError("there is no folder to keep the calibration in; name one in LONGTAIL_CACHE.")
    write_json(folder / _FILE, figures)
    return folder / _FILE


@dataclass(frozen=True)
class Measured:
    """What :func:`calibrate` found, as it was kept.

    Attributes:
        kind: of the device.
        memory: bytes that were free on it; None where that cannot be told.
        rates: what a step reaches.
    """

    kind: str
    memory: float | None
    rates: Rates


def calibrated() -> Measured | None:
    """Return what :func:`write_calibration` kept, None if it never did.

    Raises:
        UserError: the file is not one that it wrote.
    """
    folder = default_cache()
    if folder is None or not (folder / _FILE).exists():
        return None
    figures = read_json(folder / _FILE)
    try:
        full, half = ({kind: float(figures[name][kind]) for kind in KINDS} for name in ("flops", "half_flops"))
        rates = Rates(full, half, float(figures["bandwidth"]), float(figures["operation_seconds"]))
        return Measured(str(figures["device"]), figures["memory"] and float(figures["memory"]), rates)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{folder / _FILE} is no calibration; run longtail plan --calibrate again.") from None


def _rate(kind: str, device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a kind of operation: the median over shapes, each forward and backward."""
    if kind == "product":
        return statistics.median(_product_rate(shape, device, dtype) for shape in _PRODUCTS)
    return statistics.median(_convolution_rate(shape, device, dtype) for shape in _CONVOLUTIONS[kind])


def _product_rate(shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype) -> float:
    rows, inner, columns = shape
    left = torch.randn(rows, inner, device=device, dtype=dtype)
    right = torch.randn(inner, columns, device=device, dtype=dtype)
    return 2 * rows * inner * columns / _median(lambda: left @ right, device)


def _convolution_rate(
    shape: tuple[int, int, int, int, int, int], device: torch.device, dtype: torch.dtype, batch: int = 16
) -> float:
    side, given, made, kernel, stride, groups = shape
    images = torch.randn(batch, given, side, side, device=device, dtype=dtype)
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(made, given // groups, kernel, kernel, device=device, dtype=dtype)
    weight = weight.contiguous(memory_format=torch.channels_last).requires_grad_()

    def run() -> object:
        out = F.conv2d(images, weight, stride=stride, padding=kernel // 2, groups=groups)
        return torch.autograd.grad(out, (images, weight), out.detach())

    flops = 3 * 2 * batch * (side // stride) ** 2 * made * (given // groups) * kernel**2
    return flops / _median(run, device)


def _median(run: Callable[[], object], device: torch.device) -> float:
    """Return the median seconds of a run, over runs of some tenths of a second together."""
    _timed(run, device)
    taken = [_timed(run, device)]
    while len(taken) < 3 or (sum(taken) < _SECONDS_EACH and len(taken) < 200):
        taken.append(_timed(run, device))
    return statistics.median(taken)


def _timed(run: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
