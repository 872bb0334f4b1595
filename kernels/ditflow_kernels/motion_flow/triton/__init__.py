"""Motion flow in Triton: products of queries and keys whose epilogue never writes the logits."""

from ditflow_kernels.motion_flow.triton.flow import flow_gradients, soft_flow
from ditflow_kernels.motion_flow.triton.hard_forward import hard_flow
from ditflow_kernels.motion_flow.triton.loss import loss_and_gradients

__all__ = ["flow_gradients", "hard_flow", "loss_and_gradients", "soft_flow"]
