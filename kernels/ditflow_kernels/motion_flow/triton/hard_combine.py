"""Second pass of the hard flow: reduce each row's segments to the likeliest key, and that to the flow."""

import triton
import triton.language as tl
from torch import Tensor

from ditflow_kernels.motion_flow.triton.tiled_operands import Panel, TiledOperands
from ditflow_kernels.motion_flow.triton.tiles import SIZES
from ditflow_kernels.tuning import COMPILER_OPTIONS


@triton.jit(do_not_specialize=SIZES)
def motion_flow_hard_combine_kernel(
    maximum_ptr,  # [segments, panel_size]
    likeliest_ptr,  # [segments, panel_size]
    flow_ptr,  # [frames (query), frames (key), cells, 2]
    first_query,  # of the panel
    queries,  # in the panel
    panel_size,
    frames,
    cells,
    width,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    key_frame = tl.program_id(1)
    panel_row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_panel = panel_row < queries
    first_segment = key_frame * cells // BLOCK_N + key_frame
    after_segment = ((key_frame + 1) * cells - 1) // BLOCK_N + key_frame + 1
    # [BLOCK_M]
    running_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    key = tl.zeros([BLOCK_M], tl.int32) + key_frame * cells
    for segment in range(first_segment, after_segment):
        index = tl.cast(segment, tl.int64) * panel_size + panel_row
        segment_max = tl.load(maximum_ptr + index, mask=in_panel, other=0.0)
        # segments come in key order: on a tie the earlier key stays
        larger = segment_max > running_max
        key = tl.where(larger, tl.load(likeliest_ptr + index, mask=in_panel, other=0), key)
        running_max = tl.where(larger, segment_max, running_max)

    target = key - key_frame * cells
    query = first_query + panel_row
    query_frame = query // cells
    cell = query - query_frame * cells
    index = (query_frame * frames + key_frame) * cells + cell
    flow_x = (target % width - cell % width).to(tl.float32)
    flow_y = (target // width - cell // width).to(tl.float32)
    tl.store(flow_ptr + 2 * index, flow_x, mask=in_panel)
    tl.store(flow_ptr + 2 * index + 1, flow_y, mask=in_panel)


def hard_combine(
    operands: TiledOperands,
    panel: Panel,
    maximum: Tensor,  # [segments, panel_size] float32
    likeliest: Tensor,  # [segments, panel_size] int32
    flow: Tensor,  # [frames, frames, cells, 2] float32
) -> None:
    """Fill the panel's rows of the flow."""
    if operands.launch:
        motion_flow_hard_combine_kernel[(operands.query_tiles(panel.queries), operands.frames)](
            maximum, likeliest, flow, panel.first_query, panel.queries, maximum.shape[1],
            operands.frames, operands.cells, operands.width,
            BLOCK_M=operands.tiles.block_m, BLOCK_N=operands.tiles.block_n,
            num_warps=operands.tiles.num_warps, **COMPILER_OPTIONS,
        )  # fmt: skip
