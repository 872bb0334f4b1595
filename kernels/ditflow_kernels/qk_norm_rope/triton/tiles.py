"""What both passes do to a tile of heads: normalise each row, turn each pair of its channels."""

import triton
import triton.language as tl


@triton.jit
def unit_rows(
    values,  # [rows, BLOCK_D], 0 beyond HEAD_DIM
    eps,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Each row with mean 0 and variance 1, and what it was multiplied by for that."""
    mean = tl.sum(values, axis=1) / HEAD_DIM
    # padding must not join the variance
    inside = tl.arange(0, BLOCK_D) < HEAD_DIM
    centred = tl.where(inside[None, :], values - mean[:, None], 0.0)
    inverse = tl.math.rsqrt(tl.sum(centred * centred, axis=1) / HEAD_DIM + eps)
    return centred * inverse[:, None], inverse


@triton.jit
def quarter_turned(values, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):  # [ROWS, BLOCK_D]
    """Each pair (real, imaginary) times i: (-imaginary, real)."""
    real, imaginary = tl.split(tl.reshape(values, [ROWS, BLOCK_D // 2, 2]))
    return tl.reshape(tl.join(-imaginary, real), [ROWS, BLOCK_D])
