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
from ditflow.small.training.loop import Training, averaged
from ditflow.small.training.split import TRAINING_SEEDS

RATE = 1e-3
# what a step takes, one of these at random: pieces around the shape, where all is that is hard, and whole
# pictures; 16 frames or more because the autoencoder works in groups of eight
BATCHES = (  # clips, frames, width, height
    (3, 16, 48, 48),
    (1, 24, 96, 64),
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

    def loss(generator: torch.Generator) -> Tensor:
        pixels = _draw_clips(generator).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            found = vae.encode(pixels).latent_dist
            noise = torch.randn(found.mean.shape, generator=generator).to(device)
            decoded = vae.decode(found.mean + found.std * noise).sample.float()
        divergence = (found.mean.float().square() + found.var.float() - 1 - found.logvar.float()).mean() / 2
        return _difference(decoded, pixels) + DIVERGENCE_WEIGHT * divergence

    return Training(vae, [_optimiser(vae)], loss, checkpoints / "vae.safetensors")


def decoder_training(checkpoints: Path, device: torch.device) -> Training:
    """A training of the decoder alone: latents, and what is trained on them, stay as they are."""
    vae = AutoencoderKLCogVideoX(**VAE)
    vae.load_state_dict(averaged(checkpoints / "vae.safetensors"))
    convolve_fast(vae.to(device))

    def loss(generator: torch.Generator) -> Tensor:
        pixels = _draw_clips(generator).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(pixels).latent_dist.mode()
            noise = LATENT_NOISE * torch.randn(latents.shape, generator=generator).to(device)
            decoded = vae.decode(latents + noise).sample.float()
        return _difference(decoded, pixels)

    return Training(vae.decoder, [_optimiser(vae.decoder)], loss, checkpoints / "decoder.safetensors")


def trained_autoencoder(checkpoints: Path) -> AutoencoderKLCogVideoX:
    """The autoencoder as its stages have left it, float32."""
    vae = AutoencoderKLCogVideoX(**VAE)
    vae.load_state_dict(averaged(checkpoints / "vae.safetensors"))
    if (alone := checkpoints / "decoder.safetensors").is_file():
        vae.decoder.load_state_dict(averaged(alone))
    return vae.eval()


def _optimiser(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), RATE, betas=(0.9, 0.99), weight_decay=0.0)


def _difference(decoded: Tensor, pixels: Tensor) -> Tensor:
    """How unlike each other two batches of videos are, above all where the second one moves."""
    moving = (pixels.amax(dim=2) - pixels.amin(dim=2)).amax(dim=1) > MOVES  # [clips, height, width]
    error = (decoded - pixels) * (1 + MOVING_WEIGHT * moving[:, None, None])
    later = pixels.shape[2] // COMPRESSION - 1
    frames = torch.tensor(FIRST_WEIGHTS + later * LATER_WEIGHTS, device=pixels.device)[:, None, None]
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


def _draw_clips(generator: torch.Generator) -> Tensor:
    """A batch of pieces of training clips, as `to_pixels` gives them."""

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
        pieces.append(to_pixels(clip.frames[:, top : top + height, left : left + width]))
    return torch.cat(pieces)


def to_pixels(frames: np.ndarray) -> Tensor:
    """Frames [frames, height, width, 3] uint8 to [1, 3, frames, height, width] float32, -1 ... 1."""
    return rearrange(torch.from_numpy(frames) / 127.5 - 1, "f h w c -> 1 c f h w")


def convolve_fast(vae: nn.Module) -> None:
    """Channels last in every convolution: in bfloat16 on a CPU several times faster."""

    def reorder(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].contiguous(memory_format=torch.channels_last_3d), *inputs[1:])

    for layer in vae.modules():
        if isinstance(layer, nn.Conv3d):
            layer.to(memory_format=torch.channels_last_3d)
            layer.register_forward_pre_hook(reorder)
