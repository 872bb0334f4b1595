"""First pass: queries times keys, reduced to the maximum and the sums of each row and segment of keys."""

import triton
import triton.language as tl
from torch import Tensor

from ditflow_kernels.motion_flow.triton.tiled_operands import Panel, Problem
from ditflow_kernels.motion_flow.triton.tiles import (
    cells_in_frame,
    grouped_tile,
    is_active,
    logits_tile,
    positions,
    tile_frames,
)


@triton.jit
def motion_flow_forward_kernel(
    query_ptr,  # [tokens, CHANNELS]
    key_ptr,  # [tokens, CHANNELS]
    statistics_ptr,  # [4 (maximum, total, x, y), segments, panel rows]
    weights_ptr,  # [panel rows, key tiles * BLOCK_N] or None
    active_ptr,  # [query tiles, frames] int32, or None where every block counts
    query_stride,
    key_stride,
    first_row,
    rows,
    panel_rows,
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
    wanted = True
    if active_ptr is not None:
        wanted = is_active(active_ptr, first_query // BLOCK_M, first_frame, last_frame, frames)
    if wanted:
        # [BLOCK_M, BLOCK_N]
        logits = scale * logits_tile(
            query_ptr, key_ptr, query_stride, key_stride, first_query, key_tile * BLOCK_N, tokens,
            CHANNELS, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        panel_row = query_tile * BLOCK_M + tl.arange(0, BLOCK_M)
        kept = panel_row < rows
        statistics_ptrs = statistics_ptr + tl.cast(key_tile, tl.int64) * panel_rows + panel_row
        # everything happens in place: a second tile would not fit in registers
        for frame in tl.range(first_frame, last_frame + 1, num_stages=1):
            cell, inside = cells_in_frame(key_tile, frame, cells, BLOCK_N)
            # keys beyond the last token repeat it: they go with its frame, so that all weights are finite
            inside = (inside | ((frame == last_frame) & (cell >= 0)))[None, :]
            maximum = tl.max(tl.where(inside, logits, float("-inf")), axis=1)
            logits = tl.where(inside, logits - maximum[:, None], logits)
            tl.store(statistics_ptrs + tl.cast(frame, tl.int64) * panel_rows, maximum, mask=kept)
        weights = tl.exp2(logits)
        one_of_four = tl.cast(key_tiles + frames - 1, tl.int64) * panel_rows
        for frame in tl.range(first_frame, last_frame + 1, num_stages=1):
            cell, inside = cells_in_frame(key_tile, frame, cells, BLOCK_N)
            x, y = positions(cell, width)
            counted = inside.to(tl.float32)
            totals_ptrs = statistics_ptrs + tl.cast(frame, tl.int64) * panel_rows + one_of_four
            tl.store(totals_ptrs, tl.sum(weights * counted[None, :], axis=1), mask=kept)
            tl.store(totals_ptrs + one_of_four, tl.sum(weights * (counted * x)[None, :], axis=1), mask=kept)
            tl.store(
                totals_ptrs + 2 * one_of_four, tl.sum(weights * (counted * y)[None, :], axis=1), mask=kept
            )
        if weights_ptr is not None:
            columns = key_tile * BLOCK_N + tl.arange(0, BLOCK_N)
            row_ptrs = weights_ptr + panel_row.to(tl.int64) * (key_tiles * BLOCK_N)
            weights = weights.to(weights_ptr.dtype.element_ty)
            tl.store(row_ptrs[:, None] + columns[None, :], weights, mask=kept[:, None])


def forward(
    problem: Problem,
    panel: Panel,
    statistics: Tensor,  # [4, segments, panel rows] float32
    weights: Tensor | None,  # [panel rows, panel width], `exp2(logit - maximum of its segment)`
    active: Tensor | None,  # [query tiles, frames] int32
) -> None:
    """Fill statistics and weights; segments and weights of tiles that are not active stay as they are."""
    if problem.launch:
        programs = problem.query_tiles(panel.rows) * problem.key_tiles
        motion_flow_forward_kernel[(programs,)](
            problem.query, problem.key, statistics, weights, active,
            problem.query.stride(0), problem.key.stride(0),
            panel.first, panel.rows, statistics.shape[2],
            problem.frames, problem.cells, problem.width, problem.scale_of_base_2,
            **problem.block_shape,
        )  # fmt: skip
