"""Query and key preparation as torch operators, for every backend: fakes, gradients and FLOPs."""

from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ditflow_kernels.fakes import fake_of
from ditflow_kernels.observed import operator
from ditflow_kernels.qk_norm_rope.layout import Norm, Wanted


def qk_norm_rope(
    query: Tensor,  # [B, T + S, heads, head_dim], text first
    key: Tensor,  # [B, T + S, heads, head_dim]
    norm_query: Norm,
    norm_key: Norm,
    rope: Tensor | None,  # [2 (query, key), 2 (cos, sin), S, head_dim]
    text_length: int,
    *,
    backend: str,
) -> tuple[Tensor, Tensor]:  # contiguous
    """See `ditflow_kernels.qk_norm_rope`."""
    prepared = prepare(query, key, *_flat(norm_query), *_flat(norm_key), rope, text_length, backend)
    # torch marks both results of the operator as differentiable if any input is; detach those that are not
    rope_wants_gradient = rope is not None and rope.requires_grad
    return tuple(
        result if rope_wants_gradient or source.requires_grad else result.detach()
        for result, source in zip(prepared, (query, key), strict=True)
    )


@operator("qk_norm_rope")
def prepare(
    query: Tensor,
    key: Tensor,
    weight_query: Tensor | None,
    bias_query: Tensor | None,
    eps_query: float,
    weight_key: Tensor | None,
    bias_key: Tensor | None,
    eps_key: float,
    rope: Tensor | None,
    text_length: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    norms = _norm(weight_query, bias_query, eps_query), _norm(weight_key, bias_key, eps_key)
    return _passes(backend).qk_norm_rope_forward(query, key, *norms, rope, text_length)


@fake_of(torch.ops.ditflow.qk_norm_rope.default)
def _(
    query, key, weight_query, bias_query, eps_query, weight_key, bias_key, eps_key, rope, text_length, backend
):
    norms = _norm(weight_query, bias_query, eps_query), _norm(weight_key, bias_key, eps_key)
    return _passes(backend).qk_norm_rope_forward(query, key, *norms, rope, text_length, launch=False)


@operator("qk_norm_rope_backward")
def prepare_backward(
    grad_query: Tensor,
    grad_key: Tensor,
    query: Tensor,
    key: Tensor,
    weight_query: Tensor | None,
    bias_query: Tensor | None,
    eps_query: float,
    weight_key: Tensor | None,
    bias_key: Tensor | None,
    eps_key: float,
    rope: Tensor | None,
    text_length: int,
    wanted: list[bool],  # query, key, rope
    backend: str,
) -> list[Tensor]:  # the wanted gradients
    norms = _norm(weight_query, bias_query, eps_query), _norm(weight_key, bias_key, eps_key)
    gradients = _passes(backend).qk_norm_rope_backward(
        grad_query, grad_key, query, key, *norms, rope, text_length, Wanted(*wanted)
    )
    return [gradient for gradient in gradients if gradient is not None]


@fake_of(torch.ops.ditflow.qk_norm_rope_backward.default)
def _(
    grad_query, grad_key, query, key, weight_query, bias_query, eps_query,
    weight_key, bias_key, eps_key, rope, text_length, wanted, backend,
):  # fmt: skip
    norms = _norm(weight_query, bias_query, eps_query), _norm(weight_key, bias_key, eps_key)
    gradients = _passes(backend).qk_norm_rope_backward(
        grad_query, grad_key, query, key, *norms, rope, text_length, Wanted(*wanted), launch=False
    )
    return [gradient for gradient in gradients if gradient is not None]


def _save_inputs(ctx, inputs, output) -> None:
    query, key, weight_query, bias_query, eps_query, weight_key, bias_key, eps_key, rope, *rest = inputs
    ctx.save_for_backward(query, key, weight_query, bias_query, weight_key, bias_key, rope)
    ctx.settings = eps_query, eps_key, *rest


def _backward(ctx, grad_query, grad_key):
    query, key, weight_query, bias_query, weight_key, bias_key, rope = ctx.saved_tensors
    eps_query, eps_key, text_length, backend = ctx.settings
    wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[8]]
    gradients = iter(
        prepare_backward(
            grad_query, grad_key, query, key,
            weight_query, bias_query, eps_query, weight_key, bias_key, eps_key,
            rope, text_length, wanted, backend,
        )
    )  # fmt: skip
    to_query, to_key, to_rope = (next(gradients) if wants else None for wants in wanted)
    if to_rope is not None:
        to_rope = to_rope.to(rope.dtype)
    return to_query, to_key, *[None] * 6, to_rope, None, None


prepare.register_autograd(_backward, setup_context=_save_inputs)


@register_flop_formula([torch.ops.ditflow.qk_norm_rope, torch.ops.ditflow.qk_norm_rope_backward])
def _flops(*shapes, **options) -> int:
    """Zero: FLOP counts include matrix products only."""
    return 0


def _passes(backend: str) -> ModuleType:
    return import_module(f"ditflow_kernels.qk_norm_rope.{backend}")


def _flat(norm: Norm) -> tuple[Tensor | None, Tensor | None, float]:
    return (None, None, 0.0) if norm is None else norm


def _norm(weight: Tensor | None, bias: Tensor | None, eps: float) -> Norm:
    return None if weight is None else (weight, bias, eps)
