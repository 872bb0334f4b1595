"""The loss, and its gradients up to one factor, in one pass over the logits."""

import torch
from torch import Tensor

from ditflow_kernels.motion_flow.rows import counted_rows
from ditflow_kernels.motion_flow.triton.activity import activity
from ditflow_kernels.motion_flow.triton.combine import LossTensors, combine
from ditflow_kernels.motion_flow.triton.forward import forward
from ditflow_kernels.motion_flow.triton.grad_logits import grad_logits
from ditflow_kernels.motion_flow.triton.gradients import Gradients
from ditflow_kernels.motion_flow.triton.tiled_operands import GRADIENT_WORKSPACE_BYTES, TiledOperands

# half of what float16 holds
FLOAT16_LIMIT = 2.0**15


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
    """The loss, the gradients of query and key without their factor, and the factor."""
    with torch.cuda.device_of(query):
        operands = TiledOperands.of(query, key, grid, temperature, launch)
        reference = reference.float().contiguous()
        counted = counted_rows(reference, rows)
        if counted is not None:
            reference = reference.where(counted[..., None], torch.nan)
        flow, grad_flow = torch.empty_like(reference), torch.empty_like(reference)
        log2sumexp = operands.empty(operands.frames, operands.frames, operands.cells)
        sums = operands.empty(2, operands.query_tiles(operands.tokens), operands.frames)
        active = None
        if counted is not None:
            active = torch.empty_like(sums[0], dtype=torch.int32)
            activity(operands, reference, active)
        loss = LossTensors(active, reference, grad_flow, sums, _grad_scale(operands, reference))

        budget = GRADIENT_WORKSPACE_BYTES if workspace_bytes is None else workspace_bytes
        budget -= 4 * operands.flow_bytes  # reference, flow, grad_flow, log2sumexp, sums
        bytes_per_query = operands.logits_bytes_per_query + operands.statistics_bytes_per_query
        panel_size = operands.gradient_panel_size(bytes_per_query, budget)
        gradients = Gradients(operands, panel_size)
        statistics = operands.empty(4, operands.segments, panel_size)
        weights = operands.empty(panel_size, operands.padded_keys, dtype=query.dtype)
        for panel in operands.panels(panel_size):
            forward(operands, panel, statistics, weights, active)
            combine(operands, panel, statistics, flow, log2sumexp, loss)
            grad_logits(operands, panel, weights, statistics, flow, grad_flow, log2sumexp, active)
            gradients.add(panel, weights)
        del statistics, weights

        squares, count = sums.sum(dim=(1, 2)).unbind()
        count = count.clamp(min=1)
        factor = operands.scale / count
        if loss.grad_scale is not None:
            factor = factor / loss.grad_scale
        return squares / (2 * count), *gradients.unscaled(), factor


def _grad_scale(operands: TiledOperands, reference: Tensor) -> Tensor | None:
    """For float16: a factor that keeps the logits' gradient in range; 1 unless the reference is far off."""
    if operands.query.dtype != torch.float16:
        return None
    farthest = torch.linalg.vector_norm(reference.nan_to_num(), torch.inf) + max(
        operands.height, operands.width
    )
    return FLOAT16_LIMIT / (farthest * (operands.height + operands.width)).clamp(min=FLOAT16_LIMIT)
