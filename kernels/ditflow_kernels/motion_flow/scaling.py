"""The last step to a gradient: the one factor that its passes left out."""

import torch
from torch import Tensor

PIECES = 16


def scale_into(scaled: Tensor, unscaled: Tensor, factor: Tensor) -> Tensor:
    """`unscaled * factor` for a factor of no dimension, in float32, rounded once to `scaled`."""
    # a factor of no dimension would be rounded to the dtype of the other first
    factor = factor.view([1] * unscaled.ndim)
    # a CPU makes float32 copies of what it mixes: not of all at once
    pieces = PIECES if unscaled.device.type == "cpu" else 1
    for into, part in zip(scaled.chunk(pieces), unscaled.chunk(pieces), strict=True):
        torch.mul(part, factor, out=into)
    return scaled
