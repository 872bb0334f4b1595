"""Keeps the inputs of each block from forward to backward, in a stack on the device or in host memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ditflow.memory.host import HostBuffers, can_pin, packed_bytes, packed_views
from ditflow.models.protocols import Carried


class BlockInputs(Protocol):
    """A stack of block inputs. A gradient calls `begin`, pushes `count` times and pops until it is empty."""

    copied_bytes: int  # copied to the device so far
    host_bytes: int  # of host memory that the stack takes

    def begin(self, count: int, like: Carried) -> None:
        """Start an empty stack for `count` inputs of these shapes."""

    def push(self, carried: Carried) -> None: ...

    def pop(self) -> Carried: ...


class DeviceBlockInputs:
    """Implements `BlockInputs` on the device."""

    copied_bytes = host_bytes = 0

    def begin(self, count: int, like: Carried) -> None:
        self.stack: list[Carried] = []

    def push(self, carried: Carried) -> None:
        self.stack.append(carried)

    def pop(self) -> Carried:
        return self.stack.pop()


class HostBlockInputs:
    """Implements `BlockInputs` in host memory, with one input on the device and one in transit.

    Each input is copied to the host while its block computes, and back during the backward of the block after
    it. The last input is needed at once, so it stays on the device. Buffers are allocated for the first
    gradient and reused.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.copied: torch.cuda.Event | None = None  # the last copy, in either direction
        self.buffers: list[Tensor] = []
        self.copied_bytes = self.host_bytes = self.size = 0

    def begin(self, count: int, like: Carried) -> None:
        self._wait_for_copy()
        self.top: Carried | None = None  # on the device or in transit to it
        self.count, self.height = count, 0
        size = packed_bytes(like)
        if size != self.size or count - 1 > len(self.buffers):
            self.buffers = []  # frees the old buffers before the new ones are allocated
            pinned = self.copies is not None and can_pin(size * (count - 1))
            memory = HostBuffers([size] * (count - 1), pinned)
            self.size, self.buffers, self.host_bytes = size, memory.buffers, memory.bytes

    def push(self, carried: Carried) -> None:
        self._wait_for_copy()
        self.top = carried  # keeps the memory until the next push has waited for this copy
        if self.height < self.count - 1:
            self._copy(packed_views(self.buffers[self.height], carried), carried)
        self.height += 1

    def pop(self) -> Carried:
        self._wait_for_copy()
        carried, self.top = self.top, None
        self.height -= 1
        if self.height:
            self.top = tuple(torch.empty_like(part) for part in carried)
            self._copy(self.top, packed_views(self.buffers[self.height - 1], carried))
            self.copied_bytes += sum(part.nbytes for part in self.top)
        return carried

    def _copy(self, places: Sequence[Tensor], carried: Sequence[Tensor]) -> None:
        """Copy after the work queued so far, in parallel with the work queued next."""
        if self.copies is None:
            for place, part in zip(places, carried, strict=True):
                place.copy_(part)
            return
        self.copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.copies):
            for place, part in zip(places, carried, strict=True):
                place.copy_(part, non_blocking=True)
            self.copied = self.copies.record_event()

    def _wait_for_copy(self) -> None:
        """Make work queued from now on wait for the last copy."""
        if self.copied is not None:
            torch.cuda.current_stream(self.device).wait_event(self.copied)
