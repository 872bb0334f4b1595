"""Decides which block is in which slot on the device. Moves no data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

SLOTS = 2  # for the block that computes and the next one


class Turn(NamedTuple):
    """A block's slot, and what it takes to put the block there."""

    slot: int
    is_copied: bool  # False if the block is already there
    evicted: int | None  # the block that was there before


class Ring:
    """The first `resident` blocks stay on the device; the others take turns in two slots.

    The least recently used block is evicted. So the two blocks at the end of a forward are still there when
    backward starts. A plan uses this class to count what a run will copy.
    """

    def __init__(self, sizes: Sequence[int], resident: int):  # bytes of each block
        self.sizes, self.resident = sizes, resident
        streamed = sizes[resident:]
        self.slot_bytes = max(streamed, default=0)
        self.slots = min(SLOTS, len(streamed))
        # (slot, block), the least recently used first
        self.slot_blocks: list[tuple[int, int | None]] = [(slot, None) for slot in range(self.slots)]
        self.copied_bytes = 0

    @property
    def device_bytes(self) -> int:
        return sum(self.sizes[: self.resident]) + self.slots * self.slot_bytes

    def stays(self, index: int) -> bool:
        return index < self.resident

    def bring(self, index: int) -> Turn:
        """Assign a slot to a block that is not resident."""
        slot, block = next((found for found in self.slot_blocks if found[1] == index), self.slot_blocks[0])
        self.slot_blocks.remove((slot, block))
        self.slot_blocks.append((slot, index))
        if block == index:
            return Turn(slot, False, None)
        self.copied_bytes += self.sizes[index]
        return Turn(slot, True, block)

    def replay(self, order: Iterable[int]) -> int:
        """Bring the blocks in this order, as a walk does; return the bytes that this copies."""
        before = self.copied_bytes
        for index in order:
            if not self.stays(index):
                self.bring(index)
        return self.copied_bytes - before
