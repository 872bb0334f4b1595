"""Layer norm and rotary embedding in plain PyTorch, some tokens at a time: float32 inside, rounded once.

The backward pass starts again from the inputs: nothing between them and the outputs is kept.
Beyond what it returns, a pass takes as many bytes as `workspace_bytes` allows it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from ditflow_kernels.qk_norm_rope.layout import Norm, Wanted
from ditflow_kernels.workspace import panels, workspace_bytes

BYTES_PER_ELEMENT = 32  # eight float32 copies of a chunk are alive at most
CACHED_BYTES = 8 << 20  # of a chunk on a CPU: gone over many times, it should stay in the cache


def qk_norm_rope_forward(
    query: Tensor,  # [B, T + S, heads, head_dim]
    key: Tensor,  # [B, T + S, heads, head_dim]
    norm_query: Norm,
    norm_key: Norm,
    rope: Tensor | None,  # [2 (query, key), 2 (cos, sin), S, head_dim]
    text_length: int,
    launch: bool = True,
) -> tuple[Tensor, Tensor]:
    """The operator's forward pass; without `launch` the results are allocated, not computed."""
    if not launch:
        return query.new_empty(query.shape), key.new_empty(key.shape)
    rope_query, rope_key = (None, None) if rope is None else rope
    prepared_query = _prepared(query, rope_query, norm_query, text_length)
    return prepared_query, _prepared(key, rope_key, norm_key, text_length)


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
    """The operator's backward pass: gradients to query, key and rope, None where not wanted."""
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
        ours = None if rope is None else rope[index]
        grad_ours = grad_rope[index] if wanted.rope else None
        gradients.append(_gradient(grad, tokens, ours, norm, text_length, wants_tokens, grad_ours))
    return gradients[0], gradients[1], grad_rope


def _prepared(tokens: Tensor, rope: Tensor | None, norm: Norm, text_length: int) -> Tensor:
    prepared = tokens.new_empty(tokens.shape)
    for chunk, positions in _chunks(tokens, text_length):
        values = _normed(tokens[:, chunk].float(), norm)
        if rope is not None and positions is not None:
            cos, sin = rope[:, positions, None]
            values = values * cos + _quarter_turned(values) * sin
        prepared[:, chunk] = values
    return prepared


def _gradient(
    grad: Tensor,
    tokens: Tensor,
    rope: Tensor | None,  # [2 (cos, sin), S, head_dim]
    norm: Norm,
    text_length: int,
    wants_tokens: bool,
    grad_rope: Tensor | None,  # [2 (cos, sin), S, head_dim], written here
) -> Tensor | None:
    grad_tokens = tokens.new_empty(tokens.shape) if wants_tokens else None
    for chunk, positions in _chunks(tokens, text_length):
        values, grad_values = tokens[:, chunk].float(), grad[:, chunk].float()
        if grad_rope is not None and positions is not None:
            normed = _normed(values, norm)
            grad_rope[0, positions] = (grad_values * normed).sum(dim=(0, 2))
            grad_rope[1, positions] = (grad_values * _quarter_turned(normed)).sum(dim=(0, 2))
        if wants_tokens:
            if rope is not None and positions is not None:
                cos, sin = rope[:, positions, None]
                grad_values = grad_values * cos - _quarter_turned(grad_values * sin)
            grad_tokens[:, chunk] = _norm_backward(values, grad_values, norm)
    return grad_tokens


def _chunks(tokens: Tensor, text_length: int) -> Iterator[tuple[slice, slice | None]]:
    """Stretches of tokens that fit the workspace, and their positions in the video (None: text)."""
    budget = workspace_bytes(tokens.device.type)
    if tokens.device.type == "cpu":
        budget = min(budget, CACHED_BYTES)
    batch, length, heads, head_dim = tokens.shape
    bytes_per_token = BYTES_PER_ELEMENT * batch * heads * head_dim
    for stretch in panels(text_length, bytes_per_token, budget):
        yield stretch, None
    for stretch in panels(length - text_length, bytes_per_token, budget):
        yield slice(text_length + stretch.start, text_length + stretch.stop), stretch


def _normed(values: Tensor, norm: Norm) -> Tensor:
    if norm is None:
        return values
    weight, bias, eps = norm
    return layer_norm(values, weight.shape, weight.float(), bias.float(), eps)


def _norm_backward(values: Tensor, grad: Tensor, norm: Norm) -> Tensor:
    """Gradient to the values from that to their layer norm."""
    if norm is None:
        return grad
    weight, bias, eps = norm
    weight, bias = weight.float(), bias.float()
    _, mean, inverse = torch.native_layer_norm(values, weight.shape, weight, bias, eps)
    wanted = (True, False, False)  # to the values, not to weight and bias
    return torch.ops.aten.native_layer_norm_backward(
        grad.contiguous(), values, weight.shape, mean, inverse, weight, bias, wanted
    )[0]


def _quarter_turned(values: Tensor) -> Tensor:
    """Each pair (real, imaginary) times i: (-imaginary, real)."""
    real, imaginary = values.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([-imaginary, real], dim=-1).flatten(-2)
