"""Prompts to T5 embeddings."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from ditflow.errors import shown
from ditflow.models.protocols import Weights

logger = logging.getLogger(__name__)

LOST = 300  # characters of the cut text that a warning quotes


class T5TextEncoder:
    """Implements `TextEncoder`."""

    def __init__(self, network: T5EncoderModel):
        self.network = network.requires_grad_(False).eval()
        self.layers: nn.ModuleList = network.encoder.block

    @torch.no_grad()
    def encode(self, tokens: Tensor, weights: Weights | None = None) -> Tensor:
        """A prompt in a batch gives the same as alone, but for rounding."""
        tokens = tokens.to(self.network.device)
        if weights is None:
            return self.network(tokens)[0]
        with _streamed(self.layers, weights):
            return self.network(tokens)[0]


def tokenise(tokenizer: T5Tokenizer, prompts: Sequence[str], length: int) -> Tensor:
    """Token ids [prompts, length], padded as in the transformer's training.

    A longer text is cut, with a warning that quotes the lost part.
    """
    for prompt in prompts:
        whole = tokenizer(prompt).input_ids
        if len(whole) > length:
            lost = tokenizer.decode(whole[length - 1 : -1])
            logger.warning(
                "a prompt is longer than the model's %d tokens; left out: %s", length, shown(lost, LOST)
            )
    options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    return tokenizer(list(prompts), **options).input_ids


def empty_t5(config: Mapping[str, Any], dtype: torch.dtype) -> T5EncoderModel:
    """An encoder whose weights are unset, in the precisions in which transformers loads one."""
    encoder = T5EncoderModel(T5Config(**config))
    if dtype == torch.float16:
        for name, layer in encoder.named_modules():
            if name.endswith(".wo"):  # it overflows in float16, so transformers loads it in float32
                layer.weight = nn.Parameter(layer.weight.float())
    return encoder


@contextmanager
def _streamed(layers: nn.ModuleList, weights: Weights) -> Iterator[None]:
    """During one forward, each layer's weights arrive before it computes."""
    walk = weights.walk(range(len(layers)))

    def bring(*_: object) -> None:
        next(walk)

    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(bring))
        yield
    next(walk, None)  # ends the walk, as a loop would
