"""First pass, forward and backward: round each token to int8 with a scale of its own."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditflow_kernels.int8_linear.rounding import SMALLEST
from ditflow_kernels.int8_linear.triton.gelu import gelu_derivative
from ditflow_kernels.tuning import COMPILER_OPTIONS, tuning_for

SMALLEST_LARGEST = tl.constexpr(SMALLEST)
STEP = tl.constexpr(1 / 127)
# adding 1.5 * 2^23 leaves no bits for a fraction: rounds to nearest, ties to even
ROUND = tl.constexpr(12582912.0)


@triton.jit
def int8_linear_round_kernel(
    tokens_ptr,  # [tokens, CHANNELS]
    before_ptr,  # [tokens, CHANNELS] before activation, or None
    channel_scale_ptr,  # [CHANNELS] or None
    rounded_ptr,  # [tokens, CHANNELS] int8
    scale_ptr,  # [tokens]
    tokens_stride,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    tokens_ptr += token * tokens_stride
    rounded_ptr += token * CHANNELS
    if before_ptr is not None:
        before_ptr += token * CHANNELS
    # [BLOCK]
    largest = tl.zeros([BLOCK], tl.float32)
    broken = tl.zeros([BLOCK], tl.float32)
    for first in tl.range(0, CHANNELS, BLOCK, num_stages=STAGES):
        values = token_tile(tokens_ptr, before_ptr, channel_scale_ptr, first, CHANNELS, BLOCK)
        largest = tl.maximum(largest, tl.abs(values))
        # NaN if a value is not finite, which a maximum would lose
        broken += values * 0.0
    largest = tl.max(largest, axis=0)
    broken = tl.sum(broken, axis=0)
    scale = tl.where(largest < SMALLEST_LARGEST, 1.0, largest * STEP) + broken
    tl.store(scale_ptr + token, scale)
    for first in tl.range(0, CHANNELS, BLOCK, num_stages=STAGES):
        values = token_tile(tokens_ptr, before_ptr, channel_scale_ptr, first, CHANNELS, BLOCK)
        values = tl.where(broken == 0.0, tl.div_rn(values, scale), 0.0)
        rounded = ((values + ROUND) - ROUND).to(tl.int8)
        channels = first + tl.arange(0, BLOCK)
        tl.store(rounded_ptr + channels, rounded, mask=channels < CHANNELS)


@triton.jit
def token_tile(
    token_ptr,  # [CHANNELS]
    before_ptr,  # [CHANNELS] or None
    channel_scale_ptr,  # [CHANNELS] or None
    first,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # [BLOCK] float32, 0 beyond CHANNELS
    """What is rounded: the values, times GELU's derivative and the channels' scales if given."""
    channels = first + tl.arange(0, BLOCK)
    inside = channels < CHANNELS
    values = tl.load(token_ptr + channels, mask=inside, other=0.0).to(tl.float32)
    if before_ptr is not None:
        values *= gelu_derivative(tl.load(before_ptr + channels, mask=inside, other=0.0).to(tl.float32))
    if channel_scale_ptr is not None:
        values *= tl.load(channel_scale_ptr + channels, mask=inside, other=0.0)
    return values


def round_tokens(
    tokens: Tensor,  # [tokens, channels]
    before: Tensor | None,  # [tokens, channels], contiguous
    channel_scale: Tensor | None,  # [channels] float32
    launch: bool,
) -> tuple[Tensor, Tensor]:  # [tokens, channels] int8, [tokens] float32
    """int8 and scales of `tokens`, or of `tokens * gelu'(before) * channel_scale`."""
    length, channels = tokens.shape
    rounded, scale = (
        tokens.new_empty(tokens.shape, dtype=torch.int8),
        tokens.new_empty(length, dtype=torch.float32),
    )
    if launch:
        tuning = tuning_for(tokens.device).int8_linear_round
        int8_linear_round_kernel[(length,)](
            tokens, before, channel_scale, rounded, scale, tokens.stride(0),
            CHANNELS=channels, BLOCK=min(tuning.tile_elements, triton.next_power_of_2(channels)),
            STAGES=tuning.num_stages, num_warps=tuning.num_warps, **COMPILER_OPTIONS,
        )  # fmt: skip
    return rounded, scale
