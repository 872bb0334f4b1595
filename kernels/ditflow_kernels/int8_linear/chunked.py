"""Linear layers in 8 bits in plain PyTorch, a chunk of tokens at a time.

Beyond its results a pass holds at most `workspace_bytes` of temporary memory, and copies of the weight where
`products` must make them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import gelu

from ditflow_kernels.int8_linear.products import int8_product
from ditflow_kernels.int8_linear.rounding import round_rows
from ditflow_kernels.workspace import even_slices, workspace_bytes


def int8_linear_forward(
    x: Tensor,  # [tokens, in]
    weight_int8: Tensor,  # [out, in]
    scale: Tensor,  # [out]
    bias: Tensor | None,  # [out]
    activation: str | None,
    keeps: bool,  # what the activation's gradient needs
    launch: bool = True,
) -> tuple[Tensor, Tensor | None]:  # [tokens, out] twice
    """The result, and if kept, what it was before activation; without `launch` both are allocated only."""
    shape = len(x), len(weight_int8)
    result, before = x.new_empty(shape), x.new_empty(shape) if keeps else None
    for tokens in _chunks(x, weight_int8) if launch else ():
        values = _scaled_product(x[tokens].float(), weight_int8.T).mul_(scale)
        if bias is not None:
            values += bias
        result[tokens] = values
        if before is not None:
            before[tokens] = result[tokens]
        if activation is not None:
            result[tokens] = gelu(values.copy_(result[tokens]), approximate="tanh")
    return result, before


def int8_linear_backward(
    grad: Tensor,  # [tokens, out]
    weight_int8: Tensor,  # [out, in]
    scale: Tensor,  # [out]
    before: Tensor | None,  # [tokens, out] before activation, None without one
    launch: bool = True,
) -> Tensor:  # [tokens, in]
    """The gradient of x; without `launch` it is allocated only."""
    result = grad.new_empty(len(grad), weight_int8.shape[1])
    for tokens in _chunks(grad, weight_int8) if launch else ():
        values = grad[tokens].float()
        if before is not None:
            values = torch.ops.aten.gelu_backward(values, before[tokens].float(), approximate="tanh")
        result[tokens] = _scaled_product(values * scale, weight_int8)
    return result


def _chunks(tokens: Tensor, weight: Tensor) -> Iterator[slice]:
    """Slices of tokens that fit the workspace: at most four float32 copies of a token, in and out."""
    return even_slices(len(tokens), 16 * sum(weight.shape), workspace_bytes(tokens.device.type))


def _scaled_product(values: Tensor, right: Tensor) -> Tensor:  # [tokens, k] float32, [k, n] int8
    """`round(values) @ right`, scaled back, float32."""
    rounded, scale = round_rows(values)
    return int8_product(rounded, right) * scale[:, None]
