"""The block-wise Runner: only what enters each block is kept; the reverse recomputes one block at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ditflow.memory.block_inputs import Boundaries, DeviceBoundaries, HostBoundaries, Tokens
from ditflow.memory.kept_attention import Attend, KeptAttention
from ditflow.memory.plain import PlainRunner, video_tokens
from ditflow.memory.weights import Weights
from ditflow.models.cogvideox.transformer import CogVideoX, Stream
from ditflow.models.protocols import Injected, Inputs, Loss, Until, Variable


class BlockwiseRunner(PlainRunner):
    """Implements `ditflow.models.protocols.Runner`: gradient checkpointing, one block's weights at a time.

    `keep`: what the way down leaves for the way back, each block's `inputs` alone or also its `attention`,
    which is then computed once. `boundaries`: where those inputs wait, on the device or in host memory.

    Equal to plain autograd, but for the order of sums where the feed-forward's reverse goes in chunks.
    """

    def __init__(
        self,
        backbone: CogVideoX,
        weights: Weights | None = None,
        *,
        keep: Literal["inputs", "attention"] = "inputs",
        boundaries: Literal["device", "host"] = "device",
    ):
        super().__init__(backbone, weights)
        self.keep = keep
        self.boundaries: Boundaries = (
            HostBoundaries(backbone.device) if boundaries == "host" else DeviceBoundaries()
        )

    @property
    def copied_bytes(self) -> int:
        return super().copied_bytes + self.boundaries.copied_bytes

    @property
    def host_bytes(self) -> int:
        return super().host_bytes + self.boundaries.host_bytes

    def gradient(
        self,
        loss: Loss,
        wrt: Variable,
        inputs: Inputs,
        injected: Injected,
        until: Until,
        scale: Tensor | float,
    ) -> tuple[Tensor, Tensor]:
        time, rope, attends = self._descend(inputs, injected, until)
        wants_rope = wrt == "embedding" and rope is not None
        if wants_rope:
            rope = rope.detach().requires_grad_()
        reverse = _Reverse(self, loss, injected, until, scale / len(until.blocks), time, rope)
        leaving = self.boundaries.pop() if until.what == "output" else None
        for index in self.walk(reversed(range(until.deepest + 1))):
            if leaving is not None:
                reverse.add_loss_on_output(index, leaving)
            leaving = self.boundaries.pop()
            reverse.block(index, leaving, attends.pop(index, self.backbone.attention))
        gradient = (
            reverse.rope_gradient if wants_rope else self._reverse_embed(wrt, inputs, reverse.gradient[0])
        )
        return torch.stack(reverse.losses).mean(), gradient

    @torch.no_grad()
    def _descend(
        self, inputs: Inputs, injected: Injected, until: Until
    ) -> tuple[Tensor, Tensor | None, dict[int, Attend]]:
        """Leave behind what enters each block, and for `output` what leaves the deepest.

        Returns what all blocks share, time and rope, and by block the attention that need not be recomputed.
        """
        stream, attends = self.backbone.embed(inputs), {}
        blocks = range(until.deepest + (until.what == "output"))
        self.boundaries.begin(len(blocks) + 1, (stream.video, stream.text))
        self.boundaries.push((stream.video, stream.text))
        for index in self.walk(blocks):
            attention, attend = self.attention(index, stream, injected), self.backbone.attention
            if self.keep == "attention":
                kept = KeptAttention(attend)
                attend, attends[index] = kept.down, kept.back
            stream = self.backbone.add_attention(index, stream, attention, attend(attention))
            del attention  # as large as all else together
            stream = self.backbone.feed_forward(index, stream)
            self.boundaries.push((stream.video, stream.text))
        return stream.time, stream.rope, attends

    def _reverse_embed(self, wrt: Variable, inputs: Inputs, gradient: Tensor) -> Tensor:
        with torch.enable_grad():
            variable = getattr(inputs, wrt).detach().requires_grad_()
            video = self.backbone.embed(replace(inputs, **{wrt: variable})).video
            return torch.autograd.grad(video, variable, gradient)[0]


class _Reverse:
    """The way back: the gradient of what enters the block at hand, and what has been gathered on the way."""

    def __init__(
        self,
        runner: BlockwiseRunner,
        loss: Loss,
        injected: Injected,
        until: Until,
        weight: Tensor | float,  # of each block's loss in the gradient
        time: Tensor,
        rope: Tensor | None,  # a leaf where its gradient is wanted
    ):
        self.runner, self.loss, self.injected, self.until = runner, loss, injected, until
        self.weight, self.time, self.rope = weight, time, rope
        self.losses: list[Tensor] = []
        self.gradient: Tokens | None = None
        self.rope_gradient: Tensor | None = None  # float32, summed over blocks

    def add_loss_on_output(self, index: int, leaving: Tokens) -> None:
        """Add the gradient of a loss on what leaves a block, where there is one."""
        if self.until.what != "output" or index not in self.until.blocks:
            return
        with torch.enable_grad():
            video = leaving[0].detach().requires_grad_()
            value = self.loss(index, video[0])
            (found,) = torch.autograd.grad(value * self.weight, video)
        self.losses.append(value.detach())
        if self.gradient is None:
            self.gradient = found, torch.zeros_like(leaving[1])
        else:
            self.gradient[0].add_(found)

    def block(self, index: int, entering: Tokens, attend: Attend) -> None:
        """From the gradient of what leaves a block to that of what enters it."""
        video, text = (tokens.detach().requires_grad_() for tokens in entering)
        stream = Stream(video, text, self.time, self.rope)
        leaves = [video, text]
        if self.rope is not None and self.rope.requires_grad:
            leaves.append(self.rope)
        with torch.enable_grad():
            attention = self.runner.attention(index, stream, self.injected)
            outputs, gradients = [], []
            if self.until.what == "query_key" and index in self.until.blocks:
                value = self.loss(index, video_tokens(attention, "query_key", text.shape[1]))
                self.losses.append(value.detach())
                outputs.append(value * self.weight)
                gradients.append(None)
            if self.gradient is not None:
                backbone = self.runner.backbone
                middle = backbone.add_attention(index, stream, attention, attend(attention))
                outputs += [middle.video, middle.text]
                gradients += backbone.feed_forward_reverse(index, middle, self.gradient)
                self.gradient = None
            found = torch.autograd.grad(outputs, leaves, gradients)
        self.gradient = found[0], found[1]
        if len(found) > 2:
            self.rope_gradient = found[2] if self.rope_gradient is None else self.rope_gradient.add_(found[2])
