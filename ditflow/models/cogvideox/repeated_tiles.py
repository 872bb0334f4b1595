"""For planning: runs one autoencoder tile of each shape, and counts the others like it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ditflow.models.protocols import WorkCounter
from ditflow.models.repeated_calls import FirstCalls, replaced_coders

Shapes = tuple[torch.Size, ...]


@dataclass(frozen=True)
class CacheStandIn:
    """Stands in for the frames that convolutions cache between calls, and takes as much memory."""

    shapes: Shapes
    memory: Tensor


def each_shape_once(vae: AutoencoderKLCogVideoX, counter: WorkCounter) -> AbstractContextManager:
    """Within this context, run the encoder and decoder only once for each set of shapes.

    Every later call is counted like the first and returns an empty result.
    """
    return replaced_coders(vae, lambda coder: _Once(coder, counter))


class _Once:
    """Replaces the forward of an encoder or a decoder."""

    def __init__(self, coder: nn.Module, counter: WorkCounter):
        self.original, self.first = coder.forward, FirstCalls(counter)
        self.shapes: dict[Any, tuple[torch.Size, Shapes]] = {}  # of result and cache, by those given

    def __call__(
        self, sample: Tensor, temb: None = None, conv_cache: dict | CacheStandIn | None = None
    ) -> tuple[Tensor, dict | CacheStandIn]:
        key = sample.shape, _shapes(conv_cache)
        if key in self.shapes:
            self.first.count_again(key)
            result, kept = self.shapes[key]
            memory = sample.new_empty(sum(shape.numel() for shape in kept))
            return sample.new_empty(result), CacheStandIn(kept, memory)
        with self.first.measured(key):
            result, cache = self.original(sample, temb, conv_cache)
        self.shapes[key] = result.shape, _shapes(cache)
        return result, cache


def _shapes(cache: dict | CacheStandIn | None) -> Shapes:
    if isinstance(cache, CacheStandIn):
        return cache.shapes
    return tuple(leaf.shape for leaf in tree_leaves(cache) if isinstance(leaf, Tensor))
