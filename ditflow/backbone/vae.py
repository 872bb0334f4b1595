"""Video to latents and back, over diffusers' CogVideoX autoencoder."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from einops import rearrange
from torch import Tensor

# Tiles less their overlap are multiples of 8 pixels: with others, diffusers joins them to a wrong size.
# They are one for all models, because tiles change the latents and so the motion that is read.
TILES = {
    "tile_sample_min_height": 240,
    "tile_sample_min_width": 360,
    "tile_overlap_factor_height": 1 / 6,
    "tile_overlap_factor_width": 1 / 5,
}


def encoded_length(frames: int) -> int:
    """Frames to encode so that at least `frames` come back from decoding (as many or up to three more).

    The autoencoder works in groups of eight frames, two latent frames each: what a clip has beyond a multiple
    of eight comes back as one frame (2 to 4 beyond) or as eight (5 to 7 beyond).
    """
    beyond = frames % 8
    return frames + 5 - beyond if beyond in (2, 3, 4) else frames


@torch.no_grad()
def encode(
    vae: AutoencoderKLCogVideoX,
    frames: np.ndarray,  # [frames, height, width, 3] uint8
) -> Tensor:
    """Scaled latents, float32 [1, latent frames, channels, height, width]: the mode, no draw.

    The last frame is repeated where the autoencoder would otherwise give fewer frames back.
    """
    missing = encoded_length(len(frames)) - len(frames)
    frames = np.concatenate([frames, *[frames[-1:]] * missing])
    video = rearrange(torch.from_numpy(frames), "f h w c -> 1 c f h w").to(vae.device, vae.dtype)
    latents = vae.encode(video / 127.5 - 1).latent_dist.mode().float()
    return rearrange(latents * vae.config.scaling_factor, "1 c f h w -> 1 f c h w").contiguous()


@torch.no_grad()
def decode(
    vae: AutoencoderKLCogVideoX,
    latents: Tensor,  # [1, latent frames, channels, height, width]
    frames: int,
) -> np.ndarray:
    """The first `frames` frames of the video, uint8 [frames, height, width, 3]."""
    scaled = rearrange(latents.to(vae.device) / vae.config.scaling_factor, "1 f c h w -> 1 c f h w")
    video = vae.decode(scaled.to(vae.dtype)).sample[:, :, :frames]
    pixels = ((video.float() + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
    return rearrange(pixels, "1 c f h w -> f h w c").cpu().numpy()


def latent_frames(frames: int) -> int:
    """How many latent frames a clip has."""
    return (encoded_length(frames) - 1) // 4 + 1
