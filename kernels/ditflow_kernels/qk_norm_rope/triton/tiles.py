"""What both passes share: selecting a program's tensor, and normalising and rotating a tile of its heads."""

import triton
import triton.language as tl


@triton.jit
def select(is_key, query_ptr, key_ptr):
    """The program's own pointer; if only one is given, that one, which the caller must then mask."""
    if query_ptr is None:
        selected = key_ptr
    elif key_ptr is None:
        selected = query_ptr
    else:
        selected = tl.where(is_key, key_ptr, query_ptr)
    return selected


@triton.jit
def is_given(is_key, query_ptr, key_ptr):
    """Whether the program's own pointer is given: known when compiling, unless only one of them is."""
    given = query_ptr is not None
    if (query_ptr is None) != (key_ptr is None):
        given = is_key == (query_ptr is None)
    return given


@triton.jit
def normalize(
    values,  # [BLOCK_HEADS, BLOCK_D], 0 beyond HEAD_DIM
    eps,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Each head with mean 0 and variance 1, and its reciprocal standard deviation."""
    mean = tl.sum(values, axis=1) / HEAD_DIM
    # padding must not count in the variance
    inside = tl.arange(0, BLOCK_D) < HEAD_DIM
    centred = tl.where(inside[None, :], values - mean[:, None], 0.0)
    rstd = tl.math.rsqrt(tl.sum(centred * centred, axis=1) / HEAD_DIM + eps)
    return centred * rstd[:, None], rstd


@triton.jit
def rotate_pairs(values, BLOCK_HEADS: tl.constexpr, BLOCK_D: tl.constexpr):  # [BLOCK_HEADS, BLOCK_D]
    """Each pair (real, imaginary) of channels times i: (-imaginary, real)."""
    real, imaginary = tl.split(tl.reshape(values, [BLOCK_HEADS, BLOCK_D // 2, 2]))
    return tl.reshape(tl.join(-imaginary, real), [BLOCK_HEADS, BLOCK_D])
