"""Backward: the rounding takes the activation's derivative and the weight's scales into the gradient."""

import torch
from torch import Tensor

from ditflow_kernels.backends import check_triton_device
from ditflow_kernels.int8_linear.triton.product import scaled_product
from ditflow_kernels.int8_linear.triton.rounding import round_tokens


def int8_linear_backward(
    grad: Tensor,  # [tokens, out], any strides
    weight_int8: Tensor,  # [out, in], any strides
    scale: Tensor,  # [out] float32
    before: Tensor | None,  # [tokens, out] before activation, None without one
    launch: bool = True,
) -> Tensor:  # [tokens, in]
    """The gradient of x; without `launch` memory is allocated only."""
    launch = launch and len(grad) > 0
    if launch:
        check_triton_device(grad.device)
    result = grad.new_empty(len(grad), weight_int8.shape[1])
    grad = grad if grad.stride(1) == 1 else grad.contiguous()
    with torch.cuda.device_of(grad):
        rounded, token_scale = round_tokens(grad, before, scale.float().contiguous(), launch)
        if launch:
            scaled_product(rounded, token_scale, weight_int8, result)
    return result
