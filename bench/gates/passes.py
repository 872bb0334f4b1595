"""The operations of `ditflow_kernels` at the models' sizes, by their Triton passes, forward and backward."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gates.gate import Gate, Metrics
from bench.gates.saved import SavedBytes
from bench.harness import CPU
from bench.passes import SIZES, TEMPERATURE, Size, linear_inputs, prepared_inputs, video_inputs
from ditflow.memory.fake_tensors import fake_tensors
from ditflow.memory.tracker import Tracker
from ditflow_kernels import int8_linear, motion_flow, motion_flow_loss, qk_norm_rope
from ditflow_kernels.backends import as_on

NAMES = {
    "5b-24": "5B, 24 frames",
    "5b-49": "5B, 49 frames",
    "2b-24": "2B, 24 frames",
    "wan-1.3b-49": "Wan 1.3B, 49 frames",
}


def gates() -> dict[str, Gate]:
    sizes = {size.name: size for size in SIZES}
    return {f"passes/{short}": partial(measure, short, sizes[name]) for short, name in NAMES.items()}


def measure(short: str, size: Size) -> dict[str, Metrics]:
    with fake_tensors(), as_on("cuda"):
        query, key, reference, grid = video_inputs(size, CPU, 0)
        flow = partial(motion_flow, query, key, grid, TEMPERATURE)
        loss = partial(motion_flow_loss, query, key, reference, grid, TEMPERATURE)
        tokens, others, (norm, _, rope, text), _ = prepared_inputs(size, CPU, 0)
        constants = [part for part in (*norm[:2], rope) if part is not None]
        prepare = partial(qk_norm_rope, tokens, others, norm, norm, rope, text)
        layer = linear_inputs(size, CPU, 0)
        linear = partial(int8_linear, *layer, activation="gelu_tanh")
        found = {
            "motion_flow": metrics(flow, [query, key]),
            "motion_flow-hard": metrics(partial(flow, hard=True), [query, key]),
            "motion_flow_loss": metrics(loss, [query, key, reference]),
            "qk_norm_rope": metrics(prepare, [tokens, others, *constants]),
            "int8_linear": metrics(linear, layer),
        }
    return {f"passes/{short}/{name}": row for name, row in found.items()}


def metrics(forward: Callable[[], Any], given: Sequence[Tensor]) -> Metrics:
    """Of the forward, and of the gradients of those inputs that want them."""
    with SavedBytes(given) as saved, Tracker(given) as found:
        results = forward()
        results = [results] if isinstance(results, Tensor) else results
        if results[0].requires_grad:
            wanted = [tensor for tensor in given if tensor.requires_grad]
            torch.autograd.grad(results, wanted, [torch.empty_like(result) for result in results])
    return {"flops": found.flops, "peak_bytes": found.peak_bytes, "saved_bytes": saved.peak_bytes}
