"""Encoded prompts and clips on disk, one file each, so that other runs need not encode them again."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ditflow.errors import DitflowError
from ditflow.files import regular_file, whole_or_absent
from ditflow.run_folder.checkpoint import checksum

logger = logging.getLogger(__name__)


def read_encoded(file: Path) -> Tensor | None:
    """The tensor in a file; None if there is no file, or if it is not finite and as it was written."""
    try:
        with safe_open(regular_file(file), "pt") as opened:
            encoded, metadata = opened.get_tensor("encoded"), opened.metadata() or {}
        if metadata.get("checksum") != checksum({file.stem: encoded}, {}):
            raise ValueError("its checksum does not match")
        if not encoded.isfinite().all():
            raise ValueError("it is not finite")
        return encoded
    except (DitflowError, OSError, SafetensorError, ValueError) as error:
        if os.path.exists(file):  # Path.exists raises for some folders
            logger.debug("%s cannot be used (%s); encoding again", file, error)
        return None


def write_encoded(file: Path, encoded: Tensor) -> None:
    """Write a tensor to a file, if it is finite and the file can be written."""
    encoded = encoded.detach().cpu().contiguous()
    if not encoded.isfinite().all():
        return
    # the checksum covers the file's name, so that an entry is not taken for another one
    metadata = {"checksum": checksum({file.stem: encoded}, {})}
    try:
        with whole_or_absent(file) as unfinished:
            save_file({"encoded": encoded}, unfinished, metadata)
    except (OSError, SafetensorError) as error:  # the file is optional
        logger.debug("%s is not written: %s", file, error)
