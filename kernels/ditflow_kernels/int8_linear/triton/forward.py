"""Forward: round the tokens, multiply, and scale, add the bias and activate in the product's epilogue."""

import torch
from torch import Tensor

from ditflow_kernels.backends import check_triton_device
from ditflow_kernels.int8_linear.triton.product import scaled_product
from ditflow_kernels.int8_linear.triton.rounding import round_tokens


def int8_linear_forward(
    x: Tensor,  # [tokens, in], any strides
    weight_int8: Tensor,  # [out, in], any strides
    scale: Tensor,  # [out] float32
    bias: Tensor | None,  # [out]
    activation: str | None,
    keeps: bool,  # what the activation's gradient needs
    launch: bool = True,
) -> tuple[Tensor, Tensor | None]:  # [tokens, out] twice
    """The result, and if kept, what it was before activation; without `launch` memory is allocated only."""
    launch = launch and len(x) > 0
    if launch:
        check_triton_device(x.device)
    shape = len(x), len(weight_int8)
    result, before = x.new_empty(shape), x.new_empty(shape) if keeps else None
    x = x if x.stride(1) == 1 else x.contiguous()
    with torch.cuda.device_of(x):
        rounded, token_scale = round_tokens(x, None, None, launch)
        if launch:
            constants = scale.float().contiguous(), None if bias is None else bias.contiguous()
            scaled_product(rounded, token_scale, weight_int8.T, result, *constants, before, activation)
    return result, before
