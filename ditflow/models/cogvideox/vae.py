"""Encodes and decodes video with diffusers' CogVideoX autoencoder."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from diffusers import AutoencoderKLCogVideoX
from einops import rearrange
from torch import Tensor

from ditflow.models.cogvideox.frames import encoded_frames
from ditflow.models.cogvideox.repeated_tiles import each_shape_once
from ditflow.models.pixels import to_frames, to_values
from ditflow.models.protocols import WorkCounter

# Share of its (height, width) by which a tile overlaps its neighbour. A tile less its overlap must be a
# multiple of 8 pixels; otherwise diffusers joins the tiles to a wrong size.
OVERLAPS = {
    "360x240": (1 / 6, 1 / 5),
    "288x192": (1 / 6, 1 / 6),
    "240x160": (1 / 5, 1 / 5),
    "192x128": (1 / 4, 1 / 4),
    "144x96": (1 / 6, 1 / 6),
}
# the same for all models and memory presets, because tiles change the latents and the motion read from them
ENCODE_TILE = "360x240"


class CogVideoXAutoencoder:
    """Implements `Autoencoder`."""

    def __init__(self, network: AutoencoderKLCogVideoX):
        self.network = network.requires_grad_(False).eval()

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Repeats the last frame if decoding would otherwise return fewer frames."""
        network = self.network
        self.use_tile(ENCODE_TILE)
        length = encoded_frames(len(pixels))
        video = to_values(pixels, length, network.dtype, network.device)
        latents = network.encode(video).latent_dist.mode().float()
        return rearrange(latents * network.config.scaling_factor, "1 c f h w -> 1 f c h w").contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor, frames: int, tile: str = ENCODE_TILE) -> Tensor:
        network = self.network
        self.use_tile(tile)
        scaled = rearrange(
            latents.to(network.device) / network.config.scaling_factor, "1 f c h w -> 1 c f h w"
        )
        video = network.decode(scaled.to(network.dtype)).sample[0]
        return to_frames(video, frames)

    def use_tile(self, tile: str) -> None:
        """Set the tile size, WIDTHxHEIGHT in pixels, or work on whole frames ("none")."""
        if tile == "none":
            self.network.disable_tiling()
        else:
            width, height = (int(side) for side in tile.split("x"))
            self.network.enable_tiling(height, width, *OVERLAPS[tile])

    def compile_decoder(self, backend: str) -> None:
        self.network.decoder.compile(backend=backend, dynamic=False)  # one graph for each tile shape

    def each_shape_once(self, counter: WorkCounter) -> AbstractContextManager:
        return each_shape_once(self.network, counter)
