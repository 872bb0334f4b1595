"""Rounding to int8 with one scale for each row, in plain PyTorch."""

import torch
from torch import Tensor

# a scale of float32's smallest normal number; rows below it count as zero
SMALLEST = 127 * 2.0**-126


def round_rows(values: Tensor) -> tuple[Tensor, Tensor]:  # [rows, n] int8, [rows] float32
    """Nearest whole numbers of `values / scale`; scale is NaN for a row with a value that is not finite."""
    largest = torch.linalg.vector_norm(values, float("inf"), dim=1, keepdim=True, dtype=torch.float32)
    scale = torch.where(largest.isfinite(), largest * (1 / 127), torch.nan)
    scale = torch.where(largest < SMALLEST, 1.0, scale)
    return (values / scale).round_().nan_to_num_(0.0).to(torch.int8), scale[:, 0]
