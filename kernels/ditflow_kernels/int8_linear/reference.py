"""A linear layer in 8 bits, from its definition, in any floating dtype."""

import torch
from torch import Tensor
from torch.nn.functional import gelu


def int8_linear(
    x: Tensor,  # [..., in]
    weight_int8: Tensor,  # [out, in] int8
    scale: Tensor,  # [out]
    bias: Tensor | None,  # [out]
    activation: str | None,
) -> Tensor:  # [..., out]
    """Round each token, multiply exactly, scale, add the bias, activate.

    What is activated is rounded to the dtype of x first, as it is between two layers.
    """
    return _Int8Linear.apply(x, weight_int8, scale, bias, activation)


class _Int8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight_int8, scale, bias, activation):
        precise = torch.promote_types(x.dtype, torch.float32)
        rounded, scale_x = rounded_rows(x.to(precise))
        result = (rounded.double() @ weight_int8.double().T).to(precise) * scale_x * scale.to(precise)
        if bias is not None:
            result = result + bias.to(precise)
        result = result.to(x.dtype)
        ctx.save_for_backward(weight_int8, scale, result)
        ctx.activation, ctx.precise = activation, precise
        if activation == "gelu_tanh":
            result = gelu(result.to(precise), approximate="tanh").to(x.dtype)
        return result

    @staticmethod
    def backward(ctx, grad):
        weight_int8, scale, before_activation = ctx.saved_tensors
        values, before_activation = grad.to(ctx.precise), before_activation.to(ctx.precise)
        if ctx.activation == "gelu_tanh":
            values = torch.ops.aten.gelu_backward(values, before_activation, approximate="tanh")
        return input_gradient(values, weight_int8, scale).to(grad.dtype), None, None, None, None


def input_gradient(grad: Tensor, weight_int8: Tensor, scale: Tensor) -> Tensor:
    """From [..., out] to [..., in]: the weight's scales onto the gradient, round, multiply exactly."""
    values = grad.to(torch.promote_types(grad.dtype, torch.float32))
    rounded, scale_grad = rounded_rows(values * scale.to(values.dtype))
    result = (rounded.double() @ weight_int8.double()).to(values.dtype) * scale_grad
    return result.to(grad.dtype)


def rounded_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -127 to 127 and the scale of each row [..., 1]; NaN if a value is not finite.

    Rows whose largest value is below `127 * 2**-126` count as zero: float32 could not divide by their scale.
    """
    largest = values.abs().amax(-1, keepdim=True)
    scale = torch.where(largest < 127 * 2.0**-126, 1.0, largest * (1 / 127))
    return (values / scale).round(), scale
