"""The operations of `ditflow_kernels` at the models' sizes, by their Triton passes: forward and reverse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gates.gate import Gate, Metrics
from bench.gates.saved import work
from bench.passes import SIZES, TEMPERATURE, Size
from ditflow.backbone.fake import fake_tensors
from ditflow_kernels import motion_flow, motion_flow_loss, qk_norm_rope
from ditflow_kernels.backends import as_on

NAMES = {"5b-24": "5B, 24 frames", "5b-49": "5B, 49 frames", "2b-24": "2B, 24 frames"}


def gates() -> dict[str, Gate]:
    sizes = {size.name: size for size in SIZES}
    return {f"passes/{short}": partial(measure, short, sizes[name]) for short, name in NAMES.items()}


def measure(short: str, size: Size) -> dict[str, Metrics]:
    frames, height, width = size.grid
    length = size.text + size.video
    with fake_tensors(), as_on("cuda"):
        query, key = (
            torch.empty(size.video, size.heads, size.head_dim, dtype=size.dtype, requires_grad=True)
            for _ in range(2)
        )
        tokens = [
            torch.empty(1, length, size.heads, size.head_dim, dtype=size.dtype, requires_grad=True)
            for _ in range(2)
        ]
        norm = (
            torch.empty(size.head_dim, dtype=size.dtype),
            torch.empty(size.head_dim, dtype=size.dtype),
            1e-6,
        )
        rope = torch.empty(2, 2, size.video, size.head_dim) if size.rotary else None
        flow = torch.empty(frames, frames, height * width, 2)
        given = {
            "motion_flow": (lambda: motion_flow(query, key, size.grid, TEMPERATURE), [query, key]),
            "motion_flow-hard": (
                lambda: motion_flow(query, key, size.grid, TEMPERATURE, hard=True),
                [query, key],
            ),
            "motion_flow_loss": (
                lambda: motion_flow_loss(query, key, flow, size.grid, TEMPERATURE),
                [query, key, flow],
            ),
            "qk_norm_rope": (
                lambda: qk_norm_rope(*tokens, norm, norm, rope, size.text),
                [*tokens, *norm[:2], *([] if rope is None else [rope])],
            ),
        }
        return {f"passes/{short}/{name}": work(partial(both_ways, *of), of[1]) for name, of in given.items()}


def both_ways(forward: Callable[[], Any], inputs: Sequence[Tensor]) -> None:
    """Forward, and the gradients of what has any."""
    results = forward()
    results = [results] if isinstance(results, Tensor) else results
    if wanted := [tensor for tensor in inputs if tensor.requires_grad and results[0].requires_grad]:
        torch.autograd.grad(results, wanted, [torch.empty_like(result) for result in results])
