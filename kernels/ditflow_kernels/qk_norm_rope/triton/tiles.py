"""What both passes share: tile shapes, selecting a tensor, normalising and rotating a tile of its heads."""

import triton
import triton.language as tl
from torch import Tensor

from ditflow_kernels.qk_norm_rope.layout import Norm
from ditflow_kernels.tuning import TokenTuning, WholeTokenTuning


def launch_options(
    query: Tensor,  # [B, T + S, heads, head_dim]
    norm_query: Norm,
    norm_key: Norm,
    some_heads: TokenTuning,
    all_heads: WholeTokenTuning,
) -> dict[str, int]:
    """Tiles of some heads, or one of all heads if a norm is over all of them: the kernel sums it at once.

    Sides are powers of two, with at least one pair of channels.
    """
    _, _, heads, head_dim = query.shape
    block_heads, block_d = triton.next_power_of_2(heads), max(2, triton.next_power_of_2(head_dim))
    if any(norm is not None and norm[1] is None for norm in (norm_query, norm_key)):
        num_warps = all_heads.num_warps(block_heads * block_d)
    else:
        num_warps = some_heads.num_warps
        block_heads = max(1, min(block_heads, some_heads.tile_elements // block_d))
    return {
        "HEADS": heads,
        "HEAD_DIM": head_dim,
        "BLOCK_HEADS": block_heads,
        "BLOCK_D": block_d,
        "STAGES": some_heads.num_stages,
        "num_warps": num_warps,
    }


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
def reciprocal_rms(
    values,  # [BLOCK_HEADS, BLOCK_D], 0 beyond HEADS and HEAD_DIM
    eps,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """One over the root mean square of all heads together."""
    return tl.math.rsqrt(tl.sum(values * values) / (HEADS * HEAD_DIM) + eps)


@triton.jit
def rotate_pairs(values, BLOCK_HEADS: tl.constexpr, BLOCK_D: tl.constexpr):  # [BLOCK_HEADS, BLOCK_D]
    """Each pair (real, imaginary) of channels times i: (-imaginary, real)."""
    real, imaginary = tl.split(tl.reshape(values, [BLOCK_HEADS, BLOCK_D // 2, 2]))
    return tl.reshape(tl.join(-imaginary, real), [BLOCK_HEADS, BLOCK_D])
