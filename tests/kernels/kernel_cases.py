"""Shared by the kernel tests: tokens that look like video features, and the error budget."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]
PRECISIONS = [torch.float32, torch.bfloat16, torch.float16]
EPSILON = {torch.float32: 2e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}


class Shape(NamedTuple):
    grid: tuple[int, int, int]
    heads: int
    head_dim: int


SHAPES = {
    "one_frame": Shape((1, 5, 7), 3, 16),
    "odd_cells": Shape((3, 7, 9), 5, 64),
    "one_head": Shape((2, 4, 6), 1, 128),
    "one_line": Shape((2, 1, 13), 2, 32),
    "one_column": Shape((4, 11, 1), 7, 24),
    "one_cell": Shape((3, 1, 1), 2, 16),
}


def video_tokens(shape: Shape, device: str = "cpu", seed: int = 0) -> tuple[Tensor, Tensor]:
    """Query and key [S, heads, head_dim] float64 of variance 1: a moving pattern plus noise.

    At a temperature of 2 some rows are flat and some are peaked; at 50 the likeliest cells still compete.
    """
    draw = torch.Generator().manual_seed(seed)
    frames, height, width = shape.grid
    channels = shape.heads, shape.head_dim
    pattern = torch.randn(height, width, *channels, generator=draw, dtype=torch.float64)
    moved = torch.stack([pattern.roll((frame, 2 * frame), dims=(0, 1)) for frame in range(frames)])
    noise = torch.randn(2, *moved.shape, generator=draw, dtype=torch.float64)
    query, key = (0.5 * moved + 0.75**0.5 * noise).flatten(1, 3).to(device)
    return query, key


def reference_flow(shape: Shape, device: str = "cpu", seed: int = 1) -> Tensor:
    """Integer displacements [frames, frames, cells, 2]: zero within a frame and in a third of the rest."""
    draw = torch.Generator().manual_seed(seed)
    frames, height, width = shape.grid
    flow = torch.randint(-3, 4, (frames, frames, height * width, 2), generator=draw).float()
    still = torch.rand(flow.shape[:-1], generator=draw) < 1 / 3
    still |= torch.eye(frames, dtype=torch.bool)[..., None]
    if frames == 1:
        still[..., ::2] = False
    return flow.masked_fill(still[..., None], 0).to(device)


def with_free_rows(reference: Tensor, seed: int = 2) -> Tensor:
    """The reference with NaN in a third of its rows: in x, in y or in both."""
    draw = torch.Generator().manual_seed(seed)
    kind = torch.randint(9, reference.shape[:-1], generator=draw).to(reference.device)
    free = torch.stack([kind < 2, (kind == 1) | (kind == 2)], dim=-1)
    return reference.masked_fill(free, torch.nan)


def reference_for(rows: str, shape: Shape, device: str = "cpu") -> Tensor:
    """A reference for the kind of rows; those that are given are ragged."""
    reference = reference_flow(shape, device)
    return with_free_rows(reference) if rows == "given" else reference


def assert_within_budget(
    actual: list[Tensor],
    plain: list[Tensor],
    exact: list[Tensor],
    precision: torch.dtype,
    sharpness: float = 1.0,
) -> None:
    """Assert that each tensor is finite and its error at most twice that of plain PyTorch, plus an epsilon.

    The epsilon is that of the precision, relative to the largest exact value, times `sharpness`: how strongly
    the softmax amplifies the rounding of its logits, which differs between processors.
    """
    for index, (ours, theirs, truth) in enumerate(zip(actual, plain, exact, strict=True)):
        assert ours.shape == truth.shape and ours.dtype == theirs.dtype
        assert ours.isfinite().all(), f"tensor {index} is not finite"
        error, plain_error = ((tensor.double() - truth).abs().max() for tensor in (ours, theirs))
        budget = 2 * plain_error + sharpness * EPSILON[precision] * truth.abs().max()
        assert error <= budget, f"tensor {index}: error {error:.2e}, budget {budget:.2e}"
