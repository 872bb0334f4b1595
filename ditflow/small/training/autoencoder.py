"""The autoencoder's stage: made clips to latents and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from einops import rearrange
from torch import Tensor, nn

from ditflow.small.clips import made_clip
from ditflow.small.pipeline import COMPRESSION, FRAMES, HEIGHT, LATENT_CHANNELS, VAE, WIDTH
from ditflow.small.training.loop import Training, adam, averaged
from ditflow.small.training.split import TRAINING_SEEDS

RATE = 1e-3
# what a step takes, one of these at random: pieces around the shape, where all is that is hard, and whole
# pictures; 16 frames because the autoencoder works in groups of eight, the first of which has none before it
BATCHES = (  # clips, frames, width, height
    (8, 16, 48, 48),
    (3, 16, 96, 64),
)
ASIDE = 8  # pixels that the shape may be off the middle of a piece
MOVES = 0.2  # of -1 ... 1: a pixel that changes more is where the shape goes
MOVING_WEIGHT = 4.0  # of such a pixel's error, beyond the 1 of all: they are few, and all that matters
# of the frames of a latent frame, above all of the first one's: nothing is before it, so that its frames
# are drawn as equals; elsewhere the last frame is learned last
FIRST_WEIGHTS, LATER_WEIGHTS = (0.25, 0.25, 0.25, 0.25), (1.0, 1.0, 1.0, 4.0)
LATENT_NOISE = 0.1  # that the decoder alone is trained with, of about 1: generated latents are not exact
LOG_VARIANCE = -4.0  # of the latents' noise, to begin with
DIVERGENCE_WEIGHT, SQUARE_WEIGHT, EDGE_WEIGHT = 2e-3, 2.0, 0.5
ACCELERATION_WEIGHT = 3.0  # of the error's second difference in time: what makes a smooth path jitter


def autoencoder_training(checkpoints: Path, device: torch.device) -> Training:
    """A training of the autoencoder on parts of clips."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        vae = AutoencoderKLCogVideoX(**VAE)
    # as the layer is made, noise would be as large as the latents: the decoder would learn to ignore both
    nn.init.constant_(vae.encoder.conv_out.conv.bias[LATENT_CHANNELS:], LOG_VARIANCE)
    convolve_fast(vae.to(device))

    def loss(generator: torch.Generator, clips: Tensor) -> Tensor:
        pixels = to_pixels(clips)
        with torch.autocast(device.type, torch.bfloat16):
            found = vae.encode(pixels).latent_dist
            noise = torch.randn(found.mean.shape, generator=generator, device=device)
            decoded = vae.decode(found.mean + found.std * noise).sample.float()
        divergence = (found.mean.float().square() + found.var.float() - 1 - found.logvar.float()).mean() / 2
        return _difference(decoded, pixels) + DIVERGENCE_WEIGHT * divergence

    return Training(vae, [_optimiser(vae)], loss, checkpoints / "vae.safetensors", _draw_clips)


def decoder_training(checkpoints: Path, device: torch.device) -> Training:
    """A training of the decoder alone: latents, and what is trained on them, stay as they are."""
    vae = AutoencoderKLCogVideoX(**VAE)
    vae.load_state_dict(averaged(checkpoints / "vae.safetensors"))
    convolve_fast(vae.to(device))

    def loss(generator: torch.Generator, clips: Tensor) -> Tensor:
        pixels = to_pixels(clips)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(pixels).latent_dist.mode()
            noise = torch.randn(latents.shape, generator=generator, device=device)
            decoded = vae.decode(latents + LATENT_NOISE * noise).sample.float()
        return _difference(decoded, pixels)

    optimisers, path = [_optimiser(vae.decoder)], checkpoints / "decoder.safetensors"
    return Training(vae.decoder, optimisers, loss, path, _draw_clips)


def trained_autoencoder(checkpoints: Path) -> AutoencoderKLCogVideoX:
    """The autoencoder as its stages have left it, float32."""
    vae = AutoencoderKLCogVideoX(**VAE)
    vae.load_state_dict(averaged(checkpoints / "vae.safetensors"))
    if (alone := checkpoints / "decoder.safetensors").is_file():
        vae.decoder.load_state_dict(averaged(alone))
    return vae.eval()


def _optimiser(network: nn.Module) -> torch.optim.Optimizer:
    return adam(network.parameters(), RATE)


def _difference(decoded: Tensor, pixels: Tensor) -> Tensor:
    """How unlike each other two batches of videos are, above all where the second one moves."""
    moving = (pixels.amax(dim=2) - pixels.amin(dim=2)).amax(dim=1) > MOVES  # [clips, height, width]
    error = (decoded - pixels) * (1 + MOVING_WEIGHT * moving[:, None, None])
    later = pixels.shape[2] // COMPRESSION - 1
    weights = FIRST_WEIGHTS + later * LATER_WEIGHTS
    # filled where they are: a graph cannot hold a copy from the CPU
    frames = torch.cat([pixels.new_full((1, 1, 1), weight) for weight in weights])
    edges = sum(
        (frames[-change.shape[2] :] * change.abs()).mean()
        for change in (error.diff(dim=axis) for axis in (2, 3, 4))
    )
    square = (frames * error * (decoded - pixels)).mean()
    acceleration = (frames[2:] * error.diff(n=2, dim=2).abs()).mean()
    return (
        (frames * error.abs()).mean()
        + SQUARE_WEIGHT * square
        + EDGE_WEIGHT * edges
        + ACCELERATION_WEIGHT * acceleration
    )


def _draw_clips(step: int) -> Tensor:
    """Pieces of training clips [clips, frames, height, width, 3] uint8: the batch of a step."""
    generator = torch.Generator().manual_seed(step)

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    clips, frames, width, height = BATCHES[draw(len(BATCHES))]
    pieces = []
    for _ in range(clips):
        start = draw(FRAMES - frames + 1)
        clip = made_clip(TRAINING_SEEDS[draw(len(TRAINING_SEEDS))], painted=slice(start, start + frames))
        x, y = clip.centroids[start : start + frames].mean(axis=0)
        left = int(np.clip(x - width // 2 + draw(2 * ASIDE + 1) - ASIDE, 0, WIDTH - width))
        top = int(np.clip(y - height // 2 + draw(2 * ASIDE + 1) - ASIDE, 0, HEIGHT - height))
        pieces.append(clip.frames[:, top : top + height, left : left + width])
    return torch.from_numpy(np.stack(pieces))


def to_pixels(clips: Tensor) -> Tensor:
    """Clips [n, frames, height, width, 3] uint8 to [n, 3, frames, height, width] float32, -1 ... 1."""
    return rearrange(clips / 127.5 - 1, "n f h w c -> n c f h w")


def convolve_fast(vae: nn.Module) -> None:
    """Channels last in every convolution: in bfloat16 on a CPU several times faster."""

    def reorder(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].contiguous(memory_format=torch.channels_last_3d), *inputs[1:])

    for layer in vae.modules():
        if isinstance(layer, nn.Conv3d):
            layer.to(memory_format=torch.channels_last_3d)
            layer.register_forward_pre_hook(reorder)
