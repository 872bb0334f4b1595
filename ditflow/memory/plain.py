"""The plain Runner: all weights on one device, every activation of a guided forward kept for its reverse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ditflow.backbone.cogvideox import AttentionInputs, CogVideoX, inject
from ditflow.backbone.runner import Injected, Inputs, KeyValue, Loss, QueryKey, Until, Variable


class PlainRunner:
    """Implements `ditflow.backbone.runner.Runner`."""

    def __init__(self, backbone: CogVideoX):
        self.backbone = backbone

    @torch.no_grad()
    def forward(self, inputs: Inputs, injected: Injected) -> Tensor:
        backbone = self.backbone
        stream = backbone.embed(inputs)
        for index in range(len(backbone.blocks)):
            stream = backbone.finish(index, stream, self._attention(index, stream, injected))
        return backbone.head(stream, backbone.grid(inputs.latents))

    @torch.no_grad()
    def features(self, inputs: Inputs, injected: Injected, until: Until) -> dict[int, Any]:
        return self._read(inputs, injected, until)

    def gradient(
        self, loss: Loss, wrt: Variable, inputs: Inputs, injected: Injected, until: Until, scale: float
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            variable = getattr(inputs, wrt).detach().requires_grad_()
            features = self._read(replace(inputs, **{wrt: variable}), injected, until)
            value = torch.stack([loss(block, read) for block, read in features.items()]).mean()
            (gradient,) = torch.autograd.grad(value * scale, variable)
        return value.detach(), gradient

    def _read(self, inputs: Inputs, injected: Injected, until: Until) -> dict[int, Any]:
        backbone, features = self.backbone, {}
        stream = backbone.embed(inputs)
        text_length = stream.text.shape[1]
        for index in range(until.deepest + 1):
            attention = self._attention(index, stream, injected)
            if index in until.blocks and until.what != "output":
                features[index] = _tokens(attention, until.what, text_length)
                if index == until.deepest:
                    break
            stream = backbone.finish(index, stream, attention)
            if index in until.blocks and until.what == "output":
                features[index] = rearrange(stream.video, "1 s c -> s c")
        return features

    def _attention(self, index: int, stream, injected: Injected) -> AttentionInputs:
        attention = self.backbone.prepare(index, stream)
        return inject(attention, injected[index], stream.text.shape[1]) if index in injected else attention


def _tokens(attention: AttentionInputs, what: str, text_length: int) -> QueryKey | KeyValue:
    if what == "query_key":
        return QueryKey(attention.query[0, text_length:], attention.key[0, text_length:])
    return KeyValue(attention.key[:, text_length:], attention.value[:, text_length:])
