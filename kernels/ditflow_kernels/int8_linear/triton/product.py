"""Second pass, forward and backward: the product of rounded tokens and the weight, scaled back."""

import triton
import triton.language as tl
from torch import Tensor

from ditflow_kernels.int8_linear.triton.gelu import gelu
from ditflow_kernels.tile_order import grouped_tile
from ditflow_kernels.tuning import COMPILER_OPTIONS, tuning_for


@triton.jit(do_not_specialize=["tokens"])
def int8_linear_product_kernel(
    rounded_ptr,  # [tokens, CHANNELS] int8
    token_scale_ptr,  # [tokens]
    weight_ptr,  # [CHANNELS, columns] int8, of any strides
    column_scale_ptr,  # [columns] or None
    bias_ptr,  # [columns] or None
    before_ptr,  # [tokens, columns] before activation, or None
    result_ptr,  # [tokens, columns]
    tokens,
    columns,
    weight_stride_channel,
    weight_stride_column,
    CHANNELS: tl.constexpr,
    GELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    token_tile, column_tile = grouped_tile(tl.cdiv(tokens, BLOCK_M), tl.cdiv(columns, BLOCK_N), GROUP_M)
    # int64 up to the tile's corner, int32 within it: half the registers
    first_token, first_column = token_tile.to(tl.int64) * BLOCK_M, column_tile.to(tl.int64) * BLOCK_N
    token, column, channel = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    tokens_left, columns_left = (tokens - first_token).to(tl.int32), (columns - first_column).to(tl.int32)
    in_columns = column < columns_left
    # rows beyond the last token repeat it
    rounded_offsets = tl.minimum(token, tokens_left - 1)[:, None] * CHANNELS + channel[None, :]
    rounded_ptrs = rounded_ptr + first_token * CHANNELS + rounded_offsets
    weight_offsets = channel[:, None] * weight_stride_channel + column[None, :] * weight_stride_column
    weight_ptrs = weight_ptr + first_column * weight_stride_column + weight_offsets
    # [BLOCK_M, BLOCK_N]
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for first_channel in range(0, CHANNELS, BLOCK_K):
        if CHANNELS % BLOCK_K == 0:
            rounded = tl.load(rounded_ptrs)
            weight = tl.load(weight_ptrs, mask=in_columns[None, :], other=0)
        else:
            inside = first_channel + channel < CHANNELS
            rounded = tl.load(rounded_ptrs, mask=inside[None, :], other=0)
            weight = tl.load(weight_ptrs, mask=inside[:, None] & in_columns[None, :], other=0)
        sums = tl.dot(rounded, weight, sums, out_dtype=tl.int32)
        rounded_ptrs += BLOCK_K
        weight_ptrs += BLOCK_K * weight_stride_channel
    in_tokens = token < tokens_left
    token_scale = tl.load(token_scale_ptr + first_token + token, mask=in_tokens, other=0.0)
    values = sums.to(tl.float32) * token_scale[:, None]
    if column_scale_ptr is not None:
        scale = tl.load(column_scale_ptr + first_column + column, mask=in_columns, other=0.0)
        values *= scale[None, :]
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + first_column + column, mask=in_columns, other=0.0)
        values += bias.to(tl.float32)[None, :]
    corner = first_token * columns + first_column
    offsets = token[:, None] * columns + column[None, :]
    inside = in_tokens[:, None] & in_columns[None, :]
    # GELU of the rounded values, as its derivative will be; and float32 beside them would spill
    values = values.to(result_ptr.dtype.element_ty)
    if before_ptr is not None:
        tl.store(before_ptr + corner + offsets, values, mask=inside)
    if GELU:
        values = gelu(values.to(tl.float32)).to(result_ptr.dtype.element_ty)
    tl.store(result_ptr + corner + offsets, values, mask=inside)


def scaled_product(
    rounded: Tensor,  # [tokens, channels] int8
    token_scale: Tensor,  # [tokens] float32
    weight: Tensor,  # [channels, columns] int8
    result: Tensor,  # [tokens, columns], filled here, as is `before`
    column_scale: Tensor | None = None,  # [columns] float32
    bias: Tensor | None = None,  # [columns]
    before: Tensor | None = None,  # [tokens, columns]
    activation: str | None = None,
) -> None:
    """`result = activation(before)`, `before = token_scale * (rounded @ weight) * column_scale + bias`."""
    tuning = tuning_for(rounded.device).int8_linear_product
    (tokens, channels), columns = rounded.shape, weight.shape[1]
    programs = triton.cdiv(tokens, tuning.block_m) * triton.cdiv(columns, tuning.block_n)
    int8_linear_product_kernel[(programs,)](
        rounded, token_scale, weight, column_scale, bias, before, result,
        tokens, columns, *weight.stride(), CHANNELS=channels, GELU=activation == "gelu_tanh",
        BLOCK_M=tuning.block_m, BLOCK_N=tuning.block_n, BLOCK_K=tuning.block_k, GROUP_M=tuning.group_m,
        num_warps=tuning.num_warps, num_stages=tuning.num_stages, **COMPILER_OPTIONS,
    )  # fmt: skip
