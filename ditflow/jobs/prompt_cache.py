"""Caches encoded prompts, one file each, so that later runs need not load the text encoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ditflow.files import cache_folder
from ditflow.jobs.encoded_file import read_encoded, write_encoded
from ditflow.models.loading import ModelFolder
from ditflow.models.protocols import Texts
from ditflow.run_folder.digests import file_digests

PARTS = ("text_encoder", "tokenizer")


def encode_texts(
    folder: ModelFolder,
    tokens: Tensor,  # [3, length] of the prompt, the negative prompt and the source prompt
    encode: Callable[[Tensor], Tensor],  # [n, length] -> [n, length, text channels]
) -> Texts:
    """A run's texts on the folder's device.

    `encode` is called at most once, with the texts that are not cached, without duplicates.
    """
    encoder = _encoder(folder)
    files = [_file(encoder, row) for row in tokens]
    shape = (1, *folder.family.prompt_shape(folder.config("transformer")))
    found = {file: read_encoded(file) for file in files}
    missing = [file for file, embedding in found.items() if embedding is None or embedding.shape != shape]
    if missing:
        made = encode(tokens[[files.index(file) for file in missing]])
        for file, embedding in zip(missing, made.split(1), strict=True):
            found[file] = embedding
            write_encoded(file, embedding)
    return Texts(*(found[file].to(folder.device) for file in files))


def _encoder(folder: ModelFolder) -> list[object]:
    """What an embedding depends on besides its tokens: the files that encode it, and the precision."""
    paths = [path for part in PARTS for path in sorted((folder.path / part).glob("*")) if path.is_file()]
    files = {f"{path.parent.name}/{path.name}": path for path in paths}
    return [str(folder.dtype), file_digests(files)]


def _file(encoder: list[object], tokens: Tensor) -> Path:
    """The cache file of these tokens, named by a hash of what the embedding depends on."""
    digest = hashlib.sha256(json.dumps([tokens.tolist(), encoder]).encode()).hexdigest()
    return cache_folder() / "prompts" / f"{digest}.safetensors"
