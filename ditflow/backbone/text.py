"""Prompts to T5 embeddings."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import T5EncoderModel, T5Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Texts:
    """The three texts of a run, encoded: each [1, text tokens, text channels]."""

    prompt: Tensor
    negative_prompt: Tensor
    source_prompt: Tensor


@torch.no_grad()
def encode_prompt(tokenizer: T5Tokenizer, encoder: T5EncoderModel, prompt: str, length: int) -> Tensor:
    """T5 embeddings [1, length, text channels], padded as the transformer was trained.

    A longer text is cut, with a warning that quotes what is lost.
    """
    tokens = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    whole = tokenizer(prompt, return_tensors="pt").input_ids
    if whole.shape[-1] > length:
        lost = tokenizer.decode(whole[0, length - 1 : -1])
        logger.warning("a prompt is longer than the model's %d tokens; left out: %r", length, lost)
    return encoder(tokens.input_ids.to(encoder.device))[0]
