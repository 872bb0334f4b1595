"""Second pass: reduce each row's segments to its flow and log2sumexp, and to its part of the loss."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ditflow_kernels.motion_flow.triton.tiled_operands import Panel, TiledOperands
from ditflow_kernels.motion_flow.triton.tiles import SIZES, is_given
from ditflow_kernels.tuning import COMPILER_OPTIONS


class LossTensors(NamedTuple):
    """What the combine pass reads and writes for a loss."""

    active: Tensor | None  # [query tiles, frames] int32; None: every row counts
    reference: Tensor | None  # [frames, frames, cells, 2] float32, contiguous; NaN: the row does not count
    grad_flow: Tensor | None  # as reference: flow - reference, zero in rows that do not count
    sums: Tensor | None  # [2 (squares, rows that count), query tiles, frames] float32
    grad_scale: Tensor | None  # [] float32, multiplies grad_flow; None: 1


NO_LOSS = LossTensors(*[None] * 5)


@triton.jit(do_not_specialize=SIZES)
def motion_flow_combine_kernel(
    statistics_ptr,  # [4 (maximum, total, sum x, sum y), segments, panel_size]
    active_ptr,  # [query tiles, frames] int32, or None if every row counts
    flow_ptr,  # [frames (query), frames (key), cells, 2]
    log2sumexp_ptr,  # [frames (query), frames (key), cells]
    reference_ptr,  # [frames (query), frames (key), cells, 2], or None without a loss
    grad_flow_ptr,  # as reference
    sums_ptr,  # [2 (squares, rows that count), query tiles, frames] or None
    grad_scale_ptr,  # [] or None
    first_query,  # of the panel
    queries,  # in the panel
    panel_size,
    frames,
    cells,
    width,
    segments,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    key_frame = tl.program_id(1)
    query_tile = first_query // BLOCK_M + tl.program_id(0)
    panel_row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_panel = panel_row < queries
    first_segment = key_frame * cells // BLOCK_N + key_frame
    after_segment = ((key_frame + 1) * cells - 1) // BLOCK_N + key_frame + 1
    if active_ptr is not None:
        active = tl.load(active_ptr + query_tile * frames + key_frame) != 0
        after_segment = tl.where(active, after_segment, first_segment)

    # [BLOCK_M]
    running_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sum_x = tl.zeros([BLOCK_M], tl.float32)
    sum_y = tl.zeros([BLOCK_M], tl.float32)
    plane = tl.cast(segments, tl.int64) * panel_size
    for segment in range(first_segment, after_segment):
        statistics = statistics_ptr + tl.cast(segment, tl.int64) * panel_size + panel_row
        segment_max = tl.load(statistics, mask=in_panel, other=0.0)
        new_max = tl.maximum(running_max, segment_max)
        rescale, segment_scale = tl.exp2(running_max - new_max), tl.exp2(segment_max - new_max)
        total = total * rescale + segment_scale * tl.load(statistics + plane, mask=in_panel, other=1.0)
        sum_x = sum_x * rescale + segment_scale * tl.load(statistics + 2 * plane, mask=in_panel, other=0.0)
        sum_y = sum_y * rescale + segment_scale * tl.load(statistics + 3 * plane, mask=in_panel, other=0.0)
        running_max = new_max

    query = first_query + panel_row
    query_frame = query // cells
    cell = query - query_frame * cells
    y = cell // width
    index = (query_frame * frames + key_frame) * cells + cell
    if active_ptr is not None:
        # no key has any weight where no row counts
        running_max = tl.where(active, running_max, float("inf"))
        total = tl.where(active, total, 1.0)
    flow_x = sum_x / total - (cell - y * width).to(tl.float32)
    flow_y = sum_y / total - y.to(tl.float32)
    tl.store(flow_ptr + 2 * index, flow_x, mask=in_panel)
    tl.store(flow_ptr + 2 * index + 1, flow_y, mask=in_panel)
    tl.store(log2sumexp_ptr + index, running_max + tl.log2(total), mask=in_panel)

    if reference_ptr is not None:
        reference_x = tl.load(reference_ptr + 2 * index, mask=in_panel, other=0.0)
        reference_y = tl.load(reference_ptr + 2 * index + 1, mask=in_panel, other=0.0)
        counted = in_panel
        if active_ptr is not None:
            counted = in_panel & is_given(reference_x, reference_y)
        grad_x = tl.where(counted, flow_x - reference_x, 0.0)
        grad_y = tl.where(counted, flow_y - reference_y, 0.0)
        sums = sums_ptr + query_tile * frames + key_frame
        tl.store(sums, tl.sum(grad_x * grad_x + grad_y * grad_y, axis=0))
        query_tiles = tl.cdiv(frames * cells, BLOCK_M)
        tl.store(sums + query_tiles * frames, tl.sum(counted.to(tl.float32), axis=0))
        if grad_scale_ptr is not None:
            grad_x *= tl.load(grad_scale_ptr)
            grad_y *= tl.load(grad_scale_ptr)
        tl.store(grad_flow_ptr + 2 * index, grad_x, mask=in_panel)
        tl.store(grad_flow_ptr + 2 * index + 1, grad_y, mask=in_panel)


def combine(
    operands: TiledOperands,
    panel: Panel,
    statistics: Tensor,  # [4, segments, panel_size] float32
    flow: Tensor,  # [frames, frames, cells, 2] float32
    log2sumexp: Tensor,  # [frames, frames, cells] float32
    loss: LossTensors = NO_LOSS,
) -> None:
    """Fill the panel's rows of flow and log2sumexp, and for a loss of its grad_flow and sums."""
    if operands.launch:
        motion_flow_combine_kernel[(operands.query_tiles(panel.queries), operands.frames)](
            statistics, loss.active, flow, log2sumexp,
            loss.reference, loss.grad_flow, loss.sums, loss.grad_scale,
            panel.first_query, panel.queries, statistics.shape[2],
            operands.frames, operands.cells, operands.width, operands.segments,
            BLOCK_M=operands.tiles.block_m, BLOCK_N=operands.tiles.block_n,
            num_warps=operands.tiles.num_warps, **COMPILER_OPTIONS,
        )  # fmt: skip
