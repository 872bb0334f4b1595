"""The encoded clips of a batch, in a folder that all its workers share."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Hashable
from pathlib import Path

import torch
from torch import Tensor

from ditflow.jobs.encoded_file import read_encoded, write_encoded
from ditflow.models.kept import KeptParts


class SharedClips(KeptParts):
    """What one worker keeps, except that each encoded clip is a file for all of them."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def encoded(self, key: Hashable, encode: Callable[[], Tensor]) -> Tensor:
        """The latents in the file of this key, or else what `encode` returns, which is written there."""
        digest = hashlib.sha256(repr((key, _computer())).encode()).hexdigest()
        file = self.folder / f"{digest}.safetensors"
        found = read_encoded(file)
        if found is None:
            found = encode()
            write_encoded(file, found)
        return found


def _computer() -> tuple[object, ...]:
    """Equal where the same clip is encoded to the same bits: on GPUs of one kind, or one CPU's threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(), torch.__version__, torch.backends.cudnn.version()
    return socket.gethostname(), torch.get_num_threads()
