"""Hard flow: of each row and segment the likeliest key, then of each row and key frame."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditflow_kernels.motion_flow.triton.tiled_operands import FLOW_WORKSPACE_BYTES, Panel, Problem
from ditflow_kernels.motion_flow.triton.tiles import cells_in_frame, grouped_tile, logits_tile, tile_frames


@triton.jit
def motion_flow_hard_kernel(
    query_ptr,  # [tokens, CHANNELS]
    key_ptr,  # [tokens, CHANNELS]
    largest_ptr,  # [segments, panel rows] float32
    likeliest_ptr,  # [segments, panel rows] int32, keys
    query_stride,
    key_stride,
    first_row,
    rows,
    panel_rows,
    frames,
    cells,
    CHANNELS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    tokens = frames * cells
    query_tile, key_tile = grouped_tile(tl.cdiv(rows, BLOCK_M), tl.cdiv(tokens, BLOCK_N), GROUP_M)
    first_frame, last_frame = tile_frames(key_tile, tokens, cells, BLOCK_N)
    first_key = key_tile * BLOCK_N
    # [BLOCK_M, BLOCK_N]; neither temperature nor scale moves the largest
    logits = logits_tile(
        query_ptr, key_ptr, query_stride, key_stride, first_row + query_tile * BLOCK_M, first_key, tokens,
        CHANNELS, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    panel_row = query_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    for frame in tl.range(first_frame, last_frame + 1, num_stages=1):
        _, inside = cells_in_frame(key_tile, frame, cells, BLOCK_N)
        of_frame = tl.where(inside[None, :], logits, float("-inf"))
        largest, column = tl.max(of_frame, axis=1, return_indices=True, return_indices_tie_break_left=True)
        index = tl.cast(key_tile + frame, tl.int64) * panel_rows + panel_row
        tl.store(largest_ptr + index, largest, mask=panel_row < rows)
        tl.store(likeliest_ptr + index, first_key + column, mask=panel_row < rows)


@triton.jit
def motion_flow_hard_combine_kernel(
    largest_ptr,  # [segments, panel rows]
    likeliest_ptr,  # [segments, panel rows]
    flow_ptr,  # [frames (query), frames (key), cells, 2]
    first_row,
    rows,
    panel_rows,
    frames,
    cells,
    width,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    key_frame = tl.program_id(1)
    panel_row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    kept = panel_row < rows
    first_segment = key_frame * cells // BLOCK_N + key_frame
    after_segment = ((key_frame + 1) * cells - 1) // BLOCK_N + key_frame + 1
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    key = tl.zeros([BLOCK_M], tl.int32) + key_frame * cells
    for segment in range(first_segment, after_segment):
        index = tl.cast(segment, tl.int64) * panel_rows + panel_row
        of_segment = tl.load(largest_ptr + index, mask=kept, other=0.0)
        # segments come in order: what is only as large lies behind
        better = of_segment > largest
        key = tl.where(better, tl.load(likeliest_ptr + index, mask=kept, other=0), key)
        largest = tl.where(better, of_segment, largest)

    target = key - key_frame * cells
    row = first_row + panel_row
    query_frame = row // cells
    cell = row - query_frame * cells
    index = (query_frame * frames + key_frame) * cells + cell
    flow_x = (target % width - cell % width).to(tl.float32)
    flow_y = (target // width - cell // width).to(tl.float32)
    tl.store(flow_ptr + 2 * index, flow_x, mask=kept)
    tl.store(flow_ptr + 2 * index + 1, flow_y, mask=kept)


def hard_flow(
    query: Tensor,  # [S, heads, head_dim]
    key: Tensor,  # [S, heads, head_dim]
    grid: tuple[int, int, int],
    workspace_bytes: int | None,
    launch: bool = True,
) -> Tensor:  # [frames, frames, cells, 2] float32
    """Likeliest cell minus own cell. The workspace holds the segments' largest logits and where they are."""
    with torch.cuda.device_of(query):
        problem = Problem.of(query, key, grid, 1.0, launch)
        flow = problem.new(problem.frames, problem.frames, problem.cells, 2)
        budget = FLOW_WORKSPACE_BYTES if workspace_bytes is None else workspace_bytes
        panel_rows = problem.panel_rows(problem.statistics_bytes_per_row // 2, budget)
        largest = problem.new(problem.segments, panel_rows)
        likeliest = problem.new(problem.segments, panel_rows, dtype=torch.int32)
        for panel in problem.panels(panel_rows):
            _hard_panel(problem, panel, largest, likeliest, flow)
    return flow


def _hard_panel(problem: Problem, panel: Panel, largest: Tensor, likeliest: Tensor, flow: Tensor) -> None:
    if problem.launch:
        tiles = problem.query_tiles(panel.rows)
        motion_flow_hard_kernel[(tiles * problem.key_tiles,)](
            problem.query, problem.key, largest, likeliest,
            problem.query.stride(0), problem.key.stride(0), panel.first, panel.rows, largest.shape[1],
            problem.frames, problem.cells, **problem.block_shape,
        )  # fmt: skip
        motion_flow_hard_combine_kernel[(tiles, problem.frames)](
            largest, likeliest, flow, panel.first, panel.rows, largest.shape[1],
            problem.frames, problem.cells, problem.width,
            BLOCK_M=problem.tiles.block_m, BLOCK_N=problem.tiles.block_n, num_warps=problem.tiles.num_warps,
        )  # fmt: skip
