"""Thumbnails of latents, without decoding them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import interpolate

FITTED = 20_000  # latent pixels at most that the map is fitted on


class Thumbnails:
    """Draws latents through a linear map from their channels to colours.

    The map is the least-squares fit between a clip's latents and its frames, so it works for every
    autoencoder. It is fitted when the first thumbnail is drawn.
    """

    def __init__(
        self,
        latents: Tensor,  # [1, latent frames, channels, height, width] of the clip
        frames: np.ndarray,  # [frames, height, width, 3] uint8
        spans: Sequence[range],  # the frames of each latent frame; there may be more than the clip has
    ):
        self.latents, self.frames, self.spans = latents, frames, spans

    @cached_property
    def map(self) -> Tensor:
        """[channels + 1, 3]: latents and a constant to colours from 0 to 255."""
        height, width = self.latents.shape[3:]
        last = len(self.frames) - 1
        means = [
            self.frames[[min(index, last) for index in span]].mean(axis=0, dtype=np.float32)
            for span in self.spans
        ]
        colours = rearrange(torch.from_numpy(np.stack(means)), "f h w c -> f c h w")
        colours = interpolate(colours, size=(height, width), mode="area")
        given, wanted = _channels(self.latents), rearrange(colours, "f c h w -> (f h w) c")
        every = -(-len(given) // FITTED)
        return torch.linalg.lstsq(given[::every], wanted[::every], driver="gelsd").solution

    def draw(
        self,
        latents: Tensor,  # [1, latent frames, channels, height, width]
    ) -> np.ndarray:  # [latent frames, height, width, 3] uint8
        colours = (_channels(latents) @ self.map).clamp(0, 255).round().to(torch.uint8)
        _, frames, _, height, width = latents.shape
        return rearrange(colours, "(f h w) c -> f h w c", f=frames, h=height, w=width).numpy()


def _channels(latents: Tensor) -> Tensor:
    """[latent pixels, channels + 1], float32 on the host; the last channel is 1."""
    pixels = rearrange(latents[0].float().cpu(), "f c h w -> (f h w) c")
    return torch.cat([pixels, torch.ones(len(pixels), 1)], dim=1)
