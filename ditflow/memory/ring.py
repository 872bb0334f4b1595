"""Which block is where on the device: the decisions, without the bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

SLOTS = 2  # the block that computes and the one that comes next


class Turn(NamedTuple):
    """What it takes to have a block in a slot."""

    slot: int
    is_copied: bool  # False where it is still there
    leaves: int | None  # the block that was there before


class Ring:
    """The first `resident` blocks stay on the device; the others take turns in two slots.

    The block that was asked for last is the last to leave: turning round, as a reverse pass does, finds two
    of them still there. A plan asks the same class what its walks will copy.
    """

    def __init__(self, sizes: Sequence[int], resident: int):  # bytes of each block
        self.sizes, self.resident = sizes, resident
        streamed = sizes[resident:]
        self.slot_bytes = max(streamed, default=0)
        self.slots = min(SLOTS, len(streamed))
        self.holds: list[tuple[int, int | None]] = [(slot, None) for slot in range(self.slots)]
        self.copied_bytes = 0

    @property
    def device_bytes(self) -> int:
        return sum(self.sizes[: self.resident]) + self.slots * self.slot_bytes

    def stays(self, index: int) -> bool:
        return index < self.resident

    def bring(self, index: int) -> Turn:
        """Where a block that does not stay goes, and what that moves."""
        slot, holds = next((found for found in self.holds if found[1] == index), self.holds[0])
        self.holds.remove((slot, holds))
        self.holds.append((slot, index))  # the least recently asked for is first
        if holds == index:
            return Turn(slot, False, None)
        self.copied_bytes += self.sizes[index]
        return Turn(slot, True, holds)

    def replay(self, order: Iterable[int]) -> int:
        """The bytes that a walk in this order copies, the ring being as the walks before have left it."""
        before = self.copied_bytes
        for index in order:
            if not self.stays(index):
                self.bring(index)
        return self.copied_bytes - before
