"""Prompts to T5 embeddings."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import T5EncoderModel, T5Tokenizer

from ditflow.settings.values import shown

if TYPE_CHECKING:
    from ditflow.memory.weights import Weights

logger = logging.getLogger(__name__)

LOST = 300  # characters of what is left out that a warning quotes


@dataclass(frozen=True)
class Texts:
    """The three texts of a run, encoded: each [1, text tokens, text channels]."""

    prompt: Tensor
    negative_prompt: Tensor
    source_prompt: Tensor


def tokenise(tokenizer: T5Tokenizer, prompts: Sequence[str], length: int) -> Tensor:
    """Token ids [prompts, length], padded as the transformer was trained.

    A longer text is cut, with a warning that quotes what is lost.
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


@torch.no_grad()
def encode_tokens(
    encoder: T5EncoderModel,
    tokens: Tensor,  # [prompts, length]
    weights: Weights | None = None,
) -> Tensor:
    """T5 embeddings [prompts, length, text channels]; a prompt alone gives the same, but for rounding.

    With `weights`, they bring the encoder's blocks; what is around these is on the device already.
    """
    tokens = tokens.to(encoder.device)
    if weights is None:
        return encoder(tokens)[0]
    with _brought(blocks(encoder), weights):
        return encoder(tokens)[0]


def blocks(encoder: T5EncoderModel) -> nn.ModuleList:
    """The encoder's layers: all of its weights but the token table and the last norm."""
    return encoder.encoder.block


@contextmanager
def _brought(blocks: nn.ModuleList, weights: Weights) -> Iterator[None]:
    """While one forward of their model runs, each block's weights are brought before it computes."""
    walk = weights.walk(range(len(blocks)))

    def bring(*_: object) -> None:
        next(walk)

    with ExitStack() as hooks:
        for block in blocks:
            hooks.enter_context(block.register_forward_pre_hook(bring))
        yield
    next(walk, None)  # so that the walk ends, as it does after a loop
