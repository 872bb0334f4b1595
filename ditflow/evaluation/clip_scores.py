"""CLIP scores of a video: how well its frames match a prompt, and each other."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ditflow.errors import DitflowError, first_line
from ditflow.models.hub import is_hub_id
from ditflow.models.tensors import counted
from ditflow.models.trust import check_part
from ditflow.schema import Either, Keys, OneOf, OrNull, Schema, Whole

logger = logging.getLogger(__name__)

DEFAULT = "openai/clip-vit-base-patch32"
BATCH = 16  # frames at once
TOWER = {
    "hidden_size": Whole(1, 16_384),
    "intermediate_size": Whole(1, 1 << 17),
    "projection_dim": Whole(1, 16_384),
    "num_hidden_layers": Whole(1, 100),
    "num_attention_heads": Whole(1, 256),
    "max_position_embeddings": Whole(1, 4096),
    "vocab_size": Whole(1, 1_000_000),
    "image_size": Whole(1, 4096),
    "patch_size": Whole(1, 4096),
    "num_channels": OneOf((3,)),
}
CONFIG = Schema(
    {
        "model_type": OneOf(("clip",)),
        "projection_dim": Whole(1, 16_384),
        "text_config": OrNull(Keys(TOWER)),
        "vision_config": OrNull(Keys(TOWER)),
    }
)
SIDE = Whole(1, 4096)  # pixels
SIDES = OrNull(
    Either((SIDE, Keys(dict.fromkeys(("height", "width", "shortest_edge", "longest_edge"), SIDE))))
)
IMAGES = Schema({"size": SIDES, "crop_size": SIDES})


@dataclass(frozen=True)
class ClipModel:
    """A loaded CLIP model."""

    model: torch.nn.Module
    images: object  # turns pictures into pixel values
    tokenizer: object

    @classmethod
    def load(cls, name: str, download: bool = True) -> Self:
        """Load CLIP from a hub id or a folder. Raises DitflowError if that fails."""
        try:
            model, images, tokenizer = _parts(name, download)
        except (DitflowError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # for wrong files the library raises many types of error
            reason = first_line(error)
            raise DitflowError(
                f"CLIP {name} cannot be loaded ({reason}): give another hub id or a folder with --clip"
            ) from None
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


def _parts(name: str, download: bool) -> tuple[torch.nn.Module, object, object]:
    """The model, its image processor and its tokenizer, checked before anything is allocated."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    if Path(name).is_dir():
        check_part(Path(name), None)
    elif not is_hub_id(name):
        raise ValueError("it is neither a folder nor OWNER/NAME on the hub")
    where = {"local_files_only": not download}
    CONFIG.check(f"{name}/config.json", CLIPConfig.get_config_dict(name, **where)[0])
    found = CLIPImageProcessorPil.get_image_processor_dict(name, **where)[0]
    IMAGES.check(f"{name}/preprocessor_config.json", found)
    # a config could name an attention implementation, which would be downloaded and run
    options = {**where, "attn_implementation": "sdpa", "output_loading_info": True}
    model, loaded = CLIPModel.from_pretrained(name, **options)
    if missing := sorted(loaded["missing_keys"]):  # the library fills them with random numbers
        raise ValueError(f"its weights do not fit its config.json: {counted({'missing': missing})}")
    kinds = CLIPImageProcessorPil, CLIPTokenizer
    return model, *(kind.from_pretrained(name, **where) for kind in kinds)


def prompt_similarity(frames: Tensor, text: Tensor) -> float:
    """Mean cosine of frames [frames, width] and a text [width], as unit vectors."""
    return float((frames @ text).mean())


def temporal_consistency(frames: Tensor) -> float | None:
    """Mean cosine of each frame [frames, width] and the next one; None for a single frame."""
    return float((frames[1:] * frames[:-1]).sum(dim=-1).mean()) if len(frames) > 1 else None
