"""For planning: runs one autoencoder tile of each shape, and counts the others like it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ditflow.models.protocols import WorkCounter

Shapes = tuple[torch.Size, ...]


class FirstCall(NamedTuple):
    """What the first call with certain shapes used and returned."""

    inside_bytes: int  # its peak, less what was live before it
    flops: int
    moved_bytes: int
    result: torch.Size
    cache: Shapes


@dataclass(frozen=True)
class CacheStandIn:
    """Stands in for the frames that convolutions cache between calls, and takes as much memory."""

    shapes: Shapes
    memory: Tensor


@contextmanager
def each_shape_once(vae: AutoencoderKLCogVideoX, counter: WorkCounter) -> Iterator[None]:
    """Within this context, run the encoder and decoder only once for each set of shapes.

    Every later call is counted like the first and returns an empty result. Blending is skipped: it allocates
    no more than a row of tiles.
    """
    coders = (vae.encoder, vae.decoder)
    for coder in coders:
        coder.forward = _Once(coder, counter)
    vae.blend_v = vae.blend_h = lambda before, tile, extent: tile
    try:
        yield
    finally:
        del vae.blend_v, vae.blend_h
        for coder in coders:
            del coder.forward


class _Once:
    """Replaces the forward of an encoder or a decoder."""

    def __init__(self, coder: nn.Module, counter: WorkCounter):
        self.original, self.counter = coder.forward, counter
        self.calls: dict[Any, FirstCall] = {}  # by the shapes given

    def __call__(
        self, sample: Tensor, temb: None = None, conv_cache: dict | CacheStandIn | None = None
    ) -> tuple[Tensor, dict | CacheStandIn]:
        key = sample.shape, _shapes(conv_cache)
        if key in self.calls:
            return self._repeat(self.calls[key], sample)
        counter = self.counter
        highest, before, flops = counter.peak_bytes, counter.live_bytes, counter.flops
        moved = counter.moved_bytes
        counter.peak_bytes = before
        result, cache = self.original(sample, temb, conv_cache)
        inside = counter.peak_bytes - before
        flops, moved = counter.flops - flops, counter.moved_bytes - moved
        self.calls[key] = FirstCall(inside, flops, moved, result.shape, _shapes(cache))
        counter.peak_bytes = max(counter.peak_bytes, highest)
        return result, cache

    def _repeat(self, first: FirstCall, sample: Tensor) -> tuple[Tensor, CacheStandIn]:
        self.counter.peak_bytes = max(self.counter.peak_bytes, self.counter.live_bytes + first.inside_bytes)
        self.counter.flops += first.flops
        self.counter.moved_bytes += first.moved_bytes
        kept = sum(shape.numel() for shape in first.cache)
        return sample.new_empty(first.result), CacheStandIn(first.cache, sample.new_empty(kept))


def _shapes(cache: dict | CacheStandIn | None) -> Shapes:
    if isinstance(cache, CacheStandIn):
        return cache.shapes
    return tuple(leaf.shape for leaf in tree_leaves(cache) if isinstance(leaf, Tensor))
