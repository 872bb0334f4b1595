"""First pass: queries times keys, reduced to a maximum and three sums for each query and segment of keys."""

import triton
import triton.language as tl
from torch import Tensor

from ditflow_kernels.motion_flow.triton.tiled_operands import Panel, TiledOperands
from ditflow_kernels.motion_flow.triton.tiles import (
    SIZES,
    any_active,
    cells_in_frame,
    coordinates,
    frames_of_tile,
    logits_tile,
)
from ditflow_kernels.tile_order import grouped_tile


@triton.jit(do_not_specialize=SIZES)
def motion_flow_forward_kernel(
    query_ptr,  # [tokens, CHANNELS]
    key_ptr,  # [tokens, CHANNELS]
    statistics_ptr,  # [4 (maximum, total, sum x, sum y), segments, panel_size]
    weights_ptr,  # [panel_size, key tiles * BLOCK_N] or None
    active_ptr,  # [query tiles, frames] int32, or None if every row counts
    query_stride,
    key_stride,
    first_query,  # of the panel
    queries,  # in the panel
    panel_size,
    frames,
    cells,
    width,
    scale_log2,
    CHANNELS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    tokens = frames * cells
    key_tiles = tl.cdiv(tokens, BLOCK_N)
    query_tile, key_tile = grouped_tile(tl.cdiv(queries, BLOCK_M), key_tiles, GROUP_M)
    first_frame, last_frame = frames_of_tile(key_tile, tokens, cells, BLOCK_N)
    tile_query = first_query + query_tile * BLOCK_M
    wanted = True
    if active_ptr is not None:
        wanted = any_active(active_ptr, tile_query // BLOCK_M, first_frame, last_frame, frames)
    if wanted:
        # [BLOCK_M, BLOCK_N]
        logits = scale_log2 * logits_tile(
            query_ptr, key_ptr, query_stride, key_stride, tile_query, key_tile * BLOCK_N, tokens,
            CHANNELS, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        panel_row = query_tile * BLOCK_M + tl.arange(0, BLOCK_M)
        in_panel = panel_row < queries
        statistics_ptrs = statistics_ptr + tl.cast(key_tile, tl.int64) * panel_size + panel_row
        # in place: a second tile would not fit in registers
        for frame in tl.range(first_frame, last_frame + 1, num_stages=1):
            cell, inside = cells_in_frame(key_tile, frame, cells, BLOCK_N)
            # keys beyond the last token repeat it: treat them as its frame's, so that every weight is finite
            inside = (inside | ((frame == last_frame) & (cell >= 0)))[None, :]
            maximum = tl.max(tl.where(inside, logits, float("-inf")), axis=1)
            logits = tl.where(inside, logits - maximum[:, None], logits)
            tl.store(statistics_ptrs + tl.cast(frame, tl.int64) * panel_size, maximum, mask=in_panel)
        weights = tl.exp2(logits)
        plane = tl.cast(key_tiles + frames - 1, tl.int64) * panel_size
        for frame in tl.range(first_frame, last_frame + 1, num_stages=1):
            cell, inside = cells_in_frame(key_tile, frame, cells, BLOCK_N)
            x, y = coordinates(cell, width)
            # as factors of the weights: masked copies of the tile would spill
            inside = inside.to(tl.float32)
            total = tl.sum(weights * inside[None, :], axis=1)
            totals_ptrs = statistics_ptrs + tl.cast(frame, tl.int64) * panel_size + plane
            tl.store(totals_ptrs, total, mask=in_panel)
            sum_x = tl.sum(weights * (inside * x)[None, :], axis=1)
            tl.store(totals_ptrs + plane, sum_x, mask=in_panel)
            sum_y = tl.sum(weights * (inside * y)[None, :], axis=1)
            tl.store(totals_ptrs + 2 * plane, sum_y, mask=in_panel)
        if weights_ptr is not None:
            columns = key_tile * BLOCK_N + tl.arange(0, BLOCK_N)
            row_ptrs = weights_ptr + panel_row.to(tl.int64) * (key_tiles * BLOCK_N)
            weights = weights.to(weights_ptr.dtype.element_ty)
            tl.store(row_ptrs[:, None] + columns[None, :], weights, mask=in_panel[:, None])


def forward(
    operands: TiledOperands,
    panel: Panel,
    statistics: Tensor,  # [4, segments, panel_size] float32
    weights: Tensor | None,  # [panel_size, padded keys], `exp2(logit - maximum of its segment)`
    active: Tensor | None,  # [query tiles, frames] int32
) -> None:
    """Fill statistics and, if given, weights. Tiles that are not active are left unwritten."""
    if operands.launch:
        programs = operands.query_tiles(panel.queries) * operands.key_tiles
        motion_flow_forward_kernel[(programs,)](
            operands.query, operands.key, statistics, weights, active,
            operands.query.stride(0), operands.key.stride(0),
            panel.first_query, panel.queries, statistics.shape[2],
            operands.frames, operands.cells, operands.width, operands.scale_log2,
            **operands.product_options,
        )  # fmt: skip
