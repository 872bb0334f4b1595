"""The loss, with its gradients up to one factor."""

import torch
from torch import Tensor

from ditflow_kernels.motion_flow.triton.activity import activity
from ditflow_kernels.motion_flow.triton.combine import Loss, combine
from ditflow_kernels.motion_flow.triton.forward import forward
from ditflow_kernels.motion_flow.triton.grad_logits import grad_logits
from ditflow_kernels.motion_flow.triton.gradients import Gradients
from ditflow_kernels.motion_flow.triton.tiled_operands import GRADIENT_WORKSPACE_BYTES, Problem

# half of what float16 holds
FLOAT16_ROOM = 2.0**15


def loss_and_gradients(
    query: Tensor,  # [S, heads, head_dim]
    key: Tensor,  # [S, heads, head_dim]
    reference: Tensor,  # [frames, frames, cells, 2]
    grid: tuple[int, int, int],
    temperature: float,
    rows: str,
    workspace_bytes: int | None,
    launch: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # [], [S, channels] twice, []
    """Loss, gradients to query and key but for a factor, the factor."""
    with torch.cuda.device_of(query):
        problem = Problem.of(query, key, grid, temperature, launch)
        reference = reference.float().contiguous()
        flow, pull = torch.empty_like(reference), torch.empty_like(reference)
        logsumexp = problem.new(problem.frames, problem.frames, problem.cells)
        sums = problem.new(2, problem.query_tiles(problem.tokens), problem.frames)
        active = None
        if rows == "moving":
            active = torch.empty_like(sums[0], dtype=torch.int32)
            activity(problem, reference, active)
        asked = Loss(active, reference, pull, sums, _shrink(problem, reference))

        budget = GRADIENT_WORKSPACE_BYTES if workspace_bytes is None else workspace_bytes
        budget -= 3 * problem.flow_bytes  # flow, pull, logsumexp, sums
        bytes_per_row = problem.panel_bytes_per_row + problem.statistics_bytes_per_row
        panel_rows = problem.gradient_panel_rows(bytes_per_row, budget)
        gradients = Gradients(problem, panel_rows)
        statistics = problem.new(4, problem.segments, panel_rows)
        weights = problem.new(panel_rows, problem.panel_width, dtype=query.dtype)
        for panel in problem.panels(panel_rows):
            forward(problem, panel, statistics, weights, active)
            combine(problem, panel, statistics, flow, logsumexp, asked)
            grad_logits(problem, panel, weights, statistics, flow, pull, logsumexp, active)
            gradients.add(panel, weights)
        del statistics, weights

        squares, counting = sums.sum(dim=(1, 2)).unbind()
        counting = counting.clamp(min=1)
        factor = problem.scale / counting
        if asked.shrink is not None:
            factor = factor / asked.shrink
        return squares / (2 * counting), *gradients.kept(), factor


def _shrink(problem: Problem, reference: Tensor) -> Tensor | None:
    """What keeps a gradient of the logits within float16, however far the reference points; 1 for most."""
    if problem.query.dtype != torch.float16:
        return None
    farthest = torch.linalg.vector_norm(reference, torch.inf) + max(problem.height, problem.width)
    return FLOAT16_ROOM / (farthest * (problem.height + problem.width)).clamp(min=FLOAT16_ROOM)
