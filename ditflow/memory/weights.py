"""Where the blocks' weights are when a block computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol


class Weights(Protocol):
    """Brings weights to the device, block by block."""

    copied_bytes: int  # to the device, so far
    host_bytes: int  # of the buffers that weights wait in

    def walk(self, order: Iterable[int]) -> Iterator[int]:
        """The blocks in this order; the weights of each are on the device until the next one is asked for."""

    def stays(self, index: int) -> bool:
        """Whether a block's weights are on the device all the time."""


class Resident:
    """All weights are on the device all the time."""

    copied_bytes = host_bytes = 0

    def walk(self, order: Iterable[int]) -> Iterator[int]:
        return iter(order)

    def stays(self, index: int) -> bool:
        return True
