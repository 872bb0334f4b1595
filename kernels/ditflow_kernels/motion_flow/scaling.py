"""The last step to a gradient: the one factor that its passes left out."""

import torch
from torch import Tensor


def scaled(unscaled: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """`unscaled * factor` for a factor of no dimension, multiplied in float32 and rounded once."""
    # a factor of no dimension would be rounded to the dtype of the other first
    factor = factor.view([1] * unscaled.ndim)
    return torch.mul(unscaled, factor, out=torch.empty_like(unscaled, dtype=dtype))
