"""The plain Runner: a guided forward keeps every activation for backward."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ditflow.memory.resident import Resident
from ditflow.models.protocols import (
    AttentionInputs,
    Capture,
    Carried,
    FirstBlock,
    Injected,
    Inputs,
    Loss,
    Reduce,
    Shared,
    Transformer,
    Variable,
    Weights,
)
from ditflow.profiling import ranges

Stream = tuple[Carried, Shared]  # of one input, between blocks


class PlainRunner:
    """Implements `ditflow.models.protocols.Runner` with plain autograd, whose graphs hold the weights."""

    def __init__(self, transformer: Transformer, weights: Weights | None = None):
        self.transformer, self.weights = transformer, weights or Resident()

    @property
    def copied_bytes(self) -> int:
        """Bytes copied from the host to the device so far."""
        return self.weights.copied_bytes

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory for data that waits to be copied to the device."""
        return self.weights.host_bytes

    @torch.no_grad()
    def forward(self, batch: Sequence[Inputs], injected: Injected) -> list[Tensor]:
        streams = [self.transformer.embed(inputs) for inputs in batch]
        self.advance(streams, range(len(self.transformer.blocks)), injected)
        return self.heads(streams, batch[0].latents)

    @torch.no_grad()
    def forward_or_reuse(self, batch: Sequence[Inputs], first_block: FirstBlock) -> list[Tensor]:
        embed = self.transformer.embed
        for _ in self.walk([0]):  # a walk of its own, because a longer one would bring the next block too
            entering, shared = embed(batch[0])
            first = self.block(0, entering, shared, {})
            residual = first_block.reused(entering[0], first[0])
            streams = [(first, shared)]
            if residual is None:
                del entering
                for inputs in batch[1:]:
                    carried, shared = embed(inputs)
                    streams.append((self.block(0, carried, shared, {}), shared))
        if residual is not None:
            streams = [((first[0] + residual, *first[1:]), shared)]
            return self.heads(streams, batch[0].latents)
        leaving = first[0]
        del first
        self.advance(streams, range(1, len(self.transformer.blocks)), {})
        first_block.keep(streams[0][0][0] - leaving)
        return self.heads(streams, batch[0].latents)

    def advance(self, streams: list[Stream], order: Iterable[int], injected: Injected) -> None:
        """Take streams through these blocks, in place; all go through a block while its weights are there."""
        for index in self.walk(order):
            for _ in range(len(streams)):  # take from the front, compute, append to the end
                carried, shared = streams.pop(0)
                streams.append((self.block(index, carried, shared, injected), shared))

    def heads(self, streams: list[Stream], latents: Tensor) -> list[Tensor]:
        """The predictions of streams that have left the last block."""
        grid = self.transformer.grid(latents)
        return [self.transformer.head(carried, shared, grid) for carried, shared in streams]

    @torch.no_grad()
    def features(
        self, inputs: Inputs, injected: Injected, capture: Capture, reduce: Reduce | None = None
    ) -> dict[int, Any]:
        return self.read(inputs, injected, capture, reduce)

    def gradient(
        self,
        loss: Loss,
        wrt: Variable,
        inputs: Inputs,
        injected: Injected,
        capture: Capture,
        scale: Tensor | float,
    ) -> tuple[Tensor, Tensor]:
        if not all(map(self.weights.stays, range(capture.deepest + 1))):
            raise ValueError(
                f"a graph through block {capture.deepest} needs the weights of all blocks up to it resident"
            )
        with torch.enable_grad():
            variable = getattr(inputs, wrt).detach().requires_grad_()
            features = self.read(replace(inputs, **{wrt: variable}), injected, capture)
            value = torch.stack([loss(block, read) for block, read in features.items()]).mean()
            (gradient,) = torch.autograd.grad(value * scale, variable)
        return value.detach(), gradient

    def walk(self, order: Iterable[int]) -> Iterable[int]:
        """Yield the blocks in this order. A block's weights are on the device until the next is asked for."""
        return ranges.blocks(self.weights.walk(order))

    def attention(self, index: int, carried: Carried, shared: Shared, injected: Injected) -> AttentionInputs:
        """The inputs of a block's attention, with the clip's keys and values if the block is injected."""
        inputs = self.transformer.prepare(index, carried, shared)
        return inputs.with_video(injected[index]) if index in injected else inputs

    def block(self, index: int, carried: Carried, shared: Shared, injected: Injected) -> Carried:
        """One whole block."""
        return self.finish(index, carried, shared, self.attention(index, carried, shared, injected))

    def finish(self, index: int, carried: Carried, shared: Shared, inputs: AttentionInputs) -> Carried:
        """The rest of a block, starting with its attention."""
        transformer = self.transformer
        # runners that recompute a block in backward call `attend` themselves, also without gradient
        attend = transformer.attend if torch.is_grad_enabled() else transformer.attend_forward
        attended = attend(inputs)
        carried = transformer.add_attention(index, carried, shared, inputs, attended)
        del inputs, attended  # queries, keys and values are as large as everything else together
        return transformer.feed_forward(index, carried, shared)

    def read(
        self, inputs: Inputs, injected: Injected, capture: Capture, reduce: Reduce | None = None
    ) -> dict[int, Any]:
        """The captured features by block, or what `reduce` makes of them, with gradients if enabled."""
        features, what = {}, capture.what

        def keep(index: int, read: Any) -> None:
            if index in capture.blocks:
                features[index] = reduce(index, read) if reduce else read

        carried, shared = self.transformer.embed(inputs)
        for index in self.walk(range(capture.deepest + 1)):
            if index == capture.deepest and what == "key_value":
                keep(index, self.transformer.key_value(index, carried, shared))
                break
            attention = [self.attention(index, carried, shared, injected)]
            if what != "output":
                keep(index, getattr(attention[0], what))
                if index == capture.deepest:
                    break
            # `finish` gets the only reference, so that it can free queries, keys and values on the way
            carried = self.finish(index, carried, shared, attention.pop())
            if what == "output":
                keep(index, rearrange(carried[0], "1 s c -> s c"))
        return features
