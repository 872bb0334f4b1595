"""Pictures and latents as ComfyUI holds them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

PREVIEW_SCALE = 8  # pixels of a preview for a latent pixel
LARGEST_PREVIEW = 512  # pixels, ComfyUI's own default


def frames_of(
    images: Tensor,  # [frames, height, width, 3 or 4] from 0 to 1
) -> np.ndarray:  # uint8 [frames, height, width, 3]
    return (images[..., :3].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def images_of(
    frames: np.ndarray,  # uint8 [frames, height, width, 3]
) -> Tensor:  # [frames, height, width, 3] from 0 to 1
    return torch.from_numpy(frames).float() / 255


def mask_frames_of(
    mask: Tensor,  # a MASK [frames, height, width], or an IMAGE [frames, height, width, 3]
) -> np.ndarray:  # uint8 [frames, height, width, 3]
    return frames_of(mask if mask.ndim == 4 else mask.unsqueeze(-1).expand(*mask.shape, 3))


def latents_of(
    latents: Tensor,  # [1, frames, channels, height, width]
) -> dict[str, Tensor]:  # a LATENT: [1, channels, frames, height, width]
    return {"samples": latents.transpose(1, 2).float().contiguous()}


def preview_of(
    preview: np.ndarray,  # uint8 [latent frames, height, width, 3]
    step: int,
) -> tuple[str, Image.Image, int]:  # format, picture, most pixels of a side
    """One latent frame, another one after each step, so that the motion can be seen."""
    picture = Image.fromarray(preview[step % len(preview)])
    size = (PREVIEW_SCALE * picture.width, PREVIEW_SCALE * picture.height)
    return "JPEG", picture.resize(size, Image.Resampling.BICUBIC), LARGEST_PREVIEW
