"""Tiles of the autoencoder: hundreds of calls, of a handful of shapes, so each shape is run once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ditflow.memory.tracker import Tracker

Shapes = tuple[torch.Size, ...]


class Seen(NamedTuple):
    """What a call with such shapes was seen to do."""

    inside_bytes: int  # its peak beyond what was there before
    flops: int
    result: torch.Size
    cache: Shapes


@dataclass(frozen=True)
class StandIn:
    """In the place of the frames that convolutions keep from one call to the next."""

    shapes: Shapes
    memory: Tensor


@contextmanager
def each_shape_once(vae: AutoencoderKLCogVideoX, tracker: Tracker) -> Iterator[None]:
    """Meanwhile a call of the encoder or decoder with shapes seen before makes its result and no more.

    It is counted as the first was. Seams are left as they are: blending makes nothing larger than a row.
    """
    coders = (vae.encoder, vae.decoder)
    for coder in coders:
        coder.forward = _Once(coder, tracker)
    vae.blend_v = vae.blend_h = lambda before, tile, extent: tile
    try:
        yield
    finally:
        del vae.blend_v, vae.blend_h
        for coder in coders:
            del coder.forward


class _Once:
    """Stands for the forward of an encoder or a decoder."""

    def __init__(self, coder: nn.Module, tracker: Tracker):
        self.original, self.tracker = coder.forward, tracker
        self.seen: dict[Any, Seen] = {}

    def __call__(
        self, sample: Tensor, temb: None = None, conv_cache: dict | StandIn | None = None
    ) -> tuple[Tensor, dict | StandIn]:
        key = sample.shape, _shapes(conv_cache)
        if key in self.seen:
            return self._again(self.seen[key], sample)
        tracker = self.tracker
        highest, before, flops = tracker.peak_bytes, tracker.live_bytes, tracker.flops
        tracker.peak_bytes = before
        result, cache = self.original(sample, temb, conv_cache)
        inside = tracker.peak_bytes - before
        self.seen[key] = Seen(inside, tracker.flops - flops, result.shape, _shapes(cache))
        tracker.peak_bytes = max(tracker.peak_bytes, highest)
        return result, cache

    def _again(self, seen: Seen, sample: Tensor) -> tuple[Tensor, StandIn]:
        self.tracker.peak_bytes = max(self.tracker.peak_bytes, self.tracker.live_bytes + seen.inside_bytes)
        self.tracker.flops += seen.flops
        kept = sum(shape.numel() for shape in seen.cache)
        return sample.new_empty(seen.result), StandIn(seen.cache, sample.new_empty(kept))


def _shapes(cache: dict | StandIn | None) -> Shapes:
    if isinstance(cache, StandIn):
        return cache.shapes
    return tuple(leaf.shape for leaf in tree_leaves(cache) if isinstance(leaf, Tensor))
