"""The stage of small-wan's autoencoder, which works on the first frame and then on four frames at a time."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResidualBlock
from torch import Tensor, nn

from ditflow.small.pipeline import COMPRESSION
from ditflow.small.training.autoencoder import (
    DIVERGENCE_WEIGHT,
    LOG_VARIANCE,
    MOVES,
    convolve_fast,
    difference,
    draw_clips,
    encoded_and_decoded,
    optimiser,
    to_pixels,
)
from ditflow.small.training.loop import Training, averaged
from ditflow.small.wan_pipeline import LATENT_CHANNELS, VAE

NAME = "wan-vae.safetensors"
BATCHES = (  # clips, frames, width, height, as in autoencoder.py
    (6, 13, 48, 48),
    (2, 17, 96, 64),
)
# of the change of latents where nothing moves: without it, the first frame's latents and later ones differ so
# much that a transformer, which knows only differences of places, paints that frame in other colours
DRIFT_WEIGHT = 3.0
GAIN = 1.7  # of the initial weights of convolutions, so that they keep the size of what they are given


def wan_autoencoder_training(checkpoints: Path, device: torch.device) -> Training:
    """The training of small-wan's autoencoder on parts of clips."""
    vae = _new_autoencoder()
    convolve_fast(vae.to(device))

    def loss(generator: torch.Generator, clips: Tensor) -> Tensor:
        pixels = to_pixels(clips)
        means, decoded, divergence = encoded_and_decoded(vae, pixels, generator)
        return (
            difference(decoded, pixels, pixels.shape[2] * (1.0,))
            + DIVERGENCE_WEIGHT * divergence
            + DRIFT_WEIGHT * _drift(means, pixels)
        )

    return Training(vae, [optimiser(vae)], loss, checkpoints / NAME, _draw)


@torch.no_grad()
def _new_autoencoder() -> AutoencoderKLWan:
    """An untrained autoencoder in which each residual block returns its input."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        vae = AutoencoderKLWan(**VAE)
    for layer in vae.modules():
        if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
            layer.weight.mul_(GAIN)
    for layer in vae.modules():
        if isinstance(layer, (WanResidualBlock, WanAttentionBlock)):
            last = layer.conv2 if isinstance(layer, WanResidualBlock) else layer.proj
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    # noise on the latents that is smaller than they are; see autoencoder.py
    nn.init.constant_(vae.quant_conv.bias[LATENT_CHANNELS:], LOG_VARIANCE)
    return vae


def _drift(latents: Tensor, pixels: Tensor) -> Tensor:
    """The mean square change of latents [n, channels, frames, height, width] where nothing moves nearby."""
    moving = ((pixels.amax(dim=2) - pixels.amin(dim=2)).amax(dim=1, keepdim=True) > MOVES).float()
    still = 1 - F.max_pool2d(F.max_pool2d(moving, COMPRESSION), 3, stride=1, padding=1)
    return (still[:, :, None] * latents.diff(dim=2).square()).mean()


def _draw(step: int) -> Tensor:
    return draw_clips(step, BATCHES)


def trained_wan_autoencoder(checkpoints: Path) -> AutoencoderKLWan:
    """The trained autoencoder, float32."""
    vae = AutoencoderKLWan(**VAE)
    vae.load_state_dict(averaged(checkpoints / NAME))
    return vae.eval()
