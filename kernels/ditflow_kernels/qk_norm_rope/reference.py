"""Norm of queries and keys and rotary embedding, from their definitions, in any floating dtype."""

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, rms_norm


def qk_norm_rope(
    query: Tensor,  # [B, T + S, heads, head_dim], text first
    key: Tensor,  # [B, T + S, heads, head_dim]
    norm_query: tuple[Tensor, Tensor | None, float] | None,  # see `ditflow_kernels.qk_norm_rope`
    norm_key: tuple[Tensor, Tensor | None, float] | None,
    rope: Tensor | None,  # [2 (query, key), 2 (cos, sin), S, head_dim]
    text_length: int,
) -> tuple[Tensor, Tensor]:
    """Normalise all tokens, then rotate the video tokens."""
    rope_query, rope_key = (None, None) if rope is None else rope
    prepared_query = _prepare(query, norm_query, rope_query, text_length)
    prepared_key = _prepare(key, norm_key, rope_key, text_length)
    return prepared_query, prepared_key


def _prepare(
    tokens: Tensor, norm: tuple[Tensor, Tensor | None, float] | None, rope: Tensor | None, text_length: int
) -> Tensor:
    if norm is not None:
        weight, bias, eps = norm
        if bias is None:
            together = tokens.flatten(-2)  # [B, T + S, heads * head_dim]
            tokens = rms_norm(together, weight.shape, weight.to(tokens), eps).view(tokens.shape)
        else:
            tokens = layer_norm(tokens, weight.shape, weight.to(tokens), bias.to(tokens), eps)
    if rope is None:
        return tokens
    text, video = tokens[:, :text_length], tokens[:, text_length:]
    cos, sin = rope[:, :, None, :]  # [S, 1, head_dim]
    pairs = video.unflatten(-1, (-1, 2))
    rotated = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    precise = torch.promote_types(tokens.dtype, torch.float32)
    result = video.to(precise) * cos + rotated.to(precise) * sin
    return torch.cat([text, result.to(tokens.dtype)], dim=1)
