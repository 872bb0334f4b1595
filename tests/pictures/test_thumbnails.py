"""Thumbnails drawn from latents through a fitted linear map."""

import numpy as np
import torch
from einops import rearrange

from ditflow.pictures.thumbnails import Thumbnails

SPANS = [range(0, 1), range(1, 5), range(5, 9)]


def test_a_linear_autoencoder_is_inverted():
    """Latents that are a linear map of the colours are drawn as these colours."""
    colours = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), dtype=np.uint8)
    frames = np.concatenate([colours[:1], colours[1:2].repeat(4, 0), colours[2:].repeat(4, 0)])
    frames = frames.repeat(8, axis=1).repeat(8, axis=2)
    mixed = torch.from_numpy(colours / 255.0).float() @ torch.randn(3, 5) - 0.7
    latents = rearrange(mixed, "f h w c -> 1 f c h w")
    thumbnails = Thumbnails(latents, frames, SPANS)
    assert np.abs(thumbnails.draw(latents).astype(int) - colours).max() <= 1
    darker = thumbnails.draw(latents / 2 - 0.35)  # halfway to black, which is -0.7
    assert np.abs(darker.astype(int) - colours / 2).max() <= 1


def test_frames_that_are_repeated_for_encoding_count_as_the_last():
    frames = np.zeros((6, 8, 8, 3), np.uint8)
    frames[5] = 200
    latents = torch.tensor([0.0, 1.0, 2.0]).view(1, 3, 1, 1, 1).expand(1, 3, 1, 8, 8)
    means = [0, 0, 200]  # of the frames 0, 1 to 4, and 5 with its repetitions
    drawn = Thumbnails(latents, frames, SPANS).draw(latents)[:, 0, 0, 0]
    fitted = np.polyval(np.polyfit([0, 1, 2], means, 1), [0, 1, 2]).clip(0, 255)
    assert np.abs(drawn - fitted).max() <= 1


def test_values_beyond_the_colours_are_clipped():
    frames = np.full((9, 8, 8, 3), 255, np.uint8)
    frames[:5] = 0
    latents = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1, 1).expand(1, 3, 1, 8, 8)
    drawn = Thumbnails(latents, frames, SPANS).draw(4 * latents - 1)
    assert drawn.min() == 0 and drawn.max() == 255
