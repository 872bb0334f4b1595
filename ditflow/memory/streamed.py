"""Streams weights: blocks are kept in host memory, and the next one is copied while one computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ditflow.memory.host import HostBuffers, keep_on_host, packed_bytes, packed_views
from ditflow.memory.ring import Ring


class Streamed:
    """Implements `ditflow.models.protocols.Weights`. The first `resident` blocks stay; the others stream.

    All blocks must be in host memory at first. `host` says how streamed blocks are kept there:
    `pinned`: each in a flat buffer in pinned memory, copied in one piece, in parallel with computation.
    `pageable`: where loading put them, perhaps in memory-mapped files. The tensors are copied one by one; no
    host memory is allocated, and `host_bytes` is 0.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        device: torch.device,
        resident: int,
        host: Literal["pinned", "pageable"] = "pinned",
    ):
        self.device, self.prefetches = device, host == "pinned"
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
            # not from pageable memory: that copy would block the host before it launches this block
            if self.prefetches and position + 1 < len(order):
                self._bring(order[position + 1])
            if slot:
                slot.wait_for_copy()
            try:
                yield index
            finally:
                if slot:
                    slot.record_use()

    def stays(self, index: int) -> bool:
        return self.ring.stays(index)

    @property
    def copied_bytes(self) -> int:
        return self.ring.copied_bytes

    @property
    def device_bytes(self) -> int:
        return self.ring.device_bytes

    def device_buffers(self) -> list[Tensor]:
        """All buffers on the device: resident blocks and slots."""
        resident = [block.buffer for block in self.blocks[: self.ring.resident]]
        return [*resident, *(slot.buffer for slot in self.slots)]

    def _pin(self) -> int:
        """Move the streamed blocks to pinned buffers; return the bytes that these take."""
        streamed = self.blocks[self.ring.resident :]
        memory = HostBuffers([block.bytes for block in streamed], self.device.type == "cuda")
        for block, buffer in zip(streamed, memory.buffers, strict=True):
            block.move_to(buffer)
        return memory.bytes

    def _bring(self, index: int) -> _Slot | None:
        """Start copying a block to a slot, unless it is there. Returns the slot; None if it is resident."""
        if self.stays(index):
            return None
        turn = self.ring.bring(index)
        slot = self.slots[turn.slot]
        if turn.evicted is not None:
            self.blocks[turn.evicted].return_home()
        if turn.is_copied:
            slot.fill(self.blocks[index])
        return slot


def flat_bytes(block: nn.Module) -> int:
    """The size of a block's flat buffer."""
    return packed_bytes([*block.parameters(), *block.buffers()])


class _Block:
    """A block's tensors, and their home: where their values are while the block is not in a slot."""

    def __init__(self, block: nn.Module):
        self.tensors = [*block.parameters(), *block.buffers()]
        self.home = [keep_on_host(tensor).data for tensor in self.tensors]
        self.buffer: Tensor | None = None  # the flat buffer that `home` is in, after `move_to`
        self.bytes = flat_bytes(block)

    def move_to(self, buffer: Tensor) -> None:
        """Make a flat buffer the home of the tensors."""
        self.copy_to(buffer)
        self.buffer, self.home = buffer, packed_views(buffer, self.tensors)
        self.return_home()

    def copy_to(self, buffer: Tensor) -> None:
        """Copy the values to a flat buffer; the tensors do not change."""
        if self.buffer is not None:
            buffer[: self.bytes].copy_(self.buffer, non_blocking=True)
            return
        for place, tensor in zip(packed_views(buffer, self.tensors), self.home, strict=True):
            place.copy_(tensor, non_blocking=True)

    def bind(self, buffer: Tensor) -> None:
        """Make the tensors views of a flat buffer."""
        self._set_data(packed_views(buffer, self.tensors))

    def return_home(self) -> None:
        self._set_data(self.home)

    def _set_data(self, values: list[Tensor]) -> None:
        for tensor, value in zip(self.tensors, values, strict=True):
            tensor.data = value


class _Slot:
    """A buffer on the device for one block at a time."""

    def __init__(self, size: int, device: torch.device, copies: torch.cuda.Stream | None):
        self.copies = copies  # the stream for copies; None on a CPU, where nothing runs in parallel
        self.buffer = torch.empty(size, dtype=torch.uint8, device=device)
        self.copied = self.free = None  # CUDA events
        if copies is not None:
            self.buffer.record_stream(copies)  # so that the memory is not reused before a copy has ended
            self.record_use()  # the memory's last user may still be computing

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

    def record_use(self) -> None:
        """Make the next `fill` wait for the work queued so far."""
        if self.copies is not None:
            self.free = torch.cuda.current_stream(self.buffer.device).record_event()
