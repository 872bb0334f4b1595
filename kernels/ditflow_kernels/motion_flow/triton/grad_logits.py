"""Third pass of the loss: a panel of weights becomes the gradient of its logits, in place."""

import triton
import triton.language as tl
from torch import Tensor

from ditflow_kernels.motion_flow.triton.tiled_operands import Panel, Problem
from ditflow_kernels.motion_flow.triton.tiles import (
    cells_in_frame,
    is_active,
    positions,
    pull_on_cells,
    row_index,
    tile_frames,
)


@triton.jit
def motion_flow_grad_logits_kernel(
    panel_ptr,  # [panel rows, key tiles * BLOCK_N], `exp2(logit - maximum of its segment)` before
    statistics_ptr,  # [4 (maximum, ...), segments, panel rows]
    flow_ptr,  # [frames (query), frames (key), cells, 2]
    pull_ptr,  # [frames (query), frames (key), cells, 2]
    logsumexp_ptr,  # [frames (query), frames (key), cells]
    active_ptr,  # [query tiles, frames] int32, or None where every block counts
    first_row,
    rows,
    panel_rows,
    frames,
    cells,
    width,
    BLOCK_M: tl.constexpr,  # of a query tile, a multiple of BLOCK_ROWS
    BLOCK_ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    key_tile = tl.program_id(1)
    tokens = frames * cells
    first_frame, last_frame = tile_frames(key_tile, tokens, cells, BLOCK_N)
    first_panel_row = tl.program_id(0) * BLOCK_ROWS
    panel_row = first_panel_row + tl.arange(0, BLOCK_ROWS)
    kept = panel_row < rows
    columns = key_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    row_ptrs = panel_ptr + panel_row.to(tl.int64) * (tl.cdiv(tokens, BLOCK_N) * BLOCK_N)
    panel_ptrs = row_ptrs[:, None] + columns[None, :]
    # [BLOCK_ROWS, BLOCK_N]; the products that follow see zeros where nothing counts
    grad = tl.zeros([BLOCK_ROWS, BLOCK_N], tl.float32)
    wanted = True
    if active_ptr is not None:
        query_tile = (first_row + first_panel_row) // BLOCK_M
        wanted = is_active(active_ptr, query_tile, first_frame, last_frame, frames)
    if wanted:
        query = tl.minimum(first_row + panel_row, tokens - 1)
        weights = tl.load(panel_ptrs, mask=kept[:, None], other=0.0).to(tl.float32)
        for frame in tl.range(first_frame, last_frame + 1, num_stages=1):
            segment = tl.cast(key_tile + frame, tl.int64) * panel_rows
            maximum = tl.load(statistics_ptr + segment + panel_row, mask=kept, other=0.0)
            cell, inside = cells_in_frame(key_tile, frame, cells, BLOCK_N)
            x, y = positions(cell, width)
            index = row_index(query, frame, frames, cells)
            logsumexp = tl.load(logsumexp_ptr + index) * 1.4426950408889634
            pull = pull_on_cells(flow_ptr, pull_ptr, query, index, cells, width, x, y)
            share = tl.exp2(maximum - logsumexp)[:, None] * weights
            grad = tl.where(inside[None, :], share * pull, grad)
    tl.store(panel_ptrs, grad.to(panel_ptr.dtype.element_ty), mask=kept[:, None])


def grad_logits(
    problem: Problem,
    panel: Panel,
    weights: Tensor,  # [panel rows, panel width], overwritten
    statistics: Tensor,  # [4, segments, panel rows] float32
    flow: Tensor,  # [frames, frames, cells, 2] float32
    pull: Tensor,  # [frames, frames, cells, 2] float32
    logsumexp: Tensor,  # [frames, frames, cells] float32
    active: Tensor | None,  # [query tiles, frames] int32
) -> None:
    """Turn weights into `probability * (pull . (cell - expected cell))`, zero where no row counts."""
    if problem.launch:
        block_rows = min(problem.tiles.block_m, problem.rows.block_rows)
        motion_flow_grad_logits_kernel[(triton.cdiv(panel.rows, block_rows), problem.key_tiles)](
            weights, statistics, flow, pull, logsumexp, active,
            panel.first, panel.rows, statistics.shape[2],
            problem.frames, problem.cells, problem.width,
            BLOCK_M=problem.tiles.block_m, BLOCK_ROWS=block_rows, BLOCK_N=problem.tiles.block_n,
            num_warps=problem.rows.num_warps,
        )  # fmt: skip
