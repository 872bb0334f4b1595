"""Forward pass: a program reads one token's queries or keys once and writes them ready."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditflow_kernels.qk_norm_rope.layout import Norm, alike, block_shape, parts
from ditflow_kernels.qk_norm_rope.triton.tiles import quarter_turned, unit_rows
from ditflow_kernels.tuning import check_device, launches


@triton.jit
def prepare_token(
    tokens_ptr,  # this token's [heads, head_dim]
    prepared_ptr,  # this token's [heads, head_dim], contiguous
    weight_ptr,  # [head_dim] or None
    bias_ptr,
    eps,
    cos_ptr,  # this token's [head_dim] or None
    sin_ptr,
    is_video,
    stride_head,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    channels = tl.arange(0, BLOCK_D)
    inside = channels < HEAD_DIM
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + channels, mask=inside, other=0.0).to(tl.float32)
        bias = tl.load(bias_ptr + channels, mask=inside, other=0.0).to(tl.float32)
    if cos_ptr is not None:
        # text is turned by nothing: cos 1, sin 0
        cos = tl.load(cos_ptr + channels, mask=inside & is_video, other=1.0).to(tl.float32)
        sin = tl.load(sin_ptr + channels, mask=inside & is_video, other=0.0).to(tl.float32)
    for first_head in tl.range(0, HEADS, BLOCK_HEADS, num_stages=STAGES):
        heads = first_head + tl.arange(0, BLOCK_HEADS)
        mask = (heads < HEADS)[:, None] & inside[None, :]
        # [BLOCK_HEADS, BLOCK_D]
        offsets = heads[:, None] * stride_head + channels[None, :]
        values = tl.load(tokens_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        if weight_ptr is not None:
            unit, _ = unit_rows(values, eps, HEAD_DIM, BLOCK_D)
            values = unit * weight[None, :] + bias[None, :]
        if cos_ptr is not None:
            values = values * cos[None, :] + quarter_turned(values, BLOCK_HEADS, BLOCK_D) * sin[None, :]
        offsets = heads[:, None] * HEAD_DIM + channels[None, :]
        tl.store(prepared_ptr + offsets, values.to(prepared_ptr.dtype.element_ty), mask=mask)


@triton.jit
def qk_norm_rope_forward_kernel(
    query_ptr,  # [B, T + S, heads, head_dim]
    key_ptr,  # the same, with the same strides
    prepared_query_ptr,  # [B, T + S, heads, head_dim], contiguous
    prepared_key_ptr,
    weight_query_ptr,  # [head_dim] or None, as the next three
    bias_query_ptr,
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
    batch = tl.program_id(2).to(tl.int64)
    source = batch * stride_batch + token * stride_token
    target = (batch * tokens + token) * (HEADS * HEAD_DIM)
    is_video = token >= text_length
    # [S, head_dim] is one table of rope
    position = (token - text_length) * HEAD_DIM
    table = (tokens - text_length) * HEAD_DIM
    if tl.program_id(1) == 0:
        prepare_token(
            query_ptr + source, prepared_query_ptr + target,
            weight_query_ptr, bias_query_ptr, eps_query,
            None if rope_ptr is None else rope_ptr + position,
            None if rope_ptr is None else rope_ptr + table + position,
            is_video, stride_head, HEADS, HEAD_DIM, BLOCK_HEADS, BLOCK_D, STAGES,
        )  # fmt: skip
    else:
        prepare_token(
            key_ptr + source, prepared_key_ptr + target,
            weight_key_ptr, bias_key_ptr, eps_key,
            None if rope_ptr is None else rope_ptr + 2 * table + position,
            None if rope_ptr is None else rope_ptr + 3 * table + position,
            is_video, stride_head, HEADS, HEAD_DIM, BLOCK_HEADS, BLOCK_D, STAGES,
        )  # fmt: skip


def qk_norm_rope_forward(
    query: Tensor,  # [B, T + S, heads, head_dim], any strides
    key: Tensor,  # [B, T + S, heads, head_dim]
    norm_query: Norm,
    norm_key: Norm,
    rope: Tensor | None,  # [2 (query, key), 2 (cos, sin), S, head_dim]
    text_length: int,
    launch: bool = True,
) -> tuple[Tensor, Tensor]:  # contiguous
    """Allocates what it returns, and launches unless told not to."""
    query, key = alike(query, key)
    prepared_query, prepared_key = query.new_empty(query.shape), key.new_empty(key.shape)
    rope = None if rope is None else rope.contiguous()
    if not launch or not query.numel():
        return prepared_query, prepared_key
    check_device(query.device)
    batch, tokens, heads, head_dim = query.shape
    parameters = launches(query.device).qk_norm_rope_forward
    block_heads, block_d = block_shape(heads, head_dim, parameters.tile_elements)
    weight_query, bias_query, eps_query = parts(norm_query)
    weight_key, bias_key, eps_key = parts(norm_key)
    with torch.cuda.device_of(query):
        qk_norm_rope_forward_kernel[(tokens, 2, batch)](
            query, key, prepared_query, prepared_key,
            weight_query, bias_query, weight_key, bias_key, rope,
            eps_query, eps_key, text_length, *query.stride()[:3],
            HEADS=heads, HEAD_DIM=head_dim, BLOCK_HEADS=block_heads, BLOCK_D=block_d,
            STAGES=parameters.num_stages, num_warps=parameters.num_warps,
        )  # fmt: skip
    return prepared_query, prepared_key
