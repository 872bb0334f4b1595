"""Weights on their way: blocks in host memory, a ring of two on the device, the next one copied meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

ALIGNMENT = 256  # bytes; where each tensor begins in its block's buffer
RING = 2  # blocks: the one that computes and the one that comes next


class Streamed:
    """Implements `ditflow.memory.weights.Weights`: the first `resident` blocks stay, the others come and go.

    A block's tensors lie in one flat buffer: bringing it is one copy, and the pinned allocator, which rounds
    each allocation up to a power of two, rounds once. Turning round, as a reverse pass does, finds the last
    two blocks still there. `copied_bytes` counts what went to the device.
    """

    def __init__(self, blocks: nn.ModuleList, device: torch.device, resident: int, pinned: bool):
        self.device, self.copied_bytes = device, 0
        self.layouts = [_Layout(block) for block in blocks]
        self.resident = resident
        self.host: list[Tensor | None] = []
        for index, layout in enumerate(self.layouts):
            stays = index < resident
            buffer = layout.gather(device if stays else torch.device("cpu"), pinned and not stays)
            layout.bind(buffer)
            self.host.append(None if stays else buffer)
        size = max((layout.bytes for layout in self.layouts[resident:]), default=0)
        self.slots = [_Slot(size, device) for _ in range(min(RING, len(self.layouts) - resident))]
        self.copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def walk(self, order: Iterable[int]) -> Iterator[int]:
        order = list(order)
        for position, index in enumerate(order):
            slot = self._bring(index, keep=None)
            if position + 1 < len(order):
                self._bring(order[position + 1], keep=slot)
            if slot:
                slot.wait_for_copy()
            try:
                yield index
            finally:
                if slot:
                    slot.computed()

    def device_buffers(self) -> list[Tensor]:
        """Everything on the device that this holds."""
        stays = [layout.tensors[0] for layout in self.layouts[: self.resident]]
        return [*stays, *(slot.buffer for slot in self.slots)]

    def _bring(self, index: int, keep: _Slot | None) -> _Slot | None:
        """The slot in which a block is or to which it is on its way; None for one that stays."""
        if index < self.resident:
            return None
        for slot in self.slots:
            if slot.holds == index:
                return slot
        slot = next(slot for slot in reversed(self.slots) if slot is not keep)
        self.slots.remove(slot)
        self.slots.insert(0, slot)  # the most recently filled first
        if slot.holds is not None:
            self.layouts[slot.holds].bind(self.host[slot.holds])
        slot.fill(index, self.host[index], self.copies)
        self.layouts[index].bind(slot.buffer)
        self.copied_bytes += self.layouts[index].bytes
        return slot


class _Layout:
    """Where each tensor of a block lies in a flat buffer."""

    def __init__(self, block: nn.Module):
        self.tensors = [*block.parameters(), *block.buffers()]
        self.offsets, self.bytes = [], 0
        for tensor in self.tensors:
            self.offsets.append(self.bytes)
            size = tensor.numel() * tensor.element_size()
            self.bytes += -(-size // ALIGNMENT) * ALIGNMENT

    def gather(self, device: torch.device, pinned: bool) -> Tensor:
        """A new buffer with the tensors' values."""
        buffer = torch.empty(self.bytes, dtype=torch.uint8, device=device, pin_memory=pinned)
        for tensor, place in zip(self.tensors, self._places(buffer), strict=True):
            place.copy_(tensor.detach())
        return buffer

    def bind(self, buffer: Tensor) -> None:
        """Make the block's tensors views of a buffer."""
        for tensor, place in zip(self.tensors, self._places(buffer), strict=True):
            tensor.data = place

    def _places(self, buffer: Tensor) -> Iterator[Tensor]:
        for tensor, offset in zip(self.tensors, self.offsets, strict=True):
            size = tensor.numel() * tensor.element_size()
            yield buffer[offset : offset + size].view(tensor.dtype).view(tensor.shape)


class _Slot:
    """A place on the device for one block at a time."""

    def __init__(self, size: int, device: torch.device):
        self.buffer = torch.empty(size, dtype=torch.uint8, device=device)
        self.holds: int | None = None
        self.copied = self.free = None  # CUDA events

    def fill(self, index: int, host: Tensor, copies: torch.cuda.Stream | None) -> None:
        self.holds = index
        if copies is None:
            self.buffer[: len(host)].copy_(host)
            return
        with torch.cuda.stream(copies):
            if self.free is not None:
                copies.wait_event(self.free)
            self.buffer[: len(host)].copy_(host, non_blocking=True)
            self.copied = copies.record_event()

    def wait_for_copy(self) -> None:
        if self.copied is not None:
            torch.cuda.current_stream(self.buffer.device).wait_event(self.copied)

    def computed(self) -> None:
        """What was asked of the block so far has to be done before the slot is filled again."""
        if self.copied is not None:
            self.free = torch.cuda.current_stream(self.buffer.device).record_event()
