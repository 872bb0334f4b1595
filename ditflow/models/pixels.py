"""Pixels to the values that an autoencoder encodes, and decoded values to pixels."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from ditflow.errors import LARGER_RANGE, NotFinite


def to_values(pixels: Tensor, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[1, 3, length, height, width] from -1 to 1, of pixels uint8 [frames, height, width, 3].

    The last frame is repeated up to `length`. One frame at a time, so that only one is there in both forms.
    """
    values = torch.empty(1, 3, length, *pixels.shape[1:3], dtype=dtype, device=device)
    for index in range(length):
        frame = pixels[min(index, len(pixels) - 1)].to(device, dtype)
        values[0, :, index] = rearrange(frame / 127.5 - 1, "h w c -> c h w")
    return values


def to_frames(values: Tensor, frames: int) -> Tensor:
    """uint8 [frames, height, width, 3] on the host, of the first frames of [3, length, height, width].

    One frame at a time, because the whole video in float32 is as large as a decoder's peak.
    """
    pixels = torch.empty(frames, *values.shape[2:], 3, dtype=torch.uint8)
    for index in range(frames):
        pixels[index] = rearrange(to_pixels(values[:, index]), "c h w -> h w c")
    return pixels


def to_pixels(values: Tensor) -> Tensor:
    """Decoded values from -1 to 1, of any shape, to uint8.

    Raises NotFinite for NaN or infinity, which uint8 would show as black or white.
    """
    values = values.float()
    if not values.is_meta and not values.isfinite().all():  # planning has no values
        raise NotFinite(
            "the decoded video contains NaN or infinity, so no video is written; the VAE's files may be "
            f"damaged, else {LARGER_RANGE}"
        )
    return ((values + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
