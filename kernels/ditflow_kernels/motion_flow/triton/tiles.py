"""What the kernels share: the product of two tiles, and where its keys lie."""

import triton
import triton.language as tl

# scalar arguments whose values must not change the code: one binary for every video, as checked without a GPU
SIZES = ("first_query", "queries", "frames", "cells", "width", "segments")


@triton.jit
def logits_tile(
    query_ptr,  # [tokens, CHANNELS]
    key_ptr,  # [tokens, CHANNELS]
    query_stride,
    key_stride,
    first_query,
    first_key,
    tokens,
    CHANNELS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # [BLOCK_M, BLOCK_N] float32
    """Queries times keys. Rows and columns beyond the last token repeat it."""
    # int64: tokens may lie more than 2^31 elements apart
    queries = tl.minimum(first_query + tl.arange(0, BLOCK_M), tokens - 1).to(tl.int64)
    keys = tl.minimum(first_key + tl.arange(0, BLOCK_N), tokens - 1).to(tl.int64)
    channels = tl.arange(0, BLOCK_K)
    query_ptrs = query_ptr + queries[:, None] * query_stride + channels[None, :]
    key_ptrs = key_ptr + keys[:, None] * key_stride + channels[None, :]
    logits = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first_channel in range(0, CHANNELS, BLOCK_K):
        if CHANNELS % BLOCK_K == 0:
            query = tl.load(query_ptrs)
            key = tl.load(key_ptrs)
        else:
            inside = (first_channel + channels < CHANNELS)[None, :]
            query = tl.load(query_ptrs, mask=inside, other=0.0)
            key = tl.load(key_ptrs, mask=inside, other=0.0)
        # ieee: multiply float32 as such, not as tf32
        logits = tl.dot(query, tl.trans(key), logits, input_precision="ieee")
        query_ptrs += BLOCK_K
        key_ptrs += BLOCK_K
    return logits


@triton.jit
def frames_of_tile(key_tile, tokens, cells, BLOCK_N: tl.constexpr):
    """First and last frame that a tile of keys touches."""
    first_key = key_tile * BLOCK_N
    return first_key // cells, (tl.minimum(first_key + BLOCK_N, tokens) - 1) // cells


@triton.jit
def cells_in_frame(key_tile, frame, cells, BLOCK_N: tl.constexpr):
    """Each key's cell number relative to the frame, and whether it lies in the frame. [BLOCK_N] each."""
    cell = key_tile * BLOCK_N - frame * cells + tl.arange(0, BLOCK_N)
    return cell, (cell >= 0) & (cell < cells)


@triton.jit
def coordinates(cell, width):
    """The x and y of cells, float32."""
    # cheap enough in float to recompute rather than keep in registers; exact below two million cells
    cell = cell.to(tl.float32)
    y = tl.floor((cell + 0.5) * (1.0 / width))
    return cell - y * width, y


@triton.jit
def any_active(active_ptr, query_tile, first_frame, last_frame, frames):
    """Whether a row of the query tile counts for one of the key frames."""
    active = 0
    for frame in range(first_frame, last_frame + 1):
        active = tl.maximum(active, tl.load(active_ptr + query_tile * frames + frame))
    return active != 0


@triton.jit
def is_given(x, y):
    """Whether a reference (x, y) is not NaN, so that its row counts."""
    return (x == x) & (y == y)


@triton.jit
def flow_index(query, key_frame, frames, cells):
    """Where the rows of these queries are in [frames (query), frames (key), cells]."""
    query_frame = query // cells
    return (query_frame * frames + key_frame) * cells + query - query_frame * cells


@triton.jit
def offsets_along_gradient(
    flow_ptr,  # [frames (query), frames (key), cells, 2]
    grad_flow_ptr,  # [frames (query), frames (key), cells, 2]
    query,  # [BLOCK_M] query tokens
    index,  # [BLOCK_M] their `flow_index`
    cells,
    width,
    x,  # [BLOCK_N] coordinates of the keys
    y,
):  # [BLOCK_M, BLOCK_N]
    """`grad_flow . (coordinates - expected coordinates)`."""
    query_x, query_y = coordinates(query % cells, width)
    expected_x = tl.load(flow_ptr + 2 * index) + query_x
    expected_y = tl.load(flow_ptr + 2 * index + 1) + query_y
    along_x = tl.load(grad_flow_ptr + 2 * index)[:, None] * (x[None, :] - expected_x[:, None])
    along_y = tl.load(grad_flow_ptr + 2 * index + 1)[:, None] * (y[None, :] - expected_y[:, None])
    return along_x + along_y
