"""Before the loss: which query tiles have a row that counts, for each key frame."""

import triton
import triton.language as tl
from torch import Tensor

from ditflow_kernels.motion_flow.triton.tiled_operands import TiledOperands
from ditflow_kernels.motion_flow.triton.tiles import SIZES, is_given
from ditflow_kernels.tuning import COMPILER_OPTIONS


@triton.jit(do_not_specialize=SIZES)
def motion_flow_activity_kernel(
    reference_ptr,  # [frames (query), frames (key), cells, 2], NaN in rows that do not count
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
    x = tl.load(reference_ptr + 2 * index, mask=inside, other=float("nan"))
    y = tl.load(reference_ptr + 2 * index + 1, mask=inside, other=float("nan"))
    counted = is_given(x, y).to(tl.int32)
    tl.store(active_ptr + query_tile * frames + key_frame, tl.max(counted, axis=0))


def activity(
    operands: TiledOperands,
    reference: Tensor,  # [frames, frames, cells, 2] float32, NaN in rows that do not count
    active: Tensor,  # [query tiles, frames] int32
) -> None:
    """Fill the table: 1 where a row of the query tile counts for the key frame, else 0."""
    if operands.launch:
        motion_flow_activity_kernel[tuple(active.shape)](
            reference, active, operands.frames, operands.cells,
            BLOCK_M=operands.tiles.block_m, num_warps=operands.tiles.num_warps, **COMPILER_OPTIONS,
        )  # fmt: skip
