"""The soft flow with its gradients, and the hard flow."""

import torch
from torch import Tensor

from ditflow_kernels.motion_flow.scaling import scale_into
from ditflow_kernels.motion_flow.triton.backward import backward
from ditflow_kernels.motion_flow.triton.combine import combine
from ditflow_kernels.motion_flow.triton.forward import forward
from ditflow_kernels.motion_flow.triton.gradients import Gradients
from ditflow_kernels.motion_flow.triton.hard_combine import hard_combine
from ditflow_kernels.motion_flow.triton.hard_forward import hard_forward
from ditflow_kernels.motion_flow.triton.tiled_operands import (
    FLOW_WORKSPACE_BYTES,
    GRADIENT_WORKSPACE_BYTES,
    TiledOperands,
)


def soft_flow(
    query: Tensor,  # [S, heads, head_dim]
    key: Tensor,  # [S, heads, head_dim]
    grid: tuple[int, int, int],
    temperature: float,
    workspace_bytes: int | None,
    launch: bool = True,
) -> tuple[Tensor, Tensor]:  # [frames, frames, cells, 2], [frames, frames, cells] float32
    """Flow and log2sumexp. The workspace holds the statistics of the segments."""
    with torch.cuda.device_of(query):
        operands = TiledOperands.of(query, key, grid, temperature, launch)
        flow = operands.empty(operands.frames, operands.frames, operands.cells, 2)
        log2sumexp = operands.empty(operands.frames, operands.frames, operands.cells)
        budget = FLOW_WORKSPACE_BYTES if workspace_bytes is None else workspace_bytes
        panel_size = operands.panel_size(operands.statistics_bytes_per_query, budget)
        statistics = operands.empty(4, operands.segments, panel_size)
        for panel in operands.panels(panel_size):
            forward(operands, panel, statistics, None, None)
            combine(operands, panel, statistics, flow, log2sumexp)
    return flow, log2sumexp


def flow_gradients(
    grad_flow: Tensor,  # [frames, frames, cells, 2]
    query: Tensor,  # [S, heads, head_dim]
    key: Tensor,  # [S, heads, head_dim]
    flow: Tensor,  # [frames, frames, cells, 2]
    log2sumexp: Tensor,  # [frames, frames, cells]
    grid: tuple[int, int, int],
    temperature: float,
    workspace_bytes: int | None,
    launch: bool = True,
) -> tuple[Tensor, Tensor]:  # as query and key
    """Gradients of query and key.

    The workspace holds a panel of the logits' gradient, and with several panels the float32 key gradient.
    """
    with torch.cuda.device_of(query):
        operands = TiledOperands.of(query, key, grid, temperature, launch)
        # scale grad_flow to size 1 and move its size to the factor: small values would vanish in fp16
        size = torch.linalg.vector_norm(grad_flow, torch.inf).clamp(min=torch.finfo(torch.float32).tiny)
        grad_flow = (grad_flow / size).contiguous()
        budget = GRADIENT_WORKSPACE_BYTES if workspace_bytes is None else workspace_bytes
        budget -= operands.flow_bytes
        in_place = operands.unscaled_dtype == query.dtype
        if not in_place:
            budget -= 2 * 4 * operands.tokens * operands.channels  # unscaled gradients
        panel_size = operands.gradient_panel_size(operands.logits_bytes_per_query, budget)
        gradients = Gradients(operands, panel_size)
        grad_logits = operands.empty(panel_size, operands.padded_keys, dtype=query.dtype)
        for panel in operands.panels(panel_size):
            backward(operands, panel, flow, grad_flow, log2sumexp, grad_logits)
            gradients.add(panel, grad_logits)
        del grad_logits
        results = []
        for unscaled in gradients.unscaled():
            result = unscaled if in_place else torch.empty_like(unscaled, dtype=query.dtype)
            results.append(scale_into(result, unscaled, size * operands.scale).view(query.shape))
    return tuple(results)


def hard_flow(
    query: Tensor,  # [S, heads, head_dim]
    key: Tensor,  # [S, heads, head_dim]
    grid: tuple[int, int, int],
    workspace_bytes: int | None,
    launch: bool = True,
) -> Tensor:  # [frames, frames, cells, 2] float32
    """Coordinates of the likeliest cell minus those of the query's own cell.

    The workspace holds the largest logit of each query and segment, and its key.
    """
    with torch.cuda.device_of(query):
        operands = TiledOperands.of(query, key, grid, 1.0, launch)
        flow = operands.empty(operands.frames, operands.frames, operands.cells, 2)
        budget = FLOW_WORKSPACE_BYTES if workspace_bytes is None else workspace_bytes
        panel_size = operands.panel_size(operands.statistics_bytes_per_query // 2, budget)
        maximum = operands.empty(operands.segments, panel_size)
        likeliest = operands.empty(operands.segments, panel_size, dtype=torch.int32)
        for panel in operands.panels(panel_size):
            hard_forward(operands, panel, maximum, likeliest)
            hard_combine(operands, panel, maximum, likeliest, flow)
    return flow
