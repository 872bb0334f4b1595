"""How much memory there is, and how much of it this process may take."""

from __future__ import annotations

import psutil
import torch

from ditflow.memory.presets import CONTEXT, GIB, USABLE, budget, presets
from ditflow.settings import PRESETS


def free_bytes(device: torch.device) -> int:
    """What a device can still give out; on a CPU, what the system says it can."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


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

    With `auto` the cap is what is free.
    """
    if device.type != "cuda":
        return
    free, total = torch.cuda.mem_get_info(device)
    most = free if memory == "auto" else min(free, gigabytes(memory) * GIB - CONTEXT)
    torch.cuda.set_per_process_memory_fraction(most / total, device)
