"""Backward: each program owns the queries or the keys of one token in all batches.

So it sums the gradients of cos and sin over heads and batch on its own. Forward saves only its inputs; the
kernel normalises them again.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditflow_kernels.backends import check_triton_device
from ditflow_kernels.qk_norm_rope.layout import (
    Norm,
    Wanted,
    norm_arguments,
    with_same_strides,
)
from ditflow_kernels.qk_norm_rope.triton.tiles import (
    is_given,
    launch_options,
    normalize,
    reciprocal_rms,
    rotate_pairs,
    select,
)
from ditflow_kernels.tuning import COMPILER_OPTIONS, tuning_for


@triton.jit
def qk_norm_rope_backward_kernel(
    query_ptr,  # [B, T + S, heads, head_dim]
    key_ptr,  # as query, with the same strides
    grad_prepared_query_ptr,  # [B, T + S, heads, head_dim]
    grad_prepared_key_ptr,  # as grad_prepared_query, with the same strides
    grad_query_ptr,  # [B, T + S, heads, head_dim], contiguous, or None
    grad_key_ptr,
    weight_query_ptr,  # [head_dim], or [heads, head_dim] if biases are None, or None
    bias_query_ptr,  # [head_dim], or None: RMS norm over all heads, which must be one tile
    weight_key_ptr,
    bias_key_ptr,
    rope_ptr,  # [2 (query, key), 2 (cos, sin), S, head_dim] or None
    grad_rope_ptr,  # as rope, float32, or None
    eps_query,
    eps_key,
    batches,
    text_length,
    stride_batch,
    stride_token,
    stride_head,
    grad_stride_batch,
    grad_stride_token,
    grad_stride_head,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    token, tokens = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    is_key = tl.program_id(1) == 1
    input_ptr = select(is_key, query_ptr, key_ptr) + token * stride_token
    grad_output_ptr = select(is_key, grad_prepared_query_ptr, grad_prepared_key_ptr)
    grad_output_ptr += token * grad_stride_token
    grad_input_ptr = select(is_key, grad_query_ptr, grad_key_ptr)
    wants_input = is_given(is_key, grad_query_ptr, grad_key_ptr)
    weight_ptr = select(is_key, weight_query_ptr, weight_key_ptr)
    bias_ptr = select(is_key, bias_query_ptr, bias_key_ptr)
    has_norm = is_given(is_key, weight_query_ptr, weight_key_ptr)
    eps = tl.where(is_key, eps_key, eps_query)

    channels = tl.arange(0, BLOCK_D)
    inside = channels < HEAD_DIM
    # where this token's cos is in rope; its sin follows one table [S, head_dim] later
    is_video = inside & (token >= text_length)
    table = (tokens - text_length) * HEAD_DIM
    cos_offset = tl.where(is_key, 2 * table, 0) + (token - text_length) * HEAD_DIM
    if bias_ptr is not None:
        weight = tl.load(weight_ptr + channels, mask=inside, other=0.0).to(tl.float32)
        bias = tl.load(bias_ptr + channels, mask=inside, other=0.0).to(tl.float32)
    if rope_ptr is not None:
        # text is not rotated: cos 1, sin 0
        cos_ptrs = rope_ptr + cos_offset + channels
        cos = tl.load(cos_ptrs, mask=is_video, other=1.0).to(tl.float32)
        sin = tl.load(cos_ptrs + table, mask=is_video, other=0.0).to(tl.float32)
    # [BLOCK_HEADS, BLOCK_D], summed over heads once at the end
    grad_cos = tl.zeros([BLOCK_HEADS, BLOCK_D], tl.float32)
    grad_sin = tl.zeros([BLOCK_HEADS, BLOCK_D], tl.float32)
    for batch in range(0, batches):
        input_batch = batch * tl.cast(stride_batch, tl.int64)
        grad_batch = batch * tl.cast(grad_stride_batch, tl.int64)
        output_batch = (batch * tokens + token) * (HEADS * HEAD_DIM)
        for first_head in tl.range(0, HEADS, BLOCK_HEADS, num_stages=STAGES):
            heads = first_head + tl.arange(0, BLOCK_HEADS)
            mask = (heads < HEADS)[:, None] & inside[None, :]
            # [BLOCK_HEADS, BLOCK_D]
            offsets = grad_batch + heads[:, None] * grad_stride_head + channels[None, :]
            grad = tl.load(grad_output_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            if weight_ptr is not None or grad_rope_ptr is not None:
                offsets = input_batch + heads[:, None] * stride_head + channels[None, :]
                values = tl.load(input_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            if bias_ptr is not None:
                normalized, rstd = normalize(values, eps, HEAD_DIM, BLOCK_D)
                values = tl.where(has_norm, normalized * weight[None, :] + bias[None, :], values)
            elif weight_ptr is not None:
                weight_ptrs = weight_ptr + heads[:, None] * HEAD_DIM + channels[None, :]
                weights = tl.load(weight_ptrs, mask=mask, other=0.0).to(tl.float32)
                rstd = reciprocal_rms(values, eps, HEADS, HEAD_DIM)
                normalized = values * rstd
                values = tl.where(has_norm, normalized * weights, values)
            if grad_rope_ptr is not None:
                grad_cos += grad * values
                grad_sin += grad * rotate_pairs(values, BLOCK_HEADS, BLOCK_D)
            if wants_input:
                if rope_ptr is not None:
                    grad = grad * cos[None, :] - rotate_pairs(grad * sin[None, :], BLOCK_HEADS, BLOCK_D)
                if bias_ptr is not None:
                    # the norm removes changes of a head's mean and of its length
                    scaled = grad * weight[None, :]
                    mean = tl.sum(scaled, axis=1) / HEAD_DIM
                    along = tl.sum(scaled * normalized, axis=1) / HEAD_DIM
                    scaled = (scaled - mean[:, None] - normalized * along[:, None]) * rstd[:, None]
                    grad = tl.where(has_norm, scaled, grad)
                elif weight_ptr is not None:
                    # the norm removes changes of the token's length
                    scaled = grad * weights
                    along = tl.sum(scaled * normalized) / (HEADS * HEAD_DIM)
                    grad = tl.where(has_norm, (scaled - normalized * along) * rstd, grad)
                offsets = output_batch + heads[:, None] * HEAD_DIM + channels[None, :]
                tl.store(grad_input_ptr + offsets, grad.to(grad_input_ptr.dtype.element_ty), mask=mask)
    if grad_rope_ptr is not None:
        grad_cos_ptrs = grad_rope_ptr + cos_offset + channels
        tl.store(grad_cos_ptrs, tl.sum(grad_cos, axis=0), mask=is_video)
        tl.store(grad_cos_ptrs + table, tl.sum(grad_sin, axis=0), mask=is_video)


def qk_norm_rope_backward(
    grad_prepared_query: Tensor,  # [B, T + S, heads, head_dim], any strides
    grad_prepared_key: Tensor,
    query: Tensor,  # [B, T + S, heads, head_dim], any strides
    key: Tensor,
    norm_query: Norm,
    norm_key: Norm,
    rope: Tensor | None,  # [2 (query, key), 2 (cos, sin), S, head_dim]
    text_length: int,
    wanted: Wanted,
    launch: bool = True,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # contiguous, the last float32
    """Gradients of query, key and rope, None where not wanted; without `launch` they are allocated only."""
    query, key = with_same_strides(query, key)
    grad_prepared_query, grad_prepared_key = with_same_strides(grad_prepared_query, grad_prepared_key)
    rope = None if rope is None else rope.contiguous()
    grad_query = query.new_empty(query.shape) if wanted.query else None
    grad_key = key.new_empty(key.shape) if wanted.key else None
    grad_rope = rope.new_empty(rope.shape, dtype=torch.float32) if wanted.rope else None
    if not query.numel() and grad_rope is not None:
        grad_rope.zero_()  # no batch to sum over
    if not launch or not query.numel():
        return grad_query, grad_key, grad_rope
    check_triton_device(query.device)
    batch, tokens, *_ = query.shape
    tuning = tuning_for(query.device)
    options = launch_options(
        query, norm_query, norm_key, tuning.qk_norm_rope_backward, tuning.qk_norm_rope_all_heads
    )
    weight_query, bias_query, eps_query = norm_arguments(norm_query)
    weight_key, bias_key, eps_key = norm_arguments(norm_key)
    with torch.cuda.device_of(query):
        qk_norm_rope_backward_kernel[(tokens, 2)](
            query, key, grad_prepared_query, grad_prepared_key, grad_query, grad_key,
            weight_query, bias_query, weight_key, bias_key, rope, grad_rope,
            eps_query, eps_key, batch, text_length,
            *query.stride()[:3], *grad_prepared_query.stride()[:3],
            **options, **COMPILER_OPTIONS,
        )  # fmt: skip
    return grad_query, grad_key, grad_rope
