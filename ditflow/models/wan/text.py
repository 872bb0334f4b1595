"""Encodes prompts with UMT5."""

from __future__ import annotations

import html
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from transformers import T5Tokenizer, UMT5EncoderModel

from ditflow.models.protocols import Weights
from ditflow.models.t5 import prompts
from ditflow.models.t5.encoder import streamed


class UMT5TextEncoder:
    """Implements `TextEncoder`. Takes the network apart: its token table stays on the host.

    A prompt looks up few of the table's rows, and it is a fifth of all weights.
    """

    def __init__(self, network: UMT5EncoderModel):
        network.requires_grad_(False).eval()
        self.table, self.padding = network.shared, network.config.pad_token_id or 0
        self.network = network.encoder
        self.network.set_input_embeddings(None)
        self.layers: nn.ModuleList = self.network.block

    @torch.no_grad()
    def encode(self, tokens: Tensor, weights: Weights | None = None) -> Tensor:
        """Embed each prompt. Padding is not attended to, and its embedding is zero, as in training."""
        device = self.network.final_layer_norm.weight.device
        kept = _up_to_the_end(tokens != self.padding).to(device)
        embedded = self.table(tokens.to(self.table.weight.device)).to(device)
        with streamed(self.layers, weights) if weights else nullcontext():
            found = self.network(inputs_embeds=embedded, attention_mask=kept[:, None, None])
        return found.last_hidden_state.masked_fill(~kept[..., None], 0)


def tokenise(tokenizer: T5Tokenizer, texts: Sequence[str], length: int) -> Tensor:
    """Token ids [prompts, length] of texts cleaned as for training; see `ditflow.models.t5.prompts`."""
    cleaned = [" ".join(html.unescape(html.unescape(text)).split()) for text in texts]
    return prompts.tokenise(tokenizer, cleaned, length)


def _up_to_the_end(is_token: Tensor) -> Tensor:
    """True up to the last True of each row [prompts, length]."""
    return is_token.flip(1).cummax(1).values.flip(1)
