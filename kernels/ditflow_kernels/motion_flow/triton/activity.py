"""Before the loss: which query tiles have a row that counts, for each key frame."""

import triton
import triton.language as tl
from torch import Tensor

from ditflow_kernels.motion_flow.triton.tiled_operands import TiledOperands
from ditflow_kernels.motion_flow.triton.tiles import SIZES
from ditflow_kernels.tuning import COMPILER_OPTIONS


@triton.jit(do_not_specialize=SIZES)
def motion_flow_activity_kernel(
    reference_ptr,  # [frames (query), frames (key), cells, 2]
    active_ptr,  # [query tiles, frames] int32
    frames,
    cells,
    BLOCK_M: tl.constexpr,
):
    query_tile, key_frame = tl.program_id(0), tl.program_id(1)
    query = query_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    query_frame = query // cells
    index = (query_frame * frames + key_frame) * cells + query - query_frame * cells
    inside = query < frames * cells
    x = tl.load(reference_ptr + 2 * index, mask=inside, other=0.0)
    y = tl.load(reference_ptr + 2 * index + 1, mask=inside, other=0.0)
    counted = ((x != 0) | (y != 0)).to(tl.int32)
    tl.store(active_ptr + query_tile * frames + key_frame, tl.max(counted, axis=0))


def activity(
    operands: TiledOperands,
    reference: Tensor,  # [frames, frames, cells, 2] float32
    active: Tensor,  # [query tiles, frames] int32
) -> None:
    """Fill the table: 1 where the query tile has a nonzero reference for the key frame, else 0."""
    if operands.launch:
        motion_flow_activity_kernel[tuple(active.shape)](
            reference, active, operands.frames, operands.cells,
            BLOCK_M=operands.tiles.block_m, num_warps=operands.tiles.num_warps, **COMPILER_OPTIONS,
        )  # fmt: skip
