"""Where the blocks' weights are when a block computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol


class Weights(Protocol):
    """Brings weights to the device, block by block."""

    def walk(self, order: Iterable[int]) -> Iterator[int]:
        """The blocks in this order; the weights of each are on the device until the next one is asked for."""


class Resident:
    """All weights are on the device all the time."""

    def walk(self, order: Iterable[int]) -> Iterator[int]:
        return iter(order)
