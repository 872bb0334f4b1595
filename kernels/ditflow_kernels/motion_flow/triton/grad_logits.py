"""Third pass of the loss: turn a panel of weights into the gradient of its logits, in place."""

import triton
import triton.language as tl
from torch import Tensor

from ditflow_kernels.motion_flow.triton.tiled_operands import Panel, TiledOperands
from ditflow_kernels.motion_flow.triton.tiles import (
    SIZES,
    any_active,
    cells_in_frame,
    coordinates,
    flow_index,
    frames_of_tile,
    offsets_along_gradient,
)
from ditflow_kernels.tuning import COMPILER_OPTIONS


@triton.jit(do_not_specialize=SIZES)
def motion_flow_grad_logits_kernel(
    weights_ptr,  # [panel_size, key tiles * BLOCK_N], `exp2(logit - maximum of its segment)`, overwritten
    statistics_ptr,  # [4 (maximum, ...), segments, panel_size]
    flow_ptr,  # [frames (query), frames (key), cells, 2]
    grad_flow_ptr,  # [frames (query), frames (key), cells, 2]
    log2sumexp_ptr,  # [frames (query), frames (key), cells]
    active_ptr,  # [query tiles, frames] int32, or None if every row counts
    first_query,  # of the panel
    queries,  # in the panel
    panel_size,
    frames,
    cells,
    width,
    QUERY_TILE: tl.constexpr,  # queries of a tile of active, a multiple of BLOCK_M
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    key_tile = tl.program_id(1)
    tokens = frames * cells
    first_frame, last_frame = frames_of_tile(key_tile, tokens, cells, BLOCK_N)
    first_panel_row = tl.program_id(0) * BLOCK_M
    panel_row = first_panel_row + tl.arange(0, BLOCK_M)
    in_panel = panel_row < queries
    columns = key_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    row_ptrs = weights_ptr + panel_row.to(tl.int64) * (tl.cdiv(tokens, BLOCK_N) * BLOCK_N)
    tile_ptrs = row_ptrs[:, None] + columns[None, :]
    # [BLOCK_M, BLOCK_N]; zero where nothing counts, because the products that follow read every tile
    grad = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    wanted = True
    if active_ptr is not None:
        query_tile = (first_query + first_panel_row) // QUERY_TILE
        wanted = any_active(active_ptr, query_tile, first_frame, last_frame, frames)
    if wanted:
        query = tl.minimum(first_query + panel_row, tokens - 1)
        weights = tl.load(tile_ptrs, mask=in_panel[:, None], other=0.0).to(tl.float32)
        for frame in tl.range(first_frame, last_frame + 1, num_stages=1):
            segment = tl.cast(key_tile + frame, tl.int64) * panel_size
            maximum = tl.load(statistics_ptr + segment + panel_row, mask=in_panel, other=0.0)
            cell, inside = cells_in_frame(key_tile, frame, cells, BLOCK_N)
            x, y = coordinates(cell, width)
            index = flow_index(query, frame, frames, cells)
            log2sumexp = tl.load(log2sumexp_ptr + index)
            along = offsets_along_gradient(flow_ptr, grad_flow_ptr, query, index, cells, width, x, y)
            probability = tl.exp2(maximum - log2sumexp)[:, None] * weights
            grad = tl.where(inside[None, :], probability * along, grad)
    tl.store(tile_ptrs, grad.to(weights_ptr.dtype.element_ty), mask=in_panel[:, None])


def grad_logits(
    operands: TiledOperands,
    panel: Panel,
    weights: Tensor,  # [panel_size, padded keys], overwritten
    statistics: Tensor,  # [4, segments, panel_size] float32
    flow: Tensor,  # [frames, frames, cells, 2] float32
    grad_flow: Tensor,  # [frames, frames, cells, 2] float32
    log2sumexp: Tensor,  # [frames, frames, cells] float32
    active: Tensor | None,  # [query tiles, frames] int32
) -> None:
    """Overwrite weights with `probability * (grad_flow . (coordinates - expected coordinates))`."""
    if operands.launch:
        tuning = operands.grad_logits_tuning
        block_m = min(operands.tiles.block_m, tuning.block_m)
        motion_flow_grad_logits_kernel[(triton.cdiv(panel.queries, block_m), operands.key_tiles)](
            weights, statistics, flow, grad_flow, log2sumexp, active,
            panel.first_query, panel.queries, statistics.shape[2],
            operands.frames, operands.cells, operands.width,
            QUERY_TILE=operands.tiles.block_m, BLOCK_M=block_m, BLOCK_N=operands.tiles.block_n,
            num_warps=tuning.num_warps, **COMPILER_OPTIONS,
        )  # fmt: skip
