"""Forward: each program reads the queries or the keys of one token once and writes them prepared."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditflow_kernels.backends import check_triton_device
from ditflow_kernels.qk_norm_rope.layout import Norm, norm_arguments, with_same_strides
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
def qk_norm_rope_forward_kernel(
    query_ptr,  # [B, T + S, heads, head_dim]
    key_ptr,  # as query, with the same strides
    prepared_query_ptr,  # [B, T + S, heads, head_dim], contiguous
    prepared_key_ptr,
    weight_query_ptr,  # [head_dim], or [heads, head_dim] if biases are None, or None
    bias_query_ptr,  # [head_dim], or None: RMS norm over all heads, which must be one tile
    weight_key_ptr,
    bias_key_ptr,
    rope_ptr,  # [2 (query, key), 2 (cos, sin), S, head_dim] or None
    eps_query,
    eps_key,
    text_length,
    stride_batch,
    stride_token,
    stride_head,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    token, tokens = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    is_key = tl.program_id(1) == 1
    batch = tl.program_id(2).to(tl.int64)
    input_ptr = select(is_key, query_ptr, key_ptr) + batch * stride_batch + token * stride_token
    output_ptr = select(is_key, prepared_query_ptr, prepared_key_ptr)
    output_ptr += (batch * tokens + token) * (HEADS * HEAD_DIM)
    weight_ptr = select(is_key, weight_query_ptr, weight_key_ptr)
    bias_ptr = select(is_key, bias_query_ptr, bias_key_ptr)
    has_norm = is_given(is_key, weight_query_ptr, weight_key_ptr)
    eps = tl.where(is_key, eps_key, eps_query)

    channels = tl.arange(0, BLOCK_D)
    inside = channels < HEAD_DIM
    if bias_ptr is not None:
        weight = tl.load(weight_ptr + channels, mask=inside, other=0.0).to(tl.float32)
        bias = tl.load(bias_ptr + channels, mask=inside, other=0.0).to(tl.float32)
    if rope_ptr is not None:
        # text is not rotated: cos 1, sin 0
        is_video = inside & (token >= text_length)
        table = (tokens - text_length) * HEAD_DIM
        cos_ptrs = rope_ptr + tl.where(is_key, 2 * table, 0) + (token - text_length) * HEAD_DIM + channels
        cos = tl.load(cos_ptrs, mask=is_video, other=1.0).to(tl.float32)
        sin = tl.load(cos_ptrs + table, mask=is_video, other=0.0).to(tl.float32)
    for first_head in tl.range(0, HEADS, BLOCK_HEADS, num_stages=STAGES):
        heads = first_head + tl.arange(0, BLOCK_HEADS)
        mask = (heads < HEADS)[:, None] & inside[None, :]
        # [BLOCK_HEADS, BLOCK_D]
        offsets = heads[:, None] * stride_head + channels[None, :]
        values = tl.load(input_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        offsets = heads[:, None] * HEAD_DIM + channels[None, :]
        if bias_ptr is not None:
            normalized, _ = normalize(values, eps, HEAD_DIM, BLOCK_D)
            values = tl.where(has_norm, normalized * weight[None, :] + bias[None, :], values)
        elif weight_ptr is not None:
            weights = tl.load(weight_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            normalized = values * reciprocal_rms(values, eps, HEADS, HEAD_DIM)
            values = tl.where(has_norm, normalized * weights, values)
        if rope_ptr is not None:
            values = values * cos[None, :] + rotate_pairs(values, BLOCK_HEADS, BLOCK_D) * sin[None, :]
        tl.store(output_ptr + offsets, values.to(output_ptr.dtype.element_ty), mask=mask)


def qk_norm_rope_forward(
    query: Tensor,  # [B, T + S, heads, head_dim], any strides
    key: Tensor,  # [B, T + S, heads, head_dim]
    norm_query: Norm,
    norm_key: Norm,
    rope: Tensor | None,  # [2 (query, key), 2 (cos, sin), S, head_dim]
    text_length: int,
    launch: bool = True,
) -> tuple[Tensor, Tensor]:  # contiguous
    """Prepared queries and keys; without `launch` they are allocated only."""
    query, key = with_same_strides(query, key)
    prepared_query, prepared_key = query.new_empty(query.shape), key.new_empty(key.shape)
    rope = None if rope is None else rope.contiguous()
    if not launch or not query.numel():
        return prepared_query, prepared_key
    check_triton_device(query.device)
    batch, tokens, *_ = query.shape
    tuning = tuning_for(query.device)
    options = launch_options(
        query, norm_query, norm_key, tuning.qk_norm_rope_forward, tuning.qk_norm_rope_all_heads
    )
    weight_query, bias_query, eps_query = norm_arguments(norm_query)
    weight_key, bias_key, eps_key = norm_arguments(norm_key)
    with torch.cuda.device_of(query):
        qk_norm_rope_forward_kernel[(tokens, 2, batch)](
            query, key, prepared_query, prepared_key,
            weight_query, bias_query, weight_key, bias_key, rope,
            eps_query, eps_key, text_length, *query.stride()[:3],
            **options, **COMPILER_OPTIONS,
        )  # fmt: skip
    return prepared_query, prepared_key
