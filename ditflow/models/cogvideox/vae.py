"""Video to latents and back, over diffusers' CogVideoX autoencoder."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLCogVideoX
from einops import rearrange
from torch import Tensor

# (height, width) that neighbouring tiles share. Tiles less their overlap are multiples of 8 pixels: with
# others, diffusers joins them to a wrong size.
OVERLAPS = {
    "360x240": (1 / 6, 1 / 5),
    "288x192": (1 / 6, 1 / 6),
    "240x160": (1 / 5, 1 / 5),
    "192x128": (1 / 4, 1 / 4),
    "144x96": (1 / 6, 1 / 6),
}
# one for all models and memory presets: tiles change the latents, and so the motion that is read
ENCODE_TILE = "360x240"


def encoded_length(frames: int) -> int:
    """Frames to encode so that at least `frames` come back from decoding (as many or up to three more).

    The autoencoder works in groups of eight frames, two latent frames each: what a clip has beyond a multiple
    of eight comes back as one frame (2 to 4 beyond) or as eight (5 to 7 beyond).
    """
    beyond = frames % 8
    return frames + 5 - beyond if beyond in (2, 3, 4) else frames


def latent_frames(frames: int) -> int:
    """How many latent frames a clip has."""
    return (encoded_length(frames) - 1) // 4 + 1


@torch.no_grad()
def encode(
    vae: AutoencoderKLCogVideoX,
    pixels: Tensor,  # [frames, height, width, 3] uint8, on the host
) -> Tensor:
    """Scaled latents, float32 [1, latent frames, channels, height, width]: the mode, no draw.

    The last frame is repeated where the autoencoder would otherwise give fewer frames back.
    """
    use_tile(vae, ENCODE_TILE)
    length, (height, width) = encoded_length(len(pixels)), pixels.shape[1:3]
    video = torch.empty(1, 3, length, height, width, dtype=vae.dtype, device=vae.device)
    for index in range(length):
        frame = pixels[min(index, len(pixels) - 1)].to(vae.device, vae.dtype)
        video[0, :, index] = rearrange(frame / 127.5 - 1, "h w c -> c h w")
    latents = vae.encode(video).latent_dist.mode().float()
    return rearrange(latents * vae.config.scaling_factor, "1 c f h w -> 1 f c h w").contiguous()


@torch.no_grad()
def decode(
    vae: AutoencoderKLCogVideoX,
    latents: Tensor,  # [1, latent frames, channels, height, width]
    frames: int,
    tile: str = ENCODE_TILE,  # WIDTHxHEIGHT in pixels, or "none"
) -> Tensor:
    """The first `frames` frames of the video, uint8 [frames, height, width, 3] on the host."""
    use_tile(vae, tile)
    scaled = rearrange(latents.to(vae.device) / vae.config.scaling_factor, "1 f c h w -> 1 c f h w")
    video = vae.decode(scaled.to(vae.dtype)).sample[0]
    pixels = torch.empty(frames, *video.shape[2:], 3, dtype=torch.uint8)
    for index in range(frames):  # one at a time: the whole video in float32 is as large as what decodes it
        frame = ((video[:, index].float() + 1) * 127.5).round_().clamp_(0, 255)
        pixels[index] = rearrange(frame, "c h w -> h w c").to(torch.uint8)
    return pixels


def use_tile(vae: AutoencoderKLCogVideoX, tile: str) -> None:
    """Let the autoencoder work in tiles of a size, or on whole frames."""
    if tile == "none":
        vae.disable_tiling()
    else:
        width, height = (int(side) for side in tile.split("x"))
        vae.enable_tiling(height, width, *OVERLAPS[tile])
