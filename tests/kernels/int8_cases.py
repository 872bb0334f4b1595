"""Shared by the tests of 8-bit linear layers: shapes, tokens with outlier channels, and results."""

import torch
from torch import Tensor

from ditflow_kernels import int8_linear, quantise_weight

ACTIVATIONS = [None, "gelu_tanh"]
SHAPES = {  # leading sizes of x, inputs, outputs
    "usual": ((2, 37), 64, 96),
    "one_batch": ((1, 19), 48, 40),
    "one_token": ((1,), 32, 16),
    "no_leading_size": ((), 24, 8),
    "ragged": ((3, 11), 75, 131),
    "wide": ((21,), 520, 17),
    "tiles": ((2, 32), 96, 128),
    "one_input": ((5,), 1, 3),
}


def case(shape, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and bias in float64; in x a few channels are 30 times as large as the rest."""
    leading, inputs, outputs = shape
    draw = torch.Generator().manual_seed(0)

    def numbers(*size):
        return torch.randn(*size, generator=draw, dtype=torch.float64)

    x = numbers(*leading, inputs)
    x[..., ::29] *= 30
    weight = numbers(outputs, inputs) * (0.5 + numbers(outputs, 1).abs())
    return tuple(tensor.to(device) for tensor in (x, weight, numbers(outputs)))


def rounded_case(shape, precision: torch.dtype, device: str = "cpu") -> tuple[Tensor, ...]:
    """x, weight_int8, scale and bias."""
    x, weight, bias = case(shape, device)
    return in_precision(x, *quantise_weight(weight), bias, precision)


def in_precision(x, weight_int8, scale, bias, precision: torch.dtype) -> tuple[Tensor, ...]:
    """The same layer, with x and bias in another precision."""
    return x.to(precision), weight_int8, scale, bias.to(precision)


def result_and_gradient(x, weight_int8, scale, bias, activation, backend) -> list[Tensor]:
    """The layer's result, and the gradient of its weighted sum to x."""
    x = x.detach().clone().requires_grad_()
    result = int8_linear(x, weight_int8, scale, bias, activation=activation, backend=backend)
    weights = torch.arange(result.numel(), device=x.device).view(result.shape).cos().to(x.dtype)
    (gradient,) = torch.autograd.grad(result, x, weights)
    return [result.detach(), gradient]
