"""The toy's autoencoder: 4 x 4 pixels to one; the first frame alone, then groups of four frames to one."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange, reduce
from torch import Tensor, nn

from ditflow.models.pixels import to_pixels
from ditflow.models.protocols import WorkCounter

SIDE, GROUP = 4, 4  # pixels and frames of a latent pixel
TILES = ("32x24", "24x16", "16x8")
REACH = 1  # latent pixels around a tile that its decoding reads


class ToyVAE(ModelMixin, ConfigMixin):
    """Linear in patches of pixels; the decoder also mixes neighbouring latent pixels."""

    @register_to_config
    def __init__(self, latent_channels: int = 6, latent_scale: float = 2.0):
        super().__init__()
        self.encoder = nn.Linear(3 * SIDE * SIDE, latent_channels)
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, 24, 2 * REACH + 1), nn.Tanh(), nn.Conv2d(24, 3 * SIDE * SIDE, 1)
        )


class ToyAutoencoder:
    """Implements `ditflow.models.protocols.Autoencoder`."""

    def __init__(self, network: ToyVAE):
        self.network = network.requires_grad_(False).eval()
        self.scale = network.config.latent_scale

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """The last frame is repeated up to a whole group."""
        network = self.network
        padding = pixels[-1:].expand(encoded_frames(len(pixels)) - len(pixels), -1, -1, -1)
        video = torch.cat([pixels, padding]).to(network.device, network.dtype) / 127.5 - 1
        first, groups = video[:1], reduce(video[1:], "(f g) h w c -> f h w c", "mean", g=GROUP)
        patches = rearrange(torch.cat([first, groups]), "f (h p) (w q) c -> f h w (p q c)", p=SIDE, q=SIDE)
        return rearrange(self.scale * network.encoder(patches), "f h w c -> 1 f c h w").float().contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor, frames: int, tile: str = "none") -> Tensor:
        """Each tile is decoded with the latent pixels around it, so tiles change nothing."""
        network = self.network
        height, width = (SIDE * side for side in latents.shape[-2:])
        tile_width, tile_height = (width, height) if tile == "none" else map(int, tile.split("x"))
        padded = nn.functional.pad(latents[0].to(network.device, network.dtype) / self.scale, [REACH] * 4)
        video = torch.empty(len(padded), height, width, 3, dtype=torch.uint8)
        for top in range(0, height, tile_height):
            for left in range(0, width, tile_width):
                part = video[:, top : top + tile_height, left : left + tile_width]
                rows, columns = (
                    slice(start // SIDE, (start + length) // SIDE + 2 * REACH)
                    for start, length in ((top, part.shape[1]), (left, part.shape[2]))
                )
                decoded = network.decoder(padded[:, :, rows, columns])
                values = rearrange(decoded, "f (p q c) h w -> f (h p) (w q) c", p=SIDE, q=SIDE)
                part.copy_(to_pixels(values))
        return torch.cat([video[:1], video[1:].repeat_interleave(GROUP, dim=0)])[:frames]

    def compile_decoder(self, backend: str) -> None:
        self.network.decoder.compile(backend=backend, dynamic=False)

    def each_shape_once(self, counter: WorkCounter) -> AbstractContextManager:
        return nullcontext()  # its tiles cost next to nothing


def encoded_frames(frames: int) -> int:
    """The next 4k + 1."""
    return frames + (1 - frames) % GROUP
