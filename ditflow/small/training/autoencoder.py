"""The autoencoder's stage: made clips to latents and back."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX
from einops import rearrange
from torch import Tensor, nn

from ditflow.small.build import LATENT_CHANNELS, VAE
from ditflow.small.clips import MadeClip, made_clip
from ditflow.small.training.loop import Training
from ditflow.small.training.split import TRAINING_SEEDS

RATE = 1e-3
# what a step takes, one of these at random: many small clips for all the colours, one as large as in use,
# of 16 frames because the autoencoder works in groups of eight
BATCHES = (  # clips, frames, width, height
    (8, 8, 48, 32),
    (1, 16, 96, 64),
)
LOG_VARIANCE = -4.0  # of the latents' noise, to begin with
DIVERGENCE_WEIGHT, SQUARE_WEIGHT, EDGE_WEIGHT = 2e-3, 2.0, 0.5


def autoencoder_training(checkpoints: Path, device: torch.device) -> Training:
    """A training of the autoencoder on parts of clips."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        vae = AutoencoderKLCogVideoX(**VAE)
    # as the layer is made, noise would be as large as the latents: the decoder would learn to ignore both
    nn.init.constant_(vae.encoder.conv_out.conv.bias[LATENT_CHANNELS:], LOG_VARIANCE)
    convolve_fast(vae.to(device))

    def loss(generator: torch.Generator) -> Tensor:
        pixels = _draw_clips(generator).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            found = vae.encode(pixels).latent_dist
            noise = torch.randn(found.mean.shape, generator=generator).to(device)
            decoded = vae.decode(found.mean + found.std * noise).sample.float()
        error = decoded - pixels
        edges = sum(error.diff(dim=axis).abs().mean() for axis in (2, 3, 4))
        divergence = (found.mean.float().square() + found.var.float() - 1 - found.logvar.float()).mean() / 2
        return (
            error.abs().mean()
            + SQUARE_WEIGHT * error.square().mean()
            + EDGE_WEIGHT * edges
            + DIVERGENCE_WEIGHT * divergence
        )

    optimiser = torch.optim.AdamW(vae.parameters(), RATE, betas=(0.9, 0.99), weight_decay=0.0)
    return Training(vae, [optimiser], loss, checkpoints / "vae.safetensors")


def _draw_clips(generator: torch.Generator) -> Tensor:
    """A batch of windows of training clips, as `to_pixels` gives them."""

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    clips, frames, width, height = BATCHES[draw(len(BATCHES))]
    windows = []
    for _ in range(clips):
        pixels = to_pixels(made_clip(TRAINING_SEEDS[draw(len(TRAINING_SEEDS))], width=width, height=height))
        start = draw(pixels.shape[2] - frames + 1)
        windows.append(pixels[:, :, start : start + frames])
    return torch.cat(windows)


def to_pixels(clip: MadeClip) -> Tensor:
    """A clip as the autoencoder reads it: [1, 3, frames, height, width] float32, -1 ... 1."""
    return rearrange(torch.from_numpy(clip.frames) / 127.5 - 1, "f h w c -> 1 c f h w")


def convolve_fast(vae: nn.Module) -> None:
    """Channels last in every convolution: in bfloat16 on a CPU several times faster."""

    def reorder(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].contiguous(memory_format=torch.channels_last_3d), *inputs[1:])

    for layer in vae.modules():
        if isinstance(layer, nn.Conv3d):
            layer.to(memory_format=torch.channels_last_3d)
            layer.register_forward_pre_hook(reorder)
