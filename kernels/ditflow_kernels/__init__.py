"""Attention motion flow as tensor operations: flow, loss with gradients, query and key preparation."""

# This loads neither torch nor Triton: the functions import their backend when called. `motion_flow` and
# `qk_norm_rope` are also the names of subpackages; these imports bind both names to the functions.
from ditflow_kernels.motion_flow.api import motion_flow, motion_flow_loss
from ditflow_kernels.qk_norm_rope.api import qk_norm_rope

__all__ = ["motion_flow", "motion_flow_loss", "qk_norm_rope"]
