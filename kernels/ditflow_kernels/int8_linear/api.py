"""The public functions of linear layers in 8 bits. They check the arguments; the backends trust them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ditflow_kernels.backends import choose

if TYPE_CHECKING:
    from torch import Tensor

ACTIVATIONS = (None, "gelu_tanh")
# longer sums of products of two bytes can leave the range of int32
LONGEST_SUM = (2**31 - 1) // (128 * 128)


def quantise_weight(weight: Tensor) -> tuple[Tensor, Tensor]:  # [out, in] int8, [out] float32
    """`weight = scale[:, None] * weight_int8`, rounded to nearest, for `int8_linear`.

    The largest weight of an output becomes 127 or -127; an output without weights gets scale 1, one with a
    weight that is not finite NaN.

    Raises ValueError if the weight is no matrix of floating point numbers.
    """
    if weight.ndim != 2 or not weight.is_floating_point():
        raise ValueError(
            f"weight {list(weight.shape)} {weight.dtype} must be a matrix [out, in] of floating point numbers"
        )
    from ditflow_kernels.int8_linear.rounding import round_rows

    return round_rows(weight.detach().float())


def int8_linear(
    x: Tensor,  # [..., in]
    weight_int8: Tensor,  # [out, in] int8
    scale: Tensor,  # [out] float32
    bias: Tensor | None,  # [out]
    *,
    activation: str | None = None,
    backend: str = "auto",
) -> Tensor:  # [..., out]
    """`activation(round(x) @ (scale * weight_int8).T + bias)`, with one scale for each output and each token.

    Rounding maps each token to int8, its largest value to 127; products are exact sums in int32. The gradient
    of x is `round(grad * scale) @ weight_int8`, as if the forward had not rounded x; weight, scale and bias
    are constants. activation: None, or "gelu_tanh", GELU in its tanh form, of what is rounded to x's dtype
    before.

    A token with a value that is not finite becomes NaN, and so does its gradient.

    Raises ValueError if shapes, dtypes or devices do not match, if a sum could leave int32's range, or if the
    activation or the backend is unknown.
    """
    if activation not in ACTIVATIONS:
        known = ", ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"unknown activation {activation!r}: use one of {known}")
    _check_layer(x, weight_int8, scale, bias)
    chosen = choose(backend, x.device, x.dtype)
    constants = weight_int8, scale.detach(), None if bias is None else bias.detach()
    if chosen == "reference":
        from ditflow_kernels.int8_linear import reference

        return reference.int8_linear(x, *constants, activation)
    from ditflow_kernels.int8_linear import operators

    return operators.int8_linear(x, *constants, activation, backend=chosen)


def int8_input_gradient(
    grad: Tensor,  # [..., out]
    weight_int8: Tensor,  # [out, in] int8
    scale: Tensor,  # [out] float32
    *,
    backend: str = "auto",
) -> Tensor:  # [..., in]
    """The gradient of x that `int8_linear` without activation has, where there is no graph to ask for it.

    Raises ValueError if the last size of grad is not `out`, or if the backend is unknown.
    """
    if grad.ndim < 1 or grad.shape[-1] != len(weight_int8):
        raise ValueError(f"grad {list(grad.shape)} must be [..., {len(weight_int8)}], an output's gradient")
    chosen = choose(backend, grad.device, grad.dtype)
    if chosen == "reference":
        from ditflow_kernels.int8_linear import reference

        return reference.input_gradient(grad, weight_int8, scale)
    from ditflow_kernels.int8_linear import operators

    return operators.int8_input_gradient(grad, weight_int8, scale, backend=chosen)


def _check_layer(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
    if weight.ndim != 2 or not weight.numel() or str(weight.dtype) != "torch.int8":
        given = f"{list(weight.shape)} {weight.dtype}"
        raise ValueError(f"weight_int8 must be [out, in] torch.int8, not {given}: see quantise_weight")
    outputs, inputs = weight.shape
    if x.ndim < 1 or x.shape[-1] != inputs:
        raise ValueError(f"x {list(x.shape)} must be [..., {inputs}], as weight_int8 is {[outputs, inputs]}")
    for name, tensor in [("scale", scale), ("bias", bias)]:
        if tensor is not None and list(tensor.shape) != [outputs]:
            raise ValueError(f"{name} {list(tensor.shape)} must be [{outputs}], one for each output")
    for name, tensor in [("weight_int8", weight), ("scale", scale), ("bias", bias)]:
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}: use one device")
    if max(inputs, outputs) > LONGEST_SUM:
        raise ValueError(
            f"weight_int8 {[outputs, inputs]} must have sides of at most {LONGEST_SUM}: sums are in int32"
        )
