"""Draw training batches on the CPU while the network learns."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

Drawn = TypeVar("Drawn")


def drawn(draw: Callable[[int], Drawn], numbers: range, device: torch.device) -> Iterator[Drawn]:
    """Yield `draw(number)` in order. For a GPU, the other cores draw ahead of time (on Linux)."""
    ahead = device.type == "cuda"
    can_fork = hasattr(os, "fork") and hasattr(os, "sched_getaffinity")
    workers = len(os.sched_getaffinity(0)) - 1 if ahead and can_fork else 0
    return iter(
        DataLoader(
            _Draws(draw),
            batch_size=None,
            sampler=numbers,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
            collate_fn=_as_it_is,
            pin_memory=ahead,
        )
    )


class _Draws(Dataset):
    def __init__(self, draw: Callable[[int], Drawn]):
        self.draw = draw

    def __getitem__(self, number: int) -> Drawn:
        return self.draw(number)


def _as_it_is(item: Drawn) -> Drawn:
    return item
