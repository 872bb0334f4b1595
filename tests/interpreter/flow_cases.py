"""Shared by the tests of motion flow: tokens, references, the error budget, tiles for tiny shapes."""

import sys
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ditflow_kernels.motion_flow import triton as passes
from ditflow_kernels.tuning import OLDEST, TUNING, ElementwiseTuning, ProductTuning

OPERANDS = sys.modules[passes.__name__ + ".tiled_operands"]
EPSILON = {torch.float32: 2e-6, torch.float16: 2**-11}


class Shape(NamedTuple):
    grid: tuple[int, int, int]
    heads: int
    head_dim: int
    tile: tuple[int, int, int] = (32, 32, 32)  # queries, keys, channels


SHAPES = {
    "odd_cells": Shape((3, 5, 7), 3, 24),
    "one_frame": Shape((1, 5, 9), 2, 16),
    "five_frames": Shape((5, 3, 4), 1, 128),
    "wide_keys": Shape((4, 3, 5), 2, 64, (16, 64, 64)),
    "tall_queries": Shape((2, 7, 6), 5, 16, (64, 16, 16)),
    "whole_tiles": Shape((2, 4, 8), 2, 32),
    "many_frames_a_tile": Shape((5, 2, 3), 3, 16),
    "one_line": Shape((2, 1, 19), 2, 32, (16, 16, 64)),
    "one_column": Shape((2, 19, 1), 3, 32, (16, 16, 64)),
    "one_cell": Shape((3, 1, 1), 2, 16),
    "one_token": Shape((1, 1, 1), 1, 16),
    "wan_12_heads": Shape((2, 2, 3), 12, 128, (16, 16, 128)),
    "wan_24_heads": Shape((2, 1, 3), 24, 128, (16, 16, 128)),
    "wan_40_heads": Shape((2, 1, 2), 40, 128, (16, 16, 128)),
}


def use_tiles(monkeypatch, shape: Shape) -> None:
    """Launch with the shape's tiles; those of the tuning table would cover a tiny shape with one tile."""
    tiles = ProductTuning(*shape.tile, group_m=2, num_warps=4, num_stages=1)
    elementwise = ElementwiseTuning(block_m=16, num_warps=4)
    tuning = replace(
        TUNING[OLDEST], motion_flow=tiles, motion_flow_float32=tiles, motion_flow_grad_logits=elementwise
    )
    monkeypatch.setattr(OPERANDS, "tuning_for", lambda device: tuning)


def poison(monkeypatch) -> None:
    """Fill new tensors with NaN, so that elements which a kernel does not write are noticed."""

    def poisoned(make):
        def made(*arguments, **options):
            result = make(*arguments, **options)
            return result.fill_(float("nan") if result.is_floating_point() else -7)

        return made

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))


def video_tokens(shape: Shape, precision: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Query and key [S, heads, head_dim] of variance 1: a moving pattern plus noise."""
    frames, height, width = shape.grid
    pattern = torch.randn(height, width, shape.heads, shape.head_dim)
    moved = torch.stack([pattern.roll((frame, 2 * frame), dims=(0, 1)) for frame in range(frames)])
    query, key = (0.5 * moved + 0.75**0.5 * torch.randn(2, *moved.shape)).flatten(1, 3)
    return query.to(precision), key.to(precision)


def reference_flow(shape: Shape) -> Tensor:
    """Integer displacements [frames, frames, cells, 2]: zero within a frame and in a third of the rest."""
    frames, height, width = shape.grid
    flow = torch.randint(-3, 4, (frames, frames, height * width, 2)).float()
    still = torch.rand(flow.shape[:-1]) < 1 / 3
    if frames > 1:
        still |= torch.eye(frames, dtype=torch.bool)[..., None]
    return flow.masked_fill(still[..., None], 0)


def with_free_rows(reference: Tensor) -> Tensor:
    """The reference with NaN in a third of its rows: in x, in y or in both."""
    kind = torch.randint(9, reference.shape[:-1], generator=torch.Generator().manual_seed(2))
    free = torch.stack([kind < 2, (kind == 1) | (kind == 2)], dim=-1)
    return reference.masked_fill(free, torch.nan)


def reference_for(rows: str, shape: Shape) -> Tensor:
    """A reference for the kind of rows; those that are given are ragged."""
    reference = reference_flow(shape)
    return with_free_rows(reference) if rows == "given" else reference


def assert_within_budget(actual, plain, exact, precision) -> None:
    """Assert finite tensors, errors at most twice plain PyTorch's plus an epsilon of the largest value."""
    for index, (ours, theirs, truth) in enumerate(zip(actual, plain, exact, strict=True)):
        assert ours.shape == truth.shape and ours.dtype == theirs.dtype
        assert ours.isfinite().all(), f"tensor {index} is not finite"
        error, plain_error = ((tensor.double() - truth).abs().max() for tensor in (ours, theirs))
        budget = 2 * plain_error + EPSILON[precision] * truth.abs().max()
        assert error <= budget, f"tensor {index}: error {error:.2e}, budget {budget:.2e}"
