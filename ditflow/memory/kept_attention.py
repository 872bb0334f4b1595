"""Saves the results of a block's attention in the forward, so that recomputation need not repeat it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from ditflow.models.protocols import AttentionInputs

aten = torch.ops.aten
KERNELS = {  # these return everything that their backward needs, besides their output
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
}


class KeptAttention:
    """One block's attention: computed in `forward`, and used again in `recompute` during backward.

    Only the results of PyTorch's own kernels are kept. Other kernels are run again: correct, but slower.
    """

    def __init__(self, attend: Callable[[AttentionInputs], Tensor]):
        self.attend = attend
        self.results: dict[Any, Any] = {}  # by operator

    def forward(self, inputs: AttentionInputs) -> Tensor:
        """The attention, without gradient."""
        # some kernels return the logsumexp only if an input requires a gradient
        leaves = {name: getattr(inputs, name).detach().requires_grad_() for name in ("query", "key", "value")}
        with torch.enable_grad(), _Keep(self.results):
            return self.attend(replace(inputs, **leaves)).detach()

    def recompute(self, inputs: AttentionInputs) -> Tensor:
        """The attention of the same inputs again, with gradients if they are enabled."""
        with _Reuse(self.results):
            return self.attend(inputs)


class _Keep(TorchDispatchMode):
    def __init__(self, results: dict[Any, Any]):
        super().__init__()
        self.results = results

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if operation in KERNELS:
            # aliases, because autograd will connect the results themselves to the inputs
            self.results[operation] = tree_map_only(Tensor, Tensor.detach, result)
        return result


class _Reuse(_Keep):
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation in self.results:
            return self.results.pop(operation)
        return operation(*args, **(kwargs or {}))
