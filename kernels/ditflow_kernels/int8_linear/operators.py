"""Linear layers in 8 bits as torch operators, for every backend: fakes, gradients and FLOPs."""

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ditflow_kernels.fakes import fake_of
from ditflow_kernels.observed import operator


def int8_linear(
    x: Tensor,  # [..., in]
    weight_int8: Tensor,  # [out, in]
    scale: Tensor,  # [out]
    bias: Tensor | None,  # [out]
    activation: str | None,
    *,
    backend: str,
) -> Tensor:  # [..., out], contiguous
    """See `ditflow_kernels.int8_linear`."""
    keeps = activation is not None and x.requires_grad and torch.is_grad_enabled()
    tokens = x.reshape(-1, x.shape[-1])
    result, _ = linear(tokens, weight_int8, scale, bias, activation, keeps, backend)
    return result.view(*x.shape[:-1], len(weight_int8))


def int8_input_gradient(grad: Tensor, weight_int8: Tensor, scale: Tensor, *, backend: str) -> Tensor:
    """See `ditflow_kernels.int8_input_gradient`."""
    tokens = input_gradient(grad.reshape(-1, grad.shape[-1]), weight_int8, scale, None, backend)
    return tokens.view(*grad.shape[:-1], weight_int8.shape[1])


@operator("int8_linear")
def linear(
    x: Tensor,  # [tokens, in]
    weight_int8: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    activation: str | None,
    keeps: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:  # the result; what it was before activation, empty if not kept
    passes = _passes(backend)
    return _pair(*passes.int8_linear_forward(x, weight_int8, scale, bias, activation, keeps))


@fake_of(torch.ops.ditflow.int8_linear.default)
def _(x, weight_int8, scale, bias, activation, keeps, backend):
    passes = _passes(backend)
    return _pair(*passes.int8_linear_forward(x, weight_int8, scale, bias, activation, keeps, launch=False))


@operator("int8_linear_backward")
def input_gradient(
    grad: Tensor,  # [tokens, out]
    weight_int8: Tensor,
    scale: Tensor,
    before: Tensor | None,  # [tokens, out], None without activation
    backend: str,
) -> Tensor:  # [tokens, in]
    return _passes(backend).int8_linear_backward(grad, weight_int8, scale, before)


@fake_of(torch.ops.ditflow.int8_linear_backward.default)
def _(grad, weight_int8, scale, before, backend):
    return _passes(backend).int8_linear_backward(grad, weight_int8, scale, before, launch=False)


def _save(ctx, inputs, output) -> None:
    _, weight_int8, scale, _, activation, keeps, ctx.backend = inputs
    if activation is not None and not keeps:
        raise ValueError(f"the gradient through {activation!r} needs keeps=True")
    ctx.save_for_backward(weight_int8, scale, output[1] if keeps else None)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # or torch makes zeros for what was kept, as large as the result


def _backward(ctx, grad, _):
    weight_int8, scale, before = ctx.saved_tensors
    to_x = None
    if grad is not None and ctx.needs_input_grad[0]:
        to_x = input_gradient(grad, weight_int8, scale, before, ctx.backend)
    return to_x, *[None] * 6


linear.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.ditflow.int8_linear)
def _flops(x_shape: Sequence[int], weight_shape: Sequence[int], *shapes, **options) -> int:
    """One product, counted as if it were not in 8 bits."""
    return 2 * x_shape[0] * weight_shape[0] * weight_shape[1]


@register_flop_formula(torch.ops.ditflow.int8_linear_backward)
def _backward_flops(grad_shape: Sequence[int], weight_shape: Sequence[int], *shapes, **options) -> int:
    """One product: the weights get no gradient."""
    return 2 * grad_shape[0] * weight_shape[0] * weight_shape[1]


def _pair(result: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """An operator's results are tensors, so what is not kept is empty."""
    return result, result.new_empty(0) if before is None else before


def _passes(backend: str) -> ModuleType:
    return import_module(f"ditflow_kernels.int8_linear.{backend}")
