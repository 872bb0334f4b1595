"""What the families whose prompts a T5 encoder reads have in common, as a part of a `ModelFamily`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


class T5Family:
    """Implements what `ModelFamily` says of the tokenizer's files and of loading the text encoder."""

    def check_tokenizer(self, folder: Path, encoder: Mapping[str, Any]) -> None:
        from ditflow.models.t5.tokenizer import check_tokenizer

        check_tokenizer(folder, encoder)

    def load_options(self, part: str) -> dict[str, Any]:
        # a config could name an attention implementation, which would be downloaded and run
        return {"attn_implementation": "sdpa"} if part == "text_encoder" else {}

    def empty_text_encoder(self, config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
        from ditflow.models.t5.encoder import empty_encoder

        return empty_encoder(self.network("text_encoder"), config, dtype)
