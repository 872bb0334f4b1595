"""Attention motion flow and 8-bit linear layers as tensor operations."""

# This loads neither torch nor Triton: the functions import their backend when called. `int8_linear`,
# `motion_flow` and `qk_norm_rope` also name subpackages; these imports bind the names to the functions.
from ditflow_kernels.int8_linear.api import int8_input_gradient, int8_linear, quantise_weight
from ditflow_kernels.motion_flow.api import motion_flow, motion_flow_loss
from ditflow_kernels.qk_norm_rope.api import qk_norm_rope

__all__ = [
    "int8_input_gradient",
    "int8_linear",
    "motion_flow",
    "motion_flow_loss",
    "qk_norm_rope",
    "quantise_weight",
]
