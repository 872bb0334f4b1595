"""Encodes prompts with T5."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from ditflow.errors import DitflowError, SettingsError, shown
from ditflow.models.protocols import Weights

logger = logging.getLogger(__name__)

QUOTED = 300  # characters of cut text that a warning shows


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
        with _streamed(self.layers, weights):
            return self.network(tokens)[0]


def tokenise(tokenizer: T5Tokenizer, prompts: Sequence[str], length: int) -> Tensor:
    """Token ids [prompts, length], padded as in the transformer's training.

    A prompt that is too long is cut, with a warning that shows the part left out. Unknown words are named in
    a warning. Raises SettingsError if a prompt has no other words, DitflowError if the tokenizer has no
    vocabulary.
    """
    # without its file, transformers makes a tokenizer of special tokens and a space
    if all(piece.startswith("<") or len(piece) == 1 for piece in tokenizer.get_vocab()):
        raise DitflowError(
            "tokenizer/ has no vocabulary (spiece.model or tokenizer.json): give a complete model"
        )
    for prompt in prompts:
        _check_known(tokenizer, prompt)
    for prompt in prompts:
        whole = tokenizer(prompt).input_ids
        if len(whole) > length:
            lost = tokenizer.decode(whole[length - 1 : -1])
            logger.warning(
                "a prompt is longer than the model's %d tokens; left out: %s", length, shown(lost, QUOTED)
            )
    options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    return tokenizer(list(prompts), **options).input_ids


def _check_known(tokenizer: T5Tokenizer, prompt: str) -> None:
    """All unknown text becomes the same token, so the model could not tell one such prompt from another."""
    found = tokenizer(prompt, return_offsets_mapping=True)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    read = [token for token in found.input_ids if token not in special]
    if prompt.strip() and not tokenizer.decode(read).strip():
        raise SettingsError(
            f"the model's text encoder reads nothing in the prompt {shown(prompt)}: write words in English"
        )
    spans = [(token, range(*span)) for token, span in zip(found.input_ids, found.offset_mapping, strict=True)]
    lost = {place for token, span in spans if token == tokenizer.unk_token_id for place in span}
    kept = {place for token, span in spans if token != tokenizer.unk_token_id for place in span} - lost
    words = [match for match in re.finditer(r"\S+", prompt) if lost.intersection(range(*match.span()))]
    if not words:
        return
    unknown = shown(" ".join(dict.fromkeys(match.group() for match in words)), QUOTED)
    if not any(prompt[place].isalnum() for place in kept):
        raise SettingsError(
            f"the model's text encoder knows none of the prompt's words, {unknown}: write it in English"
        )
    logger.warning("unknown to the model's text encoder, and left out: %s; use other words", unknown)


def empty_t5(config: Mapping[str, Any], dtype: torch.dtype) -> T5EncoderModel:
    """An encoder with uninitialised weights, in the precisions in which transformers loads them.

    Raises ValueError for a configuration with which it could not compute.
    """
    # as in loading, no attention implementation of the config's own: it could be downloaded and run
    known = {key: value for key, value in config.items() if "attn_implementation" not in key}
    found = T5Config(**known, attn_implementation="sdpa")
    least = found.relative_attention_num_buckets // 4 + 1  # a quarter of the buckets are for single distances
    if (most := found.relative_attention_max_distance) < least:
        raise ValueError(f"its relative_attention_max_distance is {most}, expected at least {least}")
    encoder = T5EncoderModel(found)
    if dtype == torch.float16:
        for name, layer in encoder.named_modules():
            if name.endswith(".wo"):  # transformers loads this layer in float32, as float16 overflows
                layer.weight = nn.Parameter(layer.weight.float())
    return encoder


@contextmanager
def _streamed(layers: nn.ModuleList, weights: Weights) -> Iterator[None]:
    """During one forward, bring each layer's weights to the device before it computes."""
    walk = weights.walk(range(len(layers)))

    def bring(*_: object) -> None:
        next(walk)

    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(bring))
        yield
    next(walk, None)  # end the walk, as a loop over it would
