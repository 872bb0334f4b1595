"""The plain Runner: every activation of a guided forward is kept for its reverse."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ditflow.memory.weights import Resident, Weights
from ditflow.models.cogvideox.transformer import AttentionInputs, CogVideoX, Stream, inject
from ditflow.models.protocols import Injected, Inputs, KeyValue, Loss, QueryKey, Until, Variable
from ditflow.profiling import ranges


class PlainRunner:
    """Implements `ditflow.models.protocols.Runner`. Its graphs hold the weights they have passed."""

    def __init__(self, backbone: CogVideoX, weights: Weights | None = None):
        self.backbone, self.weights = backbone, weights or Resident()

    @property
    def copied_bytes(self) -> int:
        """What went from the host to the device, so far."""
        return self.weights.copied_bytes

    @property
    def host_bytes(self) -> int:
        """Host memory in which something waits for the device."""
        return self.weights.host_bytes

    @torch.no_grad()
    def forward(self, several: Sequence[Inputs], injected: Injected) -> list[Tensor]:
        streams = [self.backbone.embed(inputs) for inputs in several]
        for index in self.walk(range(len(self.backbone.blocks))):
            for _ in several:  # each goes through the block and to the end of the queue
                stream = streams.pop(0)
                streams.append(self.backbone.finish(index, stream, self.attention(index, stream, injected)))
        grid = self.backbone.grid(several[0].latents)
        return [self.backbone.head(stream, grid) for stream in streams]

    @torch.no_grad()
    def features(self, inputs: Inputs, injected: Injected, until: Until) -> dict[int, Any]:
        return self.read(inputs, injected, until)

    def gradient(
        self,
        loss: Loss,
        wrt: Variable,
        inputs: Inputs,
        injected: Injected,
        until: Until,
        scale: Tensor | float,
    ) -> tuple[Tensor, Tensor]:
        if not all(map(self.weights.stays, range(until.deepest + 1))):
            raise ValueError(
                f"a graph through block {until.deepest} needs the weights of all before it to stay"
            )
        with torch.enable_grad():
            variable = getattr(inputs, wrt).detach().requires_grad_()
            features = self.read(replace(inputs, **{wrt: variable}), injected, until)
            value = torch.stack([loss(block, read) for block, read in features.items()]).mean()
            (gradient,) = torch.autograd.grad(value * scale, variable)
        return value.detach(), gradient

    def walk(self, order: Iterable[int]) -> Iterable[int]:
        """The blocks in this order; the weights of each are on the device until the next one is asked for."""
        return ranges.blocks(self.weights.walk(order))

    def attention(self, index: int, stream: Stream, injected: Injected) -> AttentionInputs:
        """A block's attention as it happens: with the clip's keys and values where they are injected."""
        attention = self.backbone.prepare(index, stream)
        return inject(attention, injected[index], stream.text.shape[1]) if index in injected else attention

    def read(self, inputs: Inputs, injected: Injected, until: Until) -> dict[int, Any]:
        """What is read in each block, with gradients where they are enabled."""
        features, stream = {}, self.backbone.embed(inputs)
        for index in self.walk(range(until.deepest + 1)):
            if index == until.deepest and until.what == "key_value":
                features[index] = self.backbone.key_value(index, stream)
                break
            attention = self.attention(index, stream, injected)
            if index in until.blocks and until.what != "output":
                features[index] = video_tokens(attention, until.what, stream.text.shape[1])
                if index == until.deepest:
                    break
            stream = self.backbone.finish(index, stream, attention)
            if index in until.blocks and until.what == "output":
                features[index] = rearrange(stream.video, "1 s c -> s c")
        return features


def video_tokens(attention: AttentionInputs, what: str, text_length: int) -> QueryKey | KeyValue:
    """What is read just before a block's attention."""
    if what == "query_key":
        return QueryKey(attention.query[0, text_length:], attention.key[0, text_length:])
    return KeyValue(attention.key[:, text_length:], attention.value[:, text_length:])
