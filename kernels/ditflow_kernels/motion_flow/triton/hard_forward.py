"""First pass of the hard flow: the largest logit of each query and segment of keys, and its key."""

import triton
import triton.language as tl
from torch import Tensor

from ditflow_kernels.motion_flow.triton.tiled_operands import Panel, TiledOperands
from ditflow_kernels.motion_flow.triton.tiles import (
    SIZES,
    cells_in_frame,
    frames_of_tile,
    logits_tile,
)
from ditflow_kernels.tile_order import grouped_tile


@triton.jit(do_not_specialize=SIZES)
def motion_flow_hard_kernel(
    query_ptr,  # [tokens, CHANNELS]
    key_ptr,  # [tokens, CHANNELS]
    maximum_ptr,  # [segments, panel_size] float32
    likeliest_ptr,  # [segments, panel_size] int32 keys
    query_stride,
    key_stride,
    first_query,  # of the panel
    queries,  # in the panel
    panel_size,
    frames,
    cells,
    CHANNELS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    tokens = frames * cells
    query_tile, key_tile = grouped_tile(tl.cdiv(queries, BLOCK_M), tl.cdiv(tokens, BLOCK_N), GROUP_M)
    first_frame, last_frame = frames_of_tile(key_tile, tokens, cells, BLOCK_N)
    first_key = key_tile * BLOCK_N
    # [BLOCK_M, BLOCK_N]; unscaled, because no positive scale moves the maximum
    logits = logits_tile(
        query_ptr, key_ptr, query_stride, key_stride, first_query + query_tile * BLOCK_M, first_key, tokens,
        CHANNELS, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    panel_row = query_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    for frame in tl.range(first_frame, last_frame + 1, num_stages=1):
        _, inside = cells_in_frame(key_tile, frame, cells, BLOCK_N)
        of_frame = tl.where(inside[None, :], logits, float("-inf"))
        maximum, column = tl.max(of_frame, axis=1, return_indices=True, return_indices_tie_break_left=True)
        index = tl.cast(key_tile + frame, tl.int64) * panel_size + panel_row
        tl.store(maximum_ptr + index, maximum, mask=panel_row < queries)
        tl.store(likeliest_ptr + index, first_key + column, mask=panel_row < queries)


def hard_forward(
    operands: TiledOperands,
    panel: Panel,
    maximum: Tensor,  # [segments, panel_size] float32
    likeliest: Tensor,  # [segments, panel_size] int32
) -> None:
    """Fill the maxima and the keys that have them."""
    if operands.launch:
        programs = operands.query_tiles(panel.queries) * operands.key_tiles
        motion_flow_hard_kernel[(programs,)](
            operands.query, operands.key, maximum, likeliest,
            operands.query.stride(0), operands.key.stride(0),
            panel.first_query, panel.queries, maximum.shape[1],
            operands.frames, operands.cells, **operands.product_options,
        )  # fmt: skip
