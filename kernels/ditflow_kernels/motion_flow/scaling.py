"""The last step of every gradient: multiply it by the one factor that its passes left out."""

import torch
from torch import Tensor

CPU_PIECES = 16


def scale_into(scaled: Tensor, unscaled: Tensor, factor: Tensor) -> Tensor:
    """Write `unscaled * factor` to `scaled`, multiplied in float32 and rounded once. `factor` is 0-d."""
    # torch would first round a 0-d factor to the dtype of the other operand
    factor = factor.view([1] * unscaled.ndim)
    # a CPU copies operands of mixed dtypes to float32: avoid copying all at once
    pieces = CPU_PIECES if unscaled.device.type == "cpu" else 1
    for target, part in zip(scaled.chunk(pieces), unscaled.chunk(pieces), strict=True):
        torch.mul(part, factor, out=target)
    return scaled
