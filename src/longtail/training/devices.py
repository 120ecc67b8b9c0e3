"""Where a run computes."""

from __future__ import annotations

import torch

from longtail.errors import UserError


def pick_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` is the first accelerator, else the CPU."""
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None else found
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name} names no device; use {_devices_here()}.") from None
    try:
        torch.ones(1, device=device).item()  # "meta" holds no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        raise UserError(f"--device {name} is not to be had here ({reason}); use {_devices_here()}.") from None
    return torch.device("cpu") if device.type == "cpu" else device  # there is one, whatever its number


def _devices_here() -> str:
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return "auto or cpu"
    count = torch.accelerator.device_count()
    return f"auto, cpu or {found.type}" + (f":0 to {found.type}:{count - 1}" if count > 1 else "")
