"""How much memory is free, and how much of it this process may use."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from ditflow.memory.presets import CONTEXT, GIB, PRESETS, USABLE, budget, presets

OUT_OF_MEMORY = ("out of memory", "alloc_failed", "can't allocate memory")  # in messages of libraries
LOADED_LATER = 0.2 * GIB  # bytes that kernels and libraries take when they are first used
C_LIBRARY = None if sys.platform == "win32" else ctypes.CDLL(None)  # of this process


def free_bytes(device: torch.device) -> int:
    """Bytes of a device's memory that this process can still use, including torch's unused cache."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def usable_bytes(memory: str, device: torch.device) -> int:
    """Bytes that a run with this `Settings.memory` can plan with.

    For a number or a preset's name: on a CPU the bytes asked for, on a GPU no more than are free.
    """
    on_gpu = device.type == "cuda"
    free = max(0, int(USABLE * free_bytes(device) - (LOADED_LATER if on_gpu else 0)))
    if memory == "auto":
        return free
    asked = budget(gigabytes(memory))
    return min(asked, free) if on_gpu else asked


def gigabytes(memory: str) -> float:
    """The card size in gigabytes that a number or a preset's name stands for."""
    return presets()[PRESETS.index(memory)].gigabytes if memory in PRESETS else float(memory)


@contextmanager
def capped(memory: str, device: torch.device) -> Iterator[None]:
    """Make allocations beyond this `Settings.memory` fail. Some drivers would spill into slow host memory.

    With `auto` the cap is the free memory plus what this process already has.
    """
    if device.type != "cuda":
        yield
        return
    most = free_bytes(device) + torch.cuda.memory_allocated(device)
    if memory != "auto":
        most = min(most, gigabytes(memory) * GIB - CONTEXT)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(max(0.0, min(1.0, most / total)), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def give_back(device: torch.device) -> None:
    """Return cached memory to the system: torch's on the device and on the host, and the C library's."""
    if hasattr(C_LIBRARY, "malloc_trim"):  # glibc's
        C_LIBRARY.malloc_trim(0)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        if hasattr(torch.accelerator, "empty_host_cache"):  # not in torch 2.10
            torch.accelerator.empty_host_cache()


def ran_out(error: BaseException) -> bool:
    """Whether an error means that memory ran out. Outside torch's allocator, only its text says so."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY)
