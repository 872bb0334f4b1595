"""Backward pass: a program owns one token's queries or keys in all batches, and so its sums over heads.

Nothing but the inputs is kept for it: each row is normalised again from them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditflow_kernels.qk_norm_rope.layout import Norm, Wanted, alike, block_shape, parts
from ditflow_kernels.qk_norm_rope.triton.tiles import quarter_turned, unit_rows
from ditflow_kernels.tuning import check_device, launches


@triton.jit
def token_gradients(
    tokens_ptr,  # this token's [heads, head_dim] in the first batch
    grad_prepared_ptr,
    grad_tokens_ptr,  # contiguous, or None
    weight_ptr,  # [head_dim] or None
    bias_ptr,
    eps,
    cos_ptr,  # this token's [head_dim] or None
    sin_ptr,
    grad_cos_ptr,  # this token's [head_dim] or None
    grad_sin_ptr,
    is_video,
    batches,
    tokens,
    stride_batch,
    stride_head,
    grad_stride_batch,
    grad_stride_head,
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
    # [BLOCK_HEADS, BLOCK_D], summed over their rows once, at the end
    grad_cos = tl.zeros([BLOCK_HEADS, BLOCK_D], tl.float32)
    grad_sin = tl.zeros([BLOCK_HEADS, BLOCK_D], tl.float32)
    for batch in range(0, batches):
        source = batch * tl.cast(stride_batch, tl.int64)
        grad_source = batch * tl.cast(grad_stride_batch, tl.int64)
        target = batch * tokens * (HEADS * HEAD_DIM)
        for first_head in tl.range(0, HEADS, BLOCK_HEADS, num_stages=STAGES):
            heads = first_head + tl.arange(0, BLOCK_HEADS)
            mask = (heads < HEADS)[:, None] & inside[None, :]
            # [BLOCK_HEADS, BLOCK_D]
            offsets = grad_source + heads[:, None] * grad_stride_head + channels[None, :]
            grad = tl.load(grad_prepared_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            if weight_ptr is not None or grad_cos_ptr is not None:
                offsets = source + heads[:, None] * stride_head + channels[None, :]
                values = tl.load(tokens_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            if weight_ptr is not None:
                unit, inverse = unit_rows(values, eps, HEAD_DIM, BLOCK_D)
                values = unit * weight[None, :] + bias[None, :]
            if grad_cos_ptr is not None:
                grad_cos += grad * values
                grad_sin += grad * quarter_turned(values, BLOCK_HEADS, BLOCK_D)
            if grad_tokens_ptr is not None:
                if cos_ptr is not None:
                    grad = grad * cos[None, :] - quarter_turned(grad * sin[None, :], BLOCK_HEADS, BLOCK_D)
                if weight_ptr is not None:
                    # what would move a row's mean or its length is lost in the norm
                    grad = grad * weight[None, :]
                    mean = tl.sum(grad, axis=1) / HEAD_DIM
                    along = tl.sum(grad * unit, axis=1) / HEAD_DIM
                    grad = (grad - mean[:, None] - unit * along[:, None]) * inverse[:, None]
                offsets = target + heads[:, None] * HEAD_DIM + channels[None, :]
                tl.store(grad_tokens_ptr + offsets, grad.to(grad_tokens_ptr.dtype.element_ty), mask=mask)
    if grad_cos_ptr is not None:
        tl.store(grad_cos_ptr + channels, tl.sum(grad_cos, axis=0), mask=inside & is_video)
        tl.store(grad_sin_ptr + channels, tl.sum(grad_sin, axis=0), mask=inside & is_video)


@triton.jit
def qk_norm_rope_backward_kernel(
    query_ptr,  # [B, T + S, heads, head_dim]
    key_ptr,  # the same, with the same strides
    grad_prepared_query_ptr,  # [B, T + S, heads, head_dim]
    grad_prepared_key_ptr,  # the same, with the same strides
    grad_query_ptr,  # [B, T + S, heads, head_dim], contiguous, or None
    grad_key_ptr,
    weight_query_ptr,  # [head_dim] or None, as the next three
    bias_query_ptr,
    weight_key_ptr,
    bias_key_ptr,
    rope_ptr,  # [2 (query, key), 2 (cos, sin), S, head_dim] or None
    grad_rope_ptr,  # the same, float32, or None
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
    source = token * stride_token
    grad_source = token * grad_stride_token
    target = token * (HEADS * HEAD_DIM)
    is_video = token >= text_length
    # [S, head_dim] is one table of rope
    position = (token - text_length) * HEAD_DIM
    table = (tokens - text_length) * HEAD_DIM
    if tl.program_id(1) == 0:
        token_gradients(
            query_ptr + source, grad_prepared_query_ptr + grad_source,
            None if grad_query_ptr is None else grad_query_ptr + target,
            weight_query_ptr, bias_query_ptr, eps_query,
            None if rope_ptr is None else rope_ptr + position,
            None if rope_ptr is None else rope_ptr + table + position,
            None if grad_rope_ptr is None else grad_rope_ptr + position,
            None if grad_rope_ptr is None else grad_rope_ptr + table + position,
            is_video, batches, tokens, stride_batch, stride_head, grad_stride_batch, grad_stride_head,
            HEADS, HEAD_DIM, BLOCK_HEADS, BLOCK_D, STAGES,
        )  # fmt: skip
    else:
        token_gradients(
            key_ptr + source, grad_prepared_key_ptr + grad_source,
            None if grad_key_ptr is None else grad_key_ptr + target,
            weight_key_ptr, bias_key_ptr, eps_key,
            None if rope_ptr is None else rope_ptr + 2 * table + position,
            None if rope_ptr is None else rope_ptr + 3 * table + position,
            None if grad_rope_ptr is None else grad_rope_ptr + 2 * table + position,
            None if grad_rope_ptr is None else grad_rope_ptr + 3 * table + position,
            is_video, batches, tokens, stride_batch, stride_head, grad_stride_batch, grad_stride_head,
            HEADS, HEAD_DIM, BLOCK_HEADS, BLOCK_D, STAGES,
        )  # fmt: skip


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
    """Gradients to query, key and rope, None where not wanted; launches unless told not to."""
    query, key = alike(query, key)
    grad_prepared_query, grad_prepared_key = alike(grad_prepared_query, grad_prepared_key)
    rope = None if rope is None else rope.contiguous()
    grad_query = query.new_empty(query.shape) if wanted.query else None
    grad_key = key.new_empty(key.shape) if wanted.key else None
    grad_rope = rope.new_empty(rope.shape, dtype=torch.float32) if wanted.rope else None
    if not query.numel() and grad_rope is not None:
        grad_rope.zero_()  # a batch of none
    if not launch or not query.numel():
        return grad_query, grad_key, grad_rope
    check_device(query.device)
    batch, tokens, heads, head_dim = query.shape
    parameters = launches(query.device).qk_norm_rope_backward
    block_heads, block_d = block_shape(heads, head_dim, parameters.tile_elements)
    weight_query, bias_query, eps_query = parts(norm_query)
    weight_key, bias_key, eps_key = parts(norm_key)
    with torch.cuda.device_of(query):
        qk_norm_rope_backward_kernel[(tokens, 2)](
            query, key, grad_prepared_query, grad_prepared_key, grad_query, grad_key,
            weight_query, bias_query, weight_key, bias_key, rope, grad_rope,
            eps_query, eps_key, batch, text_length,
            *query.stride()[:3], *grad_prepared_query.stride()[:3],
            HEADS=heads, HEAD_DIM=head_dim, BLOCK_HEADS=block_heads, BLOCK_D=block_d,
            STAGES=parameters.num_stages, num_warps=parameters.num_warps,
        )  # fmt: skip
    return grad_query, grad_key, grad_rope
