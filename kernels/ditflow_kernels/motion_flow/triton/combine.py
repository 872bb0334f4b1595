"""Second pass: a row's segments of one key frame become its flow and logsumexp, and its part of the loss."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ditflow_kernels.motion_flow.triton.tiled_operands import Panel, Problem


class Loss(NamedTuple):
    """What the combine pass reads and writes where a loss is asked for."""

    active: Tensor | None  # [query tiles, frames] int32; None: every row counts
    reference: Tensor | None  # [frames, frames, cells, 2] float32, contiguous
    pull: Tensor | None  # as reference: flow - reference, zero in rows that do not count
    sums: Tensor | None  # [2 (squares, rows that count), query tiles, frames] float32
    shrink: Tensor | None  # [] float32, multiplies the pull


NO_LOSS = Loss(*[None] * 5)


@triton.jit
def motion_flow_combine_kernel(
    statistics_ptr,  # [4 (maximum, total, x, y), segments, panel rows]
    active_ptr,  # [query tiles, frames] int32, or None where every block counts
    flow_ptr,  # [frames (query), frames (key), cells, 2]
    logsumexp_ptr,  # [frames (query), frames (key), cells]
    reference_ptr,  # [frames (query), frames (key), cells, 2] or None: no loss
    pull_ptr,  # as reference
    sums_ptr,  # [2 (squares, rows that count), query tiles, frames] or None
    shrink_ptr,  # [] what the pull is multiplied by, or None: 1
    first_row,
    rows,
    panel_rows,
    frames,
    cells,
    width,
    segments,
    EVERY_ROW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    key_frame = tl.program_id(1)
    query_tile = first_row // BLOCK_M + tl.program_id(0)
    panel_row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    kept = panel_row < rows
    first_segment = key_frame * cells // BLOCK_N + key_frame
    after_segment = ((key_frame + 1) * cells - 1) // BLOCK_N + key_frame + 1
    if active_ptr is not None:
        active = tl.load(active_ptr + query_tile * frames + key_frame) != 0
        after_segment = tl.where(active, after_segment, first_segment)

    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sum_x = tl.zeros([BLOCK_M], tl.float32)
    sum_y = tl.zeros([BLOCK_M], tl.float32)
    one_of_four = tl.cast(segments, tl.int64) * panel_rows
    for segment in range(first_segment, after_segment):
        statistics = statistics_ptr + tl.cast(segment, tl.int64) * panel_rows + panel_row
        of_segment = tl.load(statistics, mask=kept, other=0.0)
        larger = tl.maximum(maximum, of_segment)
        shrink, grow = tl.exp2(maximum - larger), tl.exp2(of_segment - larger)
        total = total * shrink + grow * tl.load(statistics + one_of_four, mask=kept, other=1.0)
        sum_x = sum_x * shrink + grow * tl.load(statistics + 2 * one_of_four, mask=kept, other=0.0)
        sum_y = sum_y * shrink + grow * tl.load(statistics + 3 * one_of_four, mask=kept, other=0.0)
        maximum = larger

    row = first_row + panel_row
    query_frame = row // cells
    cell = row - query_frame * cells
    line = cell // width
    index = (query_frame * frames + key_frame) * cells + cell
    if active_ptr is not None:
        # of a block that does not count, no key has any weight
        maximum = tl.where(active, maximum, float("inf"))
        total = tl.where(active, total, 1.0)
    logsumexp = (maximum + tl.log2(total)) * 0.6931471805599453
    flow_x = sum_x / total - (cell - line * width).to(tl.float32)
    flow_y = sum_y / total - line.to(tl.float32)
    tl.store(flow_ptr + 2 * index, flow_x, mask=kept)
    tl.store(flow_ptr + 2 * index + 1, flow_y, mask=kept)
    tl.store(logsumexp_ptr + index, logsumexp, mask=kept)

    if reference_ptr is not None:
        reference_x = tl.load(reference_ptr + 2 * index, mask=kept, other=0.0)
        reference_y = tl.load(reference_ptr + 2 * index + 1, mask=kept, other=0.0)
        counts = kept
        if not EVERY_ROW:
            counts = kept & ((reference_x != 0) | (reference_y != 0))
        off_x = tl.where(counts, flow_x - reference_x, 0.0)
        off_y = tl.where(counts, flow_y - reference_y, 0.0)
        sums = sums_ptr + query_tile * frames + key_frame
        tl.store(sums, tl.sum(off_x * off_x + off_y * off_y, axis=0))
        query_tiles = tl.cdiv(frames * cells, BLOCK_M)
        tl.store(sums + query_tiles * frames, tl.sum(counts.to(tl.float32), axis=0))
        if shrink_ptr is not None:
            off_x *= tl.load(shrink_ptr)
            off_y *= tl.load(shrink_ptr)
        tl.store(pull_ptr + 2 * index, off_x, mask=kept)
        tl.store(pull_ptr + 2 * index + 1, off_y, mask=kept)


def combine(
    problem: Problem,
    panel: Panel,
    statistics: Tensor,  # [4, segments, panel rows] float32
    flow: Tensor,  # [frames, frames, cells, 2] float32
    logsumexp: Tensor,  # [frames, frames, cells] float32
    loss: Loss = NO_LOSS,
) -> None:
    """Fill the panel's rows of flow and logsumexp, and of what the loss asks for."""
    if problem.launch:
        motion_flow_combine_kernel[(problem.query_tiles(panel.rows), problem.frames)](
            statistics, loss.active, flow, logsumexp, loss.reference, loss.pull, loss.sums, loss.shrink,
            panel.first, panel.rows, statistics.shape[2],
            problem.frames, problem.cells, problem.width, problem.segments,
            EVERY_ROW=loss.active is None,
            BLOCK_M=problem.tiles.block_m, BLOCK_N=problem.tiles.block_n,
            num_warps=problem.tiles.num_warps,
        )  # fmt: skip
