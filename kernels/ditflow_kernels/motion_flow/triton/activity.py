"""Before the loss: which blocks of a query tile and a key frame have a row that counts."""

import triton
import triton.language as tl
from torch import Tensor

from ditflow_kernels.motion_flow.triton.tiled_operands import Problem


@triton.jit
def motion_flow_activity_kernel(
    reference_ptr,  # [frames (query), frames (key), cells, 2]
    active_ptr,  # [query tiles, frames] int32
    frames,
    cells,
    BLOCK_M: tl.constexpr,
):
    query_tile, key_frame = tl.program_id(0), tl.program_id(1)
    row = query_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    query_frame = row // cells
    index = (query_frame * frames + key_frame) * cells + row - query_frame * cells
    kept = row < frames * cells
    x = tl.load(reference_ptr + 2 * index, mask=kept, other=0.0)
    y = tl.load(reference_ptr + 2 * index + 1, mask=kept, other=0.0)
    counts = ((x != 0) | (y != 0)).to(tl.int32)
    tl.store(active_ptr + query_tile * frames + key_frame, tl.max(counts, axis=0))


def activity(problem: Problem, reference: Tensor, active: Tensor) -> None:
    """Fill the table: 1 where a row of the query tile has a reference that is not zero, else 0."""
    if problem.launch:
        motion_flow_activity_kernel[tuple(active.shape)](
            reference, active, problem.frames, problem.cells,
            BLOCK_M=problem.tiles.block_m, num_warps=problem.tiles.num_warps,
        )  # fmt: skip
