"""For planning: runs one call of each kind of an autoencoder's coders, and counts the others like it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ditflow.models.protocols import WorkCounter

SUMS = ("flops", "attention_flops", "moved_bytes")  # of a `WorkCounter`


class FirstCalls:
    """What the first call of each kind used, by a key."""

    def __init__(self, counter: WorkCounter):
        self.counter = counter
        self.peaks: dict[Any, int] = {}  # less what was live before
        self.sums: dict[Any, dict[str, int]] = {}

    @contextmanager
    def measured(self, key: Any) -> Iterator[None]:
        """Keep what is used in this context."""
        counter = self.counter
        highest, live = counter.peak_bytes, counter.live_bytes
        before = {name: getattr(counter, name) for name in SUMS}
        counter.peak_bytes = live
        yield
        self.peaks[key] = counter.peak_bytes - live
        self.sums[key] = {name: getattr(counter, name) - before[name] for name in SUMS}
        counter.peak_bytes = max(counter.peak_bytes, highest)

    def count_again(self, key: Any) -> None:
        """Count a call that does not run."""
        counter = self.counter
        counter.peak_bytes = max(counter.peak_bytes, counter.live_bytes + self.peaks[key])
        for name, used in self.sums[key].items():
            setattr(counter, name, getattr(counter, name) + used)


@contextmanager
def replaced_coders(vae: nn.Module, replace: Callable[[nn.Module], Callable]) -> Iterator[None]:
    """Within this context, encoder and decoder have the forwards that `replace` makes of them.

    Blending is skipped: it allocates no more than a row of tiles.
    """
    coders = (vae.encoder, vae.decoder)
    for coder in coders:
        coder.forward = replace(coder)
    vae.blend_v = vae.blend_h = lambda before, tile, extent: tile
    try:
        yield
    finally:
        del vae.blend_v, vae.blend_h
        for coder in coders:
            del coder.forward
