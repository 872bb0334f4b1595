"""Caches encoded prompts, one file each, so that later runs need not load the text encoder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ditflow.errors import DitflowError
from ditflow.files import cache_folder, regular_file, whole_or_absent
from ditflow.models.loading import ModelFolder
from ditflow.models.protocols import Texts
from ditflow.run_folder.checkpoint import checksum
from ditflow.run_folder.digests import file_digests

logger = logging.getLogger(__name__)

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
    found = {file: _read(file, shape) for file in files}
    missing = [file for file, embedding in found.items() if embedding is None]
    if missing:
        made = encode(tokens[[files.index(file) for file in missing]])
        for file, embedding in zip(missing, made.split(1), strict=True):
            found[file] = embedding
            if embedding.isfinite().all():
                _write(file, embedding)
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


def _read(file: Path, shape: tuple[int, ...]) -> Tensor | None:
    """The embedding in a cache file; None if there is none, or if it is not as it was written."""
    try:
        with safe_open(regular_file(file), "pt") as opened:
            embedding, metadata = opened.get_tensor("embedding"), opened.metadata() or {}
        if metadata.get("checksum") != checksum({file.stem: embedding}, {}):
            raise ValueError("its checksum does not match")
        if tuple(embedding.shape) != shape or not embedding.isfinite().all():
            raise ValueError(f"it is not a finite embedding {list(shape)}")
        return embedding
    except (DitflowError, OSError, SafetensorError, ValueError) as error:
        if os.path.exists(file):  # Path.exists raises for some folders
            logger.debug("%s cannot be used (%s); encoding again", file, error)
        return None


def _write(file: Path, embedding: Tensor) -> None:
    embedding = embedding.detach().cpu().contiguous()
    # the checksum covers the file's name, so that an entry is not taken for another one
    metadata = {"checksum": checksum({file.stem: embedding}, {})}
    try:
        with whole_or_absent(file) as unfinished:
            save_file({"embedding": embedding}, unfinished, metadata)
    except (OSError, SafetensorError) as error:  # the cache is optional
        logger.debug("%s is not cached: %s", file, error)
