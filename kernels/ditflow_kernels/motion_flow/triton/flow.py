"""Soft flow, and its gradients from the saved logsumexp."""

import torch
from torch import Tensor

from ditflow_kernels.motion_flow.scaling import scale_into
from ditflow_kernels.motion_flow.triton.backward import backward
from ditflow_kernels.motion_flow.triton.combine import combine
from ditflow_kernels.motion_flow.triton.forward import forward
from ditflow_kernels.motion_flow.triton.gradients import Gradients
from ditflow_kernels.motion_flow.triton.tiled_operands import (
    FLOW_WORKSPACE_BYTES,
    GRADIENT_WORKSPACE_BYTES,
    Problem,
)


def soft_flow(
    query: Tensor,  # [S, heads, head_dim]
    key: Tensor,  # [S, heads, head_dim]
    grid: tuple[int, int, int],
    temperature: float,
    workspace_bytes: int | None,
    launch: bool = True,
) -> tuple[Tensor, Tensor]:  # [frames, frames, cells, 2], [frames, frames, cells] float32
    """Flow and logsumexp. The workspace holds the segments' statistics."""
    with torch.cuda.device_of(query):
        problem = Problem.of(query, key, grid, temperature, launch)
        flow = problem.new(problem.frames, problem.frames, problem.cells, 2)
        logsumexp = problem.new(problem.frames, problem.frames, problem.cells)
        budget = FLOW_WORKSPACE_BYTES if workspace_bytes is None else workspace_bytes
        panel_rows = problem.panel_rows(problem.statistics_bytes_per_row, budget)
        statistics = problem.new(4, problem.segments, panel_rows)
        for panel in problem.panels(panel_rows):
            forward(problem, panel, statistics, None, None)
            combine(problem, panel, statistics, flow, logsumexp)
    return flow, logsumexp


def flow_gradients(
    grad: Tensor,  # [frames, frames, cells, 2], of the flow
    query: Tensor,  # [S, heads, head_dim]
    key: Tensor,  # [S, heads, head_dim]
    flow: Tensor,  # [frames, frames, cells, 2]
    logsumexp: Tensor,  # [frames, frames, cells]
    grid: tuple[int, int, int],
    temperature: float,
    workspace_bytes: int | None,
    launch: bool = True,
) -> tuple[Tensor, Tensor]:  # as query and key
    """The workspace holds panels of the logits' gradient, and the sums for the keys if there are several."""
    with torch.cuda.device_of(query):
        problem = Problem.of(query, key, grid, temperature, launch)
        # the panels see a gradient of size 1, its size joins the factor: in fp16 a small one would vanish
        size = torch.linalg.vector_norm(grad, torch.inf).clamp(min=torch.finfo(torch.float32).tiny)
        pull = (grad / size).contiguous()
        budget = GRADIENT_WORKSPACE_BYTES if workspace_bytes is None else workspace_bytes
        budget -= problem.flow_bytes
        in_place = problem.kept_dtype == query.dtype
        if not in_place:
            budget -= 2 * 4 * problem.tokens * problem.channels  # results without their factor
        panel_rows = problem.gradient_panel_rows(problem.panel_bytes_per_row, budget)
        gradients = Gradients(problem, panel_rows)
        grad_logits = problem.new(panel_rows, problem.panel_width, dtype=query.dtype)
        for panel in problem.panels(panel_rows):
            backward(problem, panel, flow, pull, logsumexp, grad_logits)
            gradients.add(panel, grad_logits)
        del grad_logits
        results = []
        for kept in gradients.kept():
            result = kept if in_place else torch.empty_like(kept, dtype=query.dtype)
            results.append(scale_into(result, kept, size * problem.scale).view(query.shape))
    return tuple(results)
