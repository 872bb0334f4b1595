"""Weights that are always on the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class Resident:
    """Implements `ditflow.models.protocols.Weights`."""

    copied_bytes = host_bytes = 0

    def walk(self, order: Iterable[int]) -> Iterator[int]:
        return iter(order)

    def stays(self, index: int) -> bool:
        return True
