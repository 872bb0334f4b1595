"""Backward pass of the soft flow: queries times keys again, straight to the gradient of the logits."""

import triton
import triton.language as tl
from torch import Tensor

from ditflow_kernels.motion_flow.triton.tiled_operands import Panel, Problem
from ditflow_kernels.motion_flow.triton.tiles import (
    cells_in_frame,
    grouped_tile,
    logits_tile,
    positions,
    pull_on_cells,
    row_index,
    tile_frames,
)


@triton.jit
def motion_flow_backward_kernel(
    query_ptr,  # [tokens, CHANNELS]
    key_ptr,  # [tokens, CHANNELS]
    flow_ptr,  # [frames (query), frames (key), cells, 2]
    pull_ptr,  # [frames (query), frames (key), cells, 2]
    logsumexp_ptr,  # [frames (query), frames (key), cells]
    panel_ptr,  # [panel rows, key tiles * BLOCK_N]
    query_stride,
    key_stride,
    first_row,
    rows,
    frames,
    cells,
    width,
    scale,  # to logits in base 2
    CHANNELS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    tokens = frames * cells
    key_tiles = tl.cdiv(tokens, BLOCK_N)
    query_tile, key_tile = grouped_tile(tl.cdiv(rows, BLOCK_M), key_tiles, GROUP_M)
    first_frame, last_frame = tile_frames(key_tile, tokens, cells, BLOCK_N)
    first_query = first_row + query_tile * BLOCK_M
    # [BLOCK_M, BLOCK_N]
    grad = scale * logits_tile(
        query_ptr, key_ptr, query_stride, key_stride, first_query, key_tile * BLOCK_N, tokens,
        CHANNELS, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    query = tl.minimum(first_query + tl.arange(0, BLOCK_M), tokens - 1)
    # everything happens in place: a second tile would not fit in registers
    for frame in tl.range(first_frame, last_frame + 1, num_stages=1):
        cell, inside = cells_in_frame(key_tile, frame, cells, BLOCK_N)
        # keys beyond the last token repeat it: they go with its frame, so that all weights are finite
        inside = inside | ((frame == last_frame) & (cell >= 0))
        logsumexp = tl.load(logsumexp_ptr + row_index(query, frame, frames, cells)) * 1.4426950408889634
        grad = tl.where(inside[None, :], grad - logsumexp[:, None], grad)
    grad = tl.exp2(grad)
    for frame in tl.range(first_frame, last_frame + 1, num_stages=1):
        cell, inside = cells_in_frame(key_tile, frame, cells, BLOCK_N)
        x, y = positions(cell, width)
        index = row_index(query, frame, frames, cells)
        pull = pull_on_cells(flow_ptr, pull_ptr, query, index, cells, width, x, y)
        grad = tl.where(inside[None, :], grad * pull, grad)
    panel_row = query_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = key_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    row_ptrs = panel_ptr + panel_row.to(tl.int64) * (key_tiles * BLOCK_N)
    grad = grad.to(panel_ptr.dtype.element_ty)
    tl.store(row_ptrs[:, None] + columns[None, :], grad, mask=(panel_row < rows)[:, None])


def backward(
    problem: Problem,
    panel: Panel,
    flow: Tensor,  # [frames, frames, cells, 2] float32
    pull: Tensor,  # [frames, frames, cells, 2] float32
    logsumexp: Tensor,  # [frames, frames, cells] float32
    grad_logits: Tensor,  # [panel rows, panel width]
) -> None:
    """Fill the panel with `probability * (pull . (cell - expected cell))`."""
    if problem.launch:
        programs = problem.query_tiles(panel.rows) * problem.key_tiles
        motion_flow_backward_kernel[(programs,)](
            problem.query, problem.key, flow, pull, logsumexp, grad_logits,
            problem.query.stride(0), problem.key.stride(0), panel.first, panel.rows,
            problem.frames, problem.cells, problem.width, problem.scale_of_base_2,
            **problem.block_shape,
        )  # fmt: skip
