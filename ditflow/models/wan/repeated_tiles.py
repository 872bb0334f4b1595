"""For planning: runs one call of Wan's encoder and decoder of each shape, and counts the others like it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from ditflow.models.protocols import WorkCounter
from ditflow.models.repeated_calls import FirstCalls, replaced_coders

Entry = torch.Size | str | None  # of a cache: a tensor's shape, or what diffusers puts in its place
Entries = tuple[Entry, ...]


def each_shape_once(vae: AutoencoderKLWan, counter: WorkCounter) -> AbstractContextManager:
    """Within this context, run the encoder and decoder only once for each set of shapes.

    Every later call is counted like the first, returns an empty result and leaves an empty cache.
    """
    return replaced_coders(vae, lambda coder: _Once(coder, counter))


class _Once:
    """Replaces the forward of an encoder or a decoder."""

    def __init__(self, coder: nn.Module, counter: WorkCounter):
        self.original, self.first = coder.forward, FirstCalls(counter)
        self.shapes: dict[Any, tuple[torch.Size, Entries]] = {}  # of result and cache, by those given

    def __call__(self, sample: Tensor, feat_cache: list, feat_idx: list[int], **options: bool) -> Tensor:
        given = _entries(feat_cache)
        key = sample.shape, given, *options.items()
        if key in self.shapes:
            self.first.count_again(key)
            shape, entries = self.shapes[key]
            for index, entry in enumerate(entries):
                if entry != given[index]:  # else the tensor there already has this shape
                    feat_cache[index] = sample.new_empty(entry) if isinstance(entry, torch.Size) else entry
            return sample.new_empty(shape)
        with self.first.measured(key):
            result = self.original(sample, feat_cache=feat_cache, feat_idx=feat_idx, **options)
        self.shapes[key] = result.shape, _entries(feat_cache)
        return result


def _entries(cache: list) -> Entries:
    return tuple(entry.shape if isinstance(entry, Tensor) else entry for entry in cache)
