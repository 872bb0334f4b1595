"""GELU in its tanh form, and its derivative, by `tanh(u) = 2 sigmoid(2u) - 1`."""

import triton
import triton.language as tl

SLOPE = tl.constexpr(2 * (2 / 3.141592653589793) ** 0.5)  # of 2u at 0
CUBIC = tl.constexpr(0.044715)


@triton.jit
def gelu(values):
    return values * tl.sigmoid(values * (values * values * CUBIC + 1.0) * SLOPE)


@triton.jit
def gelu_derivative(values):
    square = values * values
    share = tl.sigmoid(values * (square * CUBIC + 1.0) * SLOPE)
    return share + share * (1.0 - share) * values * (square * (3.0 * CUBIC) + 1.0) * SLOPE
