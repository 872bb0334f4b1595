"""Encodes prompts with T5."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import T5EncoderModel

from ditflow.models.protocols import Weights
from ditflow.models.t5.encoder import streamed


class T5TextEncoder:
    """Implements `TextEncoder`."""

    def __init__(self, network: T5EncoderModel):
        self.network = network.requires_grad_(False).eval()
        self.layers: nn.ModuleList = network.encoder.block

    @torch.no_grad()
    def encode(self, tokens: Tensor, weights: Weights | None = None) -> Tensor:
        """Embed each prompt. Its embedding does not depend on the rest of the batch, except for rounding."""
        tokens = tokens.to(self.network.device)
        if weights is None:
            return self.network(tokens)[0]
        with streamed(self.layers, weights):
            return self.network(tokens)[0]
