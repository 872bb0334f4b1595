"""Attention Motion Flow as tensor operations: flow, loss with gradients, query and key preparation."""

# None of this imports torch: the functions import their backend when they are called. `motion_flow` and
# `qk_norm_rope` name folders too; binding them here makes the names mean the functions.
from ditflow_kernels.motion_flow.api import attention_with_motion_flow, motion_flow, motion_flow_loss
from ditflow_kernels.qk_norm_rope.api import qk_norm_rope

__all__ = ["attention_with_motion_flow", "motion_flow", "motion_flow_loss", "qk_norm_rope"]
