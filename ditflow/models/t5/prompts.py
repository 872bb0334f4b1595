"""Prompts to token ids, with a warning for what the encoder does not read."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from torch import Tensor
from transformers import T5Tokenizer

from ditflow.errors import DitflowError, SettingsError, shown

logger = logging.getLogger(__name__)

QUOTED = 300  # characters of cut text that a warning shows


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
