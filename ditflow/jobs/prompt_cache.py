"""Caches encoded prompts, one file each, so that later runs need not load the text encoder."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ditflow.files import cache_folder, whole_or_absent
from ditflow.models.loading import ModelFolder
from ditflow.models.protocols import Texts

logger = logging.getLogger(__name__)


def encode_texts(
    folder: ModelFolder,
    tokens: Tensor,  # [3, length] of the prompt, the negative prompt and the source prompt
    encode: Callable[[Tensor], Tensor],  # [n, length] -> [n, length, text channels]
) -> Texts:
    """A run's texts on the folder's device.

    `encode` is called at most once, with the texts that are not cached, without duplicates.
    """
    files = [_file(folder, row) for row in tokens]
    found = {file: _read(file) for file in files}
    missing = [file for file, embedding in found.items() if embedding is None]
    if missing:
        made = encode(tokens[[files.index(file) for file in missing]])
        for file, embedding in zip(missing, made.split(1), strict=True):
            found[file] = embedding
            _write(file, embedding)
    return Texts(*(found[file].to(folder.device) for file in files))


def _file(folder: ModelFolder, tokens: Tensor) -> Path:
    """The cache file of these tokens, named by a hash of them, the precision and the encoder's files."""
    encoder = sorted(folder.path.glob("text_encoder/*"))
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in encoder]
    digest = hashlib.sha256(json.dumps([tokens.tolist(), str(folder.dtype), facts]).encode()).hexdigest()
    return cache_folder() / "prompts" / f"{digest}.safetensors"


def _read(file: Path) -> Tensor | None:
    try:
        return load_file(file)["embedding"]
    except (OSError, SafetensorError, KeyError) as error:
        if file.exists():
            logger.debug("%s cannot be read (%s); encoding again", file, error)
        return None


def _write(file: Path, embedding: Tensor) -> None:
    try:
        with whole_or_absent(file) as unfinished:
            save_file({"embedding": embedding.cpu().contiguous()}, unfinished)
    except (OSError, SafetensorError) as error:  # the cache is optional
        logger.debug("%s is not cached: %s", file, error)
