"""What the passes share: which tile a program takes, the product of two tiles, where a tile's keys lie."""

import triton
import triton.language as tl


@triton.jit
def grouped_tile(query_tiles, key_tiles, GROUP_M: tl.constexpr):
    """The (query tile, key tile) of this program: GROUP_M query tiles meet a key tile while L2 holds it."""
    program = tl.program_id(0)
    group = program // (GROUP_M * key_tiles)
    first_tile = group * GROUP_M
    height = tl.minimum(query_tiles - first_tile, GROUP_M)
    inside = program - group * GROUP_M * key_tiles
    return first_tile + inside % height, inside // height


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
    """Queries times keys; rows beyond the last token repeat it."""
    # 64 bits: a row's base may lie beyond 2^31 elements
    query_rows = tl.minimum(first_query + tl.arange(0, BLOCK_M), tokens - 1).to(tl.int64)
    key_rows = tl.minimum(first_key + tl.arange(0, BLOCK_N), tokens - 1).to(tl.int64)
    channels = tl.arange(0, BLOCK_K)
    query_ptrs = query_ptr + query_rows[:, None] * query_stride + channels[None, :]
    key_ptrs = key_ptr + key_rows[:, None] * key_stride + channels[None, :]
    logits = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first_channel in range(0, CHANNELS, BLOCK_K):
        if CHANNELS % BLOCK_K == 0:
            query = tl.load(query_ptrs)
            key = tl.load(key_ptrs)
        else:
            inside = (first_channel + channels < CHANNELS)[None, :]
            query = tl.load(query_ptrs, mask=inside, other=0.0)
            key = tl.load(key_ptrs, mask=inside, other=0.0)
        # ieee: float32 stays float32, not tf32
        logits = tl.dot(query, tl.trans(key), logits, input_precision="ieee")
        query_ptrs += BLOCK_K
        key_ptrs += BLOCK_K
    return logits


@triton.jit
def tile_frames(key_tile, tokens, cells, BLOCK_N: tl.constexpr):
    """First and last frame that a tile of keys touches."""
    first_key = key_tile * BLOCK_N
    return first_key // cells, (tl.minimum(first_key + BLOCK_N, tokens) - 1) // cells


@triton.jit
def cells_in_frame(key_tile, frame, cells, BLOCK_N: tl.constexpr):
    """The number in a frame of each key's cell, and whether there is one. [BLOCK_N] each."""
    cell = key_tile * BLOCK_N - frame * cells + tl.arange(0, BLOCK_N)
    return cell, (cell >= 0) & (cell < cells)


@triton.jit
def positions(cell, width):
    """The x and y of cells, float32."""
    # cheaper than integers, so that it is done again rather than kept; right below two million cells
    cell = cell.to(tl.float32)
    y = tl.floor((cell + 0.5) * (1.0 / width))
    return cell - y * width, y


@triton.jit
def is_active(active_ptr, query_tile, first_frame, last_frame, frames):
    """Whether a row of the query tile counts in one of the frames."""
    active = 0
    for frame in range(first_frame, last_frame + 1):
        active = tl.maximum(active, tl.load(active_ptr + query_tile * frames + frame))
    return active != 0


@triton.jit
def row_index(row, key_frame, frames, cells):
    """Where [frames (query), frames (key), cells] has the rows of these query tokens."""
    query_frame = row // cells
    return (query_frame * frames + key_frame) * cells + row - query_frame * cells


@triton.jit
def pull_on_cells(
    flow_ptr,  # [frames (query), frames (key), cells, 2]
    pull_ptr,  # [frames (query), frames (key), cells, 2]
    row,  # [rows] query tokens
    index,  # [rows] their `row_index`
    cells,
    width,
    x,  # [keys] cells of the keys
    y,
):  # [rows, keys]
    """`pull . (cell - expected cell)`."""
    own_x, own_y = positions(row % cells, width)
    expected_x = tl.load(flow_ptr + 2 * index) + own_x
    expected_y = tl.load(flow_ptr + 2 * index + 1) + own_y
    along_x = tl.load(pull_ptr + 2 * index)[:, None] * (x[None, :] - expected_x[:, None])
    along_y = tl.load(pull_ptr + 2 * index + 1)[:, None] * (y[None, :] - expected_y[:, None])
    return along_x + along_y
