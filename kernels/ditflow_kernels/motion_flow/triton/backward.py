"""Backward of the soft flow: queries times keys again, reduced straight to the gradient of the logits."""

import triton
import triton.language as tl
from torch import Tensor

from ditflow_kernels.motion_flow.triton.tiled_operands import Panel, TiledOperands
from ditflow_kernels.motion_flow.triton.tiles import (
    SIZES,
    cells_in_frame,
    coordinates,
    flow_index,
    frames_of_tile,
    logits_tile,
    offsets_along_gradient,
)
from ditflow_kernels.tile_order import grouped_tile


@triton.jit(do_not_specialize=SIZES)
def motion_flow_backward_kernel(
    query_ptr,  # [tokens, CHANNELS]
    key_ptr,  # [tokens, CHANNELS]
    flow_ptr,  # [frames (query), frames (key), cells, 2]
    grad_flow_ptr,  # [frames (query), frames (key), cells, 2]
    log2sumexp_ptr,  # [frames (query), frames (key), cells]
    grad_logits_ptr,  # [panel_size, key tiles * BLOCK_N]
    query_stride,
    key_stride,
    first_query,  # of the panel
    queries,  # in the panel
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
    # [BLOCK_M, BLOCK_N]; logits, then probabilities, then their gradient, all in place:
    # a second tile would not fit in registers
    tile = scale_log2 * logits_tile(
        query_ptr, key_ptr, query_stride, key_stride, tile_query, key_tile * BLOCK_N, tokens,
        CHANNELS, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    query = tl.minimum(tile_query + tl.arange(0, BLOCK_M), tokens - 1)
    for frame in tl.range(first_frame, last_frame + 1, num_stages=1):
        cell, inside = cells_in_frame(key_tile, frame, cells, BLOCK_N)
        # keys beyond the last token repeat it: treat them as its frame's, so that every weight is finite
        inside = inside | ((frame == last_frame) & (cell >= 0))
        log2sumexp = tl.load(log2sumexp_ptr + flow_index(query, frame, frames, cells))
        tile = tl.where(inside[None, :], tile - log2sumexp[:, None], tile)
    tile = tl.exp2(tile)
    for frame in tl.range(first_frame, last_frame + 1, num_stages=1):
        cell, inside = cells_in_frame(key_tile, frame, cells, BLOCK_N)
        x, y = coordinates(cell, width)
        index = flow_index(query, frame, frames, cells)
        along = offsets_along_gradient(flow_ptr, grad_flow_ptr, query, index, cells, width, x, y)
        tile = tl.where(inside[None, :], tile * along, tile)
    panel_row = query_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = key_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    row_ptrs = grad_logits_ptr + panel_row.to(tl.int64) * (key_tiles * BLOCK_N)
    tile = tile.to(grad_logits_ptr.dtype.element_ty)
    tl.store(row_ptrs[:, None] + columns[None, :], tile, mask=(panel_row < queries)[:, None])


def backward(
    operands: TiledOperands,
    panel: Panel,
    flow: Tensor,  # [frames, frames, cells, 2] float32
    grad_flow: Tensor,  # [frames, frames, cells, 2] float32
    log2sumexp: Tensor,  # [frames, frames, cells] float32
    grad_logits: Tensor,  # [panel_size, padded keys]
) -> None:
    """Fill the panel with `probability * (grad_flow . (coordinates - expected coordinates))`."""
    if operands.launch:
        programs = operands.query_tiles(panel.queries) * operands.key_tiles
        motion_flow_backward_kernel[(programs,)](
            operands.query, operands.key, flow, grad_flow, log2sumexp, grad_logits,
            operands.query.stride(0), operands.key.stride(0), panel.first_query, panel.queries,
            operands.frames, operands.cells, operands.width, operands.scale_log2,
            **operands.product_options,
        )  # fmt: skip
