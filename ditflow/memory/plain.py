"""The plain Runner: every activation of a guided forward is kept for its reverse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ditflow.backbone.cogvideox import AttentionInputs, CogVideoX, Stream, inject
from ditflow.backbone.runner import Injected, Inputs, KeyValue, Loss, QueryKey, Until, Variable
from ditflow.memory.weights import Resident, Weights


class PlainRunner:
    """Implements `ditflow.backbone.runner.Runner`. Its gradients need all weights resident."""

    def __init__(self, backbone: CogVideoX, weights: Weights | None = None):
        self.backbone, self.weights = backbone, weights or Resident()

    @torch.no_grad()
    def forward(self, inputs: Inputs, injected: Injected) -> Tensor:
        stream = self.backbone.embed(inputs)
        for index in self.weights.walk(range(len(self.backbone.blocks))):
            stream = self.backbone.finish(index, stream, self.attention(index, stream, injected))
        return self.backbone.head(stream, self.backbone.grid(inputs.latents))

    @torch.no_grad()
    def features(self, inputs: Inputs, injected: Injected, until: Until) -> dict[int, Any]:
        return self.read(inputs, injected, until)

    def gradient(
        self, loss: Loss, wrt: Variable, inputs: Inputs, injected: Injected, until: Until, scale: float
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            variable = getattr(inputs, wrt).detach().requires_grad_()
            features = self.read(replace(inputs, **{wrt: variable}), injected, until)
            value = torch.stack([loss(block, read) for block, read in features.items()]).mean()
            (gradient,) = torch.autograd.grad(value * scale, variable)
        return value.detach(), gradient

    def attention(self, index: int, stream: Stream, injected: Injected) -> AttentionInputs:
        """A block's attention as it happens: with the clip's keys and values where they are injected."""
        attention = self.backbone.prepare(index, stream)
        return inject(attention, injected[index], stream.text.shape[1]) if index in injected else attention

    def read(self, inputs: Inputs, injected: Injected, until: Until) -> dict[int, Any]:
        """What is read in each block, with gradients where they are enabled."""
        features, stream = {}, self.backbone.embed(inputs)
        for index in self.weights.walk(range(until.deepest + 1)):
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
