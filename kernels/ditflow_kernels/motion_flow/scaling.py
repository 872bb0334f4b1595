"""The last step to a gradient: the one factor that its passes left out."""

import torch
from torch import Tensor


def scale_into(scaled: Tensor, unscaled: Tensor, factor: Tensor) -> Tensor:
    """`unscaled * factor` for a factor of no dimension, in float32, rounded once to `scaled`."""
    # a factor of no dimension would be rounded to the dtype of the other first
    return torch.mul(unscaled, factor.view([1] * unscaled.ndim), out=scaled)
