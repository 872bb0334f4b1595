"""Layer norm and rotary embedding in plain PyTorch, some tokens at a time: float32 inside, rounded once.

The backward pass starts again from the inputs: nothing between them and the outputs is kept.
`budget` is the temporary memory of a pass in bytes, whatever it returns left out.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import layer_norm

from ditflow_kernels.workspace import panels, workspace_bytes

BYTES_PER_ELEMENT = 32  # eight float32 copies of a chunk are alive at most


def qk_norm_rope(
    query: Tensor,  # [B, T + S, heads, head_dim], text first
    key: Tensor,  # [B, T + S, heads, head_dim]
    norm_query: tuple[Tensor, Tensor, float] | None,  # weight [head_dim], bias [head_dim], eps
    norm_key: tuple[Tensor, Tensor, float] | None,
    rope: Tensor | None,  # [2 (query, key), 2 (cos, sin), S, head_dim]
    text_length: int,
    *,
    budget: int | None = None,
) -> tuple[Tensor, Tensor]:
    """See `ditflow_kernels.qk_norm_rope`. Without a budget, that of the device."""
    budget = budget or workspace_bytes(query.device.type)
    rope_query, rope_key = (None, None) if rope is None else rope
    prepared_query = _Prepare.apply(query, rope_query, norm_query, text_length, budget)
    prepared_key = _Prepare.apply(key, rope_key, norm_key, text_length, budget)
    return prepared_query, prepared_key


class _Prepare(torch.autograd.Function):
    """Norm and rotation of the query or the key; gradients to its tokens and to cos and sin."""

    @staticmethod
    def forward(ctx, tokens, rope, norm, text_length, budget):
        ctx.save_for_backward(tokens, rope)
        ctx.settings = norm, text_length, budget
        prepared = torch.empty_like(tokens)
        for chunk, positions in _chunks(tokens, text_length, budget):
            values = _normed(tokens[:, chunk].float(), norm)
            if rope is not None and positions is not None:
                cos, sin = rope[:, positions, None]
                values = values * cos + _quarter_turned(values) * sin
            prepared[:, chunk] = values
        return prepared

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        tokens, rope = ctx.saved_tensors
        norm, text_length, budget = ctx.settings
        wants_tokens, wants_rope = ctx.needs_input_grad[:2]
        grad_tokens = torch.empty_like(tokens) if wants_tokens else None
        grad_rope = torch.empty_like(rope) if wants_rope else None
        for chunk, positions in _chunks(tokens, text_length, budget):
            values, grad_values = tokens[:, chunk].float(), grad[:, chunk].float()
            if wants_rope and positions is not None:
                normed = _normed(values, norm)
                grad_rope[0, positions] = (grad_values * normed).sum(dim=(0, 2))
                grad_rope[1, positions] = (grad_values * _quarter_turned(normed)).sum(dim=(0, 2))
            if wants_tokens:
                if rope is not None and positions is not None:
                    cos, sin = rope[:, positions, None]
                    grad_values = grad_values * cos - _quarter_turned(grad_values * sin)
                grad_tokens[:, chunk] = _norm_backward(values, grad_values, norm)
        return grad_tokens, grad_rope, None, None, None


def _chunks(tokens: Tensor, text_length: int, budget: int) -> Iterator[tuple[slice, slice | None]]:
    """Stretches of tokens that fit the budget, and their positions in the video (None: text)."""
    batch, length, heads, head_dim = tokens.shape
    bytes_per_token = BYTES_PER_ELEMENT * batch * heads * head_dim
    for stretch in panels(text_length, bytes_per_token, budget):
        yield stretch, None
    for stretch in panels(length - text_length, bytes_per_token, budget):
        yield slice(text_length + stretch.start, text_length + stretch.stop), stretch


def _normed(values: Tensor, norm: tuple[Tensor, Tensor, float] | None) -> Tensor:
    if norm is None:
        return values
    weight, bias, eps = norm
    return layer_norm(values, weight.shape, weight.float(), bias.float(), eps)


def _norm_backward(values: Tensor, grad: Tensor, norm: tuple[Tensor, Tensor, float] | None) -> Tensor:
    """Gradient to the values from that to their layer norm."""
    if norm is None:
        return grad
    weight, _, eps = norm
    variance, mean = torch.var_mean(values, dim=-1, correction=0, keepdim=True)
    inverse = (variance + eps).rsqrt()
    unit = (values - mean) * inverse
    grad_unit = grad * weight.float()
    along_unit = (grad_unit * unit).mean(dim=-1, keepdim=True)
    return (grad_unit - grad_unit.mean(dim=-1, keepdim=True) - unit * along_unit) * inverse


def _quarter_turned(values: Tensor) -> Tensor:
    """Each pair (real, imaginary) times i: (-imaginary, real)."""
    real, imaginary = values.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([-imaginary, real], dim=-1).flatten(-2)
