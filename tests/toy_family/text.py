"""The toy's prompts: a token for each byte, and a small encoder with an average over the prompt's tokens."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ditflow.errors import shown
from ditflow.models.protocols import Weights

logger = logging.getLogger(__name__)

FILE = "bytes.json"
PAD = 0


class ByteTokenizer:
    """Bytes of UTF-8 as token ids from `first` on."""

    def __init__(self, first: int):
        self.first = first

    @classmethod
    def from_pretrained(cls, folder: str | Path, **_: Any) -> Self:
        return cls(**json.loads((Path(folder) / FILE).read_text()))

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir()
        (folder / FILE).write_text(json.dumps(vars(self)))

    def tokenise(self, prompts: Sequence[str], length: int) -> Tensor:
        """Token ids [prompts, length]; warns of what is cut."""
        tokens = torch.full((len(prompts), length), PAD)
        for row, prompt in zip(tokens, prompts, strict=True):
            content = prompt.encode()
            if len(content) > length:
                lost = content[length:].decode(errors="replace")
                logger.warning(
                    "a prompt is longer than the toy's %d bytes; left out: %s", length, shown(lost)
                )
            kept = torch.tensor([self.first + byte for byte in content[:length]], dtype=torch.int64)
            row[: len(kept)] = kept
        return tokens


class ToyTextConfig(PretrainedConfig):
    model_type = "toy-text"

    def __init__(self, channels: int = 10, num_layers: int = 3, vocabulary: int = 257, **others: Any):
        super().__init__(**others)
        self.channels, self.num_layers, self.vocabulary = channels, num_layers, vocabulary


class ToyTextModel(PreTrainedModel):
    config_class = ToyTextConfig

    def __init__(self, config: ToyTextConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocabulary, config.channels)
        self.layers = nn.ModuleList(ToyTextLayer(config.channels) for _ in range(config.num_layers))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave torch's."""


class ToyTextLayer(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm, self.own, self.all = (
            nn.LayerNorm(channels),
            nn.Linear(channels, channels),
            nn.Linear(channels, channels),
        )

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden [prompts, length, channels], mask [prompts, length, 1]."""
        normed = self.norm(hidden)
        mean = (normed * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        return hidden + torch.tanh(self.own(normed) + self.all(mean))


class ToyTextEncoder:
    """Implements `ditflow.models.protocols.TextEncoder`. Embeddings of padding are zero."""

    def __init__(self, network: ToyTextModel):
        self.network = network.requires_grad_(False).eval()
        self.layers = network.layers

    @torch.no_grad()
    def encode(self, tokens: Tensor, weights: Weights | None = None) -> Tensor:
        tokens = tokens.to(self.network.device)
        hidden = self.network.embedding(tokens)
        mask = (tokens != PAD)[..., None].to(hidden.dtype)
        order = range(len(self.layers))
        for index in weights.walk(order) if weights else order:
            hidden = self.layers[index](hidden, mask)
        return hidden * mask
