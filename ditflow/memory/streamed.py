"""Weights on their way: blocks wait in host memory, and the next one is copied while one computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ditflow.memory.host import HostBuffers, keep_on_host, packed_bytes, packed_views
from ditflow.memory.ring import Ring


class Streamed:
    """Implements `ditflow.memory.weights.Weights`: the first `resident` blocks stay, the others come and go.

    All blocks are in host memory to begin with, as loading leaves them.
    `pinned`: a block waits in a flat buffer that the device reads by itself: bringing it is one copy, beside
    everything else. `pageable`: its tensors stay where loading has put them, in memory-mapped files perhaps,
    and are copied one by one; nothing is allocated on the host, and `host_bytes` is 0.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        device: torch.device,
        resident: int,
        host: Literal["pinned", "pageable"] = "pinned",
    ):
        self.device, self.looks_ahead = device, host == "pinned"
        self.blocks = [_Block(block) for block in blocks]
        self.ring = Ring([block.bytes for block in self.blocks], resident)
        for block in self.blocks[:resident]:
            block.move_to(torch.empty(block.bytes, dtype=torch.uint8, device=device))
        self.host_bytes = self._pin() if host == "pinned" else 0
        copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.slots = [_Slot(self.ring.slot_bytes, device, copies) for _ in range(self.ring.slots)]

    def walk(self, order: Iterable[int]) -> Iterator[int]:
        order = list(order)
        for position, index in enumerate(order):
            slot = self._bring(index)
            # a copy from pageable memory holds up the host: it would be in the way of launching this block
            if self.looks_ahead and position + 1 < len(order):
                self._bring(order[position + 1])
            if slot:
                slot.wait_for_copy()
            try:
                yield index
            finally:
                if slot:
                    slot.computed()

    def stays(self, index: int) -> bool:
        return self.ring.stays(index)

    @property
    def copied_bytes(self) -> int:
        return self.ring.copied_bytes

    @property
    def device_bytes(self) -> int:
        return self.ring.device_bytes

    def device_buffers(self) -> list[Tensor]:
        """Everything on the device that this holds."""
        stay = [block.buffer for block in self.blocks[: self.ring.resident]]
        return [*stay, *(slot.buffer for slot in self.slots)]

    def _pin(self) -> int:
        """Gather the blocks that stream in buffers; their bytes."""
        streamed = self.blocks[self.ring.resident :]
        memory = HostBuffers([block.bytes for block in streamed], self.device.type == "cuda")
        for block, buffer in zip(streamed, memory.buffers, strict=True):
            block.move_to(buffer)
        return memory.bytes

    def _bring(self, index: int) -> _Slot | None:
        """The slot in which a block is or to which it is on its way; None for one that stays."""
        if self.stays(index):
            return None
        turn = self.ring.bring(index)
        slot = self.slots[turn.slot]
        if turn.leaves is not None:
            self.blocks[turn.leaves].go_home()
        if turn.is_copied:
            slot.fill(self.blocks[index])
        return slot


def flat_bytes(block: nn.Module) -> int:
    """The size of a block's flat buffer."""
    return packed_bytes([*block.parameters(), *block.buffers()])


class _Block:
    """A block's tensors, and where they are while the block is not in a slot."""

    def __init__(self, block: nn.Module):
        self.tensors = [*block.parameters(), *block.buffers()]
        self.buffer: Tensor | None = None  # the one they live in, once they have been moved
        self.home = [keep_on_host(tensor).data for tensor in self.tensors]
        self.bytes = flat_bytes(block)

    def move_to(self, buffer: Tensor) -> None:
        """Have the tensors live in a buffer from now on."""
        self.copy_to(buffer)
        self.buffer, self.home = buffer, packed_views(buffer, self.tensors)
        self.go_home()

    def copy_to(self, buffer: Tensor) -> None:
        """Copy the values; the tensors stay what they are."""
        if self.buffer is not None:
            buffer[: self.bytes].copy_(self.buffer, non_blocking=True)
            return
        for place, tensor in zip(packed_views(buffer, self.tensors), self.home, strict=True):
            place.copy_(tensor, non_blocking=True)

    def bind(self, buffer: Tensor) -> None:
        """Make the tensors views of a buffer."""
        self._become(packed_views(buffer, self.tensors))

    def go_home(self) -> None:
        self._become(self.home)

    def _become(self, values: list[Tensor]) -> None:
        for tensor, value in zip(self.tensors, values, strict=True):
            tensor.data = value


class _Slot:
    """A place on the device for one block at a time."""

    def __init__(self, size: int, device: torch.device, copies: torch.cuda.Stream | None):
        self.copies = copies  # None on a CPU, where everything happens in its order
        self.buffer = torch.empty(size, dtype=torch.uint8, device=device)
        self.copied = self.free = None  # CUDA events
        if copies is not None:
            self.buffer.record_stream(copies)  # freed while a copy is under way, it waits for that
            self.computed()  # and whoever had the memory before may still be computing

    def fill(self, block: _Block) -> None:
        if self.copies is None:
            block.copy_to(self.buffer)
        else:
            with torch.cuda.stream(self.copies):
                self.copies.wait_event(self.free)
                block.copy_to(self.buffer)
                self.copied = self.copies.record_event()
        block.bind(self.buffer)

    def wait_for_copy(self) -> None:
        if self.copied is not None:
            torch.cuda.current_stream(self.buffer.device).wait_event(self.copied)

    def computed(self) -> None:
        """What was asked of the block so far has to be done before the slot is filled again."""
        if self.copies is not None:
            self.free = torch.cuda.current_stream(self.buffer.device).record_event()
