"""For planning: tiles of the autoencoder come in a handful of shapes, so one tile of each shape is run."""

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


class Seen(NamedTuple):
    """What the first call with certain shapes did."""

    inside_bytes: int  # its peak beyond what was live before it
    flops: int
    result: torch.Size
    cache: Shapes


@dataclass(frozen=True)
class StandIn:
    """Stands for the frames that convolutions keep from one call to the next."""

    shapes: Shapes
    memory: Tensor


@contextmanager
def each_shape_once(vae: AutoencoderKLCogVideoX, counter: WorkCounter) -> Iterator[None]:
    """Until it is left, a call of the encoder or decoder with known shapes only makes its result.

    It is counted like the first such call. Blending is skipped: it makes nothing larger than a row of tiles.
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
        self.seen: dict[Any, Seen] = {}

    def __call__(
        self, sample: Tensor, temb: None = None, conv_cache: dict | StandIn | None = None
    ) -> tuple[Tensor, dict | StandIn]:
        key = sample.shape, _shapes(conv_cache)
        if key in self.seen:
            return self._again(self.seen[key], sample)
        counter = self.counter
        highest, before, flops = counter.peak_bytes, counter.live_bytes, counter.flops
        counter.peak_bytes = before
        result, cache = self.original(sample, temb, conv_cache)
        inside = counter.peak_bytes - before
        self.seen[key] = Seen(inside, counter.flops - flops, result.shape, _shapes(cache))
        counter.peak_bytes = max(counter.peak_bytes, highest)
        return result, cache

    def _again(self, seen: Seen, sample: Tensor) -> tuple[Tensor, StandIn]:
        self.counter.peak_bytes = max(self.counter.peak_bytes, self.counter.live_bytes + seen.inside_bytes)
        self.counter.flops += seen.flops
        kept = sum(shape.numel() for shape in seen.cache)
        return sample.new_empty(seen.result), StandIn(seen.cache, sample.new_empty(kept))


def _shapes(cache: dict | StandIn | None) -> Shapes:
    if isinstance(cache, StandIn):
        return cache.shapes
    return tuple(leaf.shape for leaf in tree_leaves(cache) if isinstance(leaf, Tensor))
