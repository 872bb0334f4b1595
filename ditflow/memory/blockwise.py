"""The block-wise Runner: keeps each block's inputs and recomputes one block at a time in backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ditflow.memory.block_inputs import BlockInputs, DeviceBlockInputs, HostBlockInputs
from ditflow.memory.kept_attention import KeptAttention
from ditflow.memory.plain import PlainRunner
from ditflow.models.protocols import (
    AttentionInputs,
    Capture,
    Carried,
    Injected,
    Inputs,
    Loss,
    Shared,
    Transformer,
    Variable,
    Weights,
)

Attend = Callable[[AttentionInputs], Tensor]  # -> [1, tokens, heads, head_dim]


class BlockwiseRunner(PlainRunner):
    """Implements `ditflow.models.protocols.Runner` with gradient checkpointing, one block at a time.

    `keep`: what the forward saves for backward: only each block's `inputs`, or also the result of its
    `attention`, which is then computed only once. `block_inputs`: where the inputs are kept.

    Its gradients equal those of plain autograd, except for the order of sums in the feed-forward's backward.
    """

    def __init__(
        self,
        transformer: Transformer,
        weights: Weights | None = None,
        *,
        keep: Literal["inputs", "attention"] = "inputs",
        block_inputs: Literal["device", "host"] = "device",
    ):
        super().__init__(transformer, weights)
        self.keep = keep
        self.block_inputs: BlockInputs = (
            HostBlockInputs(transformer.device) if block_inputs == "host" else DeviceBlockInputs()
        )

    @property
    def copied_bytes(self) -> int:
        return super().copied_bytes + self.block_inputs.copied_bytes

    @property
    def host_bytes(self) -> int:
        return super().host_bytes + self.block_inputs.host_bytes

    def gradient(
        self,
        loss: Loss,
        wrt: Variable,
        inputs: Inputs,
        injected: Injected,
        capture: Capture,
        scale: Tensor | float,
    ) -> tuple[Tensor, Tensor]:
        shared, attends = self._forward(inputs, injected, capture)
        wants_rope = wrt == "embedding" and shared.rope is not None
        if wants_rope:
            shared = replace(shared, rope=shared.rope.detach().requires_grad_())
        backward = _Backward(self, loss, injected, capture, scale / len(capture.blocks), shared)
        leaving = self.block_inputs.pop() if capture.what == "output" else None
        for index in self.walk(reversed(range(capture.deepest + 1))):
            if leaving is not None:
                backward.add_loss_on_output(index, leaving)
            leaving = self.block_inputs.pop()
            backward.block(index, leaving, attends.pop(index, self.transformer.attend))
        gradient = (
            backward.rope_gradient if wants_rope else self._embed_backward(wrt, inputs, backward.gradient[0])
        )
        return torch.stack(backward.losses).mean(), gradient

    @torch.no_grad()
    def _forward(
        self, inputs: Inputs, injected: Injected, capture: Capture
    ) -> tuple[Shared, dict[int, Attend]]:
        """Run the forward and push each block's inputs; for `output` also the deepest block's output.

        Returns what all blocks share, and for each block the attention that need not be recomputed.
        """
        transformer, attends = self.transformer, {}
        carried, shared = transformer.embed(inputs)
        blocks = range(capture.deepest + (capture.what == "output"))
        self.block_inputs.begin(len(blocks) + 1, carried)
        self.block_inputs.push(carried)
        for index in self.walk(blocks):
            attention, attend = self.attention(index, carried, shared, injected), transformer.attend
            if self.keep == "attention":
                kept = KeptAttention(attend)
                attend, attends[index] = kept.forward, kept.recompute
            carried = transformer.add_attention(index, carried, shared, attention, attend(attention))
            del attention  # query, key and value are as large as everything else together
            carried = transformer.feed_forward(index, carried, shared)
            self.block_inputs.push(carried)
        return shared, attends

    def _embed_backward(self, wrt: Variable, inputs: Inputs, gradient: Tensor) -> Tensor:
        with torch.enable_grad():
            variable = getattr(inputs, wrt).detach().requires_grad_()
            carried, _ = self.transformer.embed(replace(inputs, **{wrt: variable}))
            return torch.autograd.grad(carried[0], variable, gradient)[0]


class _Backward:
    """One backward: the gradient of the current block's inputs, and the losses collected so far."""

    def __init__(
        self,
        runner: BlockwiseRunner,
        loss: Loss,
        injected: Injected,
        capture: Capture,
        weight: Tensor | float,  # of each block's loss in the gradient
        shared: Shared,  # its rope is a leaf if the rope's gradient is wanted
    ):
        self.runner, self.loss, self.injected, self.capture = runner, loss, injected, capture
        self.weight, self.shared = weight, shared
        self.losses: list[Tensor] = []
        self.gradient: Carried | None = None
        self.rope_gradient: Tensor | None = None  # float32, summed over blocks

    def add_loss_on_output(self, index: int, leaving: Carried) -> None:
        """Add the gradient of the loss on a block's output, if it is captured."""
        if self.capture.what != "output" or index not in self.capture.blocks:
            return
        with torch.enable_grad():
            video = leaving[0].detach().requires_grad_()
            value = self.loss(index, video[0])
            (found,) = torch.autograd.grad(value * self.weight, video)
        self.losses.append(value.detach())
        if self.gradient is None:
            self.gradient = found, *map(torch.zeros_like, leaving[1:])
        else:
            self.gradient[0].add_(found)

    def block(self, index: int, entering: Carried, attend: Attend) -> None:
        """Turn the gradient of a block's output into that of its inputs."""
        transformer, shared = self.runner.transformer, self.shared
        carried = tuple(part.detach().requires_grad_() for part in entering)
        leaves = list(carried)
        if shared.rope is not None and shared.rope.requires_grad:
            leaves.append(shared.rope)
        with torch.enable_grad():
            attention = self.runner.attention(index, carried, shared, self.injected)
            outputs, gradients = [], []
            if self.capture.what == "query_key" and index in self.capture.blocks:
                value = self.loss(index, attention.query_key)
                self.losses.append(value.detach())
                outputs.append(value * self.weight)
                gradients.append(None)
            if self.gradient is not None:
                middle = transformer.add_attention(index, carried, shared, attention, attend(attention))
                outputs += middle
                gradients += transformer.feed_forward_backward(index, middle, shared, self.gradient)
                self.gradient = None
            found = torch.autograd.grad(outputs, leaves, gradients)
        self.gradient = found[: len(carried)]
        if len(found) > len(carried):
            rope = found[-1]
            self.rope_gradient = rope if self.rope_gradient is None else self.rope_gradient.add_(rope)
