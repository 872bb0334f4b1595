"""CLIP scores of a video: how well its frames match a prompt, and each other."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ditflow.errors import DitflowError

logger = logging.getLogger(__name__)

DEFAULT = "openai/clip-vit-base-patch32"
BATCH = 16  # frames at once


@dataclass(frozen=True)
class ClipModel:
    """A loaded CLIP model."""

    model: torch.nn.Module
    images: object  # turns pictures into pixel values
    tokenizer: object

    @classmethod
    def load(cls, name: str, download: bool = True) -> Self:
        """Load CLIP from a hub id or a folder. Raises DitflowError if that fails."""
        from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

        kinds = CLIPModel, CLIPImageProcessorPil, CLIPTokenizer
        try:
            parts = [kind.from_pretrained(name, local_files_only=not download) for kind in kinds]
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise DitflowError(
                f"CLIP {name} cannot be loaded ({reason}): give another hub id or a folder with --clip"
            ) from None
        model, images, tokenizer = parts
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(model.eval().to(device), images, tokenizer)

    @torch.no_grad()
    def frames(self, pictures: np.ndarray) -> Tensor:
        """Unit vectors [frames, width] of pictures [frames, height, width, 3] uint8."""
        found = []
        for first in range(0, len(pictures), BATCH):
            batch = self.images(list(pictures[first : first + BATCH]), return_tensors="pt")
            pixels = batch["pixel_values"].to(self.model.device)
            found.append(self.model.get_image_features(pixel_values=pixels).pooler_output)
        return torch.nn.functional.normalize(torch.cat(found), dim=-1)

    @torch.no_grad()
    def text(self, prompt: str) -> Tensor:
        """Unit vector [width] of a prompt. A prompt longer than CLIP's limit is cut, with a warning."""
        longest = self.model.config.text_config.max_position_embeddings
        length = len(self.tokenizer(prompt)["input_ids"])
        if length > longest:
            logger.warning("the prompt has %d CLIP tokens: cut to the first %d", length, longest)
        tokens = self.tokenizer(prompt, truncation=True, max_length=longest, return_tensors="pt")
        found = self.model.get_text_features(**tokens.to(self.model.device)).pooler_output[0]
        return torch.nn.functional.normalize(found, dim=-1)


def prompt_similarity(frames: Tensor, text: Tensor) -> float:
    """Mean cosine of frames [frames, width] and a text [width], as unit vectors."""
    return float((frames @ text).mean())


def temporal_consistency(frames: Tensor) -> float | None:
    """Mean cosine of each frame [frames, width] and the next one; None for a single frame."""
    return float((frames[1:] * frames[:-1]).sum(dim=-1).mean()) if len(frames) > 1 else None
