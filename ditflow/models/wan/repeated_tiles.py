"""For planning: runs one call of Wan's encoder and decoder of each shape, and counts the others like it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from ditflow.models.protocols import WorkCounter

Entry = torch.Size | str | None  # of a cache: a tensor's shape, or what diffusers puts in its place


class FirstCall(NamedTuple):
    """What the first call with certain shapes used, returned and left in the cache."""

    inside_bytes: int  # its peak, less what was live before it
    flops: int
    result: torch.Size
    cache: tuple[Entry, ...]


@contextmanager
def each_shape_once(vae: AutoencoderKLWan, counter: WorkCounter) -> Iterator[None]:
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

    def __call__(self, sample: Tensor, feat_cache: list, feat_idx: list[int], **options: bool) -> Tensor:
        counter, key = self.counter, (sample.shape, _entries(feat_cache), *options.items())
        if key in self.calls:
            return self._repeat(self.calls[key], sample, feat_cache)
        highest, before, flops = counter.peak_bytes, counter.live_bytes, counter.flops
        counter.peak_bytes = before
        result = self.original(sample, feat_cache=feat_cache, feat_idx=feat_idx, **options)
        inside = counter.peak_bytes - before
        self.calls[key] = FirstCall(inside, counter.flops - flops, result.shape, _entries(feat_cache))
        counter.peak_bytes = max(counter.peak_bytes, highest)
        return result

    def _repeat(self, first: FirstCall, sample: Tensor, cache: list) -> Tensor:
        self.counter.peak_bytes = max(self.counter.peak_bytes, self.counter.live_bytes + first.inside_bytes)
        self.counter.flops += first.flops
        for index, entry in enumerate(first.cache):
            cache[index] = sample.new_empty(entry) if isinstance(entry, torch.Size) else entry
        return sample.new_empty(first.result)


def _entries(cache: list) -> tuple[Entry, ...]:
    return tuple(entry.shape if isinstance(entry, Tensor) else entry for entry in cache)
