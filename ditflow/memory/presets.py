"""Memory presets: how memory is used on a card of a given size. One file each in `configs/memory/`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from ditflow.files import shipped

PRESETS = ("4gb", "6gb", "8gb", "12gb", "16gb", "24gb", "48gb", "80gb")
GIB = 1 << 30
CONTEXT = 0.4 * GIB  # bytes that CUDA takes for itself
USABLE = 0.95  # of a card: the rest covers fragmentation


@dataclass(frozen=True)
class Preset:
    """What is kept where on a card of `gigabytes`. The plan decides how many blocks stay on it."""

    name: str
    cards: str
    gigabytes: int
    checkpoint: Literal["none", "attention", "block"]  # what a guided forward computes again in its backward
    block_inputs: Literal["device", "host"]  # where a guided forward keeps what enters each block
    text: Literal["whole", "layers"]  # how much of the text encoder is on the device at a time
    decode_tile: int | None  # index in the family's tiles, from the largest; None: whole frames

    def tile(self, tiles: Sequence[str]) -> str:
        """A family's tile for VAE decoding, see `Settings.decode_tile`."""
        return "none" if self.decode_tile is None else tiles[min(self.decode_tile, len(tiles) - 1)]

    @property
    def budget(self) -> int:
        return budget(self.gigabytes)


def budget(gigabytes: float) -> int:
    """Bytes that a program can use on a card of that size."""
    return max(0, int(USABLE * gigabytes * GIB - CONTEXT))


@cache
def presets() -> tuple[Preset, ...]:
    """All presets, the smallest first. Each is faster than those before it, where it fits."""
    return tuple(Preset(name=name, **shipped(f"memory/{name}.yaml")) for name in PRESETS)
