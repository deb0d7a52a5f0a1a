"""Memory that one call takes at its peak: of that call alone, not of the process so far."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

_SELF = Path("/proc/self")


def peak_gib(call: Callable[[], object], device: torch.device) -> float | None:
    """GiB above what was held before `call`, at the highest point during it; the call is made in any case.

    On a GPU by torch's own count of tensors (its workspaces among them). On the CPU by the kernel's count of resident pages, whose
    high-water mark is set back first (``/proc/self/clear_refs``); None where the system has no such mark.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**30
    if not _set_back():
        call()
        return None
    held = _resident("VmRSS")
    call()
    return (_resident("VmHWM") - held) / 2**30


def _set_back() -> bool:
    """Give freed pages back, so that they do not count as held, and set the mark to what is left."""
    with contextlib.suppress(OSError, AttributeError):  # another C library: pages it keeps hide as much of the peak
        ctypes.CDLL(None).malloc_trim(0)
    try:
        (_SELF / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident(name: str) -> int:
    """Bytes that the kernel gives under a name."""
    for line in (_SELF / "status").read_text().splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"no {name} in {_SELF / 'status'}")
