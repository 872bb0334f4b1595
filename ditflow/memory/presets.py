"""Presets: how memory is used on a card of a given size. A file each in `configs/memory/`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from ditflow.settings.settings import PRESETS, shipped

GIB = 1 << 30
CONTEXT = 0.4 * GIB  # bytes that CUDA takes for itself
USABLE = 0.95  # of a card: the rest is for what the allocator cannot hand out in one piece


@dataclass(frozen=True)
class Preset:
    """What is kept, where, for a card of `gigabytes`. How many blocks stay on it, the plan finds out."""

    name: str
    cards: str
    gigabytes: int
    checkpoint: Literal["none", "attention", "block"]  # none: a guided forward keeps all for its reverse
    boundaries: Literal["device", "host"]  # what enters each block of a guided forward
    text: Literal["whole", "layers"]  # the text encoder
    decode_tile: str  # of VAE decoding, see `Settings.decode_tile`

    @property
    def budget(self) -> int:
        return budget(self.gigabytes)


def budget(gigabytes: float) -> int:
    """Bytes that a program can use of a card of that size."""
    return max(0, int(USABLE * gigabytes * GIB - CONTEXT))


@cache
def presets() -> tuple[Preset, ...]:
    """All presets, the smallest first: each one is faster than those before it, where it fits."""
    return tuple(Preset(name=name, **shipped(f"memory/{name}.yaml")) for name in PRESETS)
