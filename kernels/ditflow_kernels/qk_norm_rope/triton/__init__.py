"""Query and key preparation in Triton: queries and keys in one launch, forward and backward."""

from ditflow_kernels.qk_norm_rope.triton.backward import qk_norm_rope_backward
from ditflow_kernels.qk_norm_rope.triton.forward import qk_norm_rope_forward

__all__ = ["qk_norm_rope_backward", "qk_norm_rope_forward"]
