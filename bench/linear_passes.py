"""The passes over a feed-forward's wide layer with GELU in 8 bits, forward and backward, and their rivals.

The rivals have the library multiply: in the model's precision, or in 8 bits between passes over rows in plain
PyTorch. The library wants the bytes of a weight laid out for each direction, so the rivals' backward reads a
second copy of them, which is made beforehand.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.passes import Pass, Rival, Size, compile_, linear_inputs, random
from ditflow_kernels import int8_linear
from ditflow_kernels.int8_linear import operators
from ditflow_kernels.int8_linear.rounding import round_rows

LIBRARY, ROWS = "library product in 16 bits", "library product in 8 bits and row passes"


class Layer(NamedTuple):
    """The same layer as ours and as its rivals read it."""

    weight_int8: Tensor  # [out, in]
    scale: Tensor  # [out]
    bias: Tensor  # [out]
    weight: Tensor  # [out, in], of the model's precision
    transposed: Tensor  # [in, out], the bytes again


def linear_passes() -> list[Pass]:
    return [
        Pass("linear forward", forward_inputs, forward_rivals, int8_flops=product_flops),
        Pass("linear backward", backward_inputs, backward_rivals, int8_flops=product_flops),
    ]


def product_flops(size: Size) -> int:
    return 2 * (size.text + size.video) * size.channels * size.hidden


def forward_inputs(size: Size, device: torch.device, seed: int) -> tuple[Tensor, Layer]:
    """x [tokens, in], layer."""
    x, weight_int8, scale, bias = linear_inputs(size, device, seed)
    weight = weight_int8.to(size.dtype) * scale.to(size.dtype)[:, None]
    return x.detach()[0], Layer(weight_int8, scale, bias, weight, weight_int8.T.contiguous())


def backward_inputs(size: Size, device: torch.device, seed: int) -> tuple[Tensor, Tensor, Layer]:
    """The gradient of the result [tokens, out], the values before GELU [tokens, out], layer."""
    x, layer = forward_inputs(size, device, seed)
    grad, before = random(seed + 3, size, device, 2, len(x), len(layer.scale))
    return grad, before, layer


def forward_rivals() -> list[Rival]:
    return [
        *by_backend(ours_forward),
        Rival(LIBRARY, torch.no_grad()(library_forward)),
        Rival(ROWS, torch.no_grad()(rows_forward)),
        *compiled(library_forward, rows_forward),
    ]


def backward_rivals() -> list[Rival]:
    return [
        *by_backend(ours_backward),
        Rival(LIBRARY, torch.no_grad()(library_backward)),
        Rival(ROWS, torch.no_grad()(rows_backward)),
        *compiled(library_backward, rows_backward),
    ]


def by_backend(ours: Callable[[str], Callable]) -> list[Rival]:
    return [Rival(backend, torch.no_grad()(ours(backend))) for backend in ("triton", "chunked")]


def compiled(*functions: Callable) -> list[Rival]:
    return [
        Rival(f"{name}, compiled", torch.no_grad()(compile_(function)), compiles=True)
        for name, function in zip((LIBRARY, ROWS), functions, strict=True)
    ]


def ours_forward(backend: str) -> Callable[[Tensor, Layer], Tensor]:
    return lambda x, layer: int8_linear(x, *layer[:3], activation="gelu_tanh", backend=backend)


def ours_backward(backend: str) -> Callable[[Tensor, Tensor, Layer], Tensor]:
    def run(grad: Tensor, before: Tensor, layer: Layer) -> Tensor:
        return operators.input_gradient(grad, layer.weight_int8, layer.scale, before, backend)

    return run


def library_forward(x: Tensor, layer: Layer) -> Tensor:
    return F.gelu(F.linear(x, layer.weight, layer.bias), approximate="tanh")


def library_backward(grad: Tensor, before: Tensor, layer: Layer) -> Tensor:
    """What autograd computes for the input."""
    return torch.ops.aten.gelu_backward(grad, before, approximate="tanh") @ layer.weight


def rows_forward(x: Tensor, layer: Layer) -> Tensor:
    rounded, scale = round_rows(x.float())
    values = torch._int_mm(rounded, layer.weight_int8.T) * scale[:, None] * layer.scale + layer.bias
    return F.gelu(values.to(x.dtype), approximate="tanh")


def rows_backward(grad: Tensor, before: Tensor, layer: Layer) -> Tensor:
    values = torch.ops.aten.gelu_backward(grad.float(), before.float(), approximate="tanh")
    rounded, scale = round_rows(values * layer.scale)
    return (torch._int_mm(rounded, layer.transposed.T) * scale[:, None]).to(grad.dtype)
