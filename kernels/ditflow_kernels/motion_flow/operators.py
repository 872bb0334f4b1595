"""Motion flow as torch operators, for every backend: fakes, gradients and FLOPs."""

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ditflow_kernels.fakes import fake_of
from ditflow_kernels.motion_flow.rows import counted_rows
from ditflow_kernels.motion_flow.scaling import scale_into
from ditflow_kernels.observed import operator


def motion_flow(
    query: Tensor,  # [S, heads, head_dim]
    key: Tensor,  # [S, heads, head_dim]
    grid: tuple[int, int, int],
    temperature: float,
    *,
    hard: bool,
    backend: str,
    workspace_bytes: int | None,
) -> Tensor:  # [frames, frames, height * width, 2] float32
    """See `ditflow_kernels.motion_flow`."""
    if hard:
        return hard_flow(query.detach(), key.detach(), grid, backend, workspace_bytes)
    return soft_flow(query, key, grid, temperature, backend, workspace_bytes)[0]


def motion_flow_loss(
    query: Tensor,  # [S, heads, head_dim]
    key: Tensor,  # [S, heads, head_dim]
    reference: Tensor,  # [frames, frames, height * width, 2]
    grid: tuple[int, int, int],
    temperature: float,
    *,
    rows: str,
    backend: str,
    workspace_bytes: int | None,
) -> Tensor:  # scalar float32
    """See `ditflow_kernels.motion_flow_loss`."""
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
        return loss_and_gradients(query, key, reference, grid, temperature, rows, backend, workspace_bytes)[0]
    flow = soft_flow(query, key, grid, temperature, backend, workspace_bytes)[0]
    squares = (flow - reference).square().sum(dim=-1)
    counted = counted_rows(reference, rows)
    if counted is None:
        return squares.mean() / 2
    return squares.where(counted, 0).sum() / (2 * counted.sum().clamp(min=1))


@operator("motion_flow")
def soft_flow(
    query: Tensor,
    key: Tensor,
    grid: Sequence[int],
    temperature: float,
    backend: str,
    workspace_bytes: int | None,
) -> tuple[Tensor, Tensor]:  # flow, log2sumexp
    return _passes(backend).soft_flow(query, key, grid, temperature, workspace_bytes)


@fake_of(torch.ops.ditflow.motion_flow.default)
def _(query, key, grid, temperature, backend, workspace_bytes):
    return _passes(backend).soft_flow(query, key, grid, temperature, workspace_bytes, launch=False)


@operator("motion_flow_hard")
def hard_flow(
    query: Tensor,
    key: Tensor,
    grid: Sequence[int],
    backend: str,
    workspace_bytes: int | None,
) -> Tensor:
    return _passes(backend).hard_flow(query, key, grid, workspace_bytes)


@fake_of(torch.ops.ditflow.motion_flow_hard.default)
def _(query, key, grid, backend, workspace_bytes):
    return _passes(backend).hard_flow(query, key, grid, workspace_bytes, launch=False)


@operator("motion_flow_backward")
def flow_gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    flow: Tensor,
    log2sumexp: Tensor,
    grid: Sequence[int],
    temperature: float,
    backend: str,
    workspace_bytes: int | None,
) -> tuple[Tensor, Tensor]:
    passes = _passes(backend)
    return passes.flow_gradients(grad, query, key, flow, log2sumexp, grid, temperature, workspace_bytes)


@fake_of(torch.ops.ditflow.motion_flow_backward.default)
def _(grad, query, key, flow, log2sumexp, grid, temperature, backend, workspace_bytes):
    settings = grid, temperature, workspace_bytes
    return _passes(backend).flow_gradients(grad, query, key, flow, log2sumexp, *settings, launch=False)


@operator("motion_flow_loss")
def loss_and_gradients(
    query: Tensor,
    key: Tensor,
    reference: Tensor,
    grid: Sequence[int],
    temperature: float,
    rows: str,
    backend: str,
    workspace_bytes: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # loss, gradients without their factor, the factor
    passes = _passes(backend)
    return passes.loss_and_gradients(query, key, reference, grid, temperature, rows, workspace_bytes)


@fake_of(torch.ops.ditflow.motion_flow_loss.default)
def _(query, key, reference, grid, temperature, rows, backend, workspace_bytes):
    settings = grid, temperature, rows, workspace_bytes
    return _passes(backend).loss_and_gradients(query, key, reference, *settings, launch=False)


@operator("motion_flow_loss_backward")
def scaled_gradients(
    grad: Tensor,  # [] of the loss
    grad_query: Tensor,  # without the factor, in any shape
    grad_key: Tensor,
    factor: Tensor,  # []
    shape: Sequence[int],  # of the results
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Both gradients times `grad * factor`: multiplied in float32, rounded once."""
    scaled = []
    for unscaled in (grad_query, grad_key):
        result = torch.empty_like(unscaled, dtype=dtype)
        scaled.append(scale_into(result, unscaled, grad * factor).view(shape))
    return tuple(scaled)


@fake_of(torch.ops.ditflow.motion_flow_loss_backward.default)
def _(grad, grad_query, grad_key, factor, shape, dtype):
    return tuple(grad_query.new_empty(shape, dtype=dtype) for _ in range(2))


def _save_flow(ctx, inputs, output) -> None:
    query, key, *ctx.settings = inputs
    ctx.save_for_backward(query, key, *output)
    ctx.mark_non_differentiable(output[1])


def _flow_backward(ctx, grad, _):
    return *flow_gradients(grad, *ctx.saved_tensors, *ctx.settings), *[None] * 4


def _save_loss(ctx, inputs, output) -> None:
    ctx.like = inputs[0].shape, inputs[0].dtype
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # or torch makes zeros for outputs without gradients, as large as these


def _loss_backward(ctx, grad, *_):
    return *scaled_gradients(grad, *ctx.saved_tensors, *ctx.like), *[None] * 6


soft_flow.register_autograd(_flow_backward, setup_context=_save_flow)
loss_and_gradients.register_autograd(_loss_backward, setup_context=_save_loss)


def _product_flops(query_shape: Sequence[int]) -> int:
    tokens, heads, head_dim = query_shape
    return 2 * tokens * tokens * heads * head_dim


@register_flop_formula([torch.ops.ditflow.motion_flow, torch.ops.ditflow.motion_flow_hard])
def _flow_flops(query_shape, *shapes, **options) -> int:
    """One product over all pairs of tokens."""
    return _product_flops(query_shape)


@register_flop_formula(torch.ops.ditflow.motion_flow_loss)
def _loss_flops(query_shape, *shapes, **options) -> int:
    """Three products. Frames without a row that counts are skipped, but shapes do not tell how many."""
    return 3 * _product_flops(query_shape)


@register_flop_formula(torch.ops.ditflow.motion_flow_backward)
def _backward_flops(grad_shape, query_shape, *shapes, **options) -> int:
    """Three products: the logits again, and one for each gradient."""
    return 3 * _product_flops(query_shape)


@register_flop_formula(torch.ops.ditflow.motion_flow_loss_backward)
def _scaling_flops(*shapes, **options) -> int:
    """Zero: FLOP counts include matrix products only."""
    return 0


def _passes(backend: str) -> ModuleType:
    return import_module(f"ditflow_kernels.motion_flow.{backend}")
