"""What a GPU has consumed, from NVML's own counter: the driver's library, no package needed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch

LIBRARY = "libnvidia-ml.so.1"


def energy_counter(device: torch.device) -> Callable[[], float | None]:
    """Joules since the driver was loaded, whenever it is called; None where the driver does not tell."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return lambda: None
    return counter_of(library, f"GPU-{torch.cuda.get_device_properties(device).uuid}")


def counter_of(library: ctypes.CDLL, uuid: str) -> Callable[[], float | None]:
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    ready = (
        library.nvmlInit_v2() == 0
        and library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)) == 0
    )

    def joules() -> float | None:
        # not before Volta, and not for a part of a GPU
        if not ready or library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)) != 0:
            return None
        return millijoules.value / 1e3

    return joules
