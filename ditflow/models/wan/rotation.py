"""Prepares Wan's queries and keys: RMS norm over all heads together, then the rotary embedding."""

from __future__ import annotations

import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from einops import rearrange
from torch import Tensor, nn

from ditflow.models.protocols import Grid


def norm_and_rotate(
    projected: Tensor,  # [1, S, heads * head_dim]
    norm: nn.RMSNorm,
    cos_sin: Tensor,  # [2, S, head_dim]
    heads: int,
) -> Tensor:  # [1, S, heads, head_dim]
    """Normalise each token, then turn each pair of neighbouring channels by its angle, in float32."""
    tokens = rearrange(norm(projected), "b s (m d) -> b s m d", m=heads)
    cos, sin = cos_sin[:, :, None]
    even, odd = tokens.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return (tokens * cos + turned * sin).to(tokens.dtype)


def rotary_embedding(rope: WanRotaryPosEmbed, grid: Grid) -> Tensor:
    """The native embedding [2 (q, k), 2 (cos, sin), S, head_dim], float32."""
    sides = (side * patch for side, patch in zip(grid, rope.patch_size, strict=True))
    cos_sin = rope(torch.empty(1, 1, *sides, device="meta"))  # only the shape is read
    return torch.stack([torch.stack([part[0, :, 0] for part in cos_sin])] * 2).float()
