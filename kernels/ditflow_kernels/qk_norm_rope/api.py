"""The public function that prepares queries and keys. It checks the arguments; the backends trust them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ditflow_kernels.backends import choose
from ditflow_kernels.checks import check_matching

if TYPE_CHECKING:
    from torch import Tensor

    # weight and bias [head_dim], eps: layer norm over each head;
    # weight [heads * head_dim], None, eps: RMS norm over all heads together
    Norm = tuple[Tensor, Tensor | None, float] | None


def qk_norm_rope(
    query: Tensor,  # [B, T + S, heads, head_dim], text first
    key: Tensor,  # [B, T + S, heads, head_dim]
    norm_query: Norm,
    norm_key: Norm,
    rope: Tensor | None,  # [2 (query, key), 2 (cos, sin), S, head_dim]
    text_length: int,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:  # [B, T + S, heads, head_dim] twice
    """`x = norm(x)`, then for video tokens `x * cos + rotate(x) * sin`.

    A norm with a bias is a layer norm over each head (CogVideoX). Without one it is an RMS norm over all
    heads together (Wan): `x * weight / sqrt(mean(x^2) + eps)`, with a weight for each channel of each head.
    `rotate` maps each pair of neighbouring channels (a, b) to (-b, a), as both models do. The inputs are
    not modified. Query, key and rope get gradients (rope's summed over batch and heads in float32); the norms
    are constants.

    Raises ValueError if shapes, dtypes or devices do not match, if the norms are of two kinds, or if the
    backend is unknown.
    """
    check_matching("B, text + video, heads, head_dim", query=query, key=key)
    if not 0 <= text_length <= query.shape[1]:
        raise ValueError(f"text_length {text_length} must be between 0 and the {query.shape[1]} tokens given")
    _check_rope(query, rope, text_length)
    norms = [
        _checked_norm(name, norm, query)
        for name, norm in [("norm_query", norm_query), ("norm_key", norm_key)]
    ]
    if len({norm[1] is None for norm in norms if norm is not None}) > 1:
        raise ValueError("only one of norm_query and norm_key has a bias: use two norms of one kind")
    chosen = choose(backend, query.device, query.dtype)
    if chosen == "reference":
        from ditflow_kernels.qk_norm_rope import reference

        return reference.qk_norm_rope(query, key, *norms, rope, text_length)
    from ditflow_kernels.qk_norm_rope import operators

    return operators.qk_norm_rope(query, key, *norms, rope, text_length, backend=chosen)


def _check_rope(query: Tensor, rope: Tensor | None, text_length: int) -> None:
    if rope is None:
        return
    _, tokens, _, head_dim = query.shape
    expected = [2, 2, tokens - text_length, head_dim]
    if list(rope.shape) != expected or head_dim % 2:
        raise ValueError(
            f"rope {list(rope.shape)} must be {expected}, (query, key) x (cos, sin), with an even head_dim"
        )
    if rope.device != query.device:
        raise ValueError(f"rope is on {rope.device}, query on {query.device}: use one device")


def _checked_norm(name: str, norm: Norm, query: Tensor) -> Norm:
    """The norm, checked and detached."""
    if norm is None:
        return None
    weight, bias, eps = norm
    heads, head_dim = query.shape[-2:]
    shapes = [list(part.shape) for part in (weight, bias) if part is not None]
    if bias is None and shapes != [[heads * head_dim]]:
        raise ValueError(
            f"{name} without a bias must have a weight of shape [{heads * head_dim}], "
            f"for all heads together, not {shapes[0]}"
        )
    if bias is not None and shapes != [[head_dim]] * 2:
        given = " and ".join(map(str, shapes))
        raise ValueError(f"{name} must be (weight, bias, eps), both of shape [{head_dim}], not {given}")
    if weight.device != query.device or (bias is not None and bias.device != query.device):
        raise ValueError(f"{name} is on {weight.device}, query on {query.device}: use one device")
    return weight.detach(), None if bias is None else bias.detach(), eps
