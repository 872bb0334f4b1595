"""Graph breaks that torch.compile finds in what it is given, and in the whole forward to the loss."""

from collections.abc import Callable
from typing import Any

import torch

from bench.gates.gate import MODELS, Gate, Metrics
from bench.subjects import compiled_functions


def gates() -> dict[str, Gate]:
    return {"graphs": measure}


def measure() -> dict[str, Metrics]:
    found = {}
    for model in MODELS:
        for name, (call, given) in compiled_functions(model).items():
            torch._dynamo.reset()
            found[f"graphs/{model}/{name}"] = {"graph_breaks": breaks(call, *given)}
    return found


def breaks(call: Callable, *given: Any) -> int:
    return torch._dynamo.explain(call)(*given).graph_break_count
