"""How much memory there is, and how much of it this process may take."""

from __future__ import annotations

import psutil
import torch

from ditflow.memory.presets import CONTEXT, GIB, USABLE, budget, presets
from ditflow.settings import PRESETS


def free_bytes(device: torch.device) -> int:
    """What this process can still have of a device, what it holds unused included."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def usable_bytes(memory: str, device: torch.device) -> int:
    """Bytes that a run with this `Settings.memory` can plan with.

    What is asked for by number or name holds on a CPU as it is, and on a GPU as far as so much is free.
    """
    free = int(USABLE * free_bytes(device))
    if memory == "auto":
        return free
    asked = budget(gigabytes(memory))
    return min(asked, free) if device.type == "cuda" else asked


def gigabytes(memory: str) -> float:
    """The size of card that a number or a preset's name stands for."""
    return presets()[PRESETS.index(memory)].gigabytes if memory in PRESETS else float(memory)


def cap(memory: str, device: torch.device) -> None:
    """Let allocations beyond it fail: some drivers would spill into host memory, and crawl.

    With `auto` the cap is what is free and what this process has already.
    """
    if device.type != "cuda":
        return
    most = free_bytes(device) + torch.cuda.memory_allocated(device)
    if memory != "auto":
        most = min(most, gigabytes(memory) * GIB - CONTEXT)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(max(0.0, min(1.0, most / total)), device)
