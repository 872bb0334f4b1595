"""Encodes and decodes video with diffusers' Wan autoencoder, one group of frames after the other."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from diffusers import AutoencoderKLWan
from einops import rearrange
from torch import Tensor

from ditflow.models.pixels import to_frames, to_values
from ditflow.models.protocols import WorkCounter
from ditflow.models.wan.frames import encoded_frames
from ditflow.models.wan.repeated_tiles import each_shape_once

# Pixels between the starts of two tiles, for tiles of WIDTHxHEIGHT: three quarters of the tile. All sides are
# multiples of 16, so that tiles begin at a latent pixel of every model.
STRIDES = {
    "512x512": 384,
    "384x384": 288,
    "256x256": 192,
    "192x192": 144,
    "128x128": 96,
}
# the same for all memory presets, because tiles change the latents and the motion read from them
ENCODE_TILE = "384x384"


class WanAutoencoder:
    """Implements `Autoencoder`."""

    def __init__(self, network: AutoencoderKLWan):
        self.network = network.requires_grad_(False).eval()
        mean, std = (
            torch.tensor(network.config[key], device=network.device).view(1, 1, -1, 1, 1)
            for key in ("latents_mean", "latents_std")
        )
        self.mean, self.std = mean, std

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Repeats the last frame up to a whole group."""
        network = self.network
        self.use_tile(ENCODE_TILE)
        length = encoded_frames(len(pixels))
        video = to_values(pixels, length, network.dtype, network.device)
        latents = rearrange(network.encode(video).latent_dist.mode().float(), "1 c f h w -> 1 f c h w")
        return ((latents - self.mean) / self.std).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor, frames: int, tile: str = ENCODE_TILE) -> Tensor:
        network = self.network
        self.use_tile(tile)
        scaled = latents.to(network.device) * self.std + self.mean
        video = network.decode(rearrange(scaled, "1 f c h w -> 1 c f h w").to(network.dtype)).sample[0]
        return to_frames(video, frames)

    def use_tile(self, tile: str) -> None:
        """Set the tile size, WIDTHxHEIGHT in pixels, or work on whole frames ("none")."""
        if tile == "none":
            self.network.disable_tiling()
        else:
            width, height = (int(side) for side in tile.split("x"))
            self.network.enable_tiling(height, width, STRIDES[tile], STRIDES[tile])

    def compile_decoder(self, backend: str) -> None:
        self.network.decoder.compile(backend=backend, dynamic=False)  # one graph for each tile shape

    def each_shape_once(self, counter: WorkCounter) -> AbstractContextManager:
        return each_shape_once(self.network, counter)
