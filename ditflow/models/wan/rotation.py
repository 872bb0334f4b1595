"""Wan's rotary embedding of queries and keys."""

from __future__ import annotations

import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor

from ditflow.models.protocols import Grid


def rotary_embedding(rope: WanRotaryPosEmbed, grid: Grid) -> Tensor:
    """The native embedding [2 (q, k), 2 (cos, sin), S, head_dim], float32."""
    sides = (side * patch for side, patch in zip(grid, rope.patch_size, strict=True))
    cos_sin = rope(torch.empty(1, 1, *sides, device="meta"))  # only the shape is read
    return torch.stack([torch.stack([part[0, :, 0] for part in cos_sin])] * 2).float()
