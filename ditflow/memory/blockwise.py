"""The block-wise Runner: only what enters each block is kept; the reverse recomputes one block at a time."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ditflow.backbone.cogvideox import Stream
from ditflow.backbone.runner import Injected, Inputs, Loss, Until, Variable
from ditflow.memory.plain import PlainRunner, video_tokens

Tokens = tuple[Tensor, Tensor]  # video [1, S, channels] and text [1, T, channels], or their gradients


class BlockwiseRunner(PlainRunner):
    """Implements `ditflow.backbone.runner.Runner`: gradient checkpointing, one block's weights at a time.

    Equal to plain autograd, but for the order of sums where the feed-forward's reverse goes in chunks.
    """

    def gradient(
        self, loss: Loss, wrt: Variable, inputs: Inputs, injected: Injected, until: Until, scale: float
    ) -> tuple[Tensor, Tensor]:
        start, entering = self._descend(inputs, injected, until)
        wants_rope = wrt == "embedding" and start.rope is not None
        if wants_rope:
            start = replace(start, rope=start.rope.detach().requires_grad_())
        reverse = _Reverse(self, loss, injected, until, scale / len(until.blocks), start)
        leaving = entering.pop() if until.what == "output" else None
        for index in self.weights.walk(reversed(range(until.deepest + 1))):
            if leaving is not None:
                reverse.add_loss_on_output(index, leaving)
            leaving = entering.pop()
            reverse.block(index, leaving)
        gradient = (
            reverse.rope_gradient if wants_rope else self._reverse_embed(wrt, inputs, reverse.gradient[0])
        )
        return torch.stack(reverse.losses).mean(), gradient

    @torch.no_grad()
    def _descend(self, inputs: Inputs, injected: Injected, until: Until) -> tuple[Stream, list[Tokens]]:
        """The embedded inputs, and what enters each block; for `output` also what leaves the deepest."""
        start = stream = self.backbone.embed(inputs)
        entering = [(stream.video, stream.text)]
        for index in self.weights.walk(range(until.deepest + (until.what == "output"))):
            stream = self.backbone.finish(index, stream, self.attention(index, stream, injected))
            entering.append((stream.video, stream.text))
        return start, entering

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
        weight: float,  # of each block's loss in the gradient
        start: Stream,
    ):
        self.runner, self.loss, self.injected, self.until = runner, loss, injected, until
        self.weight, self.start = weight, start
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

    def block(self, index: int, entering: Tokens) -> None:
        """From the gradient of what leaves a block to that of what enters it."""
        video, text = (tokens.detach().requires_grad_() for tokens in entering)
        stream = replace(self.start, video=video, text=text)
        leaves = [video, text]
        if stream.rope is not None and stream.rope.requires_grad:
            leaves.append(stream.rope)
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
                middle = backbone.add_attention(index, stream, attention, backbone.attention(attention))
                outputs += [middle.video, middle.text]
                gradients += backbone.feed_forward_reverse(index, middle, self.gradient)
            found = torch.autograd.grad(outputs, leaves, gradients)
        self.gradient = found[0], found[1]
        if len(found) > 2:
            self.rope_gradient = found[2] if self.rope_gradient is None else self.rope_gradient.add_(found[2])
