"""Norm and rotary embedding in plain PyTorch, a chunk of tokens at a time, in float32 and rounded once.

Backward recomputes from the inputs; forward saves nothing else. Beyond its results a pass holds at most
`workspace_bytes` of temporary memory.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, rms_norm

from ditflow_kernels.qk_norm_rope.layout import Norm, Wanted
from ditflow_kernels.workspace import even_slices, workspace_bytes

BYTES_PER_ELEMENT = 32  # at most eight float32 copies of a chunk are alive
CACHED_BYTES = 8 << 20  # a CPU reads a chunk many times, so it should stay in cache


def qk_norm_rope_forward(
    query: Tensor,  # [B, T + S, heads, head_dim]
    key: Tensor,  # [B, T + S, heads, head_dim]
    norm_query: Norm,
    norm_key: Norm,
    rope: Tensor | None,  # [2 (query, key), 2 (cos, sin), S, head_dim]
    text_length: int,
    launch: bool = True,
) -> tuple[Tensor, Tensor]:
    """Prepared queries and keys; without `launch` they are allocated only."""
    if not launch:
        return query.new_empty(query.shape), key.new_empty(key.shape)
    rope_query, rope_key = (None, None) if rope is None else rope
    prepared_query = _prepare(query, rope_query, norm_query, text_length)
    return prepared_query, _prepare(key, rope_key, norm_key, text_length)


def qk_norm_rope_backward(
    grad_prepared_query: Tensor,  # [B, T + S, heads, head_dim]
    grad_prepared_key: Tensor,  # [B, T + S, heads, head_dim]
    query: Tensor,  # [B, T + S, heads, head_dim]
    key: Tensor,  # [B, T + S, heads, head_dim]
    norm_query: Norm,
    norm_key: Norm,
    rope: Tensor | None,  # [2 (query, key), 2 (cos, sin), S, head_dim]
    text_length: int,
    wanted: Wanted,
    launch: bool = True,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of query, key and rope, None where not wanted; without `launch` they are allocated only."""
    grad_rope = torch.empty_like(rope) if wanted.rope else None
    if not launch:
        grad_query = query.new_empty(query.shape) if wanted.query else None
        return grad_query, key.new_empty(key.shape) if wanted.key else None, grad_rope
    gradients = []
    for index, (grad, tokens, norm, wants_tokens) in enumerate(
        [
            (grad_prepared_query, query, norm_query, wanted.query),
            (grad_prepared_key, key, norm_key, wanted.key),
        ]
    ):
        tables = None if rope is None else rope[index]
        grad_tables = grad_rope[index] if wanted.rope else None
        gradients.append(
            _prepare_backward(grad, tokens, tables, norm, text_length, wants_tokens, grad_tables)
        )
    return gradients[0], gradients[1], grad_rope


def _prepare(tokens: Tensor, rope: Tensor | None, norm: Norm, text_length: int) -> Tensor:
    prepared = tokens.new_empty(tokens.shape)
    for chunk, positions in _chunks(tokens, text_length):
        values = _normalize(tokens[:, chunk].float(), norm)
        if rope is not None and positions is not None:
            cos, sin = rope[:, positions, None]
            values = values * cos + _rotate_pairs(values) * sin
        prepared[:, chunk] = values
    return prepared


def _prepare_backward(
    grad: Tensor,
    tokens: Tensor,
    rope: Tensor | None,  # [2 (cos, sin), S, head_dim]
    norm: Norm,
    text_length: int,
    wants_tokens: bool,
    grad_rope: Tensor | None,  # [2 (cos, sin), S, head_dim], filled here
) -> Tensor | None:
    """The gradient of the tokens if wanted; fills `grad_rope` if given."""
    grad_tokens = tokens.new_empty(tokens.shape) if wants_tokens else None
    for chunk, positions in _chunks(tokens, text_length):
        values, grad_values = tokens[:, chunk].float(), grad[:, chunk].float()
        if grad_rope is not None and positions is not None:
            normalized = _normalize(values, norm)
            grad_rope[0, positions] = (grad_values * normalized).sum(dim=(0, 2))
            grad_rope[1, positions] = (grad_values * _rotate_pairs(normalized)).sum(dim=(0, 2))
        if wants_tokens:
            if rope is not None and positions is not None:
                cos, sin = rope[:, positions, None]
                grad_values = grad_values * cos - _rotate_pairs(grad_values * sin)
            grad_tokens[:, chunk] = _normalize_backward(values, grad_values, norm)
    return grad_tokens


def _chunks(tokens: Tensor, text_length: int) -> Iterator[tuple[slice, slice | None]]:
    """Slices of tokens that fit the workspace, each with its video positions (None for text)."""
    budget = workspace_bytes(tokens.device.type)
    if tokens.device.type == "cpu":
        budget = min(budget, CACHED_BYTES)
    batch, length, heads, head_dim = tokens.shape
    bytes_per_token = BYTES_PER_ELEMENT * batch * heads * head_dim
    for text in even_slices(text_length, bytes_per_token, budget):
        yield text, None
    for video in even_slices(length - text_length, bytes_per_token, budget):
        yield slice(text_length + video.start, text_length + video.stop), video


def _normalize(values: Tensor, norm: Norm) -> Tensor:
    if norm is None:
        return values
    weight, bias, eps = norm
    if bias is None:
        return rms_norm(values.flatten(-2), weight.shape, weight.float(), eps).view(values.shape)
    return layer_norm(values, weight.shape, weight.float(), bias.float(), eps)


def _normalize_backward(values: Tensor, grad: Tensor, norm: Norm) -> Tensor:
    if norm is None:
        return grad
    weight, bias, eps = norm
    if bias is None:
        return _rms_norm_backward(values, grad, weight.float().view(values.shape[-2:]), eps)
    weight, bias = weight.float(), bias.float()
    _, mean, rstd = torch.native_layer_norm(values, weight.shape, weight, bias, eps)
    wanted = (True, False, False)  # of values, weight, bias
    return torch.ops.aten.native_layer_norm_backward(
        grad.contiguous(), values, weight.shape, mean, rstd, weight, bias, wanted
    )[0]


def _rms_norm_backward(values: Tensor, grad: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The norm removes changes of a token's length."""
    token = (-2, -1)  # all heads
    rstd = values.square().mean(token, keepdim=True).add_(eps).rsqrt_()
    normalized = values * rstd
    scaled = grad * weight
    along = (scaled * normalized).mean(token, keepdim=True)
    return scaled.sub_(normalized.mul_(along)).mul_(rstd)


def _rotate_pairs(values: Tensor) -> Tensor:
    """Each pair (real, imaginary) of channels times i: (-imaginary, real)."""
    real, imaginary = values.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([-imaginary, real], dim=-1).flatten(-2)
