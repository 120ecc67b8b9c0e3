"""What devices and links can do at most, from their makers' data sheets, and what of it a training step gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from longtail.errors import UserError, unknown_name

EFFICIENCY = 0.35
"""Share of the peak that products and dense convolutions reach where nothing was measured."""
_MEMORY_SHARE = 0.7
"""Share of the memory's bandwidth that operations reach which only move numbers."""
_GROUPED_SHARE = 0.1
"""What a convolution in groups (ResNeXt) reaches of a dense one's rate.

The three are fitted together to four published training rates of one A100: ResNet-50 938 images/s in TF32 and 2470 in
mixed precision (80 GB), ResNeXt-101 32x4d 300 and 908 (40 GB), NVIDIA DeepLearningExamples. What is predicted is 0.84
to 1.29 times those (``benchmarks/plan.py --published``): their TF32 runs have another memory layout than ours.
"""
_KERNEL_SECONDS = 3e-6
KINDS = ("product", "convolution", "grouped", "depthwise")


@dataclass(frozen=True)
class Device:
    """A device by its data sheet. Rates are dense, not those with sparsity.

    Attributes:
        title: in words.
        float32: peak of products in float32 as torch runs them by default, FLOP/s.
        convolution: likewise of convolutions, which cuDNN runs in TF32 by default.
        half: peak in bfloat16 with sums in float32.
        bandwidth: of its memory, bytes/s.
        memory: bytes.
        link: to its neighbours in one machine, bytes/s in one direction.
        watts: largest power.
        source: where the figures are from.
    """

    title: str
    float32: float
    convolution: float
    half: float
    bandwidth: float
    memory: float
    link: float
    watts: float
    source: str


DEVICES: dict[str, Device] = {
    "h200": Device(
        "H200 SXM",
        67e12,
        494e12,
        989e12,
        4.8e12,
        141e9,
        450e9,
        700,
        "NVIDIA H200 data sheet; NVLink 900 GB/s both ways",
    ),
    "h100": Device(
        "H100 SXM",
        67e12,
        494e12,
        989e12,
        3.35e12,
        80e9,
        450e9,
        700,
        "NVIDIA H100 data sheet; NVLink 900 GB/s both ways",
    ),
    "a100": Device(
        *("A100 SXM 80 GB", 19.5e12, 156e12, 312e12, 2.039e12, 80e9, 300e9, 400),
        "NVIDIA A100 data sheet; NVLink 600 GB/s both ways",
    ),
    "l4": Device("L4", 30.3e12, 60e12, 121e12, 300e9, 24e9, 32e9, 72, "NVIDIA L4 data sheet; PCIe 4.0 x16"),
    "rtx4090": Device(
        *("GeForce RTX 4090", 82.6e12, 82.6e12, 165e12, 1.008e12, 24e9, 32e9, 450),
        "NVIDIA Ada architecture paper; PCIe 4.0 x16",
    ),
    "cpu": Device(
        *("2 cores of an AMD EPYC", 91e9, 91e9, 91e9, 13.3e9, 8e9, 10e9, 30),
        "measured: limits in benchmarks/results/scaling.json; memory, link and power assumed",
    ),
}
"""By the name that ``--gpu`` takes."""

CALIBRATED = "here"
"""Name of the machine that ``longtail plan --calibrate`` measured."""


@dataclass(frozen=True)
class Rates:
    """What a step reaches on a device.

    Attributes:
        flops: FLOP/s by kind of operation, in float32.
        half_flops: likewise in bfloat16.
        bandwidth: bytes/s that an operation reads and writes.
        operation_seconds: least time of an operation.
    """

    flops: Mapping[str, float]
    half_flops: Mapping[str, float]
    bandwidth: float
    operation_seconds: float


def get_device(name: str) -> Device:
    """Return the device of that name, with near names in the error for an unknown one."""
    if name.lower() not in DEVICES:
        raise unknown_name("--gpu", name, [*DEVICES, CALIBRATED])
    return DEVICES[name.lower()]


def assumed_rates(device: Device, efficiency: float = EFFICIENCY) -> Rates:
    """Return what a step reaches on ``device`` if nothing was measured there.

    Args:
        device: by its data sheet.
        efficiency: share of the peak, above 0 and at most 1.
    """
    if not 0 < efficiency <= 1:
        raise UserError(f"--efficiency must be above 0 and at most 1, got {efficiency:g}.")

    def by_kind(product: float, convolution: float) -> dict[str, float]:
        split = convolution * _GROUPED_SHARE
        rates = {"product": product, "convolution": convolution, "grouped": split, "depthwise": split}
        return {kind: efficiency * rate for kind, rate in rates.items()}

    return Rates(
        by_kind(device.float32, device.convolution),
        by_kind(device.half, device.half),
        _MEMORY_SHARE * device.bandwidth,
        _KERNEL_SECONDS,
    )


def assumptions(device: Device, efficiency: float) -> list[str]:
    """Return what :func:`assumed_rates` takes for granted, a sentence each."""
    return [
        f"{device.title}: {device.float32 / 1e12:.3g} TFLOP/s in float32, {device.convolution / 1e12:.3g} in its "
        f"convolutions, {device.half / 1e12:.3g} in bfloat16, {device.bandwidth / 1e9:.4g} GB/s ({device.source}).",
        f"{efficiency:.0%} of the peak is reached by products and dense convolutions, {_GROUPED_SHARE:.0%} of that by "
        f"grouped ones, {_MEMORY_SHARE:.0%} of the bandwidth by what only moves numbers; an operation takes "
        f"{_KERNEL_SECONDS * 1e6:.0f} microseconds at least: fitted to published rates of one A100, which are met "
        "within 30 % (--efficiency, or measure: longtail plan --calibrate).",
    ]
