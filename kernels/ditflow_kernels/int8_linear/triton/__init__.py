"""Linear layers in 8 bits in Triton: round the tokens, then multiply; the rest is the product's epilogue."""

from ditflow_kernels.int8_linear.triton.backward import int8_linear_backward
from ditflow_kernels.int8_linear.triton.forward import int8_linear_forward

__all__ = ["int8_linear_backward", "int8_linear_forward"]
