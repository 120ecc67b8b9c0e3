"""Meeting the other processes that a launcher started: stores, backends, and what goes wrong with them."""

from __future__ import annotations

import atexit
import os
import threading
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from longtail.errors import UserError
from longtail.ranks import Ranks

_TIMEOUT, _COMING = timedelta(minutes=30), timedelta(minutes=10)
_connected: Ranks | None = None


def connect(device: str) -> Ranks:
    """Return this process's place among those that ``torchrun`` started, connected with them; alone without it.

    The first call connects; what it returns is returned again later.

    Args:
        device: option of that name. Each process takes the accelerator of its number on its machine.

    Raises:
        UserError: the port is taken, the others do not come, or there are more processes than devices.
    """
    global _connected
    if _connected is not None:
        return _connected
    world, restarts = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    launched = os.environ.get("TORCHELASTIC_RUN_ID", "none" if world > 1 else "")
    job = f"{launched} {os.getppid()}" if launched else ""
    if world <= 1:
        return Ranks(restarts=restarts, job=job)
    rank, local = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
    backend = _backend(device, local)
    try:
        launcher, store = _stores(rank)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise _no_connection(error) from None
    ranks = Ranks(rank, world, local, restarts, job, launcher=launcher)
    ranks.store = dist.distributed_c10d.PrefixStore("longtail", store)
    threading.Thread(target=ranks.watch, name="other ranks", daemon=True).start()
    atexit.register(ranks.farewell)
    _connected = ranks
    return ranks


def _stores(rank: int) -> tuple[Any, Any]:
    """Return the launcher's store (None if there is none), and one that the first process of this start holds.

    The launcher's outlives the first process, and keeps what a start before it wrote. The port of the other is told
    through it, where that of a start before may still stand: nobody answers there.

    Raises:
        RuntimeError: torch's, if the others do not come.
    """
    store, _, _ = next(rendezvous("env://", timeout=_COMING))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None, store  # the first process holds it already
    host = os.environ["MASTER_ADDR"]
    if rank == 0:
        own = dist.TCPStore(host, 0, is_master=True, timeout=_TIMEOUT, wait_for_workers=False)  # type: ignore[attr-defined]
        store.set("longtail", str(own.port))
        return _of_start(store, own.port), own
    end = time.monotonic() + _COMING.total_seconds()
    while True:
        port = int(store.get("longtail"))
        try:
            own = dist.TCPStore(host, port, timeout=timedelta(seconds=5), wait_for_workers=False)  # type: ignore[attr-defined]
            return _of_start(store, port), own
        except RuntimeError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def _of_start(launcher: Any, port: int) -> Any:
    """Return the launcher's store with keys of this start alone, whose own store is at ``port``."""
    return dist.distributed_c10d.PrefixStore(f"longtail/{port}", launcher)


def _backend(device: str, local: int) -> str:
    """Return what torch connects with: gloo for what lies on the host, and the device's own."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if device.partition(":")[0] == "cpu" or found is None:
        return "gloo"
    if ":" in device:
        raise UserError(f"--device {device} is one device, but several processes train; leave the number out.")
    count = torch.accelerator.device_count()
    if local >= count:
        raise UserError(
            f"process {local} of this machine has no device: there are {count}; start at most {count} "
            "(--nproc-per-node), or give --device cpu."
        )
    torch.accelerator.set_device_index(local)
    return f"cpu:gloo,{found.type}:{dist.get_default_backend_for_device(found)}"


def _no_connection(error: Exception) -> UserError:
    address = f"{os.environ.get('MASTER_ADDR', 'no MASTER_ADDR')}:{os.environ.get('MASTER_PORT', 'no MASTER_PORT')}"
    text = str(error).lower()
    if "in use" in text or "eaddrinuse" in text:
        return UserError(f"the port of {address} is in use; give another (torchrun --master-port, or MASTER_PORT).")
    reason = str(error).splitlines()[0].rstrip(".")
    return UserError(f"the processes do not find each other at {address} ({reason}); start them with torchrun.")
