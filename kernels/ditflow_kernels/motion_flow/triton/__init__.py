"""Motion flow in Triton: query-key products whose epilogues reduce the logits without storing them."""

from ditflow_kernels.motion_flow.triton.flow import flow_gradients, hard_flow, soft_flow
from ditflow_kernels.motion_flow.triton.loss import loss_and_gradients

__all__ = ["flow_gradients", "hard_flow", "loss_and_gradients", "soft_flow"]
