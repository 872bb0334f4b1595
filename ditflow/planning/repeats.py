"""Calls that repeat: the autoencoder's tiles are hundreds, and of a handful of shapes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from ditflow.memory.tracker import Tracker


class Seen(NamedTuple):
    """What a call with such shapes was seen to do."""

    inside_bytes: int  # its peak beyond what was there before
    flops: int
    attention_flops: int
    result: Any  # (shape, dtype) in each tensor's place


@contextmanager
def once_each(module: nn.Module, tracker: Tracker) -> Iterator[None]:
    """While it lasts, calls of the module without gradient are run once for each set of shapes.

    A later one only makes its result, and is counted as the first was.
    """
    original, seen = module.forward, {}

    def forward(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = tree_flatten((args, kwargs))
        key = (*(_outline(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves), structure)
        if key in seen:
            return _again(seen[key], tracker)
        highest, before = tracker.peak_bytes, tracker.live_bytes
        flops, attention = tracker.flops, tracker.attention_flops
        tracker.peak_bytes = before
        result = original(*args, **kwargs)
        seen[key] = Seen(
            tracker.peak_bytes - before,
            tracker.flops - flops,
            tracker.attention_flops - attention,
            tree_map(lambda leaf: _outline(leaf) if isinstance(leaf, Tensor) else leaf, result),
        )
        tracker.peak_bytes = max(tracker.peak_bytes, highest)
        return result

    module.forward = forward
    try:
        yield
    finally:
        del module.forward


class Outline(NamedTuple):
    shape: torch.Size
    dtype: torch.dtype


def _outline(tensor: Tensor) -> Outline:
    return Outline(tensor.shape, tensor.dtype)


def _again(seen: Seen, tracker: Tracker) -> Any:
    tracker.peak_bytes = max(tracker.peak_bytes, tracker.live_bytes + seen.inside_bytes)
    tracker.flops += seen.flops
    tracker.attention_flops += seen.attention_flops

    def make(leaf: Any) -> Any:
        return torch.empty(leaf.shape, dtype=leaf.dtype) if isinstance(leaf, Outline) else leaf

    return tree_map(make, seen.result, is_leaf=lambda leaf: isinstance(leaf, Outline))
