"""The operations of `ditflow_kernels` at the models' sizes, by their Triton passes: forward and reverse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.gates.gate import Gate, Metrics
from bench.gates.saved import SavedBytes
from bench.passes import SIZES, TEMPERATURE, Size
from ditflow.memory.tracker import Tracker
from ditflow.planning.fake import fake_tensors
from ditflow_kernels import motion_flow, motion_flow_loss, qk_norm_rope
from ditflow_kernels.backends import as_on

NAMES = {"5b-24": "5B, 24 frames", "5b-49": "5B, 49 frames", "2b-24": "2B, 24 frames"}


class Call(NamedTuple):
    """A forward and the tensors that it is given."""

    forward: Callable[[], Any]
    given: Sequence[Tensor]


def gates() -> dict[str, Gate]:
    sizes = {size.name: size for size in SIZES}
    return {f"passes/{short}": partial(measure, short, sizes[name]) for short, name in NAMES.items()}


def measure(short: str, size: Size) -> dict[str, Metrics]:
    with fake_tensors(), as_on("cuda"):
        calls = flow_calls(size) | preparation_calls(size)
        return {f"passes/{short}/{name}": metrics(call) for name, call in calls.items()}


def flow_calls(size: Size) -> dict[str, Call]:
    frames, height, width = size.grid
    query, key = (wanting_gradients(size, size.video) for _ in range(2))
    reference = torch.empty(frames, frames, height * width, 2)
    flow = partial(motion_flow, query, key, size.grid, TEMPERATURE)
    loss = partial(motion_flow_loss, query, key, reference, size.grid, TEMPERATURE)
    return {
        "motion_flow": Call(flow, [query, key]),
        "motion_flow-hard": Call(partial(flow, hard=True), [query, key]),
        "motion_flow_loss": Call(loss, [query, key, reference]),
    }


def preparation_calls(size: Size) -> dict[str, Call]:
    query, key = (wanting_gradients(size, 1, size.text + size.video) for _ in range(2))
    weight, bias = (torch.empty(size.head_dim, dtype=size.dtype) for _ in range(2))
    norm = weight, bias, 1e-6
    rope = torch.empty(2, 2, size.video, size.head_dim) if size.rotary else None
    given = [query, key, weight, bias] + ([rope] if size.rotary else [])
    return {"qk_norm_rope": Call(partial(qk_norm_rope, query, key, norm, norm, rope, size.text), given)}


def wanting_gradients(size: Size, *shape: int) -> Tensor:
    return torch.empty(*shape, size.heads, size.head_dim, dtype=size.dtype, requires_grad=True)


def metrics(call: Call) -> Metrics:
    """Of the forward and the gradients of what wants any."""
    with SavedBytes(call.given) as saved, Tracker(call.given) as found:
        results = call.forward()
        results = [results] if isinstance(results, Tensor) else results
        if results[0].requires_grad:
            wanted = [tensor for tensor in call.given if tensor.requires_grad]
            torch.autograd.grad(results, wanted, [torch.empty_like(result) for result in results])
    return {"flops": found.flops, "peak_bytes": found.peak_bytes, "saved_bytes": saved.peak_bytes}
