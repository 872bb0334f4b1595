"""Memory presets: how to use the memory of a card of a given size. Each is a file in `configs/memory/`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from ditflow.files import shipped

PRESETS = ("4gb", "6gb", "8gb", "12gb", "16gb", "24gb", "48gb", "80gb")
GIB = 1 << 30
CONTEXT = 0.4 * GIB  # bytes that CUDA takes for itself
USABLE = 0.95  # share of a card's memory; the rest covers fragmentation


@dataclass(frozen=True)
class Preset:
    """What to keep where on a card of `gigabytes`. The plan decides how many blocks are resident."""

    name: str
    cards: str  # cards of that size
    gigabytes: int
    checkpoint: Literal["none", "attention", "block"]  # recomputed: nothing, all but attention, each block
    block_inputs: Literal["device", "host"]  # where a guided forward keeps the inputs of each block
    text: Literal["whole", "layers"]  # how much of the text encoder is on the device at a time
    decode_tile: int | None  # index into the family's tiles, largest first; None: whole frames

    def tile(self, tiles: Sequence[str]) -> str:
        """The tile for VAE decoding, of those of a model family (see `Settings.decode_tile`)."""
        return "none" if self.decode_tile is None else tiles[min(self.decode_tile, len(tiles) - 1)]

    @property
    def checkpointing(self) -> str:
        scope = {"none": "off", "attention": "of all but attention", "block": "of every block"}
        return f"gradient checkpointing {scope[self.checkpoint]}"

    @property
    def budget(self) -> int:
        return budget(self.gigabytes)


def budget(gigabytes: float) -> int:
    """Bytes that a program can use on a card of that size."""
    return max(0, int(USABLE * gigabytes * GIB - CONTEXT))


@cache
def presets() -> tuple[Preset, ...]:
    """All presets, the smallest first. Each is at least as fast as those before it, if it fits."""
    return tuple(Preset(name=name, **shipped(f"memory/{name}.yaml")) for name in PRESETS)
